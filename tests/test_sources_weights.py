"""Files of weights: every form is read, what does not fit leaves the model alone, no pickle is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from refusals import Bomb, refused, small
from torch import nn

from robust.errors import InputError, StoreError
from robust.sources import load_model, load_weights, model_sha256, save_weights


def test_every_file_form_of_weights_round_trips(tmp_path: Path) -> None:
    model = small()
    model[2].running_mean.fill_(0.25)
    state = model.state_dict()
    save_weights(model, tmp_path / "new" / "w.safetensors")
    forms = {
        "plain.pt": state,
        "state.pt": {"state_dict": state, "epoch": 3},
        "model.pth": {"model": dict(state), "lr": 0.1},
        "parallel.pt": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled.pt": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "double.pt": {k: v.double() for k, v in state.items()},
        "uncounted.pt": {k: v for k, v in state.items() if "num_batches" not in k},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    for file in [tmp_path / "new" / "w.safetensors", *(tmp_path / name for name in forms)]:
        fresh = small()
        assert model_sha256(fresh) != model_sha256(model)
        load_weights(fresh, file)
        assert model_sha256(fresh) == model_sha256(model), file
        assert all(p.requires_grad for p in fresh.parameters())


def test_a_prefix_of_the_models_own_stays(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    save_weights(model, tmp_path / "w.safetensors")
    fresh = nn.DataParallel(nn.Linear(2, 2))
    load_weights(fresh, tmp_path / "w.safetensors")
    assert model_sha256(fresh) == model_sha256(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights(tmp_path: Path) -> None:
    model = Tied()
    save_weights(model, tmp_path / "all.safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "once.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "once.safetensors")) == 3
    for name in ("all", "once"):
        fresh = Tied()
        load_weights(fresh, tmp_path / f"{name}.safetensors")
        assert model_sha256(fresh) == model_sha256(model)
        assert fresh.first.weight is fresh.second.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("1.weight"), ("1 missing: 1.weight",)),
        (lambda s: s.update(extra=torch.zeros(1)), ("1 unexpected: extra",)),
        (lambda s: s.update({"4.weight": torch.zeros(9, 5)}), ("4.weight (9, 5) for (3, 5)",)),
        (lambda s: s.update({f"x{i}": torch.zeros(1) for i in range(9)}), ("9 unexpected: x0, x1", "...")),
        (lambda s: s.clear(), ("an empty one",)),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_alone(
    tmp_path: Path, change, words: tuple[str, ...]
) -> None:
    state = small().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    model = small()
    before = model_sha256(model)
    refused(lambda: load_weights(model, tmp_path / "w.pt"), "w.pt", *words)
    assert model_sha256(model) == before


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_things_that_are_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    refused(lambda: load_weights(small(), tmp_path / "w.pt"), "expected a state dict")


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"state_dict": {"w": b}}])
@pytest.mark.parametrize("form", ["torch", "pickle", "safetensors"])
def test_pickles_offered_as_weights_never_run(tmp_path: Path, wrap, form: str) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / f"bomb.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "torch":
        torch.save(wrap(Bomb(marker)), file)
    else:
        file.write_bytes(pickle.dumps(wrap(Bomb(marker))))
    words = () if form == "safetensors" else ("would run code", "re-save the state dict as safetensors")
    refused(lambda: load_weights(small(), file), str(file), *words)
    assert not marker.exists()
    if form != "safetensors":
        if form == "torch":
            torch.load(file, weights_only=False)
        else:
            pickle.loads(file.read_bytes())  # noqa: S301
        assert marker.exists()  # the bomb was live


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_weights(tmp_path: Path, suffix: str, keep: float) -> None:
    file = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(small().state_dict(), file)
    else:
        save_weights(small(), file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    refused(lambda: load_weights(small(), file), "truncated, damaged")


def test_missing_weights(tmp_path: Path) -> None:
    refused(lambda: load_weights(small(), tmp_path / "none.pt"), "none.pt: no such file")
    refused(lambda: load_model("builtin:digits-mlp", tmp_path), "a folder, not a file")


def test_weights_that_are_no_path() -> None:
    with pytest.raises(InputError, match="weights: expected the path of a file, got 3"):
        load_model("builtin:digits-mlp", 3)  # type: ignore[arg-type]


def test_saving_replaces_at_once_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    model = small()
    save_weights(model, file)
    save_weights(small(), file)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / "taken.safetensors").mkdir()
    blocked = tmp_path / "taken.safetensors"
    refused(lambda: save_weights(model, blocked), "cannot be written", error=StoreError)
    refused(lambda: save_weights(model, file / "sub.safetensors"), "cannot be written", error=StoreError)
    refused(lambda: save_weights(model, tmp_path / "w.pt"), "ending in .safetensors", error=InputError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.safetensors", "w.safetensors"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_model_hash_sees_values_names_types_and_buffers_only() -> None:
    model = small()
    digest = model_sha256(model)
    copy = small()
    copy.load_state_dict(model.state_dict())
    copy.train().requires_grad_(False)
    assert model_sha256(copy) == digest
    copy[2].running_var[0] += 1
    assert model_sha256(copy) != digest
    assert model_sha256(small().load_state_dict(model.state_dict()) and model.double()) != digest
    first, second = nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    second["b"].load_state_dict(first["a"].state_dict())
    assert model_sha256(first) != model_sha256(second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_model_hash_takes_every_type(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("scalar", torch.tensor(1).to(dtype))
    model.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
    model.register_buffer("strided", torch.ones(4, 6, dtype=dtype)[:, ::2].t())
    digest = model_sha256(model)
    model.scalar.zero_()
    assert model_sha256(model) != digest
