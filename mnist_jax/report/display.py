"""Shows a run and its learning curves in a notebook.

figure = add_notebook_display(draw_learning_curves(history, "mlp on mnist"))
text = run_html(summary, figure)
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text and lines take the colours of the page, which may be light or dark; the picture brings its own white.
_RUN = Template("""\
<div>
<p><b>$model</b> on $about</p>
<table>
<tr><th>split</th><th>examples</th><th>loss</th><th>accuracy</th></tr>
$rows
</table>
<p>$seconds</p>
<img alt="learning curves" width="$width" style="max-width: 100%; border-radius: 8px; background: #fff"
 src="data:image/png;base64,$picture">
</div>
""")


def add_notebook_display(figure: Figure) -> Figure:
    """Adds the method with which a notebook shows a figure, which those outside pyplot lack; returns the figure."""
    vars(figure)["_repr_png_"] = functools.partial(_draw_png, figure)
    return figure


def run_html(summary: Mapping[str, Any], figure: Figure) -> str:
    """Returns the final numbers of a run and its learning curves as HTML.

    Args:
        summary: content of ``summary.json``.
        figure: the learning curves.
    """
    epochs, seconds = summary["epochs"], summary["seconds"]
    rows = [
        (
            split,
            f"{summary[f'num_{split}']:,}",
            f"{summary[f'{split}_loss']:.4f}",
            f"{summary[f'{split}_accuracy']:.2%}",
        )
        for split in ("train", "validation", "test")
    ]
    picture, size = _draw_png(figure)
    return _RUN.substitute(
        model=escape(summary["model"]),
        about=escape(
            f"{summary['dataset']}, {summary['num_parameters']:,} parameters, {epochs} epoch{'s' * (epochs != 1)}, "
            f"seed {summary['seed']}, {summary['device']['kind']}"
        ),
        rows="\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows),
        seconds=f"{seconds['train']:.1f} s training, {seconds['total']:.1f} s in all",
        width=size["width"],
        picture=base64.b64encode(picture).decode(),
    )


def _draw_png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """Returns a PNG at 150 dots per inch, and the size at which a notebook shows it, at 100."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    width, height = figure.get_size_inches() * 100
    return file.getvalue(), {"width": round(width), "height": round(height)}
