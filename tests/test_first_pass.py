"""A model that fails on its first samples is told in one line, wherever it is asked; attacks' crashes stay errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn

import robust
from robust.errors import DataError, InputError, ModelError
from robust.failures import naming_failures
from robust.gate.check import check
from robust.leaderboard import Record, Store
from robust.sources import load_data, load_model

Digits = tuple[Tensor, Tensor]


class Failing(nn.Module):
    """Raises `error` from a number of calls on."""

    def __init__(self, net: nn.Module, error: BaseException, after: int = 0) -> None:
        super().__init__()
        self.net, self.error, self.left = net, error, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        logits: Tensor = self.net(x)
        return logits


def rgb(digits: Digits) -> Digits:
    return digits[0].repeat(1, 3, 1, 1), digits[1]


def certify(net: nn.Module, data: Digits) -> object:
    return robust.certify(net, data, sigma=0.1, n0=2, n=2, device="cpu")


def corruptions(net: nn.Module, data: Digits) -> object:
    return robust.corruption_accuracy(net, data, severities=[1], device="cpu")


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, data: robust.evaluate(net, data, threat="linf:0.1", suite="fgsm", device="cpu"),
        lambda net, data: check(net, data, threat="linf:0.1", at_least=0.5, suite="fgsm", device="cpu"),
        certify,
        corruptions,
        lambda net, data: robust.evaluate(
            robust.EOT(net, 2, device="cpu"), data, threat="linf:0.1", suite="fgsm"
        ),
    ],
)
def test_the_first_pass_names_the_input(
    ask: Callable[[nn.Module, Digits], object], net: nn.Module, digits: Digits
) -> None:
    with pytest.raises(
        ModelError, match=r"^model: fails on input \(\d+, 3, 8, 8\) \(RuntimeError: .*3 channels"
    ) as caught:
        ask(net, rgb(digits))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "\n" not in str(caught.value)


class Asking(nn.Module):
    """Does something with its input, of one channel."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> object:
        return self.what(x)


SIZE = "; give data of the size that the model was made for"
MEND = r"; the model raised it, at test_first_pass\.py, line \d+: mend its forward"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda x: 1 / 0, r"\(ZeroDivisionError: division by zero\)" + MEND),
        (lambda x: x.nope, r"\(AttributeError: .*\)" + MEND),
        (lambda x: int("a"), r"\(ValueError: invalid literal .*\)" + MEND),
        (lambda x: {}["shape"], r"\(KeyError: 'shape'\)" + MEND),
        (lambda x: x.double() @ x, r"\(RuntimeError: .*\)" + MEND),
        (nn.Module(), r"\(NotImplementedError: Module .*\)" + MEND),
        (lambda x: x[:, 5], r"\(IndexError: .*\)" + SIZE),
        (lambda x: x.reshape(-1, 7), r"\(RuntimeError: shape .*\)" + SIZE),
        (nn.LayerNorm(5), r"\(RuntimeError: .*\)" + SIZE),
        (nn.MaxPool2d(99), r"\(RuntimeError: .*\)" + SIZE),
    ],
)
def test_data_of_another_size_is_asked_for_where_that_may_help(
    what: Callable[[Tensor], object], said: str, digits: Digits
) -> None:
    with pytest.raises(ModelError, match=r"^model: fails on input \(\d+, 1, 8, 8\) " + said + "$"):
        robust.evaluate(Asking(what), digits, threat="linf:0.1", suite="fgsm", device="cpu")


@pytest.mark.parametrize("ask", [certify, corruptions], ids=["certify", "corruptions"])
def test_a_label_without_a_class_is_told(
    ask: Callable[[nn.Module, Digits], object], net: nn.Module, digits: Digits
) -> None:
    with pytest.raises(DataError, match=r"labels go up to 14, but the model has 10 classes \(0 to 9\)"):
        ask(net, (digits[0], digits[1] + 5))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        MemoryError(),
        KeyboardInterrupt(),
        DataError("told already"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_the_input_is_passed_on(
    error: BaseException, net: nn.Module, digits: Digits
) -> None:
    target = robust.Target(Failing(net, error), device="cpu")
    with pytest.raises(type(error)) as caught, naming_failures(), torch.no_grad():
        target.logits(digits[0])
    assert caught.value is error


def test_only_first_passes_are_named(net: nn.Module, digits: Digits) -> None:
    error = ValueError("sometimes\nso")
    target = robust.Target(Failing(net, error), device="cpu")
    with torch.no_grad(), pytest.raises(ValueError, match="sometimes"):
        target.logits(digits[0])
    with naming_failures(), pytest.raises(ValueError, match=r"^sometimes\nso"):
        target.logits(digits[0])  # with gradients, which a check must see as they are
    with naming_failures(), torch.no_grad(), pytest.raises(ModelError, match=r"\(ValueError: sometimes\)"):
        target.logits(digits[0])


def test_a_model_that_fails_under_attack_is_an_error_of_its_samples(net: nn.Module, digits: Digits) -> None:
    looked = Failing(net, RuntimeError("tired"), after=10**9)
    options = {
        "threat": "linf:0.1",
        "suite": "fgsm",
        "device": "cpu",
        "precision": "float32",
        "batch_size": 16,
    }
    left = {}  # by stage, when it was last told of
    robust.evaluate(looked, digits, progress=lambda at: left.update({at.stage: looked.left}), **options)  # type: ignore[arg-type]
    before_its_end = 10**9 - left["fgsm"] - 2
    report = robust.evaluate(Failing(net, RuntimeError("tired"), after=before_its_end), digits, **options)  # type: ignore[arg-type]
    assert report.statuses["error"] > 0
    with naming_failures():  # whatever surrounds it
        again = robust.evaluate(Failing(net, RuntimeError("tired"), after=before_its_end), digits, **options)  # type: ignore[arg-type]
    assert again.statuses == report.statuses
    assert "crash" in {finding["check"] for finding in report.findings}


def test_a_normalisation_of_other_channels_is_named(net: nn.Module, digits: Digits) -> None:
    moments = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    with pytest.raises(
        ModelError, match=r"^normalize: expected one number, or one for each of the 1 channels"
    ):
        robust.evaluate(net, digits, threat="linf:0.1", suite="fgsm", normalize=moments, device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    net = load_model("builtin:digits-mlp")
    torch.jit.script(net).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    x = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "rgb.npz", x=x, y=np.arange(40) % 10)
    np.savez(tmp_path / "gray.npz", x=x[..., 0], y=np.arange(40) % 10)
    np.savez(tmp_path / "more.npz", x=x[..., 0], y=np.arange(40) % 12)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attack", "--data", "rgb.npz", "--threat", "linf:0.1"], "fails on input (32, 3, 8, 8)"),
        (["certify", "--data", "rgb.npz", "--sigma", "0.1"], "fails on input (100, 3, 8, 8)"),
        (
            ["attack", "--data", "gray.npz", "--threat", "linf:0.1", "--normalize", "0.5,0.5,0.5", "1,1,1"],
            "normalize",
        ),
        (["doctor", "rgb.npz"], "fails on input (32, 3, 8, 8)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_say_it_in_one_line(
    files: Path, inside: Callable[..., Outcome], arguments: list[str], message: str
) -> None:
    command, *rest = arguments
    named = ["torchscript:net.pt"] if command == "doctor" else ["--model", "torchscript:net.pt"]
    done = inside(command, *named, *rest, "--device", "cpu", cwd=files)
    assert done.returncode == 2
    assert message in done.stderr
    assert "cannot be multiplied" in done.stderr or message == "normalize"
    assert len(done.stderr.splitlines()) == 1


def test_a_record_is_not_verified_with_a_model_that_fails(
    files: Path, inside: Callable[..., Outcome], net: nn.Module
) -> None:
    samples = load_data("builtin:digits").limit(20)
    report = robust.evaluate(net, samples, threat="linf:0.1", suite="fgsm", device="cpu")
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    Store(files / "board").add(record, report.verdicts)
    named = ["--model", "builtin:mnist-cnn", "--device", "cpu"]
    done = inside("leaderboard", "verify", f"board/records/{record.id}.json", *named, cwd=files)
    assert done.returncode == 2
    assert done.stderr.startswith("robust: model: fails on input (20, 1, 8, 8)")
    assert len(done.stderr.splitlines()) == 1


def test_a_plan_whose_model_fails_is_not_estimated(files: Path, inside: Callable[..., Outcome]) -> None:
    (files / "plan.toml").write_text(
        'data = "rgb.npz"\nthreats = ["linf:0.1"]\nsuites = ["fgsm"]\n[[models]]\nspec = "torchscript:net.pt"\n'
    )
    done = inside("sweep", "plan.toml", "--dry-run", "--device", "cpu", cwd=files)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            "builtin:mnist5k:test",
            "validation: expected samples of the shape of data, (1, 8, 8), got (1, 28, 28)",
        ),
        ("more.npz", "validation: labels go up to 11, but the model has 10 classes"),
    ],
)
def test_validation_data_of_another_kind_are_refused_before_the_training(
    files: Path, inside: Callable[..., Outcome], validation: str, message: str
) -> None:
    done = inside(
        "harden", "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--validation", validation,
        "--threat", "linf:0.1", "--out", "hardened", "--device", "cpu", cwd=files,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (files / "hardened" / "config.json").exists()


def test_a_model_whose_parameters_have_no_values_yet_is_refused(digits: Digits) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(ModelError, match=r"lazy modules .* pass a batch through the model first"):
        robust.evaluate(lazy, digits, threat="linf:0.1", suite="fgsm", device="cpu")
    with pytest.raises(ModelError, match=r"device 'meta'; call to_empty"):
        robust.evaluate(nn.Linear(64, 10, device="meta"), digits, threat="linf:0.1", device="cpu")
    lazy(digits[0])
    assert robust.evaluate(lazy, digits, threat="linf:0.1", suite="fgsm", device="cpu").n == len(digits[1])


def test_a_model_made_in_inference_mode_is_refused_and_left_as_it_was(digits: Digits) -> None:
    # Its parameters cannot be frozen and thawed, nor saved for a backward pass.
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ModelError, match=r"made under torch.inference_mode; give copy.deepcopy\(model\)"):
        robust.evaluate(made, digits, threat="linf:0.1", suite="fgsm", device="cpu")
    assert all(parameter.requires_grad for parameter in made.parameters())
    n = robust.evaluate(copy.deepcopy(made), digits, threat="linf:0.1", suite="fgsm", device="cpu").n
    assert n == len(digits[1])


@pytest.mark.parametrize("option", ["cascade", "keep_examples", "minimize"])
def test_an_option_that_is_yes_or_no_takes_nothing_else(option: str, net: nn.Module, digits: Digits) -> None:
    with pytest.raises(InputError, match=f"{option}: expected True or False, got 'x'"):
        robust.evaluate(net, digits, threat="linf:0.1", device="cpu", **{option: "x"})


@pytest.mark.parametrize(
    ("kind", "told"), [("sparse", r"sparse; give its to_dense\(\)"), ("meta", "device 'meta'")]
)
def test_samples_without_values_are_refused(kind: str, told: str, net: nn.Module, digits: Digits) -> None:
    x = digits[0].to_sparse() if kind == "sparse" else digits[0].to("meta")
    with pytest.raises(
        DataError, match=f"x: expected a dense tensor or array, got a tensor that is .*{told}"
    ):
        robust.evaluate(net, (x, digits[1]), threat="linf:0.1", device="cpu")
