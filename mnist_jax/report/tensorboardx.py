"""Imports from tensorboardX what event files need, without PyTorch.

from mnist_jax.report.tensorboardx import Event, SessionLog, Summary, masked_crc32c

``import tensorboardX`` imports PyTorch where that is installed, which takes two seconds. Only its messages and
checksums are needed, which do not.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["Event", "SessionLog", "Summary", "masked_crc32c"]

_imported = sys.modules.get("tensorboardX")
if _imported is None:
    _spec = importlib.util.find_spec("tensorboardX")
    assert _spec is not None, "tensorboardX is a dependency"
    sys.modules["tensorboardX"] = importlib.util.module_from_spec(_spec)  # the package, but not its __init__.py
try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c
finally:
    if _imported is None:
        del sys.modules["tensorboardX"]  # whoever imports it next gets all of it
