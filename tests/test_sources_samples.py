"""Samples and what a caller hands over in memory: rows, ids, limits, the hash, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from images import pair, refused
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from robust.errors import DataError
from robust.sources import Samples, as_samples


def test_rows_scale_uint8_exactly_and_copy() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    samples = as_samples((x, torch.zeros(64, dtype=torch.int64)))
    assert torch.equal(samples.rows(slice(None)), torch.arange(256).reshape(64, 1, 2, 2) / 255)
    floats = as_samples(pair())
    for index in (slice(0, 3), torch.tensor([0, 1, 2])):
        floats.rows(index).zero_()
    assert torch.equal(floats.x, pair()[0])


@pytest.mark.parametrize("index", [slice(1, 4), torch.tensor([4, 0]), [2, 3], torch.arange(5) > 2])
def test_take_keeps_ids(index: object) -> None:
    samples = as_samples(pair())
    part = samples.take(index)  # type: ignore[arg-type]
    assert part.ids.tolist() == part.y.tolist()
    assert torch.equal(part.x, samples.x[part.ids])


def test_limit_is_a_nested_fair_sample_in_id_order() -> None:
    y = torch.arange(1000) // 100
    samples = as_samples((torch.zeros(1000, 1), y))
    small, large = samples.limit(200, seed=3), samples.limit(400, seed=3)
    assert small.ids.tolist() == sorted(small.ids.tolist())
    assert set(small.ids.tolist()) < set(large.ids.tolist())
    assert small.y.bincount(minlength=10).min() >= 8  # the first 200 would hold two classes
    assert samples.limit(200, seed=4).ids.tolist() != small.ids.tolist()
    shuffled = samples.take(torch.randperm(1000))
    assert shuffled.limit(200, seed=3).sha256 == small.sha256
    assert samples.limit(None) is samples
    assert samples.limit(1000).sha256 == samples.sha256


@pytest.mark.parametrize("n", [0, -1, 6])
def test_limit_out_of_range(n: int) -> None:
    with pytest.raises(DataError, match=rf"limit: expected 1 to 5 .* got {n}"):
        as_samples(pair()).limit(n)


def test_hash_sees_shape_type_and_every_chunk() -> None:
    zeros = as_samples((torch.zeros(4, 4), torch.arange(4)))
    assert as_samples((torch.zeros(4, 2, 2), torch.arange(4))).sha256 != zeros.sha256
    assert as_samples((torch.zeros(4, 16, dtype=torch.uint8), torch.arange(4))).sha256 != zeros.sha256
    big = torch.zeros(2, (1 << 22) + 5, dtype=torch.uint8)
    before = as_samples((big, torch.arange(2))).sha256
    big[1, -1] = 1
    assert as_samples((big, torch.arange(2))).sha256 != before


class Items(Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*pair(), strict=True))


def test_all_forms_in_memory_agree() -> None:
    x, y = pair()
    wanted = as_samples((x, y)).sha256
    forms = [
        [x.numpy(), y.numpy()],
        (x.double(), y.int()),
        (x.numpy().astype(">f4"), y.tolist()),
        TensorDataset(x, y),
        Items([(x[i].numpy(), int(y[i])) for i in range(5)]),
        DataLoader(TensorDataset(x, y), batch_size=2),
        DataLoader(Stream(), batch_size=2),
        as_samples((x, y)),
    ]
    for form in forms:
        assert as_samples(form).sha256 == wanted
    assert as_samples((x, y)).spec == "memory"


def test_nothing_of_the_callers_is_touched() -> None:
    x, y = pair()
    x.requires_grad_()
    frozen = x.detach().numpy().copy()
    frozen.flags.writeable = False
    state = torch.get_rng_state()
    for form in ((x, y), (frozen, y), DataLoader(TensorDataset(x.detach(), y), batch_size=2, shuffle=True)):
        samples = as_samples(form)
        samples.rows(slice(None)).fill_(9)
        assert not samples.x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x.detach(), pair()[0])


X, Y = pair()


def edit(index: tuple[int, ...], value: float) -> torch.Tensor:
    x = X.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((X, Y[:4]), ("as many inputs as labels", "(5, 1, 2, 2)", "(4,)")),
        ((X[:0], Y[:0]), ("at least one sample",)),
        (([], []), ("at least two axes",)),
        ((X, Y.float()), ("torch.float32", "y.long()")),
        ((X, Y > 2), ("torch.bool", "y.long()")),
        ((X, torch.eye(5).long()), ("y.argmax(1)",)),
        ((X, Y - 1), (">= 0", "got -1 at sample 0")),
        ((edit((3, 0, 1, 1), float("nan")), Y), ("1 NaN or infinite in 1 samples", "sample 3", "drop")),
        ((edit((2, 0), float("-inf")), Y), ("4 NaN or infinite in 1 samples", "sample 2")),
        ((torch.full((5, 2), 1e300, dtype=torch.float64), Y), ("infinite", "sample 0")),
        ((X + 1e-5, Y), ("found 1e-05 to 1.00001", "bounds=")),
        ((X * 2 - 1, Y), ("found -1 to 1", "bounds=", "normalize=", "(--normalize MEAN STD)")),
        ((X * 255, Y), ("found 0 to 255", "uint8")),
        ((X * 16, Y), ("found 0 to 16", "divide x by the highest value that it can take")),
        ((X.long(), Y), ("torch.int64", "x.to(torch.uint8)", "anything else with x.float()")),
        ((np.array([object()] * 5), Y), ("x: expected a numeric",)),
        (([[0.0], [0.0, 1.0]], Y), ("x: expected a numeric",)),
        ((X, ["cat"] * 5), ("y: expected a numeric", "got list (text; np.unique(y, return_inverse=True)[1]")),
        ((X, np.array(["cat"] * 5, object)), ("y: expected a numeric", "got ndarray (text; np.unique")),
        ((X, Y, Y), ("got tuple",)),
        (17, ("got int", "FILE.npz")),
        (Stream(), ("got Stream", "DataLoader")),
        (Items([]), ("at least one sample",)),
        (Items([X[0]]), ("item 0: expected (x, y), got Tensor",)),
        (Items([{"image": X[0], "label": 0}]), ("got a dict with 'image', 'label'", "return (x, y)")),
        (Items([(X[0], 0), (X[0, 0], 1)]), ("same shape", "resize")),
        (Items([(X[0], 0), (X[0].to(torch.uint8), 1)]), ("one type", "torch.float32, torch.uint8")),
        (Items([(Image.new("L", (2, 2)), 0)]), ("PIL", "ToTensor")),
        (Items([(X[0], 0.5)]), ("no numbers of classes",)),
        (Samples(X, Y, Y[:3]), ("ids: expected int64 of shape (5,)",)),
        (
            Samples(X, Y, torch.zeros(5, dtype=torch.int64)),
            ("ids: expected distinct integers, got 0 5 times",),
        ),
        (Samples(X, Y, torch.tensor([0, 1, 2, 7, 7])), ("ids: expected distinct integers, got 7 twice",)),
    ],
)
def test_bad_samples_are_refused(data: object, words: tuple[str, ...]) -> None:
    refused(data, *words)


def test_labels_out_of_range_and_bounds() -> None:
    refused((X, Y), "0..3 (4 classes)", "got 4 at sample 4", num_classes=4)
    assert len(as_samples((X, Y), num_classes=5)) == 5
    refused(Samples(X, Y, Y, class_names=("a", "b")), "0..1 (2 classes)", "got 2 at sample 2")
    refused((X.to(torch.uint8), Y), "bounds (-1, 1)", bounds=(-1, 1))
    assert as_samples((X * 2 - 1, Y), bounds=(-1.0, 1.0)).x.min() == -1
    assert len(as_samples((X + 5e-7, Y))) == 5  # float32 rounding is no fault
    labels = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8)
    assert as_samples((X, labels)).y.dtype == torch.int64
