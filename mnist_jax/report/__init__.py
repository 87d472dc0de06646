"""What people see of a run or an evaluation.

``numbers.py``      an evaluation as JSON, CSV and text
``figures.py``      one function a figure, from arrays to a PNG
``draw.py``         the figures of an evaluation
``tensorboard.py``  the same figures in TensorBoard
``page.py``         numbers and figures on one page that needs nothing else
"""
