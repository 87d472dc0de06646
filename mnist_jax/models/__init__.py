"""Models: the MLP, the CNN and its convolution, dropout, and adapters for any other model."""
