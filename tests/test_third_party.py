"""Attacks and defenses of strangers: the documentation's own code, installed as a package, found by its entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import test_attack_contract as contract
from torch import Tensor, nn

from robust.attacks import ATTACKS, make_attack
from robust.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "adding_an_attack.md"


DEFENSES_PAGE = PAGE.with_name("defenses.md")


def block(language: str, page: Path = PAGE) -> str:
    found = re.search(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def install(folder: Path, package: str, code: str, entry: str, kind: str = "attacks") -> None:
    """What pip leaves behind for a package of one module with an entry point."""
    (folder / f"{package}.py").write_text(code, encoding="utf-8")
    info = folder / f"{package}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[robust.{kind}]\n{entry}\n")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "robust", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """The class of the page, registered for the test."""
    page = ModuleType("a_page")
    monkeypatch.setitem(sys.modules, "a_page", page)  # dataclasses look their module up
    exec(compile(block("python"), str(PAGE), "exec"), vars(page))
    yield page.Momentum
    del ATTACKS._items["my-momentum"]


def test_the_page_shows_a_whole_attack_in_thirty_lines() -> None:
    code = [line for line in block("python").splitlines() if line.strip()]
    body = code[next(i for i, line in enumerate(code) if line.startswith("@")) :]
    assert len(body) <= 30


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_page_s_attack_keeps_the_contract(
    norm: str, documented: type, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    case = make_attack("my-momentum"), norm
    assert type(case[0]) is documented
    x, y = digits
    right = net(x).argmax(1) == y
    correct = x[right][:24], y[right][:24]
    contract.test_breaks_something_and_every_break_is_real(case, net, correct, "cpu")
    contract.test_counts_are_those_of_the_model_and_the_same_alone(case, net, correct)
    contract.test_the_budget_holds_for_every_sample(case, net, correct, 9)
    contract.test_same_seed_same_result_whatever_the_batch_and_order(case, net, correct)
    contract.test_declares_itself(case)


def test_an_installed_package_is_found_by_name(tmp_path: Path) -> None:
    entry = block("toml").splitlines()[-1]
    assert entry == 'my-momentum = "my_package:Momentum"'
    install(tmp_path, "my_package", block("python"), "my-momentum = my_package:Momentum")
    done = run(
        tmp_path, "attack", "--model", "builtin:digits-mlp", "--data", "builtin:digits", "--limit", "30",
        "--threat", "linf:0.3", "--attack", "my-momentum", "--set", "steps=3", "--device", "cpu", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (entry_,) = json.loads(done.stdout)["attacks"]
    assert (entry_["name"], entry_["source"], entry_["parameters"]["steps"]) == (
        "my-momentum",
        "my_package",
        3,
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_installed_defense_is_found_by_name_and_trains(tmp_path: Path, precision: str) -> None:
    entry = block("toml", DEFENSES_PAGE).splitlines()[-1]
    assert entry == 'my-mixture = "my_package:Mixture"'
    install(tmp_path, "my_package", block("python", DEFENSES_PAGE), entry.replace('"', ""), "defenses")
    done = run(
        tmp_path, "harden", "--model", "builtin:digits-mlp", "--data", "builtin:digits:train", "--limit", "200",
        "--threat", "linf:0.1", "--defense", "my-mixture+awp", "--set", "share=0.7", "--train", "epochs=1",
        "--train", f"precision={precision}", "--device", "cpu", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "weights.safetensors").is_file()


def test_a_package_that_does_not_import_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "bad_package", "import no_such_module\n", "bad = bad_package:Attack")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ATTACKS, "_group", "robust.attacks")  # as if nobody had asked yet
    monkeypatch.setattr(ATTACKS, "_broken", {})
    told = "attack 'bad' is announced by bad_package (bad_package:Attack) and cannot be loaded: ModuleNotFoundError"

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    code, out, err = command("list", "attacks")
    assert code == 0
    assert "\npgd " in out
    assert max(map(len, out.splitlines())) <= 80
    assert told in err
    data = ("--model", "builtin:digits-mlp", "--data", "builtin:digits", "--threat", "linf:0.3")
    code, out, err = command("attack", *data, "--attack", "bad")
    assert (code, out) == (2, "")
    assert err.startswith(f"robust: {told}")
    assert len(err.strip().splitlines()) == 1
