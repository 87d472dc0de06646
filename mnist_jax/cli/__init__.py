"""What the commands share (``flags.py``), and the one command that holds them all (``main.py``)."""
