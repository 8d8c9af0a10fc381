"""Evaluations: verdicts, invariants, independence of the batch, bad input, broken models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import FGSM, PGD, Attack
from robust.errors import (
    DataError,
    InputError,
    ModelError,
    StoreError,
    ThreatError,
    UnknownNameError,
    UnsupportedError,
)
from robust.evaluation import Interrupted
from robust.oracle import Access, Oracle
from robust.report import Report
from robust.sources import Samples, as_samples
from robust.sources.spool import Kept

Digits = tuple[Tensor, Tensor]


def evaluate(model: object, data: object, **options: object) -> Report:
    options = {"threat": "linf:0.1", "suite": "quick", "device": "cpu", **options}
    return robust.evaluate(model, data, **options)  # type: ignore[arg-type]


def test_the_table_and_the_numbers_agree(net: nn.Module, digits: Digits) -> None:
    report = evaluate(net, digits, keep_examples=True)
    table = report.verdicts
    assert sum(report.statuses.values()) == report.n == len(table) == 64
    assert report.statuses["survived"] <= report.clean_correct
    assert report.robust_accuracy == (table.status == "survived").mean()
    assert report.clean_accuracy == (table.prediction == table.label).mean()
    assert (table.status == "broken").sum() == sum(entry["broke"] for entry in report.attacks) > 5
    assert ((table.attack != "") == (table.status == "broken")).all()
    assert (table.distance.notna() == (table.status == "broken")).all()
    spent = sum(entry["forwards"] for entry in report.attacks) + 64
    assert int(table.forwards.sum()) == spent
    assert [finding["check"] for finding in report.findings] == ["short-search"]  # of the suite quick, always


def test_kept_examples_are_what_was_audited(net: nn.Module, digits: Digits) -> None:
    report = evaluate(net, digits, keep_examples=True)
    assert report.examples is not None
    ids, x_adv = report.examples["sample_id"], report.examples["x_adv"]
    assert ids.tolist() == report.verdicts.sample_id[report.verdicts.status == "broken"].tolist()
    assert report.threat.contains(x_adv, digits[0][ids]).all()
    assert (net(x_adv).argmax(1) != digits[1][ids]).all()


def test_examples_that_no_longer_fit_end_it_at_once(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try of the same wave would count its breaks twice and keep some of its examples."""
    kept: list[int] = []

    def full_at_the_second(self: Kept, numbers: Tensor, rows: Tensor) -> None:
        kept.append(len(numbers))
        if len(kept) == 2:
            raise DataError("adversarial examples: no room")

    monkeypatch.setattr(Kept, "add", full_at_the_second)
    with pytest.raises(DataError, match="no room"):
        evaluate(net, digits, suite=[FGSM(), PGD(steps=3)], keep_examples=True, batch_size=64)
    assert len(kept) == 2


def test_verdicts_do_not_depend_on_batch_order_or_shard(net: nn.Module, digits: Digits) -> None:
    x, y = digits
    whole = Samples(x, y, torch.arange(64))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    reference = evaluate(net, whole).verdicts.set_index("sample_id")["status"]
    runs = [evaluate(net, whole, batch_size=size) for size in (1, 17)] + [evaluate(net, whole.take(order))]
    for report in runs:
        assert (report.verdicts.set_index("sample_id")["status"].loc[reference.index] == reference).all()
    for shard in order.split(20):
        part = evaluate(net, whole.take(shard)).verdicts.set_index("sample_id")["status"]
        assert (part == reference.loc[part.index]).all()


def test_more_attacks_and_larger_eps_never_raise_it(net: nn.Module, digits: Digits) -> None:
    standing = None
    for eps in ("0.02", "0.05", "0.1", "0.2"):
        found = (
            evaluate(net, digits, threat=f"linf:{eps}", suite=["fgsm", PGD(steps=20)]).verdicts.status
            == "survived"
        )
        one = evaluate(net, digits, threat=f"linf:{eps}", suite="fgsm").verdicts.status == "survived"
        assert not (found & ~one).any()
        if standing is not None:
            assert not (found & ~standing).any()
        standing = found


def test_attacks_alone_and_their_union(net: nn.Module, digits: Digits) -> None:
    attacks = [FGSM(), PGD(steps=5, loss="margin")]
    together = evaluate(net, digits, suite=attacks, cascade=False)
    for attack, entry in zip(attacks, together.attacks, strict=True):
        alone = evaluate(net, digits, suite=attack)
        assert entry["survived"] == alone.statuses["survived"]
        assert entry["attacked"] == together.clean_correct
    assert together.statuses["survived"] <= min(entry["survived"] for entry in together.attacks)
    cascade = evaluate(net, digits, suite=attacks)
    assert (cascade.verdicts.status == together.verdicts.status).all()


def test_the_callers_model_and_randomness_are_as_they_were(net: nn.Module, digits: Digits) -> None:
    reference = evaluate(net, digits)
    net.train()
    state, noise = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    report = evaluate(net, digits)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state())
    pd.testing.assert_frame_equal(report.verdicts, reference.verdicts, check_exact=True)


def test_normalisation_lives_inside_and_8_bit_images_are_fractions(net: nn.Module, digits: Digits) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x * 0.5 + 0.25)
            return out

    x, y = digits
    images = (x * 255).round().to(torch.uint8)
    inside = evaluate(Shifted(), (images, y), normalize=(0.25, 0.5))
    plain = evaluate(net, (images.float() / 255, y))
    assert (inside.verdicts.status == plain.verdicts.status).mean() > 0.98


@dataclass(frozen=True)
class Crashing(Attack):
    """Fails on its first step."""

    name: ClassVar[str] = "crashing"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "-"

    def run(self, oracle: Oracle) -> Tensor:
        raise RuntimeError("out of ideas")


@dataclass(frozen=True)
class InPlace(Attack):
    """Writes into what it is shown: far out of the ball, or on another label."""

    name: ClassVar[str] = "in-place"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "-"

    what: str = "x"

    def run(self, oracle: Oracle) -> None:
        shown = oracle.x if self.what == "x" else oracle.y
        shown.copy_(1 - oracle.x if self.what == "x" else (oracle.y + 1) % 10)
        oracle.visit(oracle.x)


@pytest.mark.parametrize("what", ["x", "y"])
def test_an_attack_that_writes_into_samples_or_labels_has_its_claims_held_against_the_true_ones(
    net: nn.Module, digits: Digits, what: str
) -> None:
    report = evaluate(net, digits, suite=[InPlace(what)])
    assert report.statuses["broken"] == 0
    assert report.attacks[0]["rejected"] > 5
    assert report.trust != "trusted"
    assert "audit" in {finding["check"] for finding in report.findings}


class Mode(Enum):
    """How to search."""

    FAST = "fast"


@dataclass(frozen=True)
class OddOptions(FGSM):
    """Has options that JSON cannot hold as they are."""

    name: ClassVar[str] = "odd-options"

    where: Path = Path("starts/x.npz")
    mode: Mode = Mode.FAST
    rows: frozenset[int] = frozenset({2, 1})
    count: Any = field(default_factory=lambda: np.int64(3))
    pairs: Any = field(default_factory=lambda: {1: (2, Path("a"))})
    other: Any = field(default_factory=object)


def test_options_that_json_cannot_hold_lose_no_report(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    report = evaluate(net, digits, suite=[OddOptions()])
    report.save(tmp_path / "run")
    told = Report.load(tmp_path / "run").attacks[0]["parameters"]
    assert told["where"] == "starts/x.npz"
    assert (told["mode"], told["rows"], told["count"]) == ("fast", [1, 2], 3)
    assert told["pairs"] == {"1": [2, "a"]}
    assert told["other"] == "object"


def test_a_crash_is_an_error_of_its_samples_and_loses_nothing(net: nn.Module, digits: Digits) -> None:
    report = evaluate(net, digits, suite=[FGSM(), Crashing()])
    fgsm = evaluate(net, digits, suite="fgsm")
    assert report.statuses["broken"] == fgsm.statuses["broken"] > 0
    assert report.statuses["survived"] == 0
    assert report.statuses["error"] == fgsm.statuses["survived"]
    assert report.trust == "unreliable"
    assert "out of ideas" in report.failures[0]
    with pytest.raises(AssertionError, match=r"^error: "):
        robust.assert_robust(net, digits, threat="linf:0.1", suite=[FGSM(), Crashing()], at_least=0.01)


def test_a_check_that_crashes_loses_no_verdict(
    net: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(net, digits)

    def crash(*_: object) -> None:
        raise ValueError("never seen such a thing")

    monkeypatch.setattr(robust.diagnose, "BRIEF", (crash,))
    report = evaluate(net, digits)
    assert (report.verdicts.status == plain.verdicts.status).all()
    assert "never seen" in report.failures[-1]
    assert {finding["check"] for finding in report.findings} == {"crash", "short-search"}


def test_nan_is_an_error_of_its_sample(net: nn.Module, digits: Digits) -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bad = x.flatten(1)[:, :1] > 0.95
            return torch.where(bad, torch.nan, net(x))

    x, y = digits
    x[:, :, 0, 0] = 0
    x[3, :, 0, 0] = 1
    report = evaluate(Poisoned(), (x, y))
    assert report.verdicts.status.tolist().count("error") == 1
    assert report.verdicts.status[3] == "error"
    assert {f["check"] for f in report.findings} >= {"non-finite"}


class Straying(Attack):
    """Leaves the numbers where the first value is 1."""

    name: ClassVar[str] = "straying"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "score"
    paper: ClassVar[str] = "-"

    def run(self, oracle: Oracle) -> None:
        moved = oracle.x.clone()
        moved[:, :, 0, 1] = 0.01
        oracle.visit(moved.masked_fill(oracle.x[:, :, :1, :1] == 1, torch.nan))


def test_points_that_are_no_numbers_are_told_of_the_attack_and_logits_of_the_model(
    net: nn.Module, digits: Digits
) -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).masked_fill(x[:, :, 1, 0].eq(1) & x[:, :, 0, 1].ne(0), torch.nan)

    x, _ = digits
    x[:, :, :2, :2] = 0
    x[3:5, :, 0, 0] = 1
    y = net(x).argmax(1)
    own = evaluate(net, (x, y), suite=[Straying()])
    assert own.verdicts.index[own.verdicts.status == "error"].tolist() == [3, 4]
    assert own.failures == ["straying: asked about points that are NaN or infinite on 2 samples"]
    (said,) = [f["message"] for f in own.findings if f["check"] == "non-finite"]
    assert said.startswith(
        "straying asked about points that are NaN or infinite; its samples count as errors"
    )
    x[6, :, 1, 0] = 1
    both = evaluate(Poisoned(), (x, net(x).argmax(1)), suite=[Straying()])
    assert both.failures == [*own.failures, "straying: non-finite logits on 1 samples"]
    (said,) = [f["message"] for f in both.findings if f["check"] == "non-finite"]
    assert said.startswith("NaN or infinity under straying; ")


@pytest.mark.parametrize("suite", ["quick", "pgd"])
def test_an_infinite_logit_is_an_error_though_another_class_leads(
    net: nn.Module, digits: Digits, suite: str
) -> None:
    """What is misclassified there is no proof of a break, and what is not is none of robustness."""

    class Holed(nn.Module):
        """The unlikeliest class is -inf off the pixel grid."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            off = ((x * 16).round() / 16 - x).abs().flatten(1).amax(1) > 1e-4
            holed = logits.scatter(1, logits.detach().argmin(1, keepdim=True), -torch.inf)
            return torch.where(off[:, None], holed, logits)

    report = evaluate(Holed(), digits, suite=suite, threat="linf:0.2")
    assert report.statuses["survived"] == 0
    assert report.statuses["error"] > 50
    assert report.trust == "unreliable"
    assert sum(entry["rejected"] for entry in report.attacks) == 0


def test_a_crash_is_no_survival_in_an_attacks_own_count(net: nn.Module, digits: Digits) -> None:
    report = evaluate(net, digits, suite=[FGSM(), Crashing()], cascade=False)
    crashed = report.attacks[1]
    assert (crashed["broke"], crashed["survived"]) == (0, 0)
    assert crashed["errors"] == crashed["attacked"] == report.clean_correct


class Impatient(Attack):
    """Ctrl-C after its first point."""

    name: ClassVar[str] = "impatient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    access: ClassVar[Access] = "gradient"
    paper: ClassVar[str] = "-"

    def run(self, oracle: Oracle) -> Tensor:
        PGD(steps=3).run(oracle)
        raise KeyboardInterrupt


def test_an_interruption_is_no_survival_and_no_verdict_to_trust(net: nn.Module, digits: Digits) -> None:
    with pytest.raises(Interrupted) as caught:
        evaluate(net, digits, suite=[FGSM(), Impatient()], cascade=False)
    report = caught.value.report
    cut = report.attacks[1]
    assert 0 < cut["broke"] < cut["attacked"]
    assert (cut["survived"], cut["broke"] + cut["errors"]) == (0, cut["attacked"])
    assert report.statuses["survived"] == 0
    assert report.trust == "unreliable"
    assert "interrupted" in {finding["check"] for finding in report.findings}


def test_assert_robust_gives_the_evidence(net: nn.Module, digits: Digits) -> None:
    report = robust.assert_robust(net, digits, threat="linf:0.001", suite="quick", at_least=0.5)
    assert report.robust_accuracy >= 0.5
    with pytest.raises(AssertionError, match=r"robust accuracy .* under linf:0.3[\s\S]*broke most"):
        robust.assert_robust(net, digits, threat="linf:0.3", suite="quick", at_least=0.9)
    with pytest.raises(InputError, match="at_least"):
        robust.assert_robust(net, digits, threat="linf:0.3", suite="quick", at_least=45)


class Returns(nn.Module):
    """Gives what it is told to give."""

    def __init__(self, give: object) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> object:
        return self.give(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": lambda x: x * 2}, DataError, "bounds|0, 1"),
        ({"x": lambda x: x.index_fill(0, torch.tensor([5]), torch.nan)}, DataError, "NaN|finite"),
        ({"x": lambda x: x[:10]}, DataError, "length|10"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, DataError, "sample"),
        ({"y": lambda y: y.float()}, DataError, "integer|long"),
        ({"y": lambda y: y + 9}, InputError, "classes|label"),
        ({"y": lambda y: y - 1}, DataError, "label"),
        ({"threat": "linf:0"}, ThreatError, "eps"),
        ({"threat": "lp:1"}, ThreatError, "linf, l2, l1, l0"),
        ({"model": Returns(lambda x: (x, x))}, ModelError, "tuple"),
        ({"model": Returns(lambda x: x.flatten())}, ModelError, "logits"),
        ({"model": Returns(lambda x: x.flatten(1)[:, :3])}, ModelError, "3 classes"),
        (
            {"model": Returns(lambda x: x.flatten(1)[:, :1])},
            ModelError,
            r"return two: torch.cat\(\[-z, z\], 1\)",
        ),
        ({"model": "resnet"}, ModelError, "torch.nn.Module"),
        ({"suite": "quik"}, UnknownNameError, "did you mean 'quick'"),
        ({"suite": []}, InputError, "empty"),
        ({"suite": ["pgdd"]}, UnknownNameError, "did you mean 'pgd'"),
        ({"suite": [3]}, InputError, "attack: expected a name, an attack, or a mapping with a name, got 3"),
        ({"suite": [robust.attacks.PGD]}, InputError, r"make one: PGD\(\)"),
        ({"suite": "cw"}, UnsupportedError, "not for linf"),
        ({"device": "abacus"}, InputError, "device"),
        ({"normalize": (0.5, 0.0)}, InputError, "std > 0"),
        ({"normalize": (0.0, torch.inf)}, InputError, "expected finite mean and std"),
        ({"threat": robust.Linf("0.1", (-1, 1)), "bounds": (0, 1)}, ThreatError, "its bounds are"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"batch_size": True}, InputError, "batch_size"),
        *(
            ({"seed": seed}, InputError, "seed: expected an integer")
            for seed in ("a", 1.5, None, True, 2**70)
        ),
        ({"precision": "int4"}, InputError, "precision"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_bad_input_is_named(
    net: nn.Module, digits: Digits, change: dict[str, object], error: type[Exception], message: str
) -> None:
    x, y = digits
    options = dict(change)
    x = options.pop("x", lambda v: v)(x)  # type: ignore[operator]
    y = options.pop("y", lambda v: v)(y)  # type: ignore[operator]
    with pytest.raises(error, match=message):
        evaluate(options.pop("model", net), (x, y), **options)


@pytest.mark.parametrize(
    "call",
    [
        robust.evaluate,
        lambda *given, threat, **options: robust.certify(*given, sigma=1.0, n=10, **options),
        lambda *given, threat, **options: robust.corruption_accuracy(*given, severities=[1], **options),
    ],
    ids=["evaluate", "certify", "corruption_accuracy"],
)
def test_bounds_beside_a_target_must_be_its_own(
    net: nn.Module, digits: Digits, call: Callable[..., object]
) -> None:
    x, y = digits[0][:4], digits[1][:4]
    call(robust.Target(net, device="cpu"), (x, y), threat="linf:0.1", bounds=(0, 1))
    with pytest.raises(InputError, match=r"bounds: the model is a Target, which has its own"):
        call(robust.Target(net, device="cpu"), (2 * x - 1, y), threat="linf:0.1", bounds=(-1, 1))
    with pytest.raises(ThreatError, match=r"bounds: expected \(low, high\)"):
        call(robust.Target(net, device="cpu"), (x, y), threat="linf:0.1", bounds=5)
    with pytest.raises(ThreatError, match="its bounds are"):
        robust.evaluate(robust.Target(net), (x, y), threat=robust.Linf("0.1", (-1, 1)))


def test_reports_survive_the_disk(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    report = evaluate(net, digits, keep_examples=True)
    again = Report.load(report.save(tmp_path / "r"))
    assert again.to_dict() == report.to_dict()
    assert again.verdicts.equals(report.verdicts)
    assert again.examples is not None
    (tmp_path / "r" / "report.json").write_text('{"schema_version": 99}')
    with pytest.raises(StoreError, match="schema version 99"):
        Report.load(tmp_path / "r")
    (tmp_path / "r" / "report.json").write_text("{}")
    with pytest.raises(
        StoreError, match=r"states no schema version; expected a folder that Report\.save wrote"
    ):
        Report.load(tmp_path / "r")
    (tmp_path / "r" / "report.json").write_text("{")
    with pytest.raises(StoreError, match="cannot read"):
        Report.load(tmp_path / "r")
    with pytest.raises(StoreError, match=r"cannot write to [^ ]*below: [^:]*; move away what is in the way$"):
        report.save(tmp_path / "r" / "report.json" / "below")


def test_an_integer_of_numpy_is_a_seed(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    settings: dict[str, Any] = {"threat": "linf:0.05", "suite": "pgd", "device": "cpu"}
    report = robust.evaluate(net, digits, seed=np.int64(3), batch_size=np.int64(16), **settings)  # type: ignore[arg-type]
    assert type(report.seed) is int
    assert report.verdicts.equals(robust.evaluate(net, digits, seed=3, **settings).verdicts)


def test_what_a_prompt_shows_is_a_line(net: nn.Module, digits: Digits) -> None:
    target = robust.Target(net, device="cpu")
    samples = as_samples(digits)
    report = evaluate(target, samples, threat="linf:0.1", suite="fgsm")
    certificates = robust.certify(target, samples.take(slice(0, 2)), sigma=0.1, n=20)
    for thing in (report, target, samples, certificates):
        text = repr(thing)
        assert "\n" not in text
        assert len(text) < 200
        assert text.startswith(type(thing).__name__)
    assert f"{report.n} samples" in repr(report)
    assert f"interval [{report.interval[0]:.4f}" in repr(report)
