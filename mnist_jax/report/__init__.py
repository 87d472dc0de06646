"""Reports runs and evaluations to people.

``numbers.py``      an evaluation as JSON, CSV and text
``figures.py``      one function per figure, from arrays to a PNG
``draw.py``         all figures of an evaluation
``tensorboard.py``  the same figures in TensorBoard
``page.py``         numbers and figures as one self-contained HTML page

Import this package before Matplotlib: it chooses a directory for Matplotlib's files if the default cannot be written.
"""

import os
from pathlib import Path

from mnist_jax.data.home import can_create, temporary_home

for _name, _default in (("XDG_CONFIG_HOME", "~/.config"), ("XDG_CACHE_HOME", "~/.cache")):
    _path = Path(os.environ.get(_name) or _default, "matplotlib")
    if "MPLCONFIGDIR" not in os.environ and not can_create(_path):
        os.environ["MPLCONFIGDIR"] = str(temporary_home(_path) / "matplotlib")
