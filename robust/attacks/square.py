"""Square, random search over square-shaped changes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.apgd import likeliest_wrong
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import per_row, replace
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.rng import Streams
from robust.threat import norm_of

_AT_ONCE: Final = 25  # steps whose random numbers are drawn together: a draw costs little more than its call
_PACED: Final = 5  # steps after which a sample's pace is looked at
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Attack):
    """Score-based random search with squares of shrinking side (Andriushchenko et al. 2020, arXiv 1912.00049).

    Sees no gradient, so masking does not stop it. In l2 a move turns a window by about 45 degrees at least, so that
    the search ends some way short of the best direction: on random linear images at 1.2 to 1.5 times the minimum.

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
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "Andriushchenko et al. 2020"

    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    stretched: bool = True
    targets: int = 0
    proposals: int = 1
    pace: float | None = None

    def __post_init__(self) -> None:
        if (
            min(self.restarts, self.proposals) < 1
            or self.queries < 2 * self.proposals
            or not 0 < self.p_init <= 1
            or self.targets < 0
        ):
            raise InputError(
                "square: expected restarts and proposals >= 1, queries >= 2 for each proposal, p_init in (0, 1] and targets "
                f">= 0, got {self.restarts}, {self.proposals}, {self.queries}, {self.p_init} and {self.targets}"
            )
        if self.pace is not None and self.pace <= 0:
            raise InputError(f"square: expected pace > 0, got {self.pace}")

    def run(self, oracle: Oracle) -> Tensor:
        if self.proposals == 1:
            return self._run(oracle)
        with oracle.multiplied(self.proposals) as many:
            x_adv = self._run(many)
        return x_adv[:: self.proposals] if len(x_adv) == self.proposals * len(oracle) else oracle.x

    def _run(self, oracle: Oracle) -> Tensor:
        s = oracle.state()
        s.ranking = likeliest_wrong(oracle.logits(oracle.x), oracle.y) if self.targets else oracle.y[:, None]
        for rank in oracle.steps(min(max(self.targets, 1), s.ranking.shape[1])):
            s.aim = s.ranking[:, rank : rank + 1]
            for restart in oracle.steps(self.restarts):
                self._search(oracle, s, rank * self.restarts + restart)
        return s.x_adv

    def _search(self, oracle: Oracle, s: State, run: int) -> None:
        threat = oracle.threat
        if self.pace is not None:
            s.clean = oracle.clean_margin
        first, change = (_stripes, _flip_square) if threat.norm == "linf" else (_tiles, _move_mass)
        s.x_adv = first(oracle.x, threat.radius, threat.bounds, oracle.random(run))
        s.best = aimed_margin(oracle.logits(s.x_adv), oracle.y, s.aim)
        numbers = 5 + _as_images(oracle.x).shape[1]  # that a change takes
        steps = self.queries // self.proposals - 1
        for step in oracle.steps(steps):
            if step % _AT_ONCE == 0:
                s.unit = oracle.random(run, step).uniform((_AT_ONCE, numbers))
            self._share(s)
            if self.pace is not None and step % _PACED == 0:
                oracle.rest(step / steps * s.best < self.pace * s.clean)
            area, unit = self._area(step * self.proposals), s.unit[:, step % _AT_ONCE]
            proposal = change(s.x_adv, oracle.x, threat.radius, threat.bounds, area, unit)
            value = aimed_margin(oracle.logits(proposal), oracle.y, s.aim)
            better = value > s.best
            s.best = torch.where(better, value, s.best)
            replace(better, (s.x_adv, proposal))
        self._share(s)

    def _share(self, s: State) -> None:
        """Give all copies of a sample the best point among them."""
        if self.proposals > 1:
            best = s.best.view(-1, self.proposals).argmax(1)
            best += torch.arange(0, len(s.best), self.proposals, device=best.device)
            best = best.repeat_interleave(self.proposals)
            s.best, s.x_adv = s.best[best], s.x_adv[best]

    def _area(self, query: int) -> float:
        """Share of the image a square covers."""
        position = query * 10_000 // self.queries if self.stretched else query
        return self.p_init / 2.0 ** sum(position > at for at in _HALVINGS)


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


def _stripes(x: Tensor, eps: float, bounds: tuple[float, float], streams: Streams) -> Tensor:
    """linf start: vertical stripes of +-eps."""
    images = _as_images(x)
    _, channels, _, width = images.shape
    signs = streams.child("stripes").integers((channels, 1, width), 0, 2) * 2 - 1
    return (images + eps * signs).clamp(*bounds).view_as(x)


def _flip_square(
    x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float], area: float, unit: Tensor
) -> Tensor:
    """linf proposal: one square set to +-eps, a sign per channel. `unit` are random numbers in [0, 1), (N, 5 + C)."""
    shape = _as_images(x).shape
    _, channels, height, width = shape
    side = max(1, round(math.sqrt(area * height * width)))
    size = (min(side, height), min(side, width))
    places = _places(shape, size, unit)
    signs = unit[:, 5:, None].lt(0.5).to(x.dtype) * 2 - 1
    values = x.flatten(1).gather(1, places).view(-1, channels, size[0] * size[1])
    values = values.add_(signs, alpha=eps).clamp_(*bounds).flatten(1)
    return x_adv.flatten(1).scatter(1, places, values).view_as(x)


@functools.lru_cache(maxsize=16)
def _bump(height: int, width: int, device: torch.device) -> Tensor:
    """The paper's two-part pattern: a positive and a negative half, each a peak of nested squares."""

    def peak(rows: int, columns: int) -> Tensor:
        centre = rows // 2, columns // 2
        down = (torch.arange(rows, device=device) - centre[0]).abs()
        right = (torch.arange(columns, device=device) - centre[1]).abs()
        away = torch.maximum(down[:, None], right)
        layers = torch.arange(1, max(centre) + 2, device=device, dtype=torch.float32).square().reciprocal()
        out = layers.flip(0).cumsum(0).flip(0)[away]  # a pixel lies in every square that reaches it
        return out / out.norm()

    half = max(1, height // 2)
    out = torch.cat([peak(half, width), -peak(height - half, width)]) if height > half else peak(half, width)
    return out / out.norm()


def _tiles(x: Tensor, eps: float, bounds: tuple[float, float], streams: Streams) -> Tensor:
    """l2 start: a grid of bumps with random signs, scaled to the sphere."""
    images = _as_images(x)
    _, channels, height, width = images.shape
    tile = (max(1, height // 5), max(1, width // 5))
    counts = (height // tile[0], width // tile[1])
    signs = (streams.child("tiles").integers((channels, *counts), 0, 2) * 2 - 1).to(x.dtype)
    signs = signs.repeat_interleave(tile[0], 2).repeat_interleave(tile[1], 3)
    delta = torch.zeros_like(images)
    top, left = (height - signs.shape[2]) // 2, (width - signs.shape[3]) // 2
    window = delta[:, :, top : top + signs.shape[2], left : left + signs.shape[3]]
    window.copy_(signs * _bump(*tile, x.device).repeat(*counts))
    return _on_sphere(delta.view_as(x), x, eps, bounds)


def _on_sphere(delta: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    size = norm_of(delta.flatten(1), "l2").clamp_min_(1e-12)
    return torch.addcmul(x, delta, per_row(eps / size, x), out=delta).clamp_(*bounds)


def _move_mass(
    x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float], area: float, unit: Tensor
) -> Tensor:
    """l2 proposal: the norm of one window goes, with what is unspent, into a bump in another."""
    shape = _as_images(x).shape
    _, channels, height, width = shape
    side = max(3, round(math.sqrt(area * height * width))) | 1
    size = (min(side, height), min(side, width))
    into, out = (_places(shape, size, unit[:, at : at + 2]) for at in (0, 2))
    lies = (unit[:, 4] < 0.5) & (size[0] == size[1])  # as often as it stands
    signs = unit[:, 5:, None].lt(0.5).to(x.dtype) * 2 - 1

    delta = (x_adv - x).flatten(1)
    unspent = (eps**2 - norm_of(delta, "l2").square_()).clamp_min_(0) / channels
    kept = delta.gather(1, into).view(-1, channels, size[0] * size[1])
    emptied = delta.scatter_(1, into, 0.0).gather(1, out).view_as(kept)  # but for what is in both
    moved = _squares(kept) + _squares(emptied)
    fresh = _bumps(size, x.device)[lies.long()] * signs + kept / _squares(kept).sqrt_().clamp_min_(1e-12)
    length = (unspent[:, None, None] + moved).sqrt_()
    fresh *= length / _squares(fresh).sqrt_().clamp_min_(1e-12)
    delta.scatter_(1, out, 0.0).scatter_(1, into, fresh.flatten(1))
    return _on_sphere(delta.view_as(x), x, eps, bounds)


@functools.lru_cache(maxsize=16)
def _bumps(size: tuple[int, int], device: torch.device) -> Tensor:
    """The pattern as it stands and, where it is as wide as high, as it lies: (2 or 1, 1, h * w)."""
    bump = _bump(*size, device)
    ways = [bump, bump.T] if size[0] == size[1] else [bump]
    return torch.stack([way.flatten() for way in ways])[:, None]


def _squares(values: Tensor) -> Tensor:
    """Sum of squares by channel: (N, C, P) -> (N, C, 1)."""
    return torch.linalg.vector_norm(values, dim=2, keepdim=True).square_()
