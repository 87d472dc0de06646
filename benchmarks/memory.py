"""How much memory do an epoch and a whole run take?

For a program: XLA's buffer sizes of arguments (including the data set), temporaries and results. For a whole run: the
peak resident set of its process, and the peak memory of the device if the device reports it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import run_python
from benchmarks.setting import Row, Setting
from mnist_jax import TrainConfig, build_state, train_epoch

_WHOLE_RUN = """
import json, re, resource, sys
from mnist_jax.train import main
status = main(sys.argv[1:])
import jax
device = jax.devices()[0].memory_stats() or {}
try:  # not ru_maxrss, which on Linux starts at the peak of the parent
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
print(json.dumps({"process_peak_bytes": peak, "device_peak_bytes": device.get("peak_bytes_in_use")}))
sys.exit(status)
"""


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each program, then a row for each whole run."""
    split = setting.examples(2_560 if setting.quick else 55_000)
    for model in setting.models:
        for batch_size in (128,) if setting.quick else (128, 1024, 8192):
            config = TrainConfig(model=model, batch_size=batch_size, ema_decay=None)
            analysis = train_epoch.lower(build_state(config), split, batch_size).compile().memory_analysis()
            assert analysis is not None
            yield {
                "name": "epoch program",
                "model": model,
                "batch_size": batch_size,
                "examples": split.num_examples,
                "argument_bytes": analysis.argument_size_in_bytes,
                "temporary_bytes": analysis.temp_size_in_bytes,
                "result_bytes": analysis.output_size_in_bytes,
            }
    for model in setting.models:
        with tempfile.TemporaryDirectory() as directory:
            flags = ["--model", model, "--epochs", "1", "--quiet", "--workdir", str(Path(directory) / "run")]
            flags += [] if setting.data is None else ["--data", setting.data]
            text, _ = run_python(["-c", _WHOLE_RUN, *flags])
        yield {"name": "whole run", "model": model} | json.loads(text.splitlines()[-1])
