"""Data by name: every form read back, every bad input refused with its own message."""

from __future__ import annotations

import hashlib
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from robust.errors import DataError, InputError, UnknownNameError
from robust.sources import DATASETS, Samples, as_samples, load_data

RNG = np.random.default_rng(7)
GRAY = RNG.integers(0, 256, (6, 9, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
FEATURES = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def png(array: np.ndarray, suffix: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, suffix)
    return buffer.getvalue()


def pair(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(0, 1, n * 4).reshape(n, 1, 2, 2), torch.arange(n)


def refused(data: object, *words: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        as_samples(data, **options)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


# --- built-in sets


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


# --- Samples


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


ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.float32]),
    st.tuples(st.integers(1, 4), st.just(1), st.integers(4, 6), st.integers(4, 6)),
    elements=st.integers(0, 1),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=ARRAYS, data=st.data())
def test_npz_round_trip_and_hash(tmp_path: Path, x: np.ndarray, data: st.DataObject) -> None:
    y = np.arange(len(x))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    samples = load_data(str(tmp_path / "d.npz"))
    assert np.array_equal(samples.x.numpy(), x)
    assert samples.x.numpy().dtype == x.dtype
    assert samples.y.tolist() == y.tolist()
    digest = samples.sha256
    assert as_samples((x.copy(order="F"), y.astype(np.int16))).sha256 == digest

    changed = x.copy()
    place = data.draw(st.integers(0, x.size - 1))
    changed.reshape(-1)[place] = 1 - changed.reshape(-1)[place]
    assert as_samples((changed, y)).sha256 != digest
    relabelled = y.copy()
    relabelled[data.draw(st.integers(0, len(y) - 1))] += 1
    assert as_samples((x, relabelled)).sha256 != digest
    assert Samples(samples.x, samples.y, samples.ids + 1).sha256 != digest


def test_hash_sees_shape_type_and_every_chunk() -> None:
    zeros = as_samples((torch.zeros(4, 4), torch.arange(4)))
    assert as_samples((torch.zeros(4, 2, 2), torch.arange(4))).sha256 != zeros.sha256
    assert as_samples((torch.zeros(4, 16, dtype=torch.uint8), torch.arange(4))).sha256 != zeros.sha256
    big = torch.zeros(2, (1 << 22) + 5, dtype=torch.uint8)
    before = as_samples((big, torch.arange(2))).sha256
    big[1, -1] = 1
    assert as_samples((big, torch.arange(2))).sha256 != before


# --- what a caller may hand over


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
        ((X.long(), Y), ("torch.int64", "x.to(torch.uint8)")),
        ((np.array([object()] * 5), Y), ("x: expected a numeric",)),
        (([[0.0], [0.0, 1.0]], Y), ("x: expected a numeric",)),
        ((X, ["cat"] * 5), ("y: expected a numeric",)),
        ((X, Y, Y), ("got tuple",)),
        (17, ("got int", "FILE.npz")),
        (Stream(), ("got Stream", "DataLoader")),
        (Items([]), ("at least one sample",)),
        (Items([X[0]]), ("item 0: expected (x, y), got Tensor",)),
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


# --- files


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (GRAY, GRAY[:, None]),
        (GRAY[..., None], GRAY[:, None]),
        (GRAY[:, None], GRAY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        ((GRAY / 255).astype(np.float64), (GRAY[:, None] / 255).astype(np.float32)),
        (FEATURES, FEATURES),
        (np.asfortranarray(FEATURES), FEATURES),
    ],
)
def test_npz_layouts(tmp_path: Path, x: np.ndarray, wanted: np.ndarray) -> None:
    file = tmp_path / "set.npz"
    np.savez_compressed(file, x=x, y=LABELS)
    samples = load_data(str(file))
    assert np.array_equal(samples.x.numpy(), wanted)
    assert samples.x.is_contiguous()
    assert samples.y.tolist() == LABELS.tolist()
    assert samples.ids.tolist() == list(range(6))
    assert samples.spec == str(file)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": GRAY}, ("expected arrays x and y, found x",)),
        ({"images": GRAY, "labels": LABELS}, ("found images, labels",)),
        ({"x": np.zeros((6, 4, 8, 5)), "y": LABELS}, ("no axis of 1 or 3 channels", "(6, 4, 8, 5)")),
        ({"x": np.zeros((6, 3, 8, 3)), "y": LABELS}, ("could both be channels",)),
        ({"x": np.zeros((6, 4, 4, 4, 3)), "y": LABELS}, ("(N, H, W)", "(6, 4, 4, 4, 3)")),
        ({"x": GRAY.astype(np.float32), "y": LABELS}, ("looks like 0..255", "uint8", "255")),
        ({"x": GRAY.astype(np.int64), "y": LABELS}, ("torch.int64", "uint8")),
        ({"x": GRAY, "y": LABELS.astype(float)}, ("y.long()",)),
        ({"x": GRAY, "y": LABELS[:4]}, ("as many inputs as labels",)),
        ({"x": GRAY[:0], "y": LABELS[:0]}, ("at least one sample",)),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(str(tmp_path / "bad.npz"), *words)


@pytest.mark.parametrize("keep", [0, 3, 50, 0.5, 0.98])
def test_truncated_npz(tmp_path: Path, keep: float) -> None:
    file = tmp_path / "cut.npz"
    np.savez(file, x=GRAY, y=LABELS)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refused(str(file), str(file), "npz")


def test_damaged_and_foreign_npz(tmp_path: Path) -> None:
    file = tmp_path / "cut.npz"
    np.savez(file, x=GRAY, y=LABELS)
    whole = bytearray(file.read_bytes())
    whole[300] ^= 0xFF  # inside x: the checksum no longer fits
    file.write_bytes(bytes(whole))
    refused(str(file), "truncated or damaged")
    with file.open("wb") as stream:
        np.save(stream, GRAY)
    refused(str(file), "np.savez")
    refused(str(tmp_path / "none.npz"), "no such file")
    (tmp_path / "folder.npz").mkdir()
    refused(str(tmp_path / "folder.npz"), "a folder, not a file")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_objects_in_an_npz_are_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb(marker)], dtype=object), y=LABELS[:1])
    refused(str(tmp_path / "bomb.npz"), "pickled objects are never loaded")
    assert not marker.exists()
    np.load(tmp_path / "bomb.npz", allow_pickle=True)["x"]
    assert marker.exists()  # the bomb was live


def write_parquet(file: Path, image: object, label: object, **more: object) -> None:
    pq.write_table(pa.table({"image": image, "label": label, **more}), file)


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize(("images", "channels"), [(GRAY, 1), (COLOUR, 3)])
def test_parquet_round_trip(tmp_path: Path, images: np.ndarray, channels: int, struct: bool) -> None:
    file = tmp_path / "set.parquet"
    cells = [{"bytes": png(i), "path": None} if struct else png(i) for i in images]
    write_parquet(file, cells, LABELS, other=["a"] * 6)
    samples = load_data(str(file))
    assert samples.x.shape == (6, channels, 9, 8)
    assert np.array_equal(samples.x.permute(0, 2, 3, 1).squeeze(3).numpy(), images)
    assert samples.y.tolist() == LABELS.tolist()


def test_gray_among_colour_becomes_colour(tmp_path: Path) -> None:
    file = tmp_path / "mixed.parquet"
    write_parquet(file, [png(GRAY[0]), png(COLOUR[0])], [0, 1])
    x = load_data(str(file)).x
    assert np.array_equal(x[0].numpy(), np.stack([GRAY[0]] * 3))
    assert np.array_equal(x[1].numpy(), COLOUR[0].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ([png(GRAY[0]), png(GRAY[0, :5])], [0, 1], ("row 1", "one size", "8x5 after 8x9")),
        ([png(GRAY[0]), png(GRAY[1])[:60]], [0, 1], ("row 1", "cannot be decoded")),
        ([b"no image"], [0], ("row 0", "cannot be decoded")),
        ([png(GRAY[0].astype(np.uint16) * 200)], [0], ("8 bits",)),
        ([png(GRAY[0]), None], [0, 1], ("row 1", "got NoneType")),
        ([{"path": "a.png"}], [0], ("row 0", "got NoneType")),
        (["text"], [0], ("row 0", "got str")),
        ([png(GRAY[0])], [0.5], ("label of integers", "double")),
        ([png(GRAY[0])] * 2, [0, None], ("1 nulls",)),
        ([png(GRAY[0])], [-1], ("got -1",)),
        (pa.array([], pa.binary()), pa.array([], pa.int64()), ("at least one sample",)),
    ],
)
def test_bad_parquet(tmp_path: Path, image: object, label: object, words: tuple[str, ...]) -> None:
    write_parquet(tmp_path / "bad.parquet", image, label)
    refused(str(tmp_path / "bad.parquet"), *words)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "odd.parquet"
    refused(str(file), "no such file")
    file.write_bytes(b"PAR1 nothing more")
    refused(str(file), "truncated, damaged or no Parquet")
    pq.write_table(pa.table({"img": [b""], "label": [0]}), file)
    refused(str(file), "image missing", "the columns are img, label")
    pq.write_table(pa.table({"a": [1]}), file)
    refused(str(file), "image and label missing", "the columns are a")


def test_folder_round_trip(tmp_path: Path) -> None:
    for name, image in (("dog/2.png", 0), ("cat/b.PNG", 1), ("cat/a.bmp", 2), ("cat/deep/c.png", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(COLOUR[image], "BMP" if name.endswith("bmp") else "PNG"))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    samples = load_data(f"folder:{tmp_path}")
    assert samples.class_names == ("cat", "dog")
    assert samples.y.tolist() == [0, 0, 0, 1]
    assert samples.spec == f"folder:{tmp_path}"
    assert np.array_equal(samples.x.numpy(), COLOUR[[2, 1, 3, 0]].transpose(0, 3, 1, 2))


def test_bad_folders(tmp_path: Path) -> None:
    refused(f"folder:{tmp_path / 'none'}", "no such folder")
    refused(f"folder:{tmp_path}", "a sub-folder of images per class")
    (tmp_path / "cat").mkdir()
    refused(f"folder:{tmp_path}", "'cat' has no images")
    (tmp_path / "cat" / "x.png").write_bytes(b"broken")
    refused(f"folder:{tmp_path}", "x.png", "cannot be decoded")


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOUR[0]).convert(mode)
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "x.tif")
    wanted = np.asarray(picture.convert("L" if mode in ("1", "LA") else "RGB"))
    x = load_data(f"folder:{tmp_path}").x[0].permute(1, 2, 0).squeeze(2)
    assert np.array_equal(x.numpy(), wanted)


# --- names


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (
            "images.csv",
            InputError,
            "FILE.tar, torchvision:NAME[:SPLIT], hf:NAME[:SPLIT], got 'images.csv'",
        ),
        ("ftp:thing", InputError, "expected one of"),
        ("", InputError, "expected one of"),
        ("builtin:mnist5", UnknownNameError, "did you mean 'mnist5k'"),
        ("builtin:", UnknownNameError, "unknown data set ''"),
        ("builtin:digits:valid", DataError, "expected split test or train, got 'valid'"),
    ],
)
def test_unknown_specs(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        load_data(spec)
