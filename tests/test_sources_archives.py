"""Shards, other libraries' data sets and spooling: stable ids, names, groups, one hash, on disk as in memory."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import robust
from robust.errors import DataError, UnknownNameError
from robust.sources import Preprocessing, Samples, as_samples, load_data, spool
from robust.sources.shards import shards
from robust.sources.spool import Kept, Slots, Spool

COLOUR = np.random.default_rng(7).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def refused(spec: str, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


def write_shard(file: Path, rows: range, **more: bytes) -> None:
    with tarfile.open(file, "w") as archive:
        for i in rows:
            parts = {"png": png(COLOUR[i]), "cls": str(LABELS[i]).encode(), "json": b"{}", **more}
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"sample{i:03}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything outgrows memory at once."""
    monkeypatch.setattr(spool, "IN_MEMORY", 16)
    monkeypatch.setattr(spool, "_PART", 300)


def test_shards_round_trip(tmp_path: Path) -> None:
    write_shard(tmp_path / "set-00.tar", range(4), group=b"5")
    write_shard(tmp_path / "set-01.tar", range(4, 6), group=b"7\n")
    samples = load_data(f"{tmp_path}/set-{{00..01}}.tar")
    assert np.array_equal(samples.x.numpy(), COLOUR.transpose(0, 3, 1, 2))
    assert samples.y.tolist() == LABELS
    assert samples.ids.tolist() == list(range(6))
    assert samples.groups is not None
    assert samples.groups.tolist() == [5, 5, 5, 5, 7, 7]
    assert load_data(f"{tmp_path}/set-01.tar").y.tolist() == LABELS[4:]


def test_shard_patterns() -> None:
    assert [str(p) for p in shards("a-{08..11}.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    for bad in ("a-{3..1}.tar", "a-{0..999999999}.tar"):
        with pytest.raises(DataError, match="expected a range of"):
            shards(bad)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", png(COLOUR[0]))], ("sample a", "expected one image and a label", "found png")),
        ([("a.cls", b"1")], ("sample a", "found cls")),
        ([("a.png", png(COLOUR[0])), ("a.cls", b"one")], ("whole number as label, got 'one'",)),
        ([("a.png", b"junk"), ("a.cls", b"1")], ("image a of", "cannot be decoded")),
        ([("a.png", png(COLOUR[0])), ("a.cls", b"1" * 99)], ("over the limit",)),
        ([], ("at least one sample",)),
    ],
)
def test_bad_shards(tmp_path: Path, members: list[tuple[str, bytes]], words: tuple[str, ...]) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    refused(f"{tmp_path}/bad.tar", *words)


def test_parquet_keeps_groups_and_names(tmp_path: Path) -> None:
    cells = [{"bytes": png(i), "path": None} for i in COLOUR]
    table = pa.table({"image": cells, "label": LABELS, "group": [3, 3, 4, 4, 5, 5]})
    info = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "x.parquet")
    samples = load_data(str(tmp_path / "x.parquet"))
    assert samples.class_names == ("cat", "dog", "owl")
    assert samples.groups is not None
    assert samples.take([4, 0]).groups.tolist() == [5, 3]  # type: ignore[union-attr]
    table = pa.table({"image": cells, "label": [7] * 6})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "y.parquet")
    refused(str(tmp_path / "y.parquet"), "0..2 (3 classes)", "got 7")


def test_images_of_several_sizes_are_fitted_as_a_model_declares(tmp_path: Path) -> None:
    for name, array in (("a", COLOUR[0]), ("b", np.tile(COLOUR[1], (3, 2, 1)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(array))
    refused(f"folder:{tmp_path}", "one size", "name a model that declares its size")
    fitted = load_data(f"folder:{tmp_path}", fit=Preprocessing("x", size=(6, 6), resize=7))
    assert fitted.x.shape == (2, 3, 6, 6)


# --- other libraries


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", exc_type=Exception)
    features = library.Features(
        {
            "img": library.Image(),
            "label": library.ClassLabel(names=["a", "b", "c"]),
            "group": library.Value("int64"),
        }
    )
    rows = {"img": [Image.fromarray(i) for i in COLOUR], "label": LABELS, "group": [1, 1, 1, 2, 2, 2]}
    made = library.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "one"))
    library.DatasetDict({"test": made, "train": made.select([0])}).save_to_disk(str(tmp_path / "both"))
    for spec in (f"hf:{tmp_path}/one", f"hf:{tmp_path}/both", f"hf:{tmp_path}/both:test"):
        samples = load_data(spec)
        assert np.array_equal(samples.x.numpy(), COLOUR.transpose(0, 3, 1, 2))
        assert (samples.y.tolist(), samples.class_names) == (LABELS, ("a", "b", "c"))
        assert samples.groups is not None
    assert len(load_data(f"hf:{tmp_path}/both:train")) == 1
    refused(f"hf:{tmp_path}/both:none", "cannot be read")
    refused("hf:org/not-there", "nothing is downloaded")


def test_torchvision_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    monkeypatch.setenv("ROBUST_DATA_ROOT", str(tmp_path))
    folder = tmp_path / "eurosat" / "2750"
    for name, i in (("River", 0), ("Forest", 1)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(COLOUR[i]).save(folder / name / f"{name}_1.png")
    samples = load_data("torchvision:EuroSAT")
    assert samples.class_names == ("Forest", "River")
    assert np.array_equal(samples.x.numpy(), COLOUR[[1, 0]].transpose(0, 3, 1, 2))
    refused("torchvision:MNIST:train", "nothing is downloaded", "ROBUST_DATA_ROOT")
    refused("torchvision:MNIST:valid", "expected split test or train")
    with pytest.raises(UnknownNameError, match="did you mean 'MNIST'"):
        load_data("torchvision:MNISTT")


# --- what outgrows memory


def test_on_disk_all_is_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=COLOUR, y=np.array(LABELS), groups=np.array([0, 0, 1, 1, 2, 2]))
    write_shard(tmp_path / "x.tar", range(6))
    data = TensorDataset(torch.rand(50, 1, 3, 3), torch.arange(50) % 3)
    sources = (str(tmp_path / "x.npz"), str(tmp_path / "x.tar"), data, DataLoader(data, 7))
    whole = [as_samples(source) for source in sources]
    monkeypatch.setattr(spool, "IN_MEMORY", 16)
    monkeypatch.setattr(spool, "_PART", 300)
    for source, wanted in zip(sources, whole, strict=True):
        found = as_samples(source)
        assert found.pages is not None
        assert wanted.pages is None
        assert found.sha256 == wanted.sha256
        assert torch.equal(found.rows(slice(None)), wanted.rows(slice(None)))
        assert torch.equal(found.rows([3, 1]), wanted.rows([3, 1]))
        few = found.limit(4, seed=1)
        assert few.sha256 == wanted.limit(4, seed=1).sha256
        assert few.pages is not None
        assert found.take(slice(1, 3)).sha256 == wanted.take(slice(1, 3)).sha256


def test_the_hash_made_while_reading_is_the_hash_of_the_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=COLOUR, y=np.array(LABELS))
    read = load_data(str(tmp_path / "x.npz"))
    assert read.x_sha256 is not None
    assert read.sha256 == Samples(read.x.clone(), read.y, read.ids).sha256
    assert read.sha256 != Samples(read.x.flip(0), read.y, read.ids).sha256
    assert read.take([0, 1]).sha256 == Samples(read.x[:2], read.y[:2], read.ids[:2]).sha256


@pytest.mark.usefixtures("disk")
def test_verdicts_and_examples_are_the_same_from_disk(
    net: torch.nn.Module,
    digits: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {
        "threat": "linf:0.1",
        "suite": ["fgsm", "pgd"],
        "device": "cpu",
        "batch_size": 64,
        "keep_examples": True,
    }
    spooled = robust.evaluate(net, TensorDataset(*digits), **options)
    monkeypatch.setattr(spool, "IN_MEMORY", 1 << 30)
    plain = robust.evaluate(net, digits, **options)
    assert spooled.verdicts.equals(plain.verdicts)
    assert spooled.data["sha256"] == plain.data["sha256"]
    for key, kept in plain.examples.items():
        assert torch.equal(spooled.examples[key], kept)
    spooled.save(tmp_path)
    assert torch.equal(robust.Report.load(tmp_path).examples["x_adv"], plain.examples["x_adv"])


@pytest.mark.usefixtures("disk")
def test_a_spool_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken = Spool("x")
    for i in range(5):
        taken.append(torch.full((3, 40), i, dtype=torch.uint8))
    stored = taken.finish()
    assert stored.pages is not None
    stored.pages.release()
    assert stored.rows[:, 0].tolist() == [i for i in range(5) for _ in range(3)]
    assert list(tmp_path.iterdir()) == []


def test_kept_rows_come_back_in_order_and_once() -> None:
    kept = Kept("x")
    kept.add(torch.tensor([3, 1]), torch.tensor([[9.0], [8.0]]))
    kept.add(torch.tensor([5, 1]), torch.tensor([[5.0], [1.0]]))
    kept.add(torch.tensor([], dtype=torch.int64), torch.empty(0, 1))
    kept.add(torch.tensor([3]), torch.tensor([[3.0]]))
    numbers, rows = kept.finish((1,))
    assert numbers.tolist() == [1, 3, 5]
    assert rows.squeeze(1).tolist() == [1, 3, 5]
    assert Kept("x").finish((2, 3))[1].shape == (0, 2, 3)


@pytest.mark.parametrize("memory", [0, 1 << 24])
@given(
    writes=st.lists(
        st.dictionaries(st.integers(0, 6), st.floats(-1e6, 1e6, width=32), max_size=4), max_size=6
    )
)
def test_slots_give_back_what_was_written_last(memory: int, writes: list[dict[int, float]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", memory)
        slots, expected = Slots("x", 7, (2, 3)), dict[int, float]()
        for write in writes:
            values = torch.tensor(list(write.values()), dtype=torch.float32)
            rows = values.view(-1, 1, 1).expand(-1, 2, 3)
            slots.put(torch.tensor(list(write), dtype=torch.int64), rows)
            expected |= write
        filled = slots.filled.nonzero().squeeze(1)
        assert set(filled.tolist()) == set(expected)
        taken = slots.take(filled.flip(0))
        assert taken.shape == (len(expected), 2, 3)
        assert taken.amin((1, 2)).tolist() == taken.amax((1, 2)).tolist()
        assert taken[:, 0, 0].tolist() == [expected[i] for i in filled.flip(0).tolist()]


def test_slots_without_room_on_the_disk_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (full := Path("/dev/full")).exists():
        pytest.skip("no device that is always full")
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full.open("r+b"))
    with pytest.raises(DataError, match=r"points: 0 MiB do not fit into .*No space left.*TMPDIR"):
        Slots("points", 4, (3,)).put(torch.tensor([1]), torch.ones(1, 3))


def test_no_room_on_the_disk_is_said_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(DataError, match=r"needs 100 MiB on disk, .* has 1 MiB; set the variable TMPDIR"):
        Spool("data x", 100 << 20)
