"""Formats: a config and a state as the bytes of a file for other programs, one file a format.

``weights.py``     parameters and config, for NumPy alone (json) or in a third of the space (safetensors)
``stablehlo.py``   the function itself, for JAX without this code
``onnx.py``        the function itself, for ONNX Runtime
``__main__.py``    the command ``python -m mnist_jax.export``
"""

FORMATS = ("json", "safetensors", "stablehlo", "onnx")
