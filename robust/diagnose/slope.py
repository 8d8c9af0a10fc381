"""Is the gradient that autograd gives the slope of the surface, and does it lead anywhere at the threat's scale?

Random directions measure how steep the margin is, without a derivative; along the gradient an honest model is as
steep as that allows. A gradient that is turned, scrambled or taken from another model is not, nor is that of a
surface of waves finer than the threat. And it rises as fast as the gradient says: faster where a part of the model
passes no gradient, hardly at all over distances that waves are short beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from robust.attacks.geometry import per_row
from robust.diagnose.answers import margins_at
from robust.failures import out_of_memory
from robust.losses import margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

SAMPLES: Final = 12
_FIRST: Final = 6  # that many tell enough of a net whose figures are all far from where they would be told
LEAST: Final = (
    0.2  # of the steepest slope; honest models measured between .6 and 1.4, straight-through steps from .25
)
MOST: Final = (
    1.5  # times what the gradient says: honest models rise as it says (benchmarks/results/slopes-cpu.md)
)
LASTING: Final = 0.3  # of the rise nearby, over the threat's scale
ALIKE: Final = 0.97  # cosine; honest models measured from .99 (benchmarks/results/slopes-cpu.md)
# Of the first samples' figures: nearer to what would be told than this, and all are looked at.
_LEAST_CLEAR, _MOST_CLEAR, _LASTING_CLEAR, _ALIKE_CLEAR = 0.4, 1.2, 0.5, 0.985
_IN_PROPORTION: Final = (
    1.05  # quartiles of the samples: a gradient that is only scaled leads where the slope does
)
_DIRECTIONS: Final = 4
_FINE, _COARSE = 0.01, 0.1  # of the box: how far a pixel is moved
_STRAIGHT_FINE, _STRAIGHT_COARSE = 0.6, 0.75  # bends over slopes: above, there is no slope at this scale
# Of random directions alone: what rounds, jumps or has kinks bends about as much as its slopes differ. Fewer of them tell too
# little: the median of a few samples' cosines over four lies far over the truth where that is low.
_STRAIGHT_ALIKE: Final = 0.2
_MANY_DIRECTIONS: Final = 16
_ENOUGH: Final = 4
# Of the box: kinks show in the longer moves, rounding in the shorter.
_ALIKE_REACHES: Final = (0.003, 0.01, 0.03)


class Uphill(NamedTuple):
    """What a look along the gradient told, and its cost in rows passed."""

    reach: float  # how far pixels were moved
    share: float  # slope along the gradient as a share of the steepest, the median of the samples; nan: not to be told
    excess: float  # times what the gradient says that the margin rises along it nearby, where not in proportion; else nan
    lasting: float  # of the rise along it by small steps, how much is left over the threat's scale; nan: not to be told
    alike: float  # cosine of the slopes along random directions and those that the gradient says, the median; nan: as before
    forwards: int
    backwards: int

    @property
    def clear(self) -> bool:
        """Whether no figure is near what would be told of it, so that a few more samples would not change that."""
        straight = self.share >= _LEAST_CLEAR and self.alike >= _ALIKE_CLEAR  # neither is nan
        return straight and not (self.excess > _MOST_CLEAR or self.lasting < _LASTING_CLEAR)


def uphill(target: Target, x: Tensor, y: Tensor, threat: Threat | None) -> Uphill:
    """How steep the margin is along its gradient: 1 for an exact gradient of a straight surface, 0 for a random direction.

    Looked at on the threat's scale, up to a tenth of the box, and where the surface jumps or bends too much there, or
    the threat is none of linf and l2, by a hundredth of the box: so substitutes of steps are judged where steps no
    longer show. Where it is not straight there either, the share is nan, and so is the excess, which is looked at by a
    hundredth of the box, too. What lasts at the threat's scale is held against moves of a thousandth.

    Args:
        target: entered; deterministic and differentiable.
        x, y: samples on its device, (N, ...) and (N,).
        threat: whose scale is looked at too; None for the fine one alone.
    """
    first = _uphill(target, x[:_FIRST], y[:_FIRST], threat)
    if first.clear or len(x) <= _FIRST:
        return first
    found = _uphill(target, x[:SAMPLES], y[:SAMPLES], threat)
    return found._replace(
        forwards=first.forwards + found.forwards, backwards=first.backwards + found.backwards
    )


def _uphill(target: Target, x: Tensor, y: Tensor, threat: Threat | None) -> Uphill:
    """`uphill` of all these samples."""
    fine = _FINE * (target.bounds[1] - target.bounds[0])
    reach, share, excess, lasting, forwards, backwards = math.nan, math.nan, math.nan, math.nan, 0, 0

    def look(reach: float, directions: int = _DIRECTIONS) -> _Slopes:
        nonlocal forwards, backwards
        forwards, backwards = forwards + len(x) * (3 + 2 * directions), backwards + len(x)
        return _at(target, x, y, reach, directions)

    for reach, straight in _scales(threat, target.bounds, x[0].numel()):
        seen = look(reach)
        if reach > fine:
            lasting = _lasting(seen.ratio, look(fine / 10, 0).ratio)
        if len(seen.share) and float(seen.bend.median()) <= straight:
            share = float(seen.share.median())
            excess = _excess((look(fine, 0) if reach > fine else seen).ratio)
            break
    around = alike(target, x, y)
    forwards, backwards = forwards + around.forwards, backwards + around.backwards
    return Uphill(reach, share, excess, lasting, around.cosine, forwards, backwards)


class Alike(NamedTuple):
    """Whether slopes are those that the gradient says, and the cost in rows passed."""

    cosine: float  # nan where the surface is not straight
    forwards: int
    backwards: int


def alike(target: Target, x: Tensor, y: Tensor) -> Alike:
    """The cosine of the slopes along random directions and those that the gradient says: 1 but for a factor of the sample.

    The median of the samples. Of moves of several lengths along which the surface is straight those tell that say most for the
    gradient.

    Args:
        target: entered; deterministic and differentiable.
        x, y: samples on its device, (N, ...) and (N,).
    """
    looks = []
    for reach in _ALIKE_REACHES:
        looks.append(_around(target, x, y, reach))
        if looks[-1].typical >= _ALIKE_CLEAR:
            break
    told = [look.typical for look in looks if not math.isnan(look.typical)]
    return _told(max(told, default=math.nan), looks)


def alike_near(target: Target, x: Tensor, y: Tensor) -> Alike:
    """The same of where ascents end: the lower quartile of the points around which the surface is straight, of four and more.

    Gates switch some of them alone, and what is farther from a point may be on the other side: the shortest moves tell.
    """
    looks = []
    for reach in _ALIKE_REACHES:
        looks.append(_around(target, x, y, reach))
        straight = looks[-1].cosine[looks[-1].bent <= _STRAIGHT_ALIKE]
        if len(straight) >= _ENOUGH:
            return _told(float(straight.quantile(0.25)), looks)
    return _told(math.nan, looks)


class _Around(NamedTuple):
    """Of samples that have slopes along random directions, (M,) each, and the cost in rows passed."""

    cosine: Tensor
    bent: Tensor  # bends over slopes
    forwards: int
    backwards: int

    @property
    def typical(self) -> float:
        """The median cosine; nan where the surface is not straight."""
        straight = len(self.bent) and float(self.bent.median()) <= _STRAIGHT_ALIKE
        return float(self.cosine.median()) if straight else math.nan


def _told(cosine: float, looks: list[_Around]) -> Alike:
    return Alike(cosine, sum(look.forwards for look in looks), sum(look.backwards for look in looks))


def _around(target: Target, x: Tensor, y: Tensor, reach: float) -> _Around:
    """By moves of so much of the box, a few directions at once; where these bend by far too much, the others are not looked at.

    A little off the samples: where many values are the same, as in a black background, max-pooling has no slope.
    """
    low, high = target.bounds
    reach *= high - low
    streams = Streams(0, torch.arange(len(x), device=x.device), ("alike",))
    off = streams.uniform(x.shape[1:], -2 * reach, 2 * reach).to(x.dtype)
    x = x.clamp(low + 3 * reach, high - 3 * reach) + off  # away from the faces, so that none ends on one
    gradient, here = _gradient(target, x, y)
    seen, said = [], []
    with torch.no_grad():
        for first in range(0, _MANY_DIRECTIONS, _DIRECTIONS):
            moves = _moves(x, reach, first=first)
            seen.append(_leans(target, x, y, here, moves))
            said += [(gradient * move).flatten(1).double().sum(1) for move in moves]
            if first == 0 and float(_bent(*seen[0]).median()) > 2 * _STRAIGHT_ALIKE:
                break
        (lean, bend), along = map(torch.cat, zip(*seen, strict=True)), torch.stack(said)
        length = lean.norm(dim=0) * along.norm(dim=0)
        cosine = (lean * along).sum(0) / length.clamp_min(1e-300)
    usable = cosine.isfinite() & (length > 0)
    return _Around(cosine[usable], _bent(lean, bend)[usable], len(x) * (1 + 2 * len(along)), len(x))


def _quartiles(ratio: Tensor) -> tuple[float, float, float]:
    """Of (M,) values; nan where there are none."""
    if not len(ratio):
        return math.nan, math.nan, math.nan
    at = torch.tensor([0.25, 0.5, 0.75], dtype=ratio.dtype, device=ratio.device)
    low, middle, high = ratio.quantile(at).tolist()
    return low, middle, high


def _excess(ratio: Tensor) -> float:
    """The median of the ratios, (M,), where they differ from sample to sample."""
    low, middle, high = _quartiles(ratio)
    return middle if high > _IN_PROPORTION * low else math.nan


def _lasting(far: Tensor, near: Tensor) -> float:
    """What is left at the threat's scale of the ratios nearby, (M,) each, where these are much the same in all samples."""
    low, middle, high = _quartiles(near)
    return _quartiles(far)[1] / middle if 2 * low > high > 0 else math.nan


def _scales(threat: Threat | None, bounds: tuple[float, float], pixels: int) -> Iterator[tuple[float, float]]:
    """How far to move pixels, the widest first, and how straight the surface must be there."""
    width = bounds[1] - bounds[0]
    if threat is not None and threat.norm in ("linf", "l2"):
        reach = threat.radius if threat.norm == "linf" else threat.radius / pixels**0.5
        if reach > 1.5 * _FINE * width:
            yield min(reach, _COARSE * width), _STRAIGHT_COARSE
    yield _FINE * width, _STRAIGHT_FINE


class _Slopes(NamedTuple):
    """Of samples that have a gradient and slopes, (M,) each."""

    share: Tensor  # slope along the gradient, of the steepest
    bend: Tensor  # bends over slopes
    ratio: Tensor  # rise along the gradient over what the gradient says


def _at(target: Target, x: Tensor, y: Tensor, reach: float, directions: int) -> _Slopes:
    """What moves of pixels by `reach` tell; without directions nothing of the steepest slope."""
    low, high = target.bounds
    x = x.clamp(low + reach, high - reach)  # away from the faces, so that no move leaves the box
    gradient, here = _gradient(target, x, y)
    with torch.no_grad():
        largest = gradient.flatten(1).abs().amax(1)
        along = (gradient / per_row(largest.clamp_min(1e-30), x)).nan_to_num(0, 0, 0) * reach
        length = along.flatten(1).double().norm(dim=1)
        ahead, behind = margins_at(target, [x + along, x - along], y)
        rise = ahead - behind
        said = 2 * length.square() / reach * largest.double()  # the gradient is `along` times largest / reach
        usable = (largest > 0) & largest.isfinite() & rise.isfinite()
        steepest, bend = torch.ones_like(rise), torch.zeros_like(rise)
        if directions:
            steepest, bend = _steepest(target, x, y, here, reach, directions)
            usable &= (steepest > 0) & steepest.isfinite()
        return _Slopes((rise / (2 * length) / steepest)[usable], bend[usable], (rise / said)[usable])


def _gradient(target: Target, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The margin's, like x, and the margin; in one pass where memory lasts."""
    point = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            value = margin(target.logits(point), y)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    except Exception as error:
        if not out_of_memory(error) or len(x) == 1:
            raise
    else:
        return gradient, value.detach().double()
    halves = [_gradient(target, *half) for half in zip(x.tensor_split(2), y.tensor_split(2), strict=True)]
    gradients, values = zip(*halves, strict=True)
    return torch.cat(gradients), torch.cat(values)


def _steepest(
    target: Target, x: Tensor, y: Tensor, here: Tensor, reach: float, directions: int
) -> tuple[Tensor, Tensor]:
    """By central differences along random signs: the norm of the slope, and bends over slopes, (N,) each."""
    lean, bend = _leans(target, x, y, here, _moves(x, reach, directions))
    return lean.square().mean(0).sqrt() / reach, _bent(lean, bend)


def _moves(x: Tensor, reach: float, directions: int = _DIRECTIONS, first: int = 0) -> list[Tensor]:
    """Random signs times reach, like x: the draws from the first on."""
    moves = []
    for draw in range(first, first + directions):
        streams = Streams(0, torch.arange(len(x), device=x.device), ("slope", draw))
        moves.append((streams.integers(x.shape[1:], 0, 2) * 2 - 1).to(x.dtype) * reach)
    return moves


def _leans(target: Target, x: Tensor, y: Tensor, here: Tensor, moves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the margin gains by each move, and its bend over it: (moves, N) each."""
    points = [x + move for move in moves] + [x - move for move in moves]
    ahead, behind = margins_at(target, points, y).chunk(2)
    return (ahead - behind) / 2, (ahead + behind) / 2 - here


def _bent(lean: Tensor, bend: Tensor) -> Tensor:
    """Bends over slopes: (N,)."""
    size = lean.abs().sum(0)
    return torch.where(size > 0, bend.abs().sum(0) / size.clamp_min(1e-300), torch.inf)
