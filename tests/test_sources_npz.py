"""Data in .npz files: layouts read back, and what is damaged, foreign or pickled refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from images import COLOUR, GRAY, LABELS, refused
from refusals import Bomb

from robust.sources import Samples, as_samples, load_data

FEATURES = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
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


def test_objects_in_an_npz_are_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb(marker)], dtype=object), y=LABELS[:1])
    refused(str(tmp_path / "bomb.npz"), "pickled objects are never loaded")
    assert not marker.exists()
    np.load(tmp_path / "bomb.npz", allow_pickle=True)["x"]
    assert marker.exists()  # the bomb was live
