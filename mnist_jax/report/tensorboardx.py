"""Imports from tensorboardX what event files need, without PyTorch.

from mnist_jax.report.tensorboardx import Event, SessionLog, Summary, masked_crc32c

``import tensorboardX`` imports PyTorch where that is installed, which takes two seconds. Only its messages and
checksums are needed, which do not.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["Event", "SessionLog", "Summary", "masked_crc32c"]

_name = "tensorboardX"
_is_imported = _name in sys.modules
if not _is_imported:
    _spec = importlib.util.find_spec(_name)
    assert _spec is not None, "tensorboardX is a dependency"
    sys.modules[_name] = importlib.util.module_from_spec(_spec)  # the package, but not its __init__.py
try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c
finally:
    if not _is_imported:  # whoever imports it next gets all of it
        for _each in [each for each in list(sys.modules) if each.partition(".")[0] == _name]:
            del sys.modules[_each]
