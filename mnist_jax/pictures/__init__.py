"""Classifies pictures of digits, in three steps.

``decode.py``      reads a file as grey pixels
``normalize.py``   turns a drawing or photograph into a 28x28 image in the format of MNIST
``predictor.py``   predicts the class probabilities of an image
"""
