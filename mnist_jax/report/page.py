"""Renders an evaluation as one self-contained HTML page with numbers and figures.

    text = html_report(content, {"confusion matrix": Path("confusion_matrix.png")}, config)

Reference: the pictures are data URLs, https://www.rfc-editor.org/rfc/rfc2397.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from mnist_jax.config import MODEL_FIELDS, TrainConfig, check_effect
from mnist_jax.errors import InputError

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       background: light-dark(#fff, #16181c); color: light-dark(#1b1d21, #e6e6e6); }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h1, .soft { overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.soft { color: var(--soft); margin-top: 0; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.numbers div { flex: 1 1 8rem; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem clamp(.3rem, 2vw, .9rem); text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
details td { text-align: left; overflow-wrap: anywhere; }
details th { text-align: left; }
summary { cursor: pointer; margin-top: 1.5rem; }
.figure { overflow-x: auto; background: #fff; border-radius: .5rem; }
img { display: block; max-width: 100%; max-height: 64rem; margin: auto; padding: .5rem; box-sizing: border-box; }
.enlarge { display: none; }
@media (prefers-color-scheme: dark) { .figure { background: #e4e4e4; } img { mix-blend-mode: multiply; } }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  table { font-size: .85rem; }
  img { padding: .25rem; }
  .enlarge { display: block; }
  .figure:focus img { width: 60rem; max-width: none; max-height: none; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$subtitle</p>
<div class="numbers">$numbers</div>
<p class="soft enlarge">Tap a figure to enlarge it.</p>
$curves
<details><summary>Hyperparameters</summary>
<p class="soft">The first ones differ from the defaults.</p>
<div class="scroll">$hyperparameters</div></details>
<h2>By class</h2>
<div class="scroll">$classes</div>
$figures
</body>
</html>
""")


def html_report(content: Mapping[str, Any], figures: Mapping[str, Path], config: TrainConfig) -> str:
    """Returns the page as HTML.

    Args:
        content: content of ``evaluation.json``.
        figures: path of each PNG by name, in display order; ``learning curves`` come first.
        config: config of the run.
    """
    pictures = {name: _figure(name, path) for name, path in figures.items()}
    numbers = {
        "accuracy": f"{content['accuracy']:.2%}",
        "loss, nats": f"{content['loss']:.4f}",
        "misclassified": f"{len(content['misclassified']):,} of {content['num_examples']:,}",
        "expected calibration error": f"{content['expected_calibration_error']:.2%}",
    }
    if "calibrated" in content:
        scaled = content["calibrated"]
        numbers[f"the same with temperature {scaled['temperature']:.3f}"] = (
            f"{scaled['expected_calibration_error']:.2%}"
        )
    classes = [
        [row["name"], f"{row['num_examples']:,}", *(f"{row[name]:.2%}" for name in ("precision", "recall", "f1"))]
        for row in content["classes"]
    ]
    return _PAGE.substitute(
        title=escape(f"{content['model']} on {content['dataset']}"),
        subtitle=escape(f"{content['num_examples']:,} {content['split']} examples, run {content['run']}"),
        numbers="".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in numbers.items()),
        classes=_table(["class", "examples", "precision", "recall", "F1"], classes),
        curves=pictures.pop("learning curves", ""),
        figures="\n".join(pictures.values()),
        hyperparameters=_hyperparameters(config, content["model"]),
    )


def _hyperparameters(config: TrainConfig, model: str) -> str:
    """Returns the table of the fields that have an effect on the training; those of a user's own model are unknown."""
    changed, unchanged = [], []
    for name, value in config.training_fields().items():
        default = getattr(TrainConfig, name)
        if value != default:
            changed.append((name, value, default))
        elif name not in MODEL_FIELDS or model == config.model:
            with contextlib.suppress(InputError):
                check_effect(name, vars(config))
                unchanged.append((name, value, ""))
    return _table(["hyperparameter", "value", "default"], [*changed, *unchanged])


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    head = "".join(f"<th>{name}</th>" for name in header)
    return "\n".join(["<table>", f"<tr>{head}</tr>", *lines, "</table>"])


def _figure(name: str, path: Path) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(name)}" src="data:image/png;base64,{picture}">'
    return f'<h2>{escape(name.capitalize())}</h2>\n<div class="figure" tabindex="0">{image}</div>'
