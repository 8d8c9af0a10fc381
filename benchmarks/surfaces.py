"""What `robust.diagnose` sees of honest models' surfaces on a few samples: what its thresholds are chosen by.

python benchmarks/surfaces.py [--results NAME] --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

The margin's third differences along its gradient, as a share of its first ones (`rough-surface` asks for over 60 %,
`scattered-gradients` for over 40 %; "-" where the threat is too small to tell); and the share of the samples whose gradients at
random points around agree to a cosine under 0.5 on average (`scattered-gradients` asks for over 25 % as well). And what is told.
"""

from __future__ import annotations

import argparse

import torch
from verdict import case_of, write_figures

from robust.diagnose import PREFLIGHT_SAMPLES, preflight, roughness, scattering
from robust.target import Target

_ROUNDING = 1e-6


def measured(case: str) -> list[str]:
    """The row of one case."""
    name, model, samples, threat = case_of(case, PREFLIGHT_SAMPLES)
    x, y = samples.rows(slice(None)), torch.as_tensor(samples.y)
    with Target(model, device="cpu") as target:
        told = [finding.check for finding in preflight(target, x, y, threat).findings]
        uneven = roughness.rough(target, x, y, threat, _ROUNDING).share
        apart = scattering.scattered(target, x, y, threat)
    figures = ("-" if figure != figure else f"{figure:.2f}" for figure in (uneven, apart))
    return [f"{name} {threat}", *figures, ", ".join(told) or "-"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    heads = ("model and threat", "uneven", "scattered", "told")
    rows = [measured(case) for case in options.case]
    write_figures("Surfaces of honest models", heads, rows, "surfaces.py", options.results)


if __name__ == "__main__":
    main()
