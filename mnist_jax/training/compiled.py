"""``Compiled``: a jitted function that is traced here and compiled ahead, perhaps in another thread.

program = Compiled(jax.jit(function), *shapes)
pool.submit(program.compile)
result = program(*arguments)
"""

from __future__ import annotations

import functools
from typing import Any

import jax


class Compiled:
    """A jitted function for arguments of given shapes.

    Args:
        function: jitted, or anything with its ``lower``.
        *args: arguments, or their shapes, and values of the static ones.
        options: of the XLA compiler.
        **kwargs: the same by keyword.
    """

    def __init__(self, function: Any, *args: Any, options: dict[str, str | bool] | None = None, **kwargs: Any) -> None:
        self._lowered = function.lower(*args, **kwargs)
        self._options = options

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        return self._lowered.compile(self._options)

    @property
    def out_info(self) -> Any:
        """Shapes and dtypes of what the function returns."""
        return self._lowered.out_info

    def compile(self) -> None:
        """Compiles, unless that has been done."""
        _ = self._compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function with all but its static arguments."""
        return self._compiled(*args, **kwargs)
