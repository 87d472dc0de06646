"""The draw-a-digit page: a digit is drawn in the browser, and the network's probabilities follow the pen.

``server.py``    the web application: the page, and ``POST /api/predict``
``page.html``    the page: one static file that asks for nothing elsewhere
``__main__.py``  the command ``python -m mnist_jax.demo``
"""
