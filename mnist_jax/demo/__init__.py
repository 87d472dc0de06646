"""Serves a web page that classifies a digit while it is being drawn.

``server.py``       the web application: the page, and ``POST /api/predict``
``guard.py``        headers of every response; which requests are refused
``limits.py``       queues, and the size and time of a body
``connections.py``  the settings of uvicorn: which connections are closed
``page.html``       the page: one static, self-contained file
``__main__.py``     the command ``python -m mnist_jax.demo``
"""
