"""Images in Parquet and in folders: read back to the pixel, every mode, bad ones refused by their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import COLOUR, GRAY, LABELS, png, refused
from PIL import Image

from robust.sources import load_data


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
