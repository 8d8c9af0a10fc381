"""What `robust.diagnose.boundary` measures of honest models, and what straightening shares gains on bent ones.

python benchmarks/bends.py [--limit 100] [--results NAME] --case MODEL,WEIGHTS,DATA,THREAT [--case ...] [--bent]

Of each model the power of the way that is left by which its margin falls towards a boundary (the median of six samples, or of
twelve where six leave a doubt) and how far it jumps there, in clean margins. With --bent the models are measured behind changes of
their logits, too, that keep each prediction and so the robust accuracy: the margin's square root and its power of .3, logits
divided by the first less the third, and a winner that is raised. `standard` runs on each, as it is and with shares as they come:
the samples that stand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final
from unittest import mock

import torch
from torch import Tensor, nn
from verdict import case_of, write_figures

import robust
from robust.diagnose import boundary
from robust.sources import Samples
from robust.target import Target
from robust.threat import Threat

_LOOKED_AT: Final = 12
_RAISED: Final = 3.4


def _power(to: float) -> Callable[[Tensor], Tensor]:
    def bend(logits: Tensor) -> Tensor:
        first, second = logits.topk(2, 1)[0].split(1, 1)
        return logits * (first - second + 1e-3) ** (to - 1)

    return bend


def _divided(logits: Tensor) -> Tensor:
    first, _, third = logits.topk(3, 1)[0].split(1, 1)
    return logits / (first - third + 1e-6)


def _raised(logits: Tensor) -> Tensor:
    (first, second), (winner, _) = (of.split(1, 1) for of in logits.topk(2, 1))
    return logits.scatter_add(1, winner, _RAISED * torch.tanh((first - second) / 0.1))


BENDS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "margin to the power of .5": _power(0.5),
    "margin to the power of .3": _power(0.3),
    "divided by first less third": _divided,
    "winner raised": _raised,
}


class Behind(nn.Module):
    """A model behind a change of its logits."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


def looked_at(model: nn.Module, samples: Samples) -> list[str]:
    """The power and the jump."""
    with Target(model, device="cpu") as target:
        found = boundary.look(target, samples.rows(slice(_LOOKED_AT)), samples.y[:_LOOKED_AT])
    return [f"{found.bend:.2f}", f"{found.jump:.2f}", str(found.forwards)]


def standing(model: nn.Module, samples: Samples, threat: Threat) -> list[str]:
    """Samples that stand, passes and trust, with shares straightened, and samples that stand and passes without."""
    report = robust.evaluate(model, samples, threat=threat, device="cpu")
    with mock.patch.object(boundary, "BENT", 0.0):
        before = robust.evaluate(model, samples, threat=threat, device="cpu")
    return [str(_left(report)), str(_passes(report)), report.trust, str(_left(before)), str(_passes(before))]


def _left(report: robust.Report) -> int:
    return int((report.verdicts["status"] == "survived").sum())


def _passes(report: robust.Report) -> int:
    return int((report.verdicts["forwards"] + report.verdicts["backwards"]).sum())


_SEEN: Final = ("power", "jump", "passes")
_STANDING: Final = ("stand", "passes of attacks", "trust", "stand without", "passes without")


def rows_of(case: str, limit: int, *, bent: bool) -> list[list[str]]:
    """The model's row, or those of it behind each change of its logits as well."""
    name, model, samples, threat = case_of(case, limit)
    if not bent:
        return [[name, *looked_at(model, samples)]]
    models = {"as it is": model} | {kind: Behind(model, change).eval() for kind, change in BENDS.items()}
    return [
        [f"{name} {threat}", kind, *looked_at(one, samples), *standing(one, samples, threat)]
        for kind, one in models.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--bent", action="store_true", help="change the logits, and attack")
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    rows = [row for case in options.case for row in rows_of(case, options.limit, bent=options.bent)]
    title = "Bent margins" if options.bent else "Margins of honest models"
    heads = ("model and threat", "logits", *_SEEN, *_STANDING) if options.bent else ("model", *_SEEN)
    command = f"bends.py --limit {options.limit}{' --bent' * options.bent}"
    write_figures(f"{title}, on the way to the boundary", heads, rows, command, options.results)


if __name__ == "__main__":
    main()
