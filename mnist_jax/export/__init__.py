"""Turns a config and a state into the bytes of a file for other programs, one module per format.

``weights.py``     parameters and config, as JSON for NumPy alone, or as safetensors in a third of the space
``stablehlo.py``   the evaluation function, for JAX without this package
``onnx.py``        the evaluation function, for ONNX Runtime
``__main__.py``    the command ``python -m mnist_jax.export``
"""

FORMATS = ("json", "safetensors", "stablehlo", "onnx")
