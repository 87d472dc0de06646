"""``python -m mnist_jax.explain RUN FILE`` shows the training digits that a prediction rests on.

python -m mnist_jax.explain runs/mine four.png --output why.png   # why was this 4 read as a 9?
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_jax.cli.flags import OneLineParser, add_jax_flags, run_command
from mnist_jax.cli.table import text_table
from mnist_jax.errors import InputError, printable
from mnist_jax.home import prepare_matplotlib
from mnist_jax.pictures.results import check_new_file

if TYPE_CHECKING:
    from mnist_jax.pictures.predictor import Prediction
    from mnist_jax.training.explanation import Explainer, Explanation


def explanation_table(explanation: Explanation, class_names: Sequence[str]) -> str:
    """Returns a text table with a line per training example: helpful ones, then opposing ones."""
    rows = [("speaks", "training example", "label", "score")]
    for effect, influences in (("for", explanation.helpful), ("against", explanation.opposing)):
        rows += [(effect, str(each.index), class_names[each.label], f"{each.score:+.3g}") for each in influences]
    return text_table(rows, num_texts=1)


def _draw(
    explainer: Explainer,
    prediction: Prediction,
    explanation: Explanation,
    names: Sequence[str],
    title: str,
    output: str,
) -> None:
    import numpy as np

    from mnist_jax.report.figures import influence_grid

    prepare_matplotlib()
    title = f"{title}\ntraining digits that speak for {names[explanation.label]} and, in red, against it"
    helpful, opposing = (
        np.array([explainer.split.image[each.index] for each in side]).reshape(-1, 28, 28, 1)
        for side in (explanation.helpful, explanation.opposing)
    )
    helpful_captions, opposing_captions = (
        [f"label {names[each.label]}\n{each.score:+.2g}" for each in side]
        for side in (explanation.helpful, explanation.opposing)
    )
    captions = helpful_captions, opposing_captions
    try:
        influence_grid(prediction.image, helpful, opposing, *captions, Path(output), title.replace("$", r"\$"))
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror})") from None


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.explain") -> int:
    """Parses ``args`` (default: the command line), and explains the prediction for each picture."""

    def command() -> None:
        description = (
            "Show the training digits that a prediction rests on: those that spoke most for the class, and most "
            "against it. The first call for a run computes gradients of all its training digits, and caches them."
        )
        parser = OneLineParser(prog, description, "runs/mine four.png --output why.png")
        parser.add_argument("run", metavar="RUN", help="directory of the run; its training data must still be there")
        parser.add_argument("file", nargs="+", metavar="FILE", help="a picture of one digit")
        parser.add_argument("--label", metavar="CLASS", help="explain this class; default: the predicted one")
        help_ = "training digits to show on each side; default: 6"
        parser.add_argument("--num-examples", type=int, default=6, metavar="INT", help=help_)
        parser.add_argument("--output", metavar="PNG", help="write a new PNG with the digits, for one FILE")
        add_jax_flags(parser)
        flags = parser.parse_args(args)
        if flags.num_examples < 1:
            raise InputError(f"--num-examples must be at least 1, got {flags.num_examples}")
        if flags.output is not None:
            if not flags.output.lower().endswith(".png"):
                raise InputError(f"--output must be a .png file, got {flags.output}")
            if len(flags.file) > 1:
                raise InputError(f"expected one picture for --output, got {len(flags.file)}")
            check_new_file("--output", flags.output)

        from mnist_jax.training.explanation import load_explainer
        from mnist_jax.training.network import load_predictor

        predictor = load_predictor(flags.run)
        if flags.label is not None and flags.label not in predictor.class_names:
            raise InputError(f"--label must be one of {', '.join(predictor.class_names)}, got {flags.label}")
        predictions = [predictor(name) for name in flags.file]  # before the long part
        explainer = load_explainer(flags.run)
        for name, prediction in zip(flags.file, predictions, strict=True):
            start_time = time.perf_counter()
            label = prediction.label if flags.label is None else predictor.class_names.index(flags.label)
            explanation = explainer(prediction.image, label, flags.num_examples)
            seconds = time.perf_counter() - start_time
            probability = 100 * float(prediction.probabilities.max())
            title = f"{printable(name)}: read as {prediction.class_name} ({probability:.1f} %)"
            print(title)
            print(f"training digits that speak for and against {predictor.class_names[label]} ({seconds:.2f} s):")
            print(explanation_table(explanation, predictor.class_names))
            if flags.output is not None:
                _draw(explainer, prediction, explanation, predictor.class_names, title, flags.output)
                print(f"the picture is {flags.output}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
