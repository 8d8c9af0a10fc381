"""Few rows go without oneDNN where that is quicker: which, and that all is put back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust
from robust import run
from robust.few_rows import FewRows, few_rows, without_onednn
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

Digits = tuple[Tensor, Tensor]


class Watched(nn.Sequential):
    """A small net of digits that notes, for every pass, its rows and whether oneDNN was at hand."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), torch.backends.mkldnn.enabled))
        out: Tensor = super().forward(x)
        return out


@pytest.fixture
def net() -> Watched:
    torch.manual_seed(0)
    return Watched()


def oracle(net: nn.Module, digits: Digits, rows: int, few: FewRows) -> Oracle:
    x, y = digits[0][:rows], digits[1][:rows]
    target = Target(net, device="cpu")
    target.few_rows = few
    return Oracle(target, x, y, torch.arange(rows), Threat("linf", "0.1"))


def test_onednn_is_back_afterwards_whatever_happens() -> None:
    with without_onednn(), without_onednn():
        assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), without_onednn():
        raise KeyError
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("rows", "gradient", "answer"), [(4, True, True), (7, True, False), (9, False, False)]
)
def test_passes_of_few_rows_go_without(
    net: Watched, digits: Digits, rows: int, gradient: bool, answer: bool
) -> None:
    asked = oracle(net, digits, rows, FewRows(gradient=8, answer=4))
    weights = torch.zeros(rows, 10)
    with asked._target:
        asked.gradient(asked.x, lambda logits, y: logits.sum(1))
        asked.slope(asked.x, weights)
        asked.jacobian(asked.x, 2)
        asked.logits(asked.x)
    assert net.seen == [(rows, not gradient)] * 3 + [(rows, not answer)]
    assert torch.backends.mkldnn.enabled


def test_they_come_to_the_same(net: Watched, digits: Digits) -> None:
    found = []
    for few in (FewRows(), FewRows(8, 8)):
        asked = oracle(net, digits, 6, few)
        with asked._target:
            found.append(asked.gradient(asked.x, lambda logits, y: logits.square().sum(1)))
    assert torch.allclose(found[0].gradient, found[1].gradient, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[0].logits, found[1].logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2), nn.Flatten(), nn.Linear(64, 10)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10)),
    ],
)
def test_models_that_it_does_nothing_for_are_let_be(model: nn.Module) -> None:
    assert few_rows(model, values=64) == FewRows()


def test_the_smaller_the_samples_the_more_rows(net: Watched) -> None:
    assert few_rows(net, 28 * 28) == (8, 4)
    assert few_rows(net, 3 * 32 * 32) == (4, 2)
    assert few_rows(net, 3 * 224 * 224) == FewRows()


def test_verdicts_stay(net: Watched, digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits[0][:24], net(digits[0][:24]).argmax(1)
    reports = []
    for few in (FewRows(), FewRows(8, 4)):
        monkeypatch.setattr(run, "few_rows", lambda model, values, few=few: few)
        net.seen.clear()
        reports.append(robust.evaluate(net, data, threat="linf:0.05", device="cpu"))
        assert any(not onednn for _, onednn in net.seen) == (few != FewRows())
    assert list(reports[0].verdicts.status) == list(reports[1].verdicts.status)
    assert set(reports[0].verdicts.status) == {"broken", "survived"}
