"""Square, random search over square-shaped changes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.aims import aimed_margin
from robust.attacks.apgd import likeliest_wrong
from robust.attacks.base import ATTACKS, Attack
from robust.attacks.geometry import choose, per_row
from robust.errors import InputError
from robust.oracle import Access, Oracle, State
from robust.rng import Streams

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
        first, change = (_stripes, _flip_square) if threat.norm == "linf" else (_tiles, _move_mass)
        s.x_adv = first(oracle.x, threat.radius, threat.bounds, oracle.random(run))
        s.best = aimed_margin(oracle.logits(s.x_adv), oracle.y, s.aim)
        for step in oracle.steps(self.queries // self.proposals - 1):
            draw, area = oracle.random(run, step), self._area(step * self.proposals)
            self._share(s)
            proposal = change(s.x_adv, oracle.x, threat.radius, threat.bounds, area, draw)
            value = aimed_margin(oracle.logits(proposal), oracle.y, s.aim)
            better = value > s.best
            s.best = torch.where(better, value, s.best)
            s.x_adv = choose(better, proposal, s.x_adv)
        self._share(s)

    def _share(self, s: State) -> None:
        """Give all copies of a sample the best point among them."""
        if self.proposals > 1:
            best = s.best.view(-1, self.proposals).argmax(1)
            best += torch.arange(0, len(s.best), self.proposals, device=best.device)
            s.best = s.best[best].repeat_interleave(self.proposals)
            s.x_adv = s.x_adv[best].repeat_interleave(self.proposals, 0)

    def _area(self, query: int) -> float:
        """Share of the image a square covers."""
        position = query * 10_000 // self.queries if self.stretched else query
        return self.p_init / 2.0 ** sum(position > at for at in _HALVINGS)


def _as_images(x: Tensor) -> Tensor:
    """(N, C, H, W); flat inputs are one row of pixels."""
    return x if x.dim() == 4 else x.flatten(1)[:, None, None]


def _windows(height: int, width: int, size: tuple[int, int], unit: Tensor) -> tuple[Tensor, Tensor]:
    """Random windows from (N, K, 2) numbers in [0, 1): corners (N, K, 2), and 1 within and 0 elsewhere (N, K, H, W)."""
    top = (unit[..., :1] * (height - size[0] + 1)).floor_()
    left = (unit[..., 1:] * (width - size[1] + 1)).floor_()
    down, across = _stretch(top, size[0], height), _stretch(left, size[1], width)
    return torch.cat([top, left], -1).long(), down[..., :, None] * across[..., None, :]


def _stretch(start: Tensor, size: int, length: int) -> Tensor:
    """1 on `size` places from the start on and 0 elsewhere: (N, K, 1) -> (N, K, length)."""
    away = (torch.arange(length, device=start.device) - (size - 1) / 2 - start).abs_()
    return (away < size / 2).to(start.dtype)


def _stripes(x: Tensor, eps: float, bounds: tuple[float, float], streams: Streams) -> Tensor:
    """linf start: vertical stripes of +-eps."""
    images = _as_images(x)
    _, channels, _, width = images.shape
    signs = streams.child("stripes").integers((channels, 1, width), 0, 2) * 2 - 1
    return (images + eps * signs).clamp(*bounds).view_as(x)


def _flip_square(
    x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float], area: float, draw: Streams
) -> Tensor:
    """linf proposal: one square set to +-eps, a sign per channel."""
    images, current = _as_images(x), _as_images(x_adv)
    _, channels, height, width = images.shape
    side = max(1, round(math.sqrt(area * height * width)))
    size = (min(side, height), min(side, width))
    _, inside = _windows(height, width, size, draw.uniform((1, 2)))
    signs = draw.child("signs").integers((channels, 1, 1), 0, 2) * 2 - 1
    return current.lerp((images + eps * signs).clamp_(*bounds), inside).view_as(x)


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
    size = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return torch.addcmul(x, delta, per_row(eps / size, x)).clamp_(*bounds)


def _move_mass(
    x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float], area: float, draw: Streams
) -> Tensor:
    """l2 proposal: the norm of one window goes, with what is unspent, into a bump in another."""
    delta = _as_images(x_adv - x)
    _, channels, height, width = delta.shape
    side = max(3, round(math.sqrt(area * height * width))) | 1
    size = (min(side, height), min(side, width))
    unit = draw.uniform((5 + channels,))
    corners, windows = _windows(height, width, size, unit[:, :4].view(-1, 2, 2))
    into = windows[:, :1]  # into the first, out of the second
    both = torch.maximum(into, windows[:, 1:])
    lies = (unit[:, 4] < 0.5) & (size[0] == size[1])  # as often as it stands
    signs = unit[:, 5:, None, None].lt(0.5).to(delta.dtype) * 2 - 1
    kept, rest = delta * into, delta * (1 - both)
    bump = _placed(_bump(*size, x.device), corners[:, 0], lies, height, width)
    fresh = bump * signs + kept / _channel_norm(kept).clamp_min_(1e-12)
    squares = delta.square()
    moved = (squares * both).sum((2, 3), keepdim=True)
    unspent = (eps**2 - squares.flatten(1).sum(1)).clamp_min_(0) / channels
    length = (per_row(unspent, delta) + moved).sqrt_()
    proposal = rest.addcmul_(fresh, length / _channel_norm(fresh).clamp_min_(1e-12))
    return _on_sphere(proposal.view_as(x), x, eps, bounds)


def _placed(pattern: Tensor, corner: Tensor, lies: Tensor, height: int, width: int) -> Tensor:
    """The pattern with its corner at (N, 2), transposed where it lies, and 0 around it: (N, 1, H, W).

    Cut out of a wide canvas: to look up every pixel takes ten times as long.
    """
    h, w = pattern.shape
    canvas = pattern.new_zeros(2, 2 * height - h, 2 * width - w)
    canvas[0, height - h : height, width - w : width] = pattern
    if h == w:
        canvas[1, height - h : height, width - w : width] = pattern.T
    cuts = canvas.unfold(1, height, 1).unfold(2, width, 1)
    return cuts[lies.long(), height - h - corner[:, 0], width - w - corner[:, 1]][:, None]


def _channel_norm(images: Tensor) -> Tensor:
    return images.flatten(2).norm(dim=2)[:, :, None, None]
