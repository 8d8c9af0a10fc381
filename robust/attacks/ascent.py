"""What the searches that ascend towards one class at a time share: starts, steps, schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robust.attacks.geometry import ahead, choose, into_box_then_ball, movable, moved
from robust.errors import InputError
from robust.losses import gap_to
from robust.oracle import Oracle, State
from robust.replayed import Replayed
from robust.rng import Streams
from robust.threat import Threat


class Step(NamedTuple):
    """One step of an ascent."""

    inside: Threat  # the set to stay in
    size: float  # in the threat's norm
    first: bool  # the first step in this set


def classes_in_turn(oracle: Oracle, s: State, most: int) -> Iterator[int]:
    """A loop over the wrong classes, whichever was seen to come nearest of those left: 0, 1, ... below `most`.

    s.aim (N, 1) is the class in turn. Also begins s.x_adv, s.previous and s.weights (N, C), of the logits, for `diversify`
    and `climb`.
    """
    s.x_adv = s.previous = oracle.x
    s.aim = oracle.y[:, None]
    s.tried = torch.zeros_like(oracle.gaps, dtype=torch.bool).scatter(1, s.aim, True)
    s.weights = torch.zeros_like(oracle.gaps)
    for rank in oracle.steps(min(most, s.tried.shape[1] - 1)):
        s.aim = oracle.gaps.masked_fill(s.tried, -torch.inf).argmax(1, keepdim=True)
        s.tried = s.tried.scatter(1, s.aim, True)
        yield rank


def schedule(threat: Threat, radii: tuple[float, ...], steps: int, *, size: float = 2.0) -> Iterator[Step]:
    """The radii in turn, in about equal shares of the steps; in each the step falls from `size` radii by a cosine."""
    length, spare = divmod(steps, len(radii))
    for i, factor in enumerate(radii):
        inside, count = scaled(threat, factor), length + (i < spare)
        for k in range(count):
            share = (1 + math.cos(math.pi * k / (count + 1))) / 2
            yield Step(inside, size * inside.radius * (0.01 + 0.99 * share), k == 0)


def diversify(oracle: Oracle, s: State, steps: int, streams: Streams, factor: float = 1.0) -> None:
    """Move s.x_adv along random weights of the logits, leaning from the label to s.aim (ODI, arXiv 2003.06878).

    Args:
        s: has s.x_adv, s.aim, and s.weights (N, C), which gets the weights (see `classes_in_turn`).
        steps: of the whole radius each.
        factor: the set to stay in, in units of eps.
    """
    inside = scaled(oracle.threat, factor)
    weights = streams.child("odi").uniform((s.weights.shape[1],), -1, 1)
    s.weights = weights.scatter(1, s.aim, 0.8).scatter(1, oracle.y[:, None], -0.8)
    for _ in oracle.steps(steps):
        gradient = oracle.slope(s.x_adv, s.weights).gradient
        s.x_adv = oracle.brought_into(inside, ahead(s.x_adv, gradient, inside, inside.radius))


def begin_ascent(oracle: Oracle, s: State) -> None:
    """Before the first `climb` of an ascent from s.x_adv towards s.aim."""
    s.previous = s.x_adv
    s.weights = gap_weights(s.weights, oracle.y, s.aim)


def gap_weights(like: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """Weights of the logits whose sum is the gap to a class: like (N, C), labels (N,), classes (N, 1) -> (N, C)."""
    return torch.zeros_like(like).scatter_(1, aim, 1.0).scatter_(1, y[:, None], -1.0)


def climb(oracle: Oracle, s: State, step: Step, momentum: float) -> Tensor:
    """One momentum step of s.x_adv towards s.aim, after `begin_ascent`.

    Returns:
        the gap to s.aim at the point that was left, (N,); it lies inside the step's set unless the step is first.
    """
    inside, carries = step.inside, None if step.first else momentum
    gradient, gap, _ = oracle.slope(s.x_adv, s.weights)
    at = oracle.brought_into(inside, s.x_adv) if step.first else s.x_adv
    if inside.norm == "l2":
        goal = _climbed_l2(
            at,
            s.previous,
            gradient,
            oracle.x,
            inside.radius,
            step.size,
            momentum=carries,
            bounds=inside.bounds,
        )
        s.previous, s.x_adv = at, oracle.vouch(goal) if inside is oracle.threat else goal
        return gap
    goal = oracle.brought_into(inside, ahead(at, gradient, inside, step.size))
    if carries is not None:
        goal = _carried(goal, at, s.previous, carries)
    s.previous = at
    s.x_adv = oracle.project(goal) if inside is oracle.threat else oracle.brought_into(inside, goal)
    return gap


def ascend(
    oracle: Oracle,
    s: State,
    count: int,
    momentum: float,
    radii: tuple[float, ...] = (1.0,),
    *,
    size: float,
) -> None:
    """Ascend from s.x_adv towards s.aim, by so many steps over the radii (see `schedule`).

    Args:
        s: has s.x_adv, s.aim, and of the best points inside the threat so far s.best (N,), the gap, s.point, and s.toward
            (N, 1), the class: what is better takes their place.
    """
    begin_ascent(oracle, s)
    steps = list(schedule(oracle.threat, radii, count, size=size))
    for step in oracle.steps(count):
        at, inside = s.x_adv, steps[step].inside is oracle.threat and not (steps[step].first and step)
        gap = climb(oracle, s, steps[step], momentum)
        if inside:
            _keep(s, at, gap)
    for _ in oracle.steps(1):  # none where all left in the ascent, though others rest
        _keep(s, s.x_adv, gap_to(oracle.logits(s.x_adv), oracle.y, s.aim))


def _keep(s: State, at: Tensor, gap: Tensor) -> None:
    better = gap > s.best
    if better.device.type == "cpu" and not bool(better.any()):
        return
    s.best = torch.where(better, gap, s.best)
    s.point = choose(better, at, s.point)
    s.toward = torch.where(better[:, None], s.aim, s.toward)


@Replayed
def _climbed_l2(
    at: Tensor,
    previous: Tensor,
    gradient: Tensor,
    x: Tensor,
    radius: float | Tensor,
    size: float | Tensor,
    *,
    momentum: float | None,
    bounds: tuple[float, float],
) -> Tensor:
    """A step of `size` uphill within the l2 ball and the box, carried on by the last one where there is a momentum."""
    goal = moved(at, movable(gradient, at, bounds), "l2", size)
    goal = into_box_then_ball(goal, x, radius, bounds)
    if momentum is not None:
        goal = _carried(goal, at, previous, momentum)
    return into_box_then_ball(goal, x, radius, bounds)


def _carried(goal: Tensor, at: Tensor, previous: Tensor, momentum: float) -> Tensor:
    """at + momentum (goal - at) + (1 - momentum) (at - previous), in three passes over the values of the goal."""
    stay = 1 - momentum
    return goal.mul_(momentum).add_(at, alpha=2 * stay).sub_(previous, alpha=stay)


def scaled(threat: Threat, factor: float) -> Threat:
    """The threat at `factor` times its radius."""
    return threat if factor == 1 else replace(threat, eps=repr(threat.radius * factor))


def check_radii(name: str, radii: tuple[float, ...], steps: int) -> None:
    """Raise InputError unless the radii are positive, end in 1 and have a step each."""
    if not radii or radii[-1] != 1 or len(radii) > steps or min(radii) <= 0:
        raise InputError(
            f"{name}: radii: expected positive factors that end in 1, one per step at most, got {radii}"
        )
