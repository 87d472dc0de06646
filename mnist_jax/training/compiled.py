"""``Compiled`` traces a jitted function at construction and compiles it ahead of time, possibly in another thread.

program = Compiled(jax.jit(function), *shapes)
pool.submit(program.compile)
result = program(*arguments)
"""

from __future__ import annotations

import functools
from typing import Any

import jax


class Compiled:
    """Compiles a jitted function ahead of time, for arguments of given shapes.

    Args:
        function: a jitted function, or any object with its ``lower`` method.
        *args: positional arguments: arrays or their shapes, and the values of static arguments.
        options: options of the XLA compiler.
        **kwargs: keyword arguments, likewise.
    """

    def __init__(self, function: Any, *args: Any, options: dict[str, str | bool] | None = None, **kwargs: Any) -> None:
        self._lowered = function.lower(*args, **kwargs)
        self._options = options

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        return self._lowered.compile(self._options)

    @property
    def out_info(self) -> Any:
        """Shapes and dtypes of the result."""
        return self._lowered.out_info

    def compile(self) -> None:
        """Compiles the function, unless it is compiled already."""
        _ = self._compiled

    def num_bytes(self) -> int:
        """Returns the bytes of arguments, temporaries and results together."""
        sizes = self._compiled.memory_analysis()
        assert sizes is not None
        return (
            sizes.argument_size_in_bytes
            + sizes.temp_size_in_bytes
            + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; leave static arguments out."""
        return self._compiled(*args, **kwargs)
