"""The data sets that are built in, and data asked for by name: splits that never move, names that are unknown."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch

from robust.errors import DataError, InputError, UnknownNameError
from robust.sources import DATASETS, load_data


@pytest.mark.parametrize(("name", "train", "test"), [("mnist5k", 4000, 1000), ("digits", 1438, 359)])
def test_builtin_splits_are_disjoint_complete_and_stratified(name: str, train: int, test: int) -> None:
    parts = {split: load_data(f"builtin:{name}:{split}") for split in ("train", "test")}
    assert (len(parts["train"]), len(parts["test"])) == (train, test)
    ids = torch.cat([part.ids for part in parts.values()])
    assert ids.sort().values.tolist() == list(range(train + test))
    per_class = {split: part.y.bincount(minlength=10) for split, part in parts.items()}
    share = per_class["test"] / (per_class["test"] + per_class["train"])
    assert ((share - 0.2).abs() < 0.003).all()
    assert parts["test"].class_names == tuple("0123456789")


def test_mnist5k_is_400_and_100_a_class_and_real_images() -> None:
    train, test = load_data("builtin:mnist5k:train"), load_data("builtin:mnist5k")
    assert train.y.bincount().tolist() == [400] * 10
    assert test.y.bincount().tolist() == [100] * 10
    assert test.x.shape == (1000, 1, 28, 28)
    assert test.x.dtype == torch.uint8
    assert test.x.max() == 255
    # A one inks far less of the field than a zero: the pixels belong to the labels.
    assert test.rows(test.y == 1).mean() < 0.6 * test.rows(test.y == 0).mean()


def test_splits_never_move() -> None:
    digest = {
        name: hashlib.sha256(load_data(f"builtin:{name}").ids.numpy().tobytes()).hexdigest()[:16]
        for name in ("mnist5k", "digits")
    }
    assert digest == {"mnist5k": "999a5122399dcceb", "digits": "bfef2977b8d2f0bc"}


def test_digits_are_sixteenths() -> None:
    x = load_data("builtin:digits").x
    assert x.shape[1:] == (1, 8, 8)
    assert x.dtype == torch.float32
    assert x.max() == 1
    assert torch.equal(x * 16, (x * 16).round())


def test_changing_what_was_loaded_does_not_change_the_next_load() -> None:
    first = load_data("builtin:digits")
    digest = first.sha256
    first.x.zero_()
    assert load_data("builtin:digits").sha256 == digest


def test_builtin_entries_describe_themselves() -> None:
    assert list(DATASETS) == ["digits", "mnist5k"]
    for name in DATASETS:
        assert len((DATASETS[name].__doc__ or "").splitlines()[0]) > 20


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (
            "images.csv",
            InputError,
            "FILE.tar, torchvision:NAME[:SPLIT], hf:NAME[:SPLIT], got 'images.csv'",
        ),
        ("ftp:thing", InputError, "expected one of"),
        ("tables.csv", InputError, "np.savez(FILE, x=x, y=y)"),
        ("", InputError, "expected one of"),
        ("folder", InputError, "folder:DIR"),
        ("folder:", InputError, "folder:DIR"),
        ("builtin:mnist5", UnknownNameError, "did you mean 'mnist5k'"),
        ("builtin:", UnknownNameError, "unknown data set ''"),
        ("builtin:digits:valid", DataError, "expected split test or train, got 'valid'"),
    ],
)
def test_unknown_specs(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        load_data(spec)
