"""The redesign changed no number: final parameters equal those of the commit before it, bit for bit.

Both versions train in processes of their own, on this machine, since the last bits differ between processors.
"""

import io
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import write_idx_files

from mnist_jax.data.digits import load_digits

ROOT = Path(__file__).parent.parent
BEFORE = "cd8895a"  # the last commit of the first version

TRAIN = """
import sys, jax, numpy as np
from mnist_jax import TrainConfig, fit, train_population
small = dict(data=sys.argv[2], num_validation=150, epochs=2, dropout_rate=0.0, quiet=True)  # dropout draws other bits
configs = {
    "mlp": TrainConfig(**small),
    "cnn": TrainConfig(model="cnn", **small),
    "augmented": TrainConfig(batch_norm=True, augment_shift=1, augment_rotation=8, augment_elastic=0.7, **small),
}
found = {name: fit(config).state.params for name, config in configs.items()}
rates = {"learning_rate": [1e-3, 3e-3, 1e-2]}
found["population"] = train_population(TrainConfig(hidden_sizes=(64,), **small), [0, 1, 2], rates).states.params
leaves = jax.tree_util.tree_leaves_with_path(found)
np.savez(sys.argv[1], **{jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves})
"""


def train(source, data, directory):
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, "found.npz", str(data)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(directory / "found.npz") as found:
        return dict(found)


@pytest.mark.slow
def test_the_same_parameters_as_before_the_redesign_bit_for_bit(tmp_path):
    archive = subprocess.run(["git", "archive", BEFORE, "mnist_jax"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"needs the history of the repository, back to {BEFORE}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path / "before", filter="data")
    data = write_idx_files(tmp_path / "digits", load_digits())
    with ThreadPoolExecutor() as pool:
        before, now = pool.map(train, (tmp_path / "before", ROOT), (data, data), (tmp_path / "old", tmp_path / "new"))
    assert before.keys() == now.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(now[name], leaf, err_msg=name, strict=True)
