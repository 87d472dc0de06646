"""Formats rows of cells as a text table.

print(text_table([("run", "epochs"), ("runs/mine", "10")], num_texts=1))
"""

from __future__ import annotations

from collections.abc import Sequence

from mnist_jax.errors import printable


def text_table(rows: Sequence[Sequence[str]], num_texts: int) -> str:
    """Returns a table with a line per row; control characters are escaped.

    Args:
        rows: rows of the same length.
        num_texts: number of columns aligned left; the others are aligned right.

    Example:
        >>> print(text_table([("run", "epochs"), ("runs/mine", "10")], num_texts=1))
        run        epochs
        runs/mine      10
    """
    cells = [[*map(printable, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < num_texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
