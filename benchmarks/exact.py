"""What a suite leaves standing beside the exact answer, on nets that are small enough for it.

    python benchmarks/exact.py --case MODEL,WEIGHTS,DATA,linf:EPS [--case ...] [--auto-attack DIR] [--suite standard] \\
        [--limit 100] [--seconds 60] [--results NAME]

Nets are affine layers and ReLUs in a row, threats are linf. Linear relaxation (CROWN, Zhang et al. 2018, arXiv 1811.00866)
says which ReLUs are open or closed all over the threat, and which classes cannot be reached there; for the others a
mixed-integer program (Tjeng et al. 2019, arXiv 1711.07356) looks for a point at which the class is ahead of the label, with
HiGHS, for at most --seconds. If there is none, up to the solver's tolerances, the sample is verified. A point counts as broken where the model itself
misclassifies it; what is open for want of time, or within rounding, is undecided. DIR holds the public `autoattack`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from verdict import case_of, own, public_autoattack, write_table

from robust.threat import Threat

Array = NDArray[np.float64]
Answer = Literal["verified", "broken", "undecided"]
ROUNDING: Final = 1e-6  # a class counts as reachable where it is behind by no more


class Part(NamedTuple):
    """An affine map, weight (outputs, inputs) and bias (outputs,)."""

    weight: Array
    bias: Array


class Interval(NamedTuple):
    """Lowest and highest values, of the input or of what goes into ReLUs."""

    low: Array
    high: Array


def parts_of(model: nn.Module, shape: Sequence[int]) -> list[Part]:
    """The affine maps between the ReLUs, for inputs (1, *shape)."""
    if type(model) is not nn.Sequential:  # others may do more than their layers in a row
        raise SystemExit(f"exact: expected a torch.nn.Sequential, got {type(model).__name__}")
    parts: list[Part] = []
    layers: list[nn.Module] = []
    x = torch.zeros(1, *shape, dtype=torch.float64)
    for layer in copy.deepcopy(model).double():
        if not isinstance(layer, nn.ReLU | nn.Flatten | nn.Linear | nn.Conv2d):
            raise SystemExit(f"exact: expected affine layers and ReLUs, got {type(layer).__name__}")
        if isinstance(layer, nn.ReLU):
            part, x = _affine(layers, x)
            parts.append(part)
            layers = []
        else:
            layers.append(layer)
    return [*parts, _affine(layers, x)[0]]


@torch.no_grad()
def _affine(layers: Sequence[nn.Module], like: Tensor) -> tuple[Part, Tensor]:
    """What layers do in a row, and an output of theirs, of zeros."""
    run = nn.Sequential(*layers)
    at_zero = run(torch.zeros_like(like))
    of_each = run(torch.eye(like.numel(), dtype=like.dtype).view(-1, *like.shape[1:]))
    weight = (of_each - at_zero).flatten(1).T
    return Part(weight.numpy(), at_zero.flatten().numpy()), torch.zeros_like(at_zero)


def upper(parts: Sequence[Part], box: Interval, inner: Sequence[Interval], rows: Array) -> Array:
    """Upper bounds of rows @ the last part's output over the box; inner: what goes into the ReLUs before it."""
    constant = np.zeros(len(rows))
    for part, ahead in zip(reversed(parts), [*reversed(inner), None], strict=True):
        constant = constant + rows @ part.bias
        rows = rows @ part.weight
        if ahead is not None:
            rows, lift = _through(ahead, rows)
            constant = constant + lift
    return constant + np.maximum(rows, 0) @ box.high + np.minimum(rows, 0) @ box.low


def _through(ahead: Interval, rows: Array) -> tuple[Array, Array]:
    """rows @ ReLU(z) is at most the first @ z + the second, for z in the interval."""
    low, high = np.minimum(ahead.low, 0), np.maximum(ahead.high, 0)
    slope = high / np.maximum(high - low, 1e-300)
    under = (high > -low).astype(float)  # 0 or z, the nearer
    rising, falling = np.maximum(rows, 0), np.minimum(rows, 0)
    return rising * slope + falling * under, -(rising * slope) @ low


def inner_intervals(parts: Sequence[Part], box: Interval) -> list[Interval]:
    """Of what goes into each layer of ReLUs."""
    found: list[Interval] = []
    for last in range(len(parts) - 1):
        each = np.eye(len(parts[last].bias))
        low, high = (sign * upper(parts[: last + 1], box, found, sign * each) for sign in (-1, 1))
        found.append(Interval(low, high))
    return found


def reach(
    parts: Sequence[Part], box: Interval, inner: Sequence[Interval], row: Array, seconds: float
) -> tuple[Array | None, bool]:
    """A point at which row @ logits is 0 or more, if one was found, and whether there can be none."""
    places, switches = _places(box, inner)
    total = switches[-1].stop
    low, high, whole = np.zeros(total), np.ones(total), np.zeros(total)
    low[places[0]], high[places[0]] = box
    rules: list[LinearConstraint] = []
    for part, ahead, before, after, switch in zip(
        parts, inner, places, places[1:], switches[1:], strict=False
    ):
        low[after], high[after] = np.maximum(ahead.low, 0), np.maximum(ahead.high, 0)
        whole[switch] = 1
        rules += _relus(part, ahead, before, after, switch, total)
    last = parts[-1]
    goal = np.zeros(total)
    goal[places[-1]] = row @ last.weight
    rules.append(LinearConstraint(goal[None], -ROUNDING - row @ last.bias, np.inf))
    found = milp(
        -goal,
        constraints=rules,
        bounds=Bounds(low, high),
        integrality=whole,
        options={"time_limit": seconds},
    )
    return None if found.x is None else found.x[places[0]], found.status == 2


def _places(box: Interval, inner: Sequence[Interval]) -> tuple[list[slice], list[slice]]:
    """Where the input's and each layer's values stand among the program's variables, and the switches of open ReLUs."""
    places, at = [], 0
    for values in (box, *inner):
        places.append(slice(at, at + len(values.low)))
        at = places[-1].stop
    switches = [slice(at, at)]
    for ahead in inner:
        switches.append(slice(at, at + int(_unsettled(ahead).sum())))
        at = switches[-1].stop
    return places, switches


def _unsettled(ahead: Interval) -> NDArray[np.bool_]:
    """Which ReLUs are open at some points and closed at others."""
    unsettled: NDArray[np.bool_] = (ahead.low < 0) & (ahead.high > 0)
    return unsettled


def _relus(
    part: Part, ahead: Interval, before: slice, after: slice, switch: slice, total: int
) -> list[LinearConstraint]:
    """after = ReLU(part(before)); those that are always closed are held by their variable's bounds."""
    unsettled, always = _unsettled(ahead), ahead.low >= 0
    size = len(part.bias)

    def rule(
        which: NDArray[np.bool_], low: Any, high: Any, *, of_input: bool = True, switched: Any = 0.0
    ) -> LinearConstraint:
        """Bounds of after - weight @ before + switched * switch."""
        matrix = sparse.lil_matrix((int(which.sum()), total))
        matrix[:, after] = np.eye(size)[which]
        if of_input:
            matrix[:, before] = -part.weight[which]
        if np.any(switched):
            matrix[:, switch] = np.diag(switched)
        return LinearConstraint(matrix.tocsr(), low, high)

    low, high = ahead.low[unsettled], ahead.high[unsettled]
    bias = part.bias[unsettled]
    rules = [
        rule(always, part.bias[always], part.bias[always]),
        rule(unsettled, bias, np.inf),
        rule(unsettled, -np.inf, bias - low, switched=-low),
        rule(unsettled, -np.inf, 0, of_input=False, switched=-high),
    ]
    return [each for each in rules if each.A.shape[0]]


def examine(
    model: nn.Module, parts: Sequence[Part], x: Tensor, label: int, threat: Threat, seconds: float
) -> Answer:
    """Of a sample (1, *shape) that the model classifies as its label; a threat of linf in the unit box."""
    if threat.norm != "linf":
        raise SystemExit(f"exact: expected a threat of linf, got {threat}")
    low, high = (
        edge.flatten().double().numpy()
        for edge in ((x - threat.radius).clamp(min=0), (x + threat.radius).clamp(max=1))
    )
    box = Interval(low, high)
    inner = inner_intervals(parts, box)
    others = np.delete(np.eye(len(parts[-1].bias)), label, 0)
    others[:, label] = -1
    answer: Answer = "verified"
    heights = upper(parts, box, inner, others)
    for i in np.argsort(-heights)[: int((heights >= -ROUNDING).sum())]:
        point, none = reach(parts, box, inner, others[i], seconds)
        if point is not None and _misclassified(model, x, point, label, threat):
            return "broken"
        if not none:
            answer = "undecided"
    return answer


@torch.no_grad()
def _misclassified(model: nn.Module, x: Tensor, point: Array, label: int, threat: Threat) -> bool:
    """By the model itself, the point being brought into the threat."""
    at = torch.from_numpy(point).to(x.dtype).view_as(x)
    at = (x + (at - x).clamp(-threat.radius, threat.radius)).clamp(0, 1)
    return int(model(at).argmax()) != label


def row(case: str, options: argparse.Namespace) -> str:
    name, model, samples, threat = case_of(case, options.limit)
    x, y = samples.rows(slice(None)), samples.y
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    standing = own(model, samples, threat, options.suite).survives
    parts = parts_of(model, x.shape[1:])
    start = time.perf_counter()
    answers = [
        examine(model, parts, x[i : i + 1], int(y[i]), threat, options.seconds)
        for i in standing.nonzero().flatten().tolist()
    ]
    seconds = time.perf_counter() - start
    counts = " | ".join(str(answers.count(answer)) for answer in ("verified", "broken", "undecided"))
    public = "-"
    if options.auto_attack:
        public = str(int(public_autoattack(options.auto_attack, model, x, y, threat).survives.sum()))
    return f"| {name} {threat} | {int(clean.sum())} | {public} | {int(standing.sum())} | {counts} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="most for a class of a sample")
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot")
    options = parser.parse_args()
    lines = [
        f"# {options.limit} images each, beside the exact answer",
        "",
        f"| model and threat | classified | public AutoAttack leaves | {options.suite} leaves | of these verified | broken | undecided | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    public = " --auto-attack DIR" * bool(options.auto_attack)
    command = f"python benchmarks/exact.py{public} --suite {options.suite} --limit {options.limit} --seconds {options.seconds:g}"
    write_table(
        lines,
        f"Command: {command}, with the cases named in the rows.",
        lambda case: [row(case, options)],
        options,
    )


if __name__ == "__main__":
    main()
