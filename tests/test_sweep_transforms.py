"""Input transforms in a sweep: attacked as they are deployed, and verified from their records alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, need_art

from robust.defenses import Trainer, make_defense
from robust.hardening import training_options
from robust.leaderboard import Record
from robust.leaderboard.rebuild import rebuild, wrapper_of
from robust.sources import load_data, load_model, save_weights
from robust.sweep import SweepConfig, run_sweep
from robust.target import Target

WRAPPERS = ["none+jpeg", "none+median", "none+bit-depth"]


def sweep(out: Path, **model: Any) -> dict[str, Record]:
    """Records by the name of the defense."""
    plan = {
        "data": "builtin:digits",
        "train": "builtin:digits:train",
        "limit": 24,
        "models": [{"spec": "builtin:digits-mlp", **model}],
        "defenses": [{"name": WRAPPERS, "training": {"epochs": 2}}],
        "threats": ["linf:0.08"],
        "suites": ["quick"],
    }
    result = run_sweep(SweepConfig.model_validate(plan), out, device="cpu")
    assert (result.failures, result.missing) == ([], [])
    return {record.defense.name: record for record in result.records}


def verified(inside: Callable[..., Outcome], out: Path, record: Record, *more: str) -> Outcome:
    return inside(
        "leaderboard", "verify", str(out / "records" / f"{record.id}.json"), "--model", "builtin:digits-mlp",
        "--rerun", "6", "--device", "cpu", *more, cwd=out,
    )  # fmt: skip


def test_every_transform_is_verified_with_the_weights_of_what_is_behind_it(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    found = sweep(tmp_path, normalize=[[0.3], [0.4]])
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    assert sorted(found) == sorted(WRAPPERS)
    assert len({record.robust.k for record in found.values()}) > 1, "the transforms do something"
    for name, record in found.items():
        assert record.defense.parameters["training options"] == {"epochs": 2}
        assert record.model.normalize == ([pytest.approx(0.3)], [pytest.approx(0.4)])
        done = verified(inside, tmp_path, record, "--weights", str(weights))
        assert done.returncode == 0, done.stdout
        assert f"{name.removeprefix('none+')} goes in front of the model, as the record says" in done.stderr
        for check in ("model", "clean", "fooled", "rerun"):
            assert f"\nok    {check} " in done.stdout, done.stdout
    other = tmp_path / "other.safetensors"
    save_weights(load_model("builtin:digits-mlp", seed=1), other)
    refused = verified(inside, tmp_path, record, "--weights", str(other))
    assert refused.returncode == 1
    assert "\nFAIL  model " in refused.stdout


@pytest.mark.parametrize("moments", [None, ((0.3,), (0.4,))])
def test_weights_that_were_saved_with_their_transform_fit_too(tmp_path: Path, moments: Any) -> None:
    (record,) = (r for name, r in sweep(tmp_path / "out").items() if name == "none+jpeg")
    prepared = Target(load_model("builtin:digits-mlp"), normalize=moments, device="cpu").as_module()
    whole = make_defense("none+jpeg").fit(
        prepared, load_data("builtin:digits:train").limit(100), threat=None,
        trainer=Trainer(training_options("mnist", {"epochs": 1, "device": "cpu"})),
    )  # fmt: skip
    save_weights(whole, tmp_path / "whole.safetensors")
    target = rebuild(
        record, "builtin:digits-mlp", str(tmp_path / "whole.safetensors"), normalize=moments, device="cpu"
    )
    x = load_data("builtin:digits").rows(slice(0, 8))
    with target:
        assert target.logits(x).equal(whole(x))


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("none+jpeg", {"masks_gradients": True, "of": "none", "options": {}, "quality": 50}, "jpeg"),
        ("none+jpeg", {"masks_gradients": True, "quality": 50, "training options": {"epochs": 2}}, "jpeg"),
        ("distillation", {"masks_gradients": True, "temperature": 100}, None),
        ("pgd-at", {"steps": 7}, None),
        ("our own jpeg", {"masks_gradients": True}, None),
    ],
)
def test_what_was_in_front_is_read_off_the_record(
    name: str, parameters: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    record = next(iter(sweep(tmp_path).values()))
    defense = record.defense.model_copy(update={"name": name, "parameters": parameters})
    wrapper = wrapper_of(record.model_copy(update={"defense": defense}))
    assert (wrapper and wrapper.name) == expected
    assert wrapper is None or wrapper.parameters["quality"] == 50


def test_what_draws_at_random_is_not_held_to_its_answers(
    tmp_path: Path, inside: Callable[..., Outcome]
) -> None:
    need_art()
    plan = {
        "data": "builtin:digits",
        "train": "builtin:digits:train",
        "limit": 16,
        "models": [{"spec": "builtin:digits-mlp"}],
        "defenses": [{"name": "none+art:TotalVarMin", "training": {"epochs": 2}}],
        "threats": ["linf:0.08"],
        "suites": ["fgsm"],
    }
    (record,) = run_sweep(SweepConfig.model_validate(plan), tmp_path, device="cpu").records
    assert "randomized" in {finding.check for finding in record.findings}
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    done = verified(inside, tmp_path, record, "--weights", str(weights))
    assert done.returncode in (0, 3), done.stdout  # 0 where its draws happen to fall as they did
    assert "FAIL" not in done.stdout
    assert ("not verified: the model draws at random" in done.stdout) == (done.returncode == 3)
