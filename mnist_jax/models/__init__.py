"""Models: the MLP, the CNN and its convolution, and adapters for any other model."""
