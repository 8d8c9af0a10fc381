"""DDN where its paper's form stands still: flat surroundings, saturated logits; and where it ends early."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from wrapped import Wrap

import robust
from robust.attacks import DDN
from robust.errors import InputError


class _Well(nn.Module):
    """Two classes, flat where every value is within .3 of one half: the second wins once the rest adds up to .25."""

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - 0.5).abs() - 0.3).clamp_min(0).flatten(1).sum(1)
        return torch.stack([torch.full_like(rise, 0.25), rise], 1)


def test_from_far_off_the_way_in_is_found_in_few_steps() -> None:
    data = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    near, far = (
        robust.evaluate(_Well(), data, threat="l2:1", suite=attack, device="cpu")
        for attack in (DDN(steps=25, init_norm=0.1), DDN(steps=25, far=True))
    )
    assert near.robust_accuracy == 1  # its norm has grown to .34, and the edge is at .6
    assert far.robust_accuracy < 1


def test_the_suite_finds_the_way_in_by_it_alone() -> None:
    data = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    report = robust.evaluate(_Well(), data, threat="l2:0.62", device="cpu")
    broken = {entry["name"] for entry in report.attacks if entry["broke"]}
    assert broken == {"ddn"}


def test_logits_on_a_large_scale_do_not_stop_it(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    scaled = Wrap(net, after=lambda logits: 1000 * logits).eval()
    report = robust.evaluate(scaled, digits, threat="l2:0.5", suite="ddn", device="cpu")
    assert report.robust_accuracy < 0.75  # most gradients are zero


def test_a_search_without_hope_ends_and_one_with_hope_goes_on(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    found = {
        name: robust.evaluate(net, digits, threat="l2:0.3", suite=DDN(steps=60, hope=hope), device="cpu")
        for name, hope in {"whole": None, "ended": 30.0}.items()
    }
    broken = {name: set(r.verdicts.sample_id[r.verdicts.status == "broken"]) for name, r in found.items()}
    assert broken["ended"] <= broken["whole"]
    assert len(broken["whole"] - broken["ended"]) <= 2  # such as stand on the edge
    assert found["ended"].forwards < 0.8 * found["whole"].forwards


@pytest.mark.parametrize(
    "option",
    [{"hope": 0.0}, {"growth": -0.1}, {"gamma": 1.0}, {"init_norm": 0.0}, {"init_norm": 1.0, "far": True}],
)
def test_impossible_options_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"ddn: .*expected"):
        DDN(**option)  # type: ignore[arg-type]
