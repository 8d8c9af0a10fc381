"""The model on loan to another library, with a meter for passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust.oracle import Finished
from robust.projections import norm_of


class Meter(nn.Module):
    """A module that answers for the target on [0, 1], and books every pass to one of N samples by hooks.

    The target is no submodule: whatever a library does to this module (train, eval, requires_grad, to) stops
    here. A forward of M rows books M passes and each backward through its output M more. Whose they are: alone
    (N = 1), the sample's; a forward of N rows, one each in order; else a row is the nearest sample's (l2). The
    total is exact, the split over samples only as good as that rule; both are exact for N = 1.

    Args:
        logits: the target, from `Oracle.lend`.
        x, y: the samples in [0, 1], (N, ...), and their labels.
        bounds: the target's box, onto which [0, 1] is mapped.
        norm: in which `nearest` is measured.
        limit: forwards plus backwards after which Finished is raised for the N samples; None for none.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        bounds: tuple[float, float],
        norm: str,
        limit: int | None,
    ) -> None:
        super().__init__()
        # Libraries ask the first parameter for the device.
        self.anchor = nn.Parameter(torch.zeros(1, device=x.device), requires_grad=False)
        self._logits, self._x, self._y = logits, x, y
        self._bounds, self._norm, self._limit = bounds, norm, limit
        self._classes = 0
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards = self.forwards.clone()
        self.nearest = (
            x.clone()
        )  # adversarial point visited with the least distance; kept where there is a limit
        self._distance = torch.full((len(x),), torch.inf, device=x.device)
        self.register_forward_hook(self._count)
        self.eval()

    @property
    def classes(self) -> int:
        """Number of classes; asks the model once."""
        if not self._classes:
            with torch.no_grad():
                self(self._x[:1])
        return self._classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (M, ...) -> (M, C)."""
        self._afford(1)
        low, high = self._bounds
        x = x.float()  # ART's decision attacks send float64
        return self._logits(x if (low, high) == (0.0, 1.0) else low + (high - low) * x)

    def _count(self, _: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        owners = self._owners(inputs[0].detach())
        self.forwards += owners.bincount(minlength=len(self._x))
        self._classes = out.shape[1]
        if self._limit is not None:
            self._remember(inputs[0].detach(), out.detach(), owners)
        if out.requires_grad:
            out.register_hook(lambda _: self._backward(owners))

    def _backward(self, owners: Tensor) -> None:
        self._afford(1)
        self.backwards += owners.bincount(minlength=len(self._x))

    def _afford(self, passes: int) -> None:
        if self._limit is not None and int((self.forwards + self.backwards).max()) + passes > self._limit:
            raise Finished

    def _owners(self, x: Tensor) -> Tensor:
        """Which sample each row belongs to: (M,)."""
        n, m = len(self._x), len(x)
        if n == 1:
            return torch.zeros(m, dtype=torch.int64, device=x.device)
        if m == n:
            return torch.arange(n, device=x.device)
        return torch.cdist(x.flatten(1).float(), self._x.flatten(1)).argmin(1)

    def _remember(self, x: Tensor, out: Tensor, owners: Tensor) -> None:
        wrong = (out.argmax(1) != self._y[owners]).nonzero().squeeze(1).tolist()
        for row in wrong:
            owner = int(owners[row])
            distance = norm_of((x[row] - self._x[owner]).flatten()[None], self._norm)[0]
            if distance < self._distance[owner]:
                self._distance[owner] = distance
                self.nearest[owner] = x[row]
