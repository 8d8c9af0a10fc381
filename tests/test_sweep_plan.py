"""Plans of sweeps: what they expand to, and the mistakes in them that are told before anything runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sweeps import PLAN, Count
from torch import Tensor, nn

import robust
from robust.attacks import PGD
from robust.errors import InputError, StoreError, UnknownNameError
from robust.parts import Plan
from robust.sources import as_samples, load_data, load_model, open_model, save_weights
from robust.suites import resolve
from robust.sweep import SweepConfig, demonstration, load_config, run_sweep
from robust.sweep.cells import curve_cells, plan
from robust.sweep.check import check_plan
from robust.sweep.estimate import Sampled, _count, estimate
from robust.target import Target
from robust.threat import Threat


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threats =", "treats =", r"treats: unknown key; did you mean 'threats'\?"),
        ("linf:0.05", "linf:0", "eps"),
        ('"linf:0.05", "l2:0.5"', '"linf:0.05", "linf:5e-2"', "threats: linf:0.05 is there twice"),
        ("seeds = [0]", "seeds = [0, 1, 0]", "seeds: 0 is there twice"),
        ("seeds = [0]", "seeds = [true]", "seeds: .*expected an integer .*got True"),
        ('spec = "builtin', 'sepc = "builtin', r"models\.0\.sepc: unknown key; did you mean 'spec'\?"),
        ('name = "none"', 'nmae = "none"', r"defenses\.0\.nmae: unknown key; did you mean 'name'\?"),
        ("limit = 60", "limit = 0", r"limit: .*, got 0"),
        ("[[models]]", "[[models", "not TOML"),
        ('threats = ["linf:0.05", "l2:0.5"]', "", "threats: give at least one"),
        ("seeds = [0]", "[[exclude]]\n[other]", r"other: unknown key"),
        (PLAN, "", "got an empty file; a sweep needs `data`"),
        ('data = "builtin:digits"', "", "data: is missing; a sweep needs `data`"),
        ('spec = "builtin:digits-mlp"', "", r"models\.0\.spec: is missing"),
        (
            'spec = "builtin:digits-mlp"',
            'spec = ["a.py:make", "b.py:make"]',
            r"models: two are called 'make'; give each an entry with a `name` of its own",
        ),
        ("limit = 60", 'limit = "all"', r"limit: expected a whole number, got 'all'"),
    ],
)
def test_a_bad_plan_is_refused_with_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "plan.toml")


def test_mistakes_are_found_before_anything_runs(sweep_config: SweepConfig, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        run_sweep(sweep_config.model_copy(update={"suites": ["quik"]}), tmp_path / "a")
    endless = sweep_config.models[0].model_copy(update={"name": "x" * 301})
    with pytest.raises(
        InputError, match=r"models: .* at most 300 characters, .*got 301, .*give the model a shorter"
    ):
        run_sweep(sweep_config.model_copy(update={"models": [endless]}), tmp_path / "a")
    wrong = sweep_config.defenses[1].model_copy(update={"options": {"stpes": 3}})
    with pytest.raises(InputError, match="no option 'stpes'"):
        run_sweep(sweep_config.model_copy(update={"defenses": [wrong]}), tmp_path / "b")
    with pytest.raises(InputError, match="give `train`"):
        run_sweep(sweep_config.model_copy(update={"train": None}), tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        run_sweep(sweep_config, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "nowhere.toml")
    assert not (tmp_path / "a").exists()


def test_a_plan_that_cannot_be_read_says_why_also_where_the_system_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("the drive is gone")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(InputError, match=r"cannot read .*plan\.toml: the drive is gone$"):
        load_config(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("builtin:digits-mlp", "builtin:digits-mpl", "did you mean 'digits-mlp'"),
        (
            "builtin:digits-mlp",
            "nets.py:make",
            r"model: no such file nets\.py; a relative one is looked for in ",
        ),
        ("builtin:digits-mlp", "nets.py", r"model: expected one of .*; nets\.py:NAME, with the name"),
        ("builtin:digits-mlp", "onnx:net.onnx", r"model: no such file net\.onnx"),
        ('spec = "', 'weights = "net.safetensors"\nspec = "', r"weights: no such file net\.safetensors"),
        ('"builtin:digits"', '"builtin:digit"', "did you mean 'digits'"),
        ("digits:train", "digits:trian", "expected split test or train, got 'trian'"),
        ('"builtin:digits"', '"digits.npz"', r"data: no such file digits\.npz"),
        ("limit = 60", 'limit = 60\ngroups = "camera"', "groups: builtin: data have no column 'camera'"),
        ('"builtin:digits"', '"digits.csv"', r"data: expected one of FILE\.npz, .* got 'digits\.csv'"),
        ("builtin:digits:train", "folder", "data: expected one of .* got 'folder'"),
        ('"builtin:digits"', '"folder:digits"', "data: no such folder digits"),
        ('name = "none"', 'name = "median"', "has nothing but initial weights; give .*'none\\+median'"),
        (
            'name = "none"',
            'name = "none+jpeg+median"',
            "more than one input transform .*; give 'none\\+jpeg'",
        ),
        ('name = "none"', 'name = "jpeg+median"', "more than one input transform .*; give 'jpeg'"),
    ],
)
def test_what_a_plan_names_is_looked_for_before_anything_runs(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(InputError, match=message):
        run_sweep(load_config(tmp_path / "plan.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["hf:someone/set.tar", "torchvision:MNIST.npz"])
def test_names_of_other_libraries_are_no_files(sweep_config: SweepConfig, spec: str) -> None:
    assert check_plan(sweep_config.model_copy(update={"data": spec}))


def test_data_that_cannot_be_read_are_told_before_anything_is_trained_for_them(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    (tmp_path / "damaged.npz").write_text("nothing of the kind")
    run = Count()
    damaged = sweep_config.model_copy(update={"data": str(tmp_path / "damaged.npz")})
    result = run_sweep(damaged, tmp_path / "out", device="cpu", listener=run)
    assert (run.trained, len(result.failures), len(result.missing)) == (0, 2, 4)
    assert all("damaged.npz" in failure.reason for failure in result.failures)


def test_yaml_says_the_same(sweep_config: SweepConfig, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump(sweep_config.model_dump(mode="json", exclude_none=True))
    )
    assert load_config(tmp_path / "plan.yaml") == sweep_config
    (tmp_path / "plan.yml").write_text("data: !!python/object/apply:os.getcwd []")
    with pytest.raises(InputError, match="not YAML"):
        load_config(tmp_path / "plan.yml")
    for text, said in (
        ("- 1", "got a list"),
        ("", "got an empty file"),
        ("data: a\nmodels: a", "expected a list, got 'a'"),
    ):
        (tmp_path / "plan.yml").write_text(text)
        with pytest.raises(InputError, match=rf"plan\.yml: .*{said}"):
            load_config(tmp_path / "plan.yml")
    plain = "data: a\nthreats: ['linf:1']\nmodels: [{spec: a}]\ndefenses: [none]"
    (tmp_path / "plan.yml").write_text(plain)
    with pytest.raises(
        InputError, match=r"defenses\.0: expected keys and values such as name: none, got 'none'"
    ):
        load_config(tmp_path / "plan.yml")


GRID = {
    "data": "builtin:digits",
    "train": "builtin:digits:train",
    "threats": ["linf:0.1", "l2:1"],
    "suites": ["quick", ["fgsm", {"name": "pgd", "steps": 3}]],
    "seeds": [0, 1],
    "models": [
        {"spec": ["builtin:digits-mlp", "builtin:digits-cnn"]},
        {"spec": "builtin:digits-mlp", "name": "own", "threats": ["l2:2"], "seeds": [7], "limit": 10},
    ],
    "defenses": [
        {"name": "none"},
        {"name": "pgd-at", "threat": "linf:0.1", "grid": {"steps": [2, 5], "loss": ["ce"]}},
    ],
}


def test_lists_expand_to_a_grid_with_overrides() -> None:
    cells = plan(SweepConfig.model_validate(GRID))
    assert len(cells) == 2 * 3 * 2 * 2 * 2 + 1 * 3 * 1 * 2 * 1
    assert {cell.pair.defense.title for cell in cells} == {
        "none",
        "pgd-at(steps=2,loss=ce)",
        "pgd-at(steps=5,loss=ce)",
    }
    own = [cell for cell in cells if cell.pair.model.title == "own"]
    assert {(cell.threat, cell.seed, cell.limit) for cell in own} == {("l2:2", 7, 10)}
    assert len({cell.title for cell in cells}) == len(cells)


def test_entries_of_one_model_may_overlap(sweep_config: SweepConfig) -> None:
    entry = sweep_config.models[0]
    also = entry.model_copy(update={"threats": ["l2:0.5", "l2:1"]})
    cells = plan(SweepConfig.model_validate({**sweep_config.model_dump(), "models": [entry, also]}))
    assert sorted(cell.threat for cell in cells) == ["l2:0.5"] * 2 + ["l2:1"] * 2 + ["linf:0.05"] * 2
    assert len({cell.pair.identity for cell in cells}) == 2  # trained once for both


def test_one_radius_is_written_one_way_in_all_entries(sweep_config: SweepConfig) -> None:
    entry = sweep_config.models[0]

    def cells(*threats: str) -> list[str]:
        also = {**entry.model_dump(), "threats": list(threats)}
        given = {**sweep_config.model_dump(), "models": [entry, also]}
        return sorted({cell.threat for cell in plan(SweepConfig.model_validate(given))})

    assert cells(" LINF : 0.05", "corruptions: 3") == ["corruptions:3", "l2:0.5", "linf:0.05"]
    for other in ("1/20", "5e-2"):
        with pytest.raises(ValueError, match=rf"linf:0\.05 and linf:{other} are the same; write it one way"):
            cells(f"linf:{other}")


def alone(**others: object) -> SweepConfig:
    """A plan of one evaluation, but for what is given."""
    plan = {
        "data": "builtin:digits:test",
        "train": "builtin:digits:train",
        "limit": 20,
        "threats": ["linf:0.1"],
        "suites": ["fgsm"],
        "models": [{"spec": "builtin:digits-mlp"}],
        "defenses": [{"name": "none", "training": {"epochs": 1}}],
    }
    return SweepConfig.model_validate({**plan, **others})


MLP, AGAINST = {"spec": "builtin:digits-mlp"}, {"name": "pgd-at", "threat": "linf:0.1"}
RADII = {"norm": "linf", "eps": ["0.1", "0.2"], "suite": "fgsm"}


@pytest.mark.parametrize(
    "others",
    [
        {"suites": ["fgsm", ["fgsm"]]},
        {"suites": [["fgsm"], [{"name": "fgsm"}]]},
        {"suites": [["pgd"], [{"name": "pgd", "steps": PGD().steps}], "quick"]},
        {"models": [{**MLP, "suites": ["fgsm", ["fgsm"]]}]},
        {"models": [MLP, {**MLP, "suites": [["fgsm"]]}]},
        {"curves": [RADII, {**RADII, "suite": ["fgsm"]}]},
        {"defenses": [AGAINST, {**AGAINST, "threat": "linf:1/10"}]},
        {"defenses": [{**AGAINST, "grid": {"steps": [2, "2"]}}]},
    ],
)
def test_what_comes_to_one_cell_is_refused_however_it_is_written(
    others: dict[str, Any], tmp_path: Path
) -> None:
    """Suites of one meaning ended in a KeyError, once all was trained."""
    said = r"^sweep: digits-mlp x .* is there twice: .* is .*, written otherwise; give it once$"
    with pytest.raises(InputError, match=said):
        run_sweep(alone(**others), tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match=said):
        estimate(alone(**others), "cpu")
    assert not (tmp_path / "out").exists()


def test_a_curve_and_its_threats_or_attacks_of_other_options_are_not_the_same() -> None:
    suites = ["fgsm", "quick", [{"name": "pgd", "steps": 2}], [{"name": "pgd", "steps": 3}]]
    every = alone(suites=suites, curves=[RADII, {**RADII, "suite": "pgd"}], seeds=[0, 1])
    assert len(check_plan(every)) == 2 * (4 + 2)


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"defenses": [{"name": "none"}, {"name": "none"}]}, "defenses: none"),
        ({"defenses": [{"name": ["none", "none"]}]}, "defenses: none"),
        ({"defenses": [{**AGAINST, "grid": {"steps": [2, 2]}}]}, r"defenses: pgd-at\(steps=2\)"),
        ({"defenses": [{**AGAINST, "grid": {"steps": [2, 3]}}, {**AGAINST, "options": {"steps": 3}}]}, "defenses: pgd"),
        ({"models": [{**MLP, "defenses": [AGAINST, AGAINST]}]}, "models.0.defenses: pgd-at"),
        ({"models": [MLP, MLP]}, "models: digits-mlp"),
        ({"models": [{"spec": ["builtin:digits-mlp"] * 2}]}, "models: digits-mlp"),
        ({"curves": [RADII, RADII]}, "curves: linf at 0.1, 0.2 with fgsm"),
        ({"curves": [RADII, {**RADII, "eps": [0.2, "1/10"]}]}, "curves: linf at 1/10, 0.2 with fgsm"),
    ],
)  # fmt: skip
def test_what_is_there_twice_is_refused_in_every_list(others: dict[str, Any], what: str) -> None:
    place, title = what.split(": ")
    with pytest.raises(ValidationError, match=rf"{place}\n.*{title}.* is there twice; give each once"):
        alone(**others)


@pytest.mark.parametrize(
    "others",
    [
        {"models": [MLP, {**MLP, "data": "builtin:digits"}], "curves": [RADII]},
        {"limit": None, "models": [MLP, {**MLP, "limit": 359}]},
    ],
)
def test_samples_of_two_names_are_told_before_anything_is_trained(
    others: dict[str, Any], tmp_path: Path
) -> None:
    """What a plan cannot tell: they ended in a KeyError."""
    told: list[str] = []
    config = alone(**others)
    for _ in range(2):
        result = run_sweep(config, tmp_path, device="cpu", listener=lambda event: told.append(event.kind))
        assert len(result.failures) == len(result.missing) == len(check_plan(config)) / 2
        for failure in result.failures:
            assert re.search("is there twice, with the model, .*; .* is .*; give it once$", failure.reason)
    assert result.reused == len(result.missing)
    assert told.index("failed") < told.index("trained")


def test_weights_that_are_given_are_attacked_once_whichever_seed_comes_first(tmp_path: Path) -> None:
    save_weights(open_model("builtin:digits-mlp").model, tmp_path / "net.safetensors")
    given = {**MLP, "weights": str(tmp_path / "net.safetensors")}
    entries = [{**given, "seeds": [0, 1]}, {**given, "seeds": [1, 0]}]
    with pytest.raises(InputError, match=r"linf:0\.1, fgsm, seed 1 is there twice; give it once"):
        check_plan(alone(models=entries, defenses=[{"name": "none"}]))
    trained = check_plan(alone(models=[{**MLP, "seeds": [0, 1]}, {**MLP, "seeds": [1, 0]}]))
    assert len(trained) == 4  # initial weights differ


def test_exclude_leaves_cells_out() -> None:
    excluded = [
        {"model": "digits-*", "threat": "l2:*"},
        {"defense": "pgd-at", "seed": 1},
        {"suite": "fgsm+pgd", "model": "own"},
    ]
    cells = plan(SweepConfig.model_validate({**GRID, "exclude": excluded}))
    assert len(cells) == 2 * 2 * (2 + 2) - 2 * 2 * 0 + 2 * 2 * 1 - 4 + 3
    assert not any(cell.threat.startswith("l2") and cell.pair.model.title != "own" for cell in cells)
    with pytest.raises(InputError, match="exclude defense = 'trades' matches no cell"):
        plan(SweepConfig.model_validate({**GRID, "exclude": [{"defense": "trades"}]}))
    with pytest.raises(InputError, match="leaves no cell"):
        plan(SweepConfig.model_validate({**GRID, "exclude": [{"model": "*"}]}))


def test_exclude_leaves_curves_out_all_of_whose_threats_match() -> None:
    curves = [{"norm": "linf", "eps": ["0.1", "0.2"]}, {"norm": "l2", "eps": [1, 2]}]

    def left(**exclusion: object) -> list[str]:
        config = SweepConfig.model_validate({**GRID, "curves": curves, "exclude": [exclusion]})
        return [f"{cell.pair.model.title} {cell.curve.norm}" for cell in curve_cells(config)]

    every = left(model="own", suite="fgsm+pgd")
    assert {"own linf", "own l2"} < set(every)
    assert "own l2" not in left(model="own", threat="l2:*")
    assert {"own linf", "own l2"}.isdisjoint(left(model="own"))
    assert left(threat="linf:0.1") == every
    with pytest.raises(InputError, match="leaves no cell"):
        plan(SweepConfig.model_validate({**GRID, "curves": curves, "exclude": [{"model": "*"}]}))
    alone = {key: value for key, value in GRID.items() if key not in ("threats", "models")}
    few = {
        **alone,
        "models": [{"spec": "builtin:digits-mlp"}],
        "curves": curves,
        "exclude": [{"model": "mlp"}],
    }
    with pytest.raises(
        InputError, match="exclude model = 'mlp' matches no cell; there are digits-mlp x none"
    ):
        plan(SweepConfig.model_validate(few))


def test_an_estimate_trains_nothing_that_is_excluded() -> None:
    few = {
        "models": [{"spec": "builtin:digits-mlp"}],
        "suites": ["fgsm"],
        "threats": ["linf:0.1"],
        "seeds": [0],
    }
    excluded = {
        "defenses": [{"name": "none"}, {"name": "trades", "threat": "linf:0.1"}],
        "exclude": [{"defense": "trades"}],
    }
    lines = estimate(SweepConfig.model_validate({**GRID, **few, **excluded, "limit": 8}), "cpu")
    assert [line.title for line in lines if line.training] == ["train digits-mlp x none"]


def test_an_estimate_counts_passes_on_each_models_own_samples(tmp_path: Path) -> None:
    """Of samples that are misclassified as they are, none costs a search."""
    model, x = load_model("builtin:digits-mlp"), load_data("builtin:digits").limit(16).rows(slice(None))
    save_weights(model, tmp_path / "mlp.safetensors")
    found = model.eval()(x).argmax(1)
    for name, labels in (("right", found), ("wrong", (found + 1) % 10)):
        np.savez(tmp_path / f"{name}.npz", x=x.numpy(), y=labels.numpy())

    def passes(*names: str) -> list[float]:
        given = {"spec": "builtin:digits-mlp", "weights": str(tmp_path / "mlp.safetensors")}
        models = [{**given, "name": name, "data": str(tmp_path / f"{name}.npz")} for name in names]
        few = {
            "models": models,
            "defenses": [{"name": "none"}],
            "threats": ["linf:0.1"],
            "suites": ["fgsm"],
            "seeds": [0],
        }
        return [line.passes for line in estimate(SweepConfig.model_validate({**GRID, **few}), "cpu")]

    assert passes("right", "wrong") == passes("right") + passes("wrong")
    assert passes("right") > passes("wrong")


def test_an_estimate_adds_what_the_few_samples_took_beyond_their_passes() -> None:
    few = Sampled(forwards=10, backwards=10, checks=0, samples=8, took=2.0, stood=8)
    assert few.seconds(100, ahead=0.001, both=0.002) == pytest.approx(100 * 0.03 + 2.0 - 8 * 0.03)
    quick = replace(few, took=0.1)  # in less than its passes take: nothing is taken off
    assert quick.seconds(100, ahead=0.001, both=0.002) == pytest.approx(100 * 0.03)


def test_the_demonstration_is_a_plan_of_twelve() -> None:
    cells = plan(demonstration())
    assert len(cells) == 12
    assert {cell.pair.defense.name for cell in cells} == {"none", "pgd-at", "distillation"}


@pytest.mark.parametrize("eps", ["0.05", "0.15"])
def test_passes_are_counted_on_samples_that_stand_if_any_do(
    eps: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Half and twice what they cost at most, of a radius that few withstand too."""
    threat = Threat("linf", eps)
    few = as_samples(digits, bounds=(0.0, 1.0)).limit(32)
    count = _count(Target(net, device="cpu"), few, Plan(threat, *resolve("standard", threat)))
    report = robust.evaluate(net, digits, threat=threat, device="cpu", precision="float32")
    expected = len(digits[0]) * (count.forwards + count.backwards) + count.checks
    assert 0.5 < expected / (report.forwards + report.backwards) < 2
