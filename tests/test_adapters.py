"""Attacks of other libraries by name: run on the same target, counted, seeded, scored like ours."""

from __future__ import annotations

import inspect
import pickle
import random
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Linear, needs
from test_attack_contract import RADII, Counted, attack_digits
from torch import Tensor, nn

import robust
from robust.attacks import ATTACKS, Attack, make_attack
from robust.attacks.adapters import LIBRARIES, Library, Torchattacks, adapter_of
from robust.attacks.adapters.isolation import private_randomness
from robust.attacks.adapters.library import Job
from robust.attacks.adapters.meter import Meter
from robust.cli import main
from robust.errors import InputError, MissingDependencyError, UnknownNameError, UnsupportedError
from robust.evaluation import Interrupted
from robust.losses import margin
from robust.oracle import Oracle
from robust.run import Progress
from robust.sweep import load_config, run_sweep
from robust.target import Target
from robust.threat import Threat

QUICK: dict[str, dict[str, Any]] = {  # fewer passes than the library's defaults
    "torchattacks:EADEN": {"max_iterations": 20, "binary_search_steps": 4},
    "torchattacks:EADL1": {"max_iterations": 20, "binary_search_steps": 4},
    "torchattacks:DeepFool": {"steps": 10},
    "torchattacks:SparseFool": {"steps": 2},
    "torchattacks:Square": {"n_queries": 150},
    "torchattacks:AutoAttack": {"budget": 300},
    "torchattacks:CW": {"lr": 0.05},
    "torchattacks:SPSA": {"nb_iter": 8, "lr": 0.05},
    "art:AutoProjectedGradientDescent": {"max_iter": 10, "nb_random_init": 1},
    "art:AutoConjugateGradient": {"max_iter": 10, "nb_random_init": 1},
    "art:RescalingAutoConjugateGradient": {"max_iter": 10, "nb_random_init": 1},
    "art:AutoAttack": {"budget": 300},
    "art:BasicIterativeMethod": {"max_iter": 10},
    "art:MomentumIterativeMethod": {"max_iter": 10},
    "art:ProjectedGradientDescent": {"max_iter": 10},
    "art:ProjectedGradientDescentPyTorch": {"max_iter": 10},
    "art:ProjectedGradientDescentNumpy": {"max_iter": 10},
    "art:SquareAttack": {"max_iter": 100},
    "art:CarliniL2Method": {"max_iter": 10, "binary_search_steps": 4, "initial_const": 1},
    "art:CarliniLInfMethod": {
        "initial_const": 1,
        "const_factor": 10,
        "decrease_factor": 0.5,
        "max_iter": 5,
        "learning_rate": 0.1,
    },
    "art:CarliniL0Method": {
        "max_iter": 5,
        "binary_search_steps": 2,
        "initial_const": 10,
        "learning_rate": 0.1,
    },
    "art:VirtualAdversarialMethod": {"finite_diff": 0.01, "max_iter": 3},
    "art:ElasticNet": {"max_iter": 20, "binary_search_steps": 4},
    "art:DeepFool": {"max_iter": 20},
    "art:NewtonFool": {"max_iter": 20, "eta": 0.1},
    "art:BoundaryAttack": {"max_iter": 5, "delta": 0.1},
    "art:HopSkipJump": {"max_iter": 3, "max_eval": 100, "init_eval": 20},
    "art:SignOPTAttack": {"query_limit": 200, "max_iter": 50, "num_trial": 20},
    "art:SimBA": {"max_iter": 60, "epsilon": 0.3},
    "art:ZooAttack": {
        "use_resize": False,
        "use_importance": False,
        "nb_parallel": 32,
        "max_iter": 40,
        "learning_rate": 0.3,
        "initial_const": 1,
    },
    "art:PixelAttack": {"max_iter": 2},
    "art:ThresholdAttack": {"max_iter": 2, "es": 1},
    "art:SaliencyMapMethod": {"theta": 1},
    "art:UniversalPerturbation": {"max_iter": 1, "budget": 600},
    "foolbox:L2CarliniWagnerAttack": {"steps": 30, "binary_search_steps": 4, "stepsize": 0.05},
    "foolbox:EADAttack": {"steps": 30, "binary_search_steps": 4, "initial_stepsize": 0.05},
    "foolbox:VirtualAdversarialAttack": {"steps": 5},
    "foolbox:LinearSearchContrastReductionAttack": {"steps": 50},
    "foolbox:LinearSearchBlendedUniformNoiseAttack": {"steps": 50, "directions": 20},
    "foolbox:GaussianBlurAttack": {"steps": 50},
    "foolbox:SaltAndPepperNoiseAttack": {"steps": 100},
    "foolbox:BoundaryAttack": {"steps": 150},
    "foolbox:HopSkipJumpAttack": {"steps": 3, "max_gradient_eval_steps": 150},
    "foolbox:PointwiseAttack": {"budget": 300},
    "foolbox:LinfinityBrendelBethgeAttack": {"budget": 300},
    "foolbox:L2BrendelBethgeAttack": {"budget": 300},
    "foolbox:L1BrendelBethgeAttack": {"budget": 300},
    "foolbox:L0BrendelBethgeAttack": {"budget": 300},
}
# Too weak, or too blind to eps, to break one of the digits within the contract's radii: these get wider ones.
WEAK = {
    "art:BoundaryAttack",
    "art:VirtualAdversarialMethod",
    "art:CarliniL0Method",
    "art:CarliniLInfMethod",
    "art:SaliencyMapMethod",
    "art:UniversalPerturbation",
    "art:ZooAttack",
    *(
        f"foolbox:{name}"
        for name in LIBRARIES["foolbox"].names()
        if any(word in name for word in ("Noise", "Contrast", "BrendelBethge"))
    ),
    "foolbox:BoundaryAttack",
    "foolbox:GaussianBlurAttack",
    "foolbox:InversionAttack",
}
WIDE = {"linf": "1", "l2": "8", "l1": "64", "l0": "64"}
NAMES = [f"{library.name}:{name}" for library in LIBRARIES.values() for name in library.names()]


def quick(name: str) -> Attack:
    library = LIBRARIES[name.partition(":")[0]]
    pytest.importorskip(library.name, exc_type=ImportError)
    return make_attack(name, **QUICK.get(name, {}))


@pytest.fixture
def five(net: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Five digits that the net classifies correctly."""
    x, y = digits
    right = net(x).argmax(1) == y
    return x[right][:5], y[right][:5]


@pytest.mark.parametrize("name", NAMES)
def test_is_scored_counted_and_leaves_no_trace(
    name: str, net: nn.Module, five: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, (x, y) = quick(name), five
    if name in WEAK:
        monkeypatch.setattr("test_attack_contract.RADII", WIDE)
    radii = WIDE if name in WEAK else RADII
    net.train()
    net[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    noise = global_noise()
    model = Counted(net).train()
    for norm in attack.norms:
        if attack.peer.channels == 3:  # type: ignore[attr-defined]
            with pytest.raises(UnsupportedError, match="3 channels"):
                attack_digits(attack, model, x, y, norm)
            return
        model.rows = 0
        try:
            ledger = attack_digits(attack, model, x, y, norm)
        except MissingDependencyError as missing:
            pytest.skip(str(missing))
        assert int(ledger.forwards.sum()) == model.rows
        found = ledger.broken
        assert found.any()
        assert Threat(norm, radii[norm]).contains(ledger.x_adv[found], x[found]).all()
        with torch.no_grad(), Target(net, device="cpu") as target:
            gap = margin(target.logits(ledger.x_adv[found]), y[found])
        assert (gap > -1e-4).all()  # some stop right on the boundary
    assert noise == global_noise()
    assert all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def global_noise() -> tuple[object, ...]:
    numpy = np.random.get_state()  # noqa: NPY002 - the libraries draw from the global one
    return torch.get_rng_state().tolist(), np.asarray(numpy[1]).tolist(), random.getstate()


@needs("art", "cma")
def test_cma_s_own_seed_of_the_clock_decides_nothing(net: nn.Module, five: tuple[Tensor, Tensor]) -> None:
    attack, (x, y) = make_attack("art:ThresholdAttack", max_iter=2), five
    assert attack.parameters["es"] == 0  # ART's default, which needs cma
    first, again, other = (attack_digits(attack, net, x, y, "linf", seed=seed) for seed in (0, 0, 1))
    assert first.broken.any()
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.forwards, again.forwards)
    assert not torch.equal(first.x_adv, other.x_adv)


@needs("art")
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("art:FastGradientMethod", "num_random_init", "-1"),
        ("art:SquareAttack", "p_init", "2"),
        ("art:FastGradientMethod", "num_random_init", "none"),
    ],
)
def test_what_the_library_itself_refuses_is_refused_before_anything_is_asked(
    name: str, option: str, value: str, net: nn.Module, five: tuple[Tensor, Tensor]
) -> None:
    attack, model = make_attack(name, **{option: value}), Counted(net)
    with pytest.raises(
        InputError, match=rf"^{name}\({option}=.*\): art refuses it under linf:0.1: The .* has to be"
    ):
        robust.evaluate(model, five, threat="linf:0.1", suite=attack, device="cpu")
    assert model.rows == 0


@needs("art")
def test_the_options_that_the_page_has_for_slow_attacks_are_taken() -> None:
    page = (Path(__file__).parent.parent / "docs" / "adding_an_attack.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(art:\w+)`[^|]*\| (.*) \|$", page, re.MULTILINE)
    assert len(rows) >= 5
    for name, options in rows:
        given = dict(option.split("=") for option in re.findall(r"`(\w+=\d+)`", options))
        attack = make_attack(name, **given)
        attack.check(Threat(attack.norms[0], RADII[attack.norms[0]]))
        assert given.items() <= {key: str(value) for key, value in attack.parameters.items()}.items()


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda library: library.name)
def test_no_library_refuses_its_own_defaults(library: Library) -> None:
    pytest.importorskip(library.name, exc_type=ImportError)
    noise = global_noise()
    for name in library.names():
        attack = make_attack(f"{library.name}:{name}")
        for norm in attack.norms:
            attack.check(Threat(norm, RADII[norm], (0.0, 255.0)))
    assert noise == global_noise()


@needs("torchattacks", "art", "foolbox")
@pytest.mark.parametrize("name", ["torchattacks:CW", "art:HopSkipJump", "foolbox:LinfPGD"])
def test_alone_nothing_depends_on_the_batch(name: str, net: nn.Module, five: tuple[Tensor, Tensor]) -> None:
    options = {**QUICK.get(name, {}), "group": 1}
    attack, (x, y) = make_attack(name, **options), five
    assert not attack.batch_dependent
    norm = attack.norms[0]
    together = attack_digits(attack, net, x, y, norm)
    order = torch.tensor([3, 0, 4])
    again = attack_digits(attack, net, x[order], y[order], norm, ids=order, micro_batch=2)
    assert torch.equal(again.broken, together.broken[order])
    assert torch.equal(again.forwards, together.forwards[order])
    assert torch.equal(again.backwards, together.backwards[order])
    other = attack_digits(attack, net, x, y, norm, seed=1)
    if name != "torchattacks:CW":  # which draws nothing
        assert not torch.equal(other.x_adv, together.x_adv)


@needs("torchattacks")
def test_passes_are_split_over_the_samples_of_a_group(net: nn.Module, five: tuple[Tensor, Tensor]) -> None:
    x, y = five
    pgd = attack_digits(make_attack("torchattacks:PGD", steps=7), net, x, y, "linf")
    assert pgd.forwards.tolist() == [8] * 5  # and one to look at what it returns
    assert pgd.backwards.tolist() == [7] * 5
    grouped = make_attack("torchattacks:DeepFool", steps=5, group=5)  # goes one by one inside
    alone = attack_digits(make_attack("torchattacks:DeepFool", steps=5), net, x, y, "l2")
    together = attack_digits(grouped, net, x, y, "l2")
    assert torch.equal(alone.forwards, together.forwards)
    assert torch.equal(alone.backwards, together.backwards)


@needs("torchattacks", "art", "foolbox")
@pytest.mark.parametrize("budget", [1, 2, 9, 40])
def test_the_budget_holds_and_keeps_what_was_found(
    budget: int, net: nn.Module, five: tuple[Tensor, Tensor]
) -> None:
    x, y = five
    for name in ("torchattacks:PGD", "art:DeepFool", "foolbox:L2CarliniWagnerAttack"):
        attack = make_attack(name)
        ledger = attack_digits(attack, net, x, y, attack.norms[0], budget=budget)
        assert (ledger.forwards + ledger.backwards).max() <= budget
        own = attack_digits(make_attack(name, budget=budget), net, x, y, attack.norms[0])
        assert (own.forwards + own.backwards).max() <= budget
    many = attack_digits(make_attack("torchattacks:PGD", steps=500, budget=61), net, x, y, "linf")
    few = attack_digits(make_attack("torchattacks:PGD", steps=500, budget=1), net, x, y, "linf")
    assert many.broken.sum() > few.broken.sum() == 0


def test_access_is_enforced(net: nn.Module, five: tuple[Tensor, Tensor]) -> None:
    x, y = five
    seen: list[Tensor] = []
    with Target(net, device="cpu") as target:
        for access in ("gradient", "score", "decision"):
            oracle = Oracle(target, x, y, torch.arange(5), Threat("linf", "0.1"), access=access)  # type: ignore[arg-type]
            seen.append(oracle.lend()(x.clone().requires_grad_()))
    gradient, score, decision = seen
    assert gradient.requires_grad
    assert not score.requires_grad
    assert torch.equal(gradient.detach(), score)
    assert torch.equal(decision, nn.functional.one_hot(score.argmax(1), 10).float())


@needs("art", "foolbox")
def test_the_minimal_perturbation_of_a_linear_model_in_another_box() -> None:
    weight, x = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [-2.0, 1.0, 1.0]]), torch.zeros(1, 3)
    model, y = Linear(weight, torch.tensor([0.0, -0.5, -2.0])), torch.tensor([0])
    exact = 0.5 / weight[0].norm()
    for name in ("foolbox:L2DeepFoolAttack", "art:DeepFool"):
        attack = make_attack(name)
        with Target(model, device="cpu", bounds=(-2.0, 6.0)) as target:
            oracle = Oracle(target, x, y, torch.arange(1), Threat("l2", "0.25", (-2.0, 6.0)), minimize=True)
            attack(oracle)
        assert oracle.ledger.distance.item() == pytest.approx(exact.item(), rel=0.06)
        assert oracle.ledger.broken.all()


@needs("torchattacks")
@pytest.mark.parametrize("classes", [2, 4, 12])
def test_jsma_aims_at_a_class_that_the_model_has(classes: int) -> None:
    model, x = Linear(torch.eye(classes), torch.zeros(classes)), torch.eye(classes) * 0.5
    report = robust.evaluate(
        model, (x, torch.arange(classes)), threat="l0:2", suite="torchattacks:JSMA", device="cpu"
    )
    assert report.statuses["error"] == 0, report.failures
    assert report.statuses["broken"] >= classes - 1


@needs("torchattacks")
@pytest.mark.parametrize("name", ["APGDT", "AutoAttack"])
def test_too_few_classes_are_refused_in_a_line(name: str) -> None:
    model, x = Linear(torch.eye(3), torch.zeros(3)), torch.eye(3) * 0.5
    with pytest.raises(UnsupportedError, match="at least 4 classes, not of 3"):
        robust.evaluate(
            model, (x, torch.arange(3)), threat="linf:0.01", suite=f"torchattacks:{name}", device="cpu"
        )


def test_no_more_pixels_are_repainted_than_there_are() -> None:
    for shape, pixels in (((3, 4, 4), 16), ((1, 4, 4), 16), ((7,), 7)):
        x, y = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)
        model = Meter(lambda rows: rows.flatten(1), x, y, (0.0, 1.0), "l0", None)
        assert Job(model, x, y, 1e6, "l0", 0, {}).pixels == pixels


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda library: library.name)
def test_every_option_has_a_default(library: Library) -> None:
    pytest.importorskip(library.name, exc_type=ImportError)
    for name in library.names():
        missing = [
            key for key, option in library.options(name).items() if option.default is inspect.Parameter.empty
        ]
        assert not missing, name


@needs("torchattacks", "art", "foolbox")
def test_names_and_options_that_do_not_exist() -> None:
    for name, meant in (("torchattacks:PDG", "torchattacks:PGD"), ("torchatacks:PGD", "torchattacks:PGD"),
                        ("art:squareattack", "art:SquareAttack"), ("foolbox:LinfPDG", "foolbox:LinfPGD")):  # fmt: skip
        assert name not in ATTACKS
        with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
            ATTACKS[name]
    with pytest.raises(
        UnsupportedError, match=r"art:AdversarialPatch is not offered here: it is bound by a patch"
    ):
        ATTACKS["art:AdversarialPatch"]
    with pytest.raises(UnsupportedError, match="works for linf, not for l2"):
        make_attack("torchattacks:PGD").check(Threat("l2", "1"))
    for option, value, told in (
        ("step", "3", "did you mean 'steps'"),
        ("eps", "0.1", "the threat sets that"),
        ("steps", "ten", "expected a whole number, got 'ten'"),
        ("random_start", "1", "expected true or false"),
        ("alpha", "0.1.2", "alpha"),
        ("group", "0", "at least 1"),
        ("steps", "0", "steps must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=told):
            make_attack("torchattacks:PGD", **{option: value})
    with pytest.raises(InputError, match="max_iterations must be at least 10, got 9"):
        make_attack("torchattacks:EADL1", max_iterations=9)
    attack = make_attack("torchattacks:PGD", alpha="2/255", random_start="false", steps="3")
    assert pickle.loads(pickle.dumps(attack)) == attack  # noqa: S301 - as a sweep's workers are sent it
    assert attack.parameters == {
        "alpha": 2 / 255, "random_start": False, "steps": 3, "group": 64, "budget": None
    }  # fmt: skip


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(Torchattacks):
        name = "absent"
        package = "no-such-library"

        def constructor(self, name: str) -> type[Any]:
            return getattr(self.load("no_such_library"), name)  # type: ignore[no-any-return]

    library = Absent()
    monkeypatch.setitem(LIBRARIES, "absent", library)  # type: ignore[misc]
    monkeypatch.setitem(
        ATTACKS.annexes,
        "absent",
        ATTACKS.annexes["torchattacks"].__class__(
            partial(adapter_of, library), library.names, library.refuse
        ),
    )
    told = r'need no-such-library, which is not installed; pip install "robust-harness\[torchattacks\]"'
    with pytest.raises(MissingDependencyError, match=told):
        ATTACKS["absent:PGD"]


def test_a_library_that_another_process_imports_for_the_first_time_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ART does, whose settings are written by then."""
    (tmp_path / "made_twice.py").write_text(
        "from pathlib import Path\n"
        "written = Path(__file__).with_suffix('.json')\n"
        "if not written.exists():\n"
        "    written.touch()\n"
        "    settings\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    library = next((library for library in LIBRARIES.values() if library.version), None)
    if library is None:
        pytest.skip("no other library is installed")
    assert library.load("made_twice").written.exists()
    (tmp_path / "broken.py").write_text("settings\n")
    with pytest.raises(MissingDependencyError, match="NameError"):
        library.load("broken")


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda library: library.name)
def test_every_attack_of_the_library_is_offered_or_refused_with_a_reason(library: Library) -> None:
    module = {"torchattacks": "torchattacks", "art": "art.attacks.evasion", "foolbox": "foolbox.attacks"}
    pytest.importorskip(library.name, exc_type=ImportError)
    items = vars(library.load(module[library.name])).items()
    there = {name: item.__name__ for name, item in items if inspect.isclass(item)}
    offered = {there[name] for name in library.names() if name in there}
    left = {name for name, original in there.items() if original not in offered}
    assert left - set(library.absent) <= {"Attack"}
    assert set(library.peers) <= set(there)


@needs("torchattacks", "foolbox")
def test_the_report_says_whose_attack_it_was(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    suite = ["fgsm", {"name": "torchattacks:PGD", "steps": 5}, {"name": "foolbox:LinfPGD", "group": 1}]
    report = robust.evaluate(net, digits, threat="linf:0.1", suite=suite, device="cpu", cascade=False)
    ours, theirs, alone = report.attacks
    assert (ours["source"], ours["batch_dependent"], ours["notes"]) == ("robust", False, [])
    assert theirs["source"].startswith("torchattacks 3")
    assert report.versions["torchattacks"] == LIBRARIES["torchattacks"].version
    assert theirs["batch_dependent"]
    assert not alone["batch_dependent"]
    assert any("last iterate" in note for note in theirs["notes"])
    assert theirs["broke"] > 0
    assert theirs["rejected"] == 0
    assert theirs["backwards"] == 5 * theirs["attacked"]


@needs("torchattacks", "foolbox")
def test_a_sweep_takes_them_by_name(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        'data = "builtin:digits"\ntrain = "builtin:digits:train"\nlimit = 30\nthreats = ["linf:0.1"]\n'
        'suites = ["torchattacks:FGSM", ["fgsm", {name = "foolbox:LinfPGD", steps = 3}]]\n'
        '[[models]]\nspec = "builtin:digits-mlp"\n[[defenses]]\nname = "none"\ntraining = {epochs = 1}\n'
    )
    result = run_sweep(load_config(tmp_path / "plan.toml"), tmp_path / "out", device="cpu")
    assert not result.failures
    suites = [[attack.name for attack in record.attacks] for record in result.records]
    assert suites == [["torchattacks:FGSM"], ["fgsm", "foolbox:LinfPGD"]]
    (tmp_path / "plan.toml").write_text((tmp_path / "plan.toml").read_text().replace(":FGSM", ":FSGM"))
    with pytest.raises(
        UnknownNameError, match="unknown attack 'torchattacks:FSGM'; did you mean 'torchattacks:FGSM'"
    ):
        run_sweep(load_config(tmp_path / "plan.toml"), tmp_path / "out", device="cpu")


@needs("torchattacks", "art")
def test_the_command_line_takes_them_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--model", "builtin:digits-mlp", "--data", "builtin:digits", "--limit", "40", "--device", "cpu")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    code, out, _ = run(
        "attack", *where, "--threat", "linf:0.1", "--attack", "torchattacks:PGD", "--set", "steps=3"
    )
    assert code == 0
    assert "its results may depend on the batch" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, err = run("attack", *where, "--threat", "linf:0.1", "--attack", "art:SquareAtack")
    assert (code, out) == (2, "")
    assert err == "robust: unknown attack 'art:SquareAtack'; did you mean 'art:SquareAttack'?\n"
    code, out, _ = run("list", "attacks", "torchattacks:AutoAttack")
    assert code == 0
    assert "make 10 steps, the original 100" in " ".join(out.split())
    code, out, err = run("list", "checks", "pgd")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_strength_benchmark_names_attacks_and_options_that_exist(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import strength

    for library in LIBRARIES:
        pytest.importorskip(library, exc_type=ImportError)
    groups: dict[str, list[str]] = {}
    for group, name, options in strength.entries(norm):
        settings = {k: 0.1 if v is strength.PER_STEP else v for k, v in options.items()}
        assert norm in make_attack(name, **settings).norms
        groups.setdefault(group, []).append(name)
    assert all(names[0] == group.partition("(")[0] for group, names in groups.items())
    assert sum(":" in name for names in groups.values() for name in names) >= 3


def test_slow_ones_show_progress_and_ctrl_c_keeps_what_was_found(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    pytest.importorskip("torchattacks", exc_type=ImportError)
    shown: list[Progress] = []

    def stop(step: Progress) -> None:
        shown.append(step)
        if step.stage.startswith("torchattacks") and step.done == 12:
            raise KeyboardInterrupt

    attack = make_attack("torchattacks:JSMA", budget=60)
    with pytest.raises(KeyboardInterrupt) as caught:
        robust.evaluate(net, digits, threat="l0:20", suite=attack, device="cpu", progress=stop)
    assert isinstance(caught.value, Interrupted)
    report = caught.value.report
    assert [step.done for step in shown if step.stage.startswith("torchattacks")] == list(range(1, 13))
    assert report.statuses["broken"] >= 3
    assert report.statuses["error"] == report.clean_correct - report.statuses["broken"]
    costs = report.verdicts["forwards"] + report.verdicts["backwards"]
    assert costs.max() <= 60 + 2  # clean and audit


def test_a_library_is_seeded_without_a_seed_left_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with private_randomness(3):
        first = torch.rand(2)
    with private_randomness(3):
        assert torch.equal(torch.rand(2), first)
    assert seeded == []
