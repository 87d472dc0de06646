"""Networks: the two of this package, the convolution they run on, and adapters for everybody else's."""
