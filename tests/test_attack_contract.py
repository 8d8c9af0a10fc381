"""What every registered attack must do, whoever wrote it. A new attack is under test by being registered."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICES
from pretended_gpu import pretended_gpu
from torch import Tensor, nn

import robust
from robust.attacks import ATTACKS, PGD, Attack
from robust.errors import InputError, UnsupportedError
from robust.ledger import Ledger
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import NORMS, Threat

RADII = {
    "linf": "0.15", "l2": "0.9", "l1": "4", "l0": "6", "spatial": "40,0.2", "corruptions": "1-5", "patch": "3x4",
}  # fmt: skip
CHEAP: dict[str, dict[str, object]] = {  # fewer passes than the defaults; attacks not named run as they are
    "apgd": {"steps": 20},
    "basin-hopping": {"steps": 6, "targets": 3, "hops": 2, "hop_steps": 3, "chains": 2, "push": (0.3, 1.0)},
    "a3": {"steps": 6, "rounds": 4, "odi_steps": 2},
    "cw": {"steps": 40, "binary_search_steps": 4},
    "ead": {"steps": 30, "binary_search_steps": 2},
    "fab": {"steps": 8, "targets": 3},
    "fmn": {"steps": 40},
    "md": {"steps": 10},
    "multitargeted": {"steps": 6, "targets": 3, "odi_steps": 2},
    "pma": {"steps": 20},
    "pdpgd": {"steps": 60},
    "sigma-zero": {"steps": 40},
    "hopskipjump": {"queries": 400, "probes": 8, "start_tries": 4},
    "patch": {"steps": 10, "places": 3},
    "rays": {"queries": 150},
    "spsa": {"queries": 140, "samples": 6},
    "superdeepfool": {"rounds": 3, "steps": 4},
    "sparse-rs": {"queries": 300, "proposals": 2},
    "gradient-swaps": {"rounds": 5, "proposals": 4},
    "swap-search": {"queries": 300, "alone": 64, "kept": 8, "fresh": 4, "swaps": 8, "at_once": 4},
    "square": {"queries": 300, "proposals": 2},
    "outer-boundary": {"steps": 6, "lines": 2},
    "square-ascent": {"rounds": 2, "queries": 60, "proposals": 2, "steps": 8},
    "smoothed-ascent": {"steps": 8, "copies": 4},
    "vfga": {"draws": 4},
    "transfer": {"surrogate": f"{Path(__file__).parent / 'surrogate.py'}:digits"},
}
CASES = [(name, norm, 0) for name in ATTACKS for norm in ATTACKS[name].norms]
# Once more against classes one after the other, where that is not the default.
CASES += [
    (name, ATTACKS[name].norms[0], 2)
    for name in ATTACKS
    if any(f.name == "targets" and f.default == 0 for f in fields(ATTACKS[name]))
]


NUMBERS = [
    (name, f.name, str(f.type))
    for name in ATTACKS
    for f in fields(ATTACKS[name])
    if "float" in str(f.type) or "int" in str(f.type)
]


@pytest.mark.parametrize(("name", "option", "kind"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_options_that_are_no_finite_numbers_are_refused(
    name: str, option: str, kind: str, value: float
) -> None:
    with pytest.raises(InputError, match=rf"{name}: .*{option}"):
        ATTACKS[name](**{option: (value, 1.0) if kind.startswith("tuple") else value})


@pytest.mark.parametrize(
    ("option", "value"), [("steps", 2.5), ("steps", "3"), ("steps", True), ("step_size", "1")]
)
def test_options_of_another_type_are_refused_where_they_are_given(option: str, value: Any) -> None:
    expected = "an integer" if option == "steps" else "a number"
    with pytest.raises(InputError, match=f"{option}: expected {expected}, got {value!r}"):
        PGD(**{option: value})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("name", None), ("norms", "linf"), ("norms", ()), ("access", "white-box"), ("paper", None)],
)
def test_an_attack_whose_class_lacks_something_is_told(
    attribute: str, value: Any, net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    attack = type("Mine", (PGD,), {attribute: value})()
    with pytest.raises(InputError, match=rf"Mine\.{attribute}: expected .*, got .*set it in the class"):
        robust.evaluate(net, correct, threat="linf:0.1", suite=attack, device="cpu")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, option, _ in NUMBERS
        if option in ("step_size", "learning_rate", "initial_const")
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_steps_that_lead_nowhere_or_back_are_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}: .*{option}"):
        ATTACKS[name](**{option: value})


class Counted(nn.Module):
    """A model that counts the rows it is given, by itself and per gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        out: Tensor = self.model(x)
        return out


def attack_digits(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    *,
    device: str = "cpu",
    ids: Tensor | None = None,
    micro_batch: int = 256,
    budget: int | None = None,
    seed: int = 0,
    lags: bool | None = None,
    minimize: bool = False,
) -> Ledger:
    ids = torch.arange(len(x)) if ids is None else ids
    with Target(model, device=device) as target:
        oracle = Oracle(
            target, x.to(device), y.to(device), ids.to(device), Threat(norm, RADII[norm]),
            seed=seed, purpose=attack.label, access=attack.access, micro_batch=micro_batch, budget=budget,
            lags=lags, minimize=minimize,
        )  # fmt: skip
        attack(oracle)
    return oracle.ledger


@pytest.fixture
def correct(net: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """24 digits that the net classifies correctly."""
    x, y = digits
    right = net(x).argmax(1) == y
    return x[right][:24], y[right][:24]


def ties(a: Ledger, b: Ledger) -> int:
    """Rows whose status differs between two runs of the same attack; more than one in 24 is no tie."""
    return int((a.broken.cpu() != b.broken.cpu()).sum())


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}" + "-targeted" * bool(case[2]))
def case(request: pytest.FixtureRequest) -> tuple[Attack, str]:
    name, norm, targets = request.param
    return ATTACKS[name](**CHEAP.get(name, {}), **({"targets": targets} if targets else {})), norm


@pytest.mark.parametrize("device", DEVICES)
def test_breaks_something_and_every_break_is_real(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor], device: str
) -> None:
    (attack, norm), (x, y) = case, correct
    ledger = attack_digits(attack, net, x, y, norm, device=device)
    found, x_adv = ledger.broken.cpu(), ledger.x_adv.cpu()
    assert found.sum() >= 3, "an attack that finds nothing on an undefended net does not work"
    threat = Threat(norm, RADII[norm])
    assert threat.contains(x_adv[found], x[found]).all()
    assert (net.cpu()(x_adv[found]).argmax(1) != y[found]).all()
    # A GPU adds up in another order.
    torch.testing.assert_close(
        ledger.distance.cpu()[found],
        threat.distance(x_adv, x)[found],
        rtol=0 if device == "cpu" else 1e-6,
        atol=0,
    )


def test_counts_are_those_of_the_model_and_the_same_alone(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    (attack, norm), (x, y) = case, correct
    x, y = x[:6], y[:6]
    model = Counted(net).eval()
    together = attack_digits(attack, model, x, y, norm)
    assert int(together.forwards.sum()) == model.rows
    for i in range(len(x)):
        alone = attack_digits(attack, net, x[i : i + 1], y[i : i + 1], norm, ids=torch.tensor([i]))
        assert alone.forwards.item() == together.forwards[i].item()
        assert alone.backwards.item() == together.backwards[i].item()
        assert alone.broken.item() == together.broken[i].item()


@pytest.mark.parametrize("budget", [1, 9])
def test_the_budget_holds_for_every_sample(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor], budget: int
) -> None:
    (attack, norm), (x, y) = case, correct
    ledger = attack_digits(attack, net, x, y, norm, budget=budget)
    assert (ledger.forwards + ledger.backwards).max() <= budget


def test_same_seed_same_result_whatever_the_batch_and_order(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    (attack, norm), (x, y) = case, correct
    first = attack_digits(attack, net, x, y, norm)
    again = attack_digits(attack, net, x, y, norm)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.forwards, again.forwards)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    other = attack_digits(attack, net, x[order], y[order], norm, ids=order, micro_batch=5)
    back = order.argsort()
    assert torch.equal(other.broken[back], first.broken)


@pytest.mark.parametrize("minimize", [False, True])
def test_looking_at_answers_later_finds_the_same(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor], minimize: bool
) -> None:
    """As on a GPU, where the next query is asked before an answer is looked at: who is broken leaves a query later."""
    (attack, norm), (x, y) = case, correct
    if minimize and norm not in NORMS:
        pytest.skip("of a family every distance is searched for")
    at_once, later = (
        attack_digits(attack, net, x, y, norm, lags=lags, minimize=minimize) for lags in (False, True)
    )
    assert torch.equal(later.broken, at_once.broken)
    # A batch of another size is rounded in another way.
    torch.testing.assert_close(later.x_adv, at_once.x_adv, rtol=0, atol=1e-4)
    torch.testing.assert_close(later.distance, at_once.distance, rtol=0, atol=1e-4)
    left = ~at_once.broken | minimize
    for name in ("forwards", "backwards", "gaps"):
        torch.testing.assert_close(
            getattr(later, name)[left], getattr(at_once, name)[left], rtol=0, atol=1e-3
        )
    assert (later.forwards >= at_once.forwards).all()


def test_model_and_global_randomness_are_untouched(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    (attack, norm), (x, y) = case, correct
    net.train()
    net[1].eval()  # type: ignore[index]
    net[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    modes = [m.training for m in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    images, noise = x.clone(), torch.get_rng_state()
    attack_digits(attack, net, x, y, norm)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == grads
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(images, x)
    assert torch.equal(noise, torch.get_rng_state())


class Shrunk(nn.Module):
    """A model of inputs that are so many times as large."""

    def __init__(self, model: nn.Module, times: float) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x / self.times)
        return out


def test_the_same_in_a_box_of_any_width(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    """Lengths and weights that are the attack's own are in units of the box."""
    (attack, norm), (x, y) = case, correct
    if norm not in NORMS or attack.name == "transfer":  # its surrogate takes inputs of one box alone
        pytest.skip("only norm balls, and only of one model")
    found = []
    for width in (1.0, 256.0):  # by a power of two nothing is rounded
        unit = 1.0 if norm == "l0" else width
        threat = Threat(norm, repr(float(RADII[norm]) * unit), (0.0, width))
        with Target(Shrunk(net, width), bounds=threat.bounds, device="cpu") as target:
            oracle = Oracle(
                target, width * x, y, torch.arange(len(x)), threat,
                purpose=attack.label, access=attack.access, minimize=attack.minimum_norm,
            )  # fmt: skip
            attack(oracle)
        found.append(oracle.ledger)
        distances = oracle.ledger.distance / unit
    assert ties(*found) <= 1
    torch.testing.assert_close(
        distances.nan_to_num(posinf=0).mean(),
        found[0].distance.nan_to_num(posinf=0).mean(),
        rtol=0.02,
        atol=0,
    )


@pytest.mark.parametrize(
    "name", [name for name, _, targets in CASES if targets and ATTACKS[name].access == "gradient"]
)
def test_with_targets_one_class_after_the_other_is_aimed_at(
    name: str, net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    x, y = correct[0][:1], correct[1][:1]
    attack, norm = ATTACKS[name](**CHEAP.get(name, {}), targets=2), ATTACKS[name].norms[0]
    asked: list[int] = []

    class Watching(Oracle):
        def gradient(self, x_adv, loss, *columns):  # type: ignore[no-untyped-def]
            asked.extend(int(column) for column in columns if column.dtype == torch.int64)
            return super().gradient(x_adv, loss, *columns)

    with Target(net, device="cpu") as target:
        threat = Threat(norm, "1" if norm == "l0" else "0.000001")
        attack(Watching(target, x, y, torch.arange(1), threat, minimize=True, stays_inside=False))
    first, second = dict.fromkeys(asked)
    assert y[0] not in (first, second)
    assert asked == sorted(asked, key=[first, second].index)


def test_declares_itself(case: tuple[Attack, str]) -> None:
    attack, _ = case
    assert ATTACKS[attack.name] is type(attack)
    assert attack.paper
    assert attack.__doc__
    assert all(f"{key}:" in attack.__doc__ or f"{key}," in attack.__doc__ for key in attack.parameters)
    for norm in set(NORMS) - set(attack.norms):
        with pytest.raises(UnsupportedError, match="not for"):
            attack.check(Threat(norm, "5"))


def test_a_no_op_attack_fails_the_contract(net: nn.Module, correct: tuple[Tensor, Tensor]) -> None:
    class NoOp(ATTACKS["fgsm"]):  # type: ignore[misc]
        def run(self, oracle: Oracle) -> Tensor:
            oracle.logits(oracle.x)
            return oracle.x

    with pytest.raises(AssertionError, match="finds nothing"):
        test_breaks_something_and_every_break_is_real((NoOp(), "linf"), net, correct, "cpu")


@pytest.mark.gpu
def test_cpu_and_cuda_agree_but_for_ties(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    (attack, norm), (x, y) = case, correct
    cpu = attack_digits(attack, net, x, y, norm)
    cuda = attack_digits(attack, net, x, y, norm, device="cuda")
    print(f"{attack.label} {norm}: {ties(cpu, cuda)} of {len(x)} differ")
    assert ties(cpu, cuda) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is here")
def test_no_attack_leaves_the_device_that_it_is_on(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor]
) -> None:
    (attack, norm), (x, y) = case, correct
    cpu = attack_digits(attack, net, x[:8], y[:8], norm, budget=80)
    with pretended_gpu():
        gpu = attack_digits(attack, net, x[:8], y[:8], norm, device="cuda", budget=80)
        assert ties(cpu, gpu) <= 1


class Leaving(Oracle):
    """Lets every row go at the given query, as though it were broken there."""

    last = 1

    def _record(self, x_adv: Tensor, logits: Tensor) -> None:
        super()._record(x_adv, logits)
        self.last -= 1
        if self.last <= 0:
            self._live.leave(torch.ones(len(self), dtype=torch.bool))


@pytest.mark.parametrize("last", [1, 2, 3, 4, 6, 8, 15])
def test_the_last_row_may_leave_at_any_query(
    case: tuple[Attack, str], net: nn.Module, correct: tuple[Tensor, Tensor], last: int
) -> None:
    (attack, norm), x, y = case, correct[0][:1], correct[1][:1]
    with Target(net, device="cpu") as target:
        oracle = Leaving(target, x, y, torch.arange(1), Threat(norm, RADII[norm]), access=attack.access)
        oracle.last = last
        attack(oracle)
    assert len(oracle) == 0 or oracle.last > 0 or attack.name == "fgsm", (
        "rows leave between steps; FGSM has one"
    )
