"""A person's picture of a digit, on its way to a prediction.

``decode.py``      a file becomes grey pixels
``normalize.py``   any drawing or photograph becomes a 28x28 image as MNIST's are
``predictor.py``   an image becomes the probabilities of the classes
"""
