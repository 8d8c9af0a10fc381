"""Files of plans that cannot be read as such: one line that says where, what was expected, what came and what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from robust.errors import InputError
from robust.sweep import load_config
from robust.sweep.check import check_plan

KEYS = {
    "data": "builtin:digits",
    "train": "builtin:digits:train",
    "limit": "20",
    "models": "[{spec: builtin:digits-mlp}]",
    "threats": "['linf:0.1']",
}


def written(**others: str) -> str:
    """A plan in YAML, a key a line."""
    return "\n".join(f"{key}: {value}" for key, value in {**KEYS, **others}.items())


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.yaml", "data: " + "[" * 5000),
        ("plan.yaml", "data: " + "{a: " * 5000 + "}" * 5000),
        ("plan.toml", "data = " + "[" * 5000),
    ],
)
def test_a_plan_that_is_nested_without_end_is_one_line(
    name: str, text: str, tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    done = inside("sweep", name, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(rf"robust: sweep configuration {name}: .* nested too deep to be read\n", done.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (written() + "\nlimit: 30", "line 6: limit is there twice (before in line 3); give it once"),
        (
            written(models="\n- spec: builtin:digits-mlp\n  name: a\n  name: b"),
            "line 7: name is there twice (before in line 6)",
        ),
        (written(models="[{spec: a, spec: b}]"), "line 4: spec is there twice (before in line 4)"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_by_its_line(text: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    assert said in refusal(tmp_path / "plan.yaml", text)


def test_keys_that_are_merged_into_a_mapping_may_be_replaced_there(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    models = "\n- &first {spec: builtin:digits-mlp, name: first}\n- {<<: *first, name: second}"
    (tmp_path / "plan.yaml").write_text(written(models=models))
    names = [(model.spec, model.name) for model in load_config(tmp_path / "plan.yaml").models]
    assert names == [("builtin:digits-mlp", "first"), ("builtin:digits-mlp", "second")]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"threats": "[linf: 0.1]"},
            "threats.0: expected text such as linf:8/255, got {'linf': 0.1}; write linf:0.1 without a blank",
        ),
        (
            {"data": "2026-01-01"},
            "data: expected text such as builtin:digits:test, got the date 2026-01-01; put it in quotes",
        ),
        ({"data": ""}, "data: expected text such as builtin:digits:test, got nothing"),
        ({"recipe": "5"}, "recipe: expected text, got 5; put it in quotes"),
        ({"threats": "[yes]"}, "threats.0: expected text such as linf:8/255, got true"),
        ({"seeds": "[]"}, "seeds: expected at least 1 entry, got an empty list"),
        ({"defenses": "[]"}, "defenses: expected at least 1 entry, got an empty list"),
        (
            {"curves": "[{norm: linf, eps: [0.1]}]"},
            "curves.0.eps: expected at least 2 entries, got ['0.1']",
        ),
        ({"suites": "[5]"}, "suites.0: expected text or a list, got 5"),
        ({"models": "[{spec: [5]}]"}, "models.0.spec.0: expected text such as builtin:digits-mlp, got 5"),
        ({"models": "[{spec: a, normalize: [1, 2]}]"}, "models.0.normalize.0: expected a list, got 1"),
        ({"cascade": "maybe"}, "cascade: expected true or false, got 'maybe'"),
        ({"shard": "0"}, "shard: expected at least 1, got 0"),
        ({"5": "a"}, "5: unknown key; known: batch_size, "),
        ({"threats": "&all [*all]"}, "threats.0: expected text such as linf:8/255, got [[[[[[[...]]]]]]]"),
        ({"defenses": "[{name: pgd-at, options: &all {steps: *all}}]"}, "expected values that JSON can hold"),
        ({"data": "2026-13-45"}, "is not YAML: month must be in 1..12"),
        ({"data": "!!int ''"}, "is not YAML: "),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_was_expected(
    keys: dict[str, str], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("yaml")
    assert said in refusal(tmp_path / "plan.yaml", written(**keys))


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"limit": "yes"}, "limit"),
        ({"shard": "yes"}, "shard"),
        ({"keep_examples": "true"}, "keep_examples"),
        ({"batch_size": "on"}, "batch_size"),
        ({"models": "[{spec: a, limit: yes}]"}, "models.0.limit"),
        ({"models": "[{spec: a, normalize: [[yes], [1]]}]"}, "models.0.normalize.0.0"),
        ({"exclude": "[{seed: yes}]"}, "exclude.0.seed"),
        ({"curves": "[{norm: linf, eps: [yes, 2]}]"}, "curves.0.eps"),
    ],
)
def test_a_boolean_is_no_number(keys: dict[str, str], place: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    said = f": {place}: expected a number, got true"
    assert refusal(tmp_path / "plan.yaml", written(**keys)).endswith(said)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"suites": "[[{name: pgd, steps: yes}]]"}, "attack 'pgd': steps"),
        ({"defenses": "[{name: none, training: {epochs: yes}}]"}, "training: epochs"),
        (
            {"defenses": "[{name: pgd-at, threat: 'linf:0.1', grid: {steps: [2, yes]}}]"},
            "defense 'pgd-at': steps",
        ),
    ],
)
def test_a_boolean_is_no_number_of_an_option_either(keys: dict[str, str], said: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "plan.yaml").write_text(written(**keys))
    with pytest.raises(InputError, match=f"^{said}: expected a number, got True$"):
        check_plan(load_config(tmp_path / "plan.yaml"))


def test_an_option_that_is_true_or_false_may_be(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "plan.yaml").write_text(written(suites="[[{name: pgd, random_start: no}]]", cascade="no"))
    assert len(check_plan(load_config(tmp_path / "plan.yaml"))) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"models": "[{spec: []}]"},
        {"defenses": "[{name: []}]"},
        {"defenses": "[{name: pgd-at, grid: {steps: []}}]"},
    ],
)
def test_a_grid_of_nothing_is_told_by_its_place(keys: dict[str, str], tmp_path: Path) -> None:
    """They left no cell, and an exclusion was blamed for it."""
    pytest.importorskip("yaml")
    assert "expected at least 1 entry, got an empty list" in refusal(tmp_path / "plan.yaml", written(**keys))


@pytest.mark.parametrize(
    ("text", "got"),
    [("[]", "an empty list"), ("5", "5"), ("{}", "no keys"), ("no", "false"), ("# a", "an empty file")],
)
def test_what_has_no_keys_is_named(text: str, got: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    assert f"expected keys and values, got {got}; a sweep needs" in refusal(tmp_path / "plan.yml", text)


@pytest.mark.parametrize("name", ["plan.json", "plan"])
def test_a_plan_that_is_no_toml_may_want_another_suffix(name: str, tmp_path: Path) -> None:
    hint = "; a plan in YAML needs a name in .yaml or .yml"
    assert refusal(tmp_path / name, written()).endswith(hint)
    assert "YAML" not in refusal(tmp_path / "plan.toml", written())


def test_a_number_of_thousands_of_digits_is_no_toml(tmp_path: Path) -> None:
    assert "is not TOML" in refusal(tmp_path / "plan.toml", "limit = " + "9" * 5000)
