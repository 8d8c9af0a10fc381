"""Random streams: keyed, batch-free, uniform, and private."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robust import rng
from robust.errors import InputError
from robust.gate.plan import plan
from robust.rng import Streams, checked_seed
from robust.sources import load_model
from robust.sweep import SweepConfig


@given(st.integers(0, 2**31), st.permutations(list(range(8))), st.integers(1, 8))
def test_a_sample_keeps_its_numbers_in_any_company(seed: int, order: list[int], size: int) -> None:
    ids = torch.arange(8) * 1000
    whole = Streams(seed, ids, ("pgd", 0)).uniform((3, 4))
    picked = torch.tensor(order)[:size]
    assert torch.equal(Streams(seed, ids[picked], ("pgd", 0)).uniform((3, 4)), whole[picked])


def test_seed_purpose_and_id_each_change_the_numbers() -> None:
    ids = torch.arange(4)
    base = Streams(0, ids, ("a",)).uniform((50,))
    for other in (
        Streams(1, ids, ("a",)),
        Streams(0, ids, ("b",)),
        Streams(0, ids + 4, ("a",)),
        Streams(0, ids, ("a", 1)),
    ):
        assert (other.uniform((50,)) == base).float().mean() < 0.01
    assert torch.equal(
        Streams(0, ids, ("a", 1)).uniform((5,)), Streams(0, ids, ("a",)).child(1).uniform((5,))
    )


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_a_seed_below_zero_or_of_64_bits_is_one_like_any_other(seed: int) -> None:
    assert checked_seed(seed) == seed
    draws = [Streams(number, torch.arange(4), ("a",)).uniform((50,)) for number in (seed, -seed, seed)]
    assert torch.equal(draws[0], draws[2])
    assert (draws[0] == draws[1]).float().mean() < 0.01
    first = [load_model("builtin:digits-mlp", seed=number).state_dict() for number in (seed, seed, 5)]
    (key, weights), *_ = first[0].items()
    assert torch.equal(weights, first[1][key])
    assert not torch.equal(weights, first[2][key])
    assert plan(0.5, 0.6, population=100, runs=10, seed=seed).mean_samples > 0


def test_a_seed_that_generators_do_not_take_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="seed: expected an integer of at most 64 bits"):
        load_model("builtin:digits-mlp", seed=2**63)
    given = {"data": "builtin:digits", "models": [{"spec": "builtin:digits-mlp"}], "threats": ["linf:0.1"]}
    with pytest.raises(ValueError, match=r"seeds\n.* seed: expected an integer of at most 64 bits"):
        SweepConfig.model_validate({**given, "seeds": [0, 2**63]})


def test_distributions() -> None:
    streams = Streams(3, torch.arange(200), ("test",))
    uniform = streams.uniform((500,), -2, 3).flatten()
    assert uniform.min() >= -2
    assert uniform.max() <= 3
    assert stats.kstest(uniform.double().numpy(), "uniform", args=(-2, 5)).pvalue > 1e-3
    assert stats.kstest(streams.normal((500,)).flatten().double().numpy(), "norm").pvalue > 1e-3
    counts = torch.bincount(streams.integers((500,), 0, 7).flatten(), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    across = torch.corrcoef(streams.uniform((500,)))
    assert (across - torch.eye(200)).abs().max() < 0.25


def test_permutations_are_permutations() -> None:
    permutations = Streams(0, torch.arange(20), ("p",)).permutation(9)
    assert torch.equal(permutations.sort(1).values, torch.arange(9).expand(20, 9))
    assert len({tuple(row) for row in permutations.tolist()}) > 15


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Streams(0, torch.arange(4), ("x",)).normal((10,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (2, 5, 5)])
def test_the_host_draws_what_a_device_draws(shape: tuple[int, ...]) -> None:
    """NumPy's bits are those of the tensor operations that run on a device."""
    ids = torch.tensor([0, 1, -1, 2**62, -(2**63), 12345])
    streams = Streams(7, ids, ("pgd", "start", 0))
    counter = torch.arange(1, math.prod(shape) + 1) * rng._GOLDEN
    rows = rng._mix(ids * rng._GOLDEN + rng._key(7, ("pgd", "start", 0)))
    by_torch = rng._mix(rows[:, None] + counter[None, :]).view(len(ids), *shape)
    assert torch.equal(streams._bits(shape), by_torch)
    assert streams._bits(shape)[:0].shape == (0, *shape)
