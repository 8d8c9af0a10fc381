"""Verdicts on models that were not made for this: what they may do, and how robustness is faked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust


class Reshapes(nn.Module):
    """A model that flattens with view(len(x), -1), which no rows at all do not survive."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out.view(len(x), -1)


@pytest.mark.parametrize("threat", ["linf:0.05", "l2:0.3", "l1:1", "l0:2"])
def test_a_model_is_never_called_on_no_rows(
    threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot reshape"):
        Reshapes(net)(digits[0][:0])
    x, y = digits[0][:12], digits[1][:12]
    plain = robust.evaluate(net, (x, y), threat=threat, device="cpu")
    report = robust.evaluate(Reshapes(net).eval(), (x, y), threat=threat, device="cpu")
    assert report.failures == []
    assert report.trust == "trusted"
    assert report.statuses == plain.statuses
    assert report.statuses["survived"] > 0
