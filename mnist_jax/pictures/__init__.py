"""Classifies pictures of digits, in three steps.

``decode.py``      reads a file as grey pixels
``normalize.py``   turns a drawing or photograph into a 28x28 image in the format of MNIST
``segment.py``     finds which ink belongs to which digit
``predictor.py``   predicts the class probabilities of an image
"""
