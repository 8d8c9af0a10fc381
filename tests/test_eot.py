"""EOT: randomised models in expectation, whatever the batch, with everybody's random state untouched."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust
from robust.attacks import RayS
from robust.errors import InputError
from robust.gate.check import check
from robust.losses import margin
from robust.oracle import Oracle
from robust.randomness import spared
from robust.target import Target
from robust.threat import Threat


class Noisy(nn.Module):
    """Gaussian noise on the input, drawn per value, per sample or once a batch, from torch or numpy."""

    def __init__(self, model: nn.Module, size: float = 0.3, kind: str = "values") -> None:
        super().__init__()
        self.model, self.size, self.kind = model, size, kind
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        if self.kind == "values":
            noise = torch.randn_like(x)
        elif self.kind == "batch":
            noise = torch.randn_like(x[:1])
        elif self.kind == "python":
            noise = torch.full_like(x, random.gauss(0, 1))
        else:
            noise = torch.from_numpy(np.random.randn(*x.shape)).to(x)  # noqa: NPY002
        out: Tensor = self.model(x + self.size * noise)
        return out


KINDS = ["values", "batch", "python", "numpy"]


def test_a_draw_on_the_cpu_seeds_no_other_device(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where CUDA is not in use yet, torch keeps every such call with its stack, which takes longer than a pass.
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    with robust.EOT(Noisy(net), 2, device="cpu") as target, torch.no_grad():
        target.logits(digits[0][:3])
    assert asked == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_whatever_the_batch_and_the_global_states(
    kind: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:6]
    with robust.EOT(Noisy(net, kind=kind), 5, device="cpu") as target, torch.no_grad():
        first = target.logits(x)
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        alone = torch.cat([target.logits(x[i : i + 1]) for i in (3, 1)])
        flipped = target.logits(x.flip(0)).flip(0)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert torch.equal(alone, first[[3, 1]])
    assert torch.equal(flipped, first)


class Seeding(nn.Module):
    """The same noise at every pass, by a seed of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        out: Tensor = self.model(x + 0.1 * torch.randn(x.shape[1:]))
        return out


@pytest.mark.parametrize("eot", [None, 3])
@pytest.mark.parametrize("kind", [*KINDS, "seeding"])
def test_a_model_that_draws_leaves_the_callers_generators_as_they_were(
    kind: str, eot: int | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Seeding(net) if kind == "seeding" else Noisy(net, kind=kind)
    data = digits[0][:6], digits[1][:6]
    how = {"threat": "linf:0.1", "suite": "fgsm", "device": "cpu", "eot": eot}
    for ask in (
        lambda: robust.evaluate(model, data, **how),
        lambda: check(model, data, at_least=0.01, **how),
        lambda: robust.certify(model, data, sigma=0.1, n0=2, n=4, device="cpu"),
    ):
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        ask()
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


def test_of_evaluations_in_threads_the_last_to_end_puts_back_what_the_first_found() -> None:
    state = torch.get_rng_state()
    first = spared(torch.device("cpu"), lambda: True)
    second = spared(torch.device("cpu"), lambda: False)
    first.__enter__()
    torch.rand(3)
    second.__enter__()
    first.__exit__(None, None, None)
    torch.rand(3)
    second.__exit__(None, None, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_the_model_draws_nothing_what_others_draw_meanwhile_stays_drawn(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    state = torch.get_rng_state()
    robust.evaluate(
        net, digits, threat="linf:0.1", suite="fgsm", device="cpu", progress=lambda _: torch.rand(1) and None
    )
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["values", "batch"])
def test_it_is_the_expectation(kind: str) -> None:
    """A step at 0.5 under Gaussian noise: the mean probability is known in closed form."""

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            above = (x[:, 0] > 0.5).float()
            return 40 * torch.stack([above, 1 - above], 1)

    x = torch.tensor([[0.8], [0.5], [0.35]])
    exact = torch.distributions.Normal(0.0, 0.3).cdf(x[:, 0] - 0.5)
    with robust.EOT(Noisy(Step(), kind=kind), 100, device="cpu") as target, torch.no_grad():
        found = target.logits(x).exp()[:, 0]
    torch.testing.assert_close(found, exact, atol=0.08, rtol=0)  # over three standard errors of 400 draws


def test_gradients_are_the_expectations() -> None:
    """Of log E[p]: checked against a mean over the model's own draws by hand."""
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.tensor([[0.2, 0.4, 0.6]])
    with robust.EOT(Noisy(model, 1.0), 400, device="cpu") as target:
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(target.logits(point), torch.tensor([0])).sum(), point)
        torch.manual_seed(0)
        many = x.expand(200_000, 3).clone().requires_grad_()
        p = model(many + torch.randn_like(many)).softmax(1)
        (of_each,) = torch.autograd.grad((p[:, 1].mean().log() - p[:, 0].mean().log()), many)
    torch.testing.assert_close(gradient[0], of_each.sum(0), rtol=0.15, atol=0.01)


def test_majority_and_expectation_differ_where_they_should() -> None:
    class Skewed(nn.Module):
        """Class 0 by a little two times out of three, class 1 by a lot else."""

        def forward(self, x: Tensor) -> Tensor:
            often = torch.rand(len(x)) < 2 / 3
            return torch.where(often[:, None], torch.tensor([[0.2, 0.0]]), torch.tensor([[0.0, 9.0]]))

    x = torch.zeros(1, 4)
    for vote, winner in (("majority", 0), ("expectation", 1)):
        with robust.EOT(Skewed(), 64, vote=vote, device="cpu") as target, torch.no_grad():  # type: ignore[arg-type]
            logits = target.logits(x)
        assert logits.argmax(1).item() == winner
        assert logits.exp().sum().item() == pytest.approx(1, abs=0.5)


def test_the_oracle_counts_every_draw(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    model = Noisy(net)
    with robust.EOT(model, 4, device="cpu").searcher() as target:
        target.logits(x[:1])  # finds out how the model draws
        before = model.rows
        oracle = Oracle(target, x[:5], y[:5], torch.arange(5), Threat("linf", "0.01"), micro_batch=8)
        oracle.gradient(oracle.x, margin)
        oracle.logits(oracle.x)
        assert model.rows - before == int(oracle.ledger.forwards.sum()) == 5 * 2 * 4
        assert oracle.ledger.backwards.tolist() == [4] * 5


def test_evaluation_in_expectation_is_reproducible_and_points_to_eot(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:24], digits[1][:24]
    model = Noisy(net, 0.05)
    options = {
        "threat": "linf:0.15",
        "suite": robust.attacks.PGD(steps=5, loss="margin"),
        "device": "cpu",
        "precision": "float32",
    }
    once = robust.evaluate(model, (x, y), **options)
    (finding,) = [f for f in once.findings if f["check"] == "randomized"]
    assert "--eot" in finding["message"]
    assert once.trust == "unreliable"
    assert once.eot is None
    torch.manual_seed(5)
    report = robust.evaluate(model, (x, y), eot=4, batch_size=16, **options)
    other = robust.evaluate(model, (x, y), eot=4, batch_size=3, **options)
    assert report.verdicts.equals(other.verdicts)
    assert "randomized" not in {f["check"] for f in report.findings}
    assert report.attacks[0]["rejected"] == 0
    assert 0 < report.robust_accuracy < report.clean_accuracy
    assert report.eot == report.to_dict()["eot"] == {"samples": 4, "vote": "expectation"}


def test_a_model_with_a_generator_of_its_own_stays_reported(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.generator = net, torch.Generator()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net(x + 0.3 * torch.randn(x.shape, generator=self.generator))
            return out

    report = robust.evaluate(Hidden(), digits, threat="linf:0.01", suite="fgsm", eot=2, device="cpu")
    assert "randomized" in {f["check"] for f in report.findings}


def test_too_few_draws_are_found(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = robust.evaluate(
        Noisy(net, 3.0), digits, threat="linf:0.01", suite="fgsm", eot=2, device="cpu", batch_size=64
    )
    assert "too-few-draws" in {f["check"] for f in report.findings}


def test_bad_options_are_named(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="samples: expected an integer >= 2, got 1"):
        robust.EOT(net, 1)
    with pytest.raises(InputError, match="vote: expected one of expectation, majority, got 'mean'"):
        robust.EOT(net, vote="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="vote: needs eot"):
        robust.evaluate(net, digits, threat="linf:0.1", vote="majority")
    with pytest.raises(InputError, match="an EOT already"):
        robust.EOT(robust.EOT(net))
    with pytest.raises(InputError, match="must be the outer one"):
        robust.BPDA(torch.round, robust.EOT(net))
    with pytest.raises(InputError, match="bounds: the model is a Target"):
        robust.EOT(Target(net), bounds=(0.0, 1.0))


class Residue(nn.Module):
    """Gradients through a small part of the logits, of which the rest are another function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 0.1 * self.model(x) + self.model(x.detach().clamp(0, 1) ** 2)
        return out


class TwoFaced(nn.Module):
    """Other logits where gradients are asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out.roll(1, 1) if x.requires_grad else out


@pytest.mark.parametrize(
    ("mask", "told"),
    [(None, set()), (Residue, {"partial-gradient"}), (TwoFaced, {"gradient-model"})],
)
def test_gradients_masked_behind_noise_are_told(
    mask: type[nn.Module] | None, told: set[str], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Over draws, too: on draws that stand still, and by random search."""
    model = Noisy(net if mask is None else mask(net), size=0.05).eval()
    few = digits[0][:32], digits[1][:32]
    suite = [{"name": "pgd", "steps": 12, "loss": "margin"}]
    report = robust.evaluate(model, few, threat="linf:0.1", suite=suite, eot=3, device="cpu")
    found = {finding["check"] for finding in report.findings}
    assert found & {"black-box-wins", "gradient-model", "partial-gradient", "zero-gradient"} >= told
    if mask is None:
        assert found <= {"short-search"}
        assert report.checks["asked"] > 0  # random search gave its opinion


def test_a_ray_search_counts_answers_however_many_draws_make_up_one(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:3]
    with robust.EOT(Noisy(net, size=0.05), 6, device="cpu") as target:
        y, threat = target.logits(x).argmax(1), Threat("linf", "0.0001")  # so small that nothing breaks
        oracle = Oracle(target.searcher(), x, y, torch.arange(3), threat, access="decision")
        RayS(queries=40)(oracle)
    assert int(oracle.ledger.forwards.max()) == 6 * 40
