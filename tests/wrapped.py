"""Models with something around a net, small nets with something inside, and what the first checks say of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust.diagnose import PREFLIGHT_SAMPLES, preflight
from robust.sources import load_data
from robust.target import Target
from robust.threat import Threat


def same(t: Tensor) -> Tensor:
    return t


class Wrap(nn.Module):
    """A model with something in front of it and behind it."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = same,
        after: Callable[[Tensor], Tensor] = same,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def with_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Passes inputs through, and changes what autograd brings back."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return change(gradient)

    def through(x: Tensor) -> Tensor:
        out: Tensor = Changed.apply(x)  # type: ignore[no-untyped-call]
        return out

    return through


def seen_first(model: nn.Module, digits: tuple[Tensor, Tensor], threat: str = "linf:0.1") -> list[str]:
    """Names of what is found before the attacks, on as many samples as they look at."""
    x, y = (part[:PREFLIGHT_SAMPLES] for part in digits)
    with Target(model.eval(), device="cpu") as target:
        return [finding.check for finding in preflight(target, x, y, Threat.parse(threat)).findings]


def straight_through(hard: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A step function with the gradient of the identity."""
    return lambda x: x + (hard(x) - x).detach()


def levels(most: int) -> Callable[[Tensor], Tensor]:
    return straight_through(lambda x: (x * most).round() / most)


def winners(x: Tensor) -> Tensor:
    """k-WTA: of the pixels only the highest fifth, which ones jumps with the smallest change."""
    flat = (x + 0.3 * (x * 997).sin()).flatten(1)
    least = flat.topk(flat.shape[1] // 5, dim=1).values[:, -1:]
    return (flat * (flat >= least)).view_as(x)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def trained(build: Callable[[], nn.Module], *, rate: float = 3e-3, epochs: int = 30) -> nn.Module:
    """A small net trained on digits."""
    data = load_data("builtin:digits:train")
    x, y = data.rows(slice(None)), data.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()


def trained_with(activation: nn.Module, front: nn.Module | None = None, features: int = 64) -> nn.Module:
    """One with the thing in place."""
    return trained(
        lambda: nn.Sequential(
            front or nn.Flatten(), nn.Linear(features, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 10)
        )
    )  # fmt: skip


@functools.cache
def rectified() -> nn.Module:
    """That net with ReLU, and nothing else."""
    return trained_with(nn.ReLU())


class PartlyDetached(nn.Module):
    """Three columns of eight have a gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([x[..., :3], x[..., 3:].detach()], -1))
        return out


class Residual(nn.Module):
    """Two convolutions with batch norm, added to the input, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.head((y + self.bn2(self.conv2(y))).flatten(1))
        return out


CORNER = 0.9375


class Picky(nn.Module):
    """Fails on batches in which a bright corner has changed, or on more rows than it has room for."""

    def __init__(self, net: nn.Module, room: int = 1000) -> None:
        super().__init__()
        self.net, self.room = net, room

    def forward(self, x: Tensor) -> Tensor:
        corner = x[:, 0, 0, 0]
        if bool(((corner > 0.9) & (corner != CORNER)).any()):
            raise ValueError("a corner that was not calibrated for")
        if len(x) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        out: Tensor = self.net(x)
        return out
