"""What `robust.diagnose.slope` measures of honest models: what its thresholds are chosen by.

python benchmarks/slopes.py [--results NAME] --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

Medians of six samples, or of twelve where six leave a doubt: the slope along the gradient as a share of the steepest; how many times as fast as the gradient
says the margin rises along it nearby ("-" where in proportion, or the surface is not straight there); what of that lasts
over the threat's scale ("-" where the threat is too small to tell); and the cosine of the slopes along random directions and
those that the gradient says ("-" where the surface is not straight), which is to be over 0.97. And the passes that it took, both ways.
"""

from __future__ import annotations

import argparse

import torch
from verdict import case_of, write_figures

from robust.diagnose import slope
from robust.target import Target

_LOOKED_AT = 64  # samples, of which the first that are right are taken


def measured(case: str) -> list[str]:
    """The row of one case."""
    name, model, samples, threat = case_of(case, _LOOKED_AT)
    x, y = samples.rows(slice(None)), samples.y
    with Target(model, device="cpu") as target:
        with torch.no_grad():
            right = target.logits(x).argmax(1) == y
        found = slope.uphill(target, x[right], y[right], threat)
    figures = [_text(figure, 2) for figure in (found.share, found.excess, found.lasting)]
    return [f"{name} {threat}", *figures, _text(found.alike, 3), str(found.forwards + found.backwards)]


def _text(figure: float, digits: int) -> str:
    return "-" if figure != figure else f"{figure:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    heads = (
        "model and threat", "share of the steepest", "times what the gradient says", "lasting", "cosine", "passes",
    )  # fmt: skip
    rows = [measured(case) for case in options.case]
    write_figures("Slopes of honest models", heads, rows, "slopes.py", options.results)


if __name__ == "__main__":
    main()
