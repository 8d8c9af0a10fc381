"""Hypothesis strategies: what they draw lies where they say, and shrinks to the least."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from toy import Threshold

from robust.errors import DataError, InputError, MissingDependencyError
from robust.strategies import images, magnitudes, perturbations, threats
from robust.threat import NORMS, Threat

SPECS = ["linf:8/255", "l2:0.5", "l1:3", "l0:4"]


@settings(max_examples=60)
@given(st.data(), threats())
def test_perturbations_stay_inside(data: st.DataObject, threat: Threat) -> None:
    x = data.draw(images((1, 4, 4))).repeat(2, 1, 1, 1)
    delta = data.draw(perturbations(x, threat))
    assert delta.shape == x.shape
    assert threat.contains(x + delta, x).all()


@pytest.mark.parametrize("spec", SPECS)
def test_the_largest_touches_the_ball(spec: str) -> None:
    threat, x = Threat.parse(spec), torch.full((2, 1, 5, 5), 0.5)
    far = find(
        perturbations(x, spec, steps=7),
        lambda d: bool((threat.distance(x + d, x) > 0.99 * threat.radius).all()),
    )
    assert threat.distance(x + far, x).amax() <= threat.radius + 1e-6


@pytest.mark.parametrize("spec", SPECS[:3])
def test_failures_shrink_to_the_smallest_size(spec: str) -> None:
    """The predicate holds from 37 of 100 steps on; shrinking must end there."""
    threat, x = Threat.parse(spec), torch.full((1, 1, 4, 4), 0.5)
    least = 0.365 * threat.radius
    found = find(perturbations(x, spec, steps=100), lambda d: float(threat.distance(x + d, x)) >= least)
    assert float(threat.distance(x + found, x)) == pytest.approx(0.37 * threat.radius, rel=1e-4)


def test_a_property_of_a_model_finds_its_boundary() -> None:
    """The label flips from .05 on; the found perturbation is the first step beyond."""
    model, x = Threshold(), torch.full((1, 1, 2, 2), 0.45)
    found = find(perturbations(x, "linf:0.1"), lambda d: int(model(x + d).argmax()) == 1)
    assert 0.05 <= float(found.abs().max()) <= 0.0503


@settings(max_examples=60)
@given(images((3, 5, 5), bounds=(-1.0, 1.0), levels=5))
def test_images_lie_on_the_grid(x: torch.Tensor) -> None:
    assert x.shape == (1, 3, 5, 5)
    assert set(((x + 1) * 2).unique().tolist()) <= {0, 1, 2, 3, 4}


def test_images_shrink_to_an_even_one() -> None:
    x = find(images((1, 4, 4)), lambda x: float(x.max()) >= 0.5)
    assert (x == 128 / 255).all()


@settings(max_examples=60)
@given(threats(["l2", "l0"], largest=3))
def test_threats_are_of_the_norms_asked_for(threat: Threat) -> None:
    assert threat.norm in ("l2", "l0")
    assert 0 < threat.radius <= 3


def test_every_norm_is_drawn() -> None:
    assert [find(threats(), lambda t, n=norm: t.norm == n).norm for norm in NORMS] == list(NORMS)
    assert find(threats(["linf"]), lambda t: t.radius > 0.1).eps == "26/255"


def test_magnitudes_shrink_to_the_nearest() -> None:
    assert find(magnitudes(30), lambda angle: abs(angle) >= 3) == 3
    assert find(magnitudes(30), lambda angle: angle <= -3) == -3


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: threats(["l3"]), InputError, "norms"),
        (lambda: threats([]), InputError, "norms"),
        (lambda: threats(largest=0), InputError, "largest"),
        (lambda: images((0, 4)), InputError, "shape"),
        (lambda: images(levels=1), InputError, "levels"),
        (lambda: magnitudes(0), InputError, "limit"),
        (lambda: magnitudes(1, steps=0), InputError, "steps"),
        (lambda: perturbations(torch.ones(2, 2), "linf:1", steps=0), InputError, "steps"),
        (lambda: perturbations(torch.ones(3), "linf:1"), DataError, "batch"),
        (lambda: perturbations((1, 8, 8), "linf:1"), DataError, "batch"),  # type: ignore[arg-type]
        (lambda: perturbations(torch.full((1, 3), 2.0), "linf:1"), DataError, "within"),
    ],
)
def test_bad_arguments_are_named(make: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}|^x: .*{text}"):
        make()  # type: ignore[operator]


def test_without_hypothesis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "robust.strategies")
    with pytest.raises(MissingDependencyError, match=r"pip install 'robust-harness\[pytest\]'"):
        import_module("robust.strategies")
