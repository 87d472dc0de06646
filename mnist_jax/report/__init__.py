"""Reports runs and evaluations to people.

``numbers.py``      an evaluation as JSON, CSV and text
``figures.py``      one function per figure, from arrays to a PNG
``draw.py``         all figures of an evaluation
``tensorboard.py``  the same figures in TensorBoard
``page.py``         numbers and figures as one self-contained HTML page
"""
