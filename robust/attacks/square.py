"""Square, random search over square-shaped changes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import ATTACKS
from robust.attacks.geometry import per_row
from robust.attacks.random_search import RandomSearch
from robust.oracle import Oracle, State
from robust.projections import norm_of
from robust.rng import Streams
from robust.threat import Threat

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(RandomSearch):
    """Score-based random search with squares of shrinking side (Andriushchenko et al. 2020, arXiv 1912.00049).

    Sees no gradient, so masking does not stop it. In l1 as in Croce & Hein 2021 (arXiv 2103.01208). In l2 a move turns a
    window by about 45 degrees at least, so that the search ends some way short of the best direction: on random linear
    images at 1.2 to 1.5 times the minimum.

    Args:
        queries: forward passes a restart, >= 2.
        restarts: independent searches, >= 1.
        p_init: share of the image that the first squares cover, in (0, 1].
        stretched: the paper's schedule of shrinking, made for 10,000 queries, ends with the queries; else they see
            only its first part, as in AutoAttack.
        targets: 0 against any class; else one search (and its restarts) for each of so many likeliest
            classes, on the gap to it.
        proposals: changes that are tried at once, of which the best is taken if it gains, >= 1: fewer steps of larger
            batches for the same queries, which is faster where few samples are searched and loses little where few
            changes gain.
        pace: a sample goes on while its best gap, as a share of the clean margin, times the part of the queries that are
            spent is at most this, > 0: squares that are far behind do not catch up. None: to the last query.
    """

    name: ClassVar[str] = "square"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    paper: ClassVar[str] = "Andriushchenko et al. 2020"

    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    stretched: bool = True
    targets: int = 0
    proposals: int = 1
    pace: float | None = None

    def _begin(self, oracle: Oracle, s: State, streams: Streams) -> None:
        first = _stripes if oracle.threat.norm == "linf" else _tiles
        s.x_adv = first(oracle.x, oracle.threat, streams)

    def _numbers(self, oracle: Oracle) -> int:
        return 5 + _as_images(oracle.x).shape[1]

    def _change(self, oracle: Oracle, s: State, size: float, unit: Tensor) -> tuple[Tensor, ...]:
        change = _flip_square if oracle.threat.norm == "linf" else _move_mass
        return (change(s.x_adv, oracle.x, oracle.threat, size, unit),)

    def _size(self, query: int) -> float:
        """Share of the image a square covers."""
        return self.p_init / 2.0 ** sum(query > at for at in _HALVINGS)


def _as_images(x: Tensor) -> Tensor:
    """(N, C, H, W); flat inputs are one row of pixels."""
    return x if x.dim() == 4 else x.flatten(1)[:, None, None]


def _places(shape: torch.Size, size: tuple[int, int], unit: Tensor) -> Tensor:
    """The pixels of random windows, from (N, 2) numbers in [0, 1): (N, C * h * w) int64, to look up in flat images."""
    _, _, height, width = shape
    top, left = (unit[:, 0] * (height - size[0] + 1)).long(), (unit[:, 1] * (width - size[1] + 1)).long()
    return (top * width + left)[:, None] + _first_window(shape[1:], size, unit.device)


@functools.lru_cache(maxsize=64)
def _first_window(shape: torch.Size, size: tuple[int, int], device: torch.device) -> Tensor:
    """The pixels of the window in the corner of (C, H, W) images: (C * h * w,) int64."""
    places = torch.arange(shape.numel(), device=device).view(shape)
    return places[:, : size[0], : size[1]].flatten()


def _stripes(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """linf start: vertical stripes of +-eps."""
    images = _as_images(x)
    _, channels, _, width = images.shape
    signs = streams.child("stripes").integers((channels, 1, width), 0, 2) * 2 - 1
    return (images + threat.radius * signs).clamp(*threat.bounds).view_as(x)


def _flip_square(x_adv: Tensor, x: Tensor, threat: Threat, area: float, unit: Tensor) -> Tensor:
    """linf proposal: one square set to +-eps, a sign per channel. `unit` are random numbers in [0, 1), (N, 5 + C)."""
    shape = _as_images(x).shape
    _, channels, height, width = shape
    side = max(1, round(math.sqrt(area * height * width)))
    size = (min(side, height), min(side, width))
    places = _places(shape, size, unit)
    signs = unit[:, 5:, None].lt(0.5).to(x.dtype) * 2 - 1
    values = x.flatten(1).gather(1, places).view(-1, channels, size[0] * size[1])
    values = values.add_(signs, alpha=threat.radius).clamp_(*threat.bounds).flatten(1)
    return x_adv.flatten(1).scatter(1, places, values).view_as(x)


@functools.lru_cache(maxsize=16)
def _bump(height: int, width: int, device: torch.device, power: int = 2) -> Tensor:
    """The two-part pattern of norm l2 (power 2) or l1 (1): a positive and a negative half, each a peak of nested squares."""

    def peak(rows: int, columns: int) -> Tensor:
        centre = rows // 2, columns // 2
        down = (torch.arange(rows, device=device) - centre[0]).abs()
        right = (torch.arange(columns, device=device) - centre[1]).abs()
        away = torch.maximum(down[:, None], right)
        layers = torch.arange(1, max(centre) + 2, device=device, dtype=torch.float32).square()
        layers = (layers if power == 2 else layers.square()).reciprocal()  # l1: steeper
        out = layers.flip(0).cumsum(0).flip(0)[away]  # a pixel lies in every square that reaches it
        return out / torch.linalg.vector_norm(out, ord=power)

    half = max(1, height // 2)
    out = torch.cat([peak(half, width), -peak(height - half, width)]) if height > half else peak(half, width)
    return out / torch.linalg.vector_norm(out, ord=power)


def _tiles(x: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """l2 and l1 start: a grid of bumps with random signs, scaled to the sphere."""
    images = _as_images(x)
    _, channels, height, width = images.shape
    tile = (max(1, height // 5), max(1, width // 5))
    counts = (height // tile[0], width // tile[1])
    signs = (streams.child("tiles").integers((channels, *counts), 0, 2) * 2 - 1).to(x.dtype)
    signs = signs.repeat_interleave(tile[0], 2).repeat_interleave(tile[1], 3)
    delta = torch.zeros_like(images)
    top, left = (height - signs.shape[2]) // 2, (width - signs.shape[3]) // 2
    window = delta[:, :, top : top + signs.shape[2], left : left + signs.shape[3]]
    window.copy_(signs * _bump(*tile, x.device, _power(threat)).repeat(*counts))
    return _brought_in(delta.view_as(x), x, threat)


def _brought_in(delta: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """l2: scaled to the sphere, then clipped. l1: the nearest point of ball and box."""
    if threat.norm == "l1":
        return threat.project(x + delta, x)
    size = norm_of(delta.flatten(1), "l2").clamp_min_(1e-12)
    return torch.addcmul(x, delta, per_row(threat.radius / size, x), out=delta).clamp_(*threat.bounds)


def _move_mass(x_adv: Tensor, x: Tensor, threat: Threat, area: float, unit: Tensor) -> Tensor:
    """l2 and l1 proposal: the norm of one window goes, with what is unspent, into a bump in another."""
    shape, power = _as_images(x).shape, _power(threat)
    _, channels, height, width = shape
    side = max(3, round(math.sqrt(area * height * width))) | 1
    size = (min(side, height), min(side, width))
    into, out = (_places(shape, size, unit[:, at : at + 2]) for at in (0, 2))
    lies = (unit[:, 4] < 0.5) & (size[0] == size[1])  # as often as it stands
    signs = unit[:, 5:, None].lt(0.5).to(x.dtype) * 2 - 1

    delta = (x_adv - x).flatten(1)
    excess = channels if threat.norm == "l1" else 1  # the projection takes the same off all values
    unspent = (threat.radius**power - norm_of(delta, threat.norm).pow_(power)).clamp_min_(0) / channels
    kept = delta.gather(1, into).view(-1, channels, size[0] * size[1])
    emptied = delta.scatter_(1, into, 0.0).gather(1, out).view_as(kept)  # but for what is in both
    held = _mass(kept, power)
    length = _length(unspent[:, None, None] + (held + _mass(emptied, power)), power) * excess
    fresh = _bumps(size, x.device, power)[lies.long()] * signs + kept / _length(held, power).clamp_min_(1e-12)
    fresh *= length / _length(_mass(fresh, power), power).clamp_min_(1e-12)
    delta.scatter_(1, out, 0.0).scatter_(1, into, fresh.flatten(1))
    return _brought_in(delta.view_as(x), x, threat)


@functools.lru_cache(maxsize=16)
def _bumps(size: tuple[int, int], device: torch.device, power: int = 2) -> Tensor:
    """The pattern as it stands and, where it is as wide as high, as it lies: (2 or 1, 1, h * w)."""
    bump = _bump(*size, device, power)
    ways = [bump, bump.T] if size[0] == size[1] else [bump]
    return torch.stack([way.flatten() for way in ways])[:, None]


def _power(threat: Threat) -> int:
    return 2 if threat.norm == "l2" else 1


def _mass(values: Tensor, power: int) -> Tensor:
    """Sum of powers of the sizes by channel: (N, C, P) -> (N, C, 1)."""
    return torch.linalg.vector_norm(values, ord=power, dim=2, keepdim=True).pow_(power)


def _length(mass: Tensor, power: int) -> Tensor:
    """The norm that a mass has."""
    return mass.sqrt() if power == 2 else mass.clone()
