"""Files made to do harm: each is refused with its reason, and nothing in it is run."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from refusals import Bomb

from robust.errors import DataError, InputError, ModelError
from robust.sources import load_data, load_weights
from robust.sources.limits import IMAGE_PIXELS

IMAGE = np.zeros((4, 4), np.uint8)


def png(array: np.ndarray = IMAGE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def refused(spec: object, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(str(spec))
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


# --- npz


def npy(shape: tuple[int, ...], descr: str = "|u1", body: bytes = b"") -> bytes:
    """An .npy file that declares more than it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + body


def npz(file: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return file


def test_an_array_that_declares_more_than_the_limit_is_never_allocated(tmp_path: Path) -> None:
    file = npz(tmp_path / "huge.npz", x=npy((1 << 20, 1 << 12, 1 << 12)), y=npy((1,)))
    refused(file, "array x.npy", "asks for 1.64e+04 GiB", "before anything was allocated", "ROBUST_MAX_GIB")


def test_an_array_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    file = npz(
        tmp_path / "short.npz", x=npy((1000, 64, 64), body=b"\0" * 100), y=npy((1000,), body=b"\0" * 1000)
    )
    refused(file, "truncated", "ends after 100 of")
    file = npz(tmp_path / "long.npz", x=npy((1, 4, 4), body=b"\0" * 99), y=npy((1,), body=b"\0"))
    refused(file, "longer than it declares")


def test_a_zip_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", "0.01")
    size = 20 << 20
    file = npz(tmp_path / "bomb.npz", x=npy((size // 1024, 32, 32), body=b"\0" * size), y=npy((1,)))
    assert file.stat().st_size < size / 500
    refused(file, "over the limit of 0.01 GiB")


@pytest.mark.parametrize("name", ["x", "y"])
def test_object_arrays_are_never_unpickled(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    arrays = {"x": np.zeros((1, 4, 4), np.uint8), "y": np.zeros(1, np.int64)}
    arrays[name] = np.array([Bomb(marker)], dtype=object)
    np.savez(tmp_path / "bomb.npz", **arrays)
    refused(tmp_path / "bomb.npz", "pickled objects are never loaded")
    assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        npy((-1, 4, 4)), npy((4, 4), descr="|O"), npy((2,), descr="|V0"), b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x09\x00", b"", b"\x93NUMPY\x01\x00\x10\x00__import__('os')  ",
    ],
)  # fmt: skip
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    refused(npz(tmp_path / "odd.npz", x=header, y=npy((1,), body=b"\0")), "odd.npz")


def test_a_member_with_a_path_is_no_array(tmp_path: Path) -> None:
    good = {"x": npy((1, 4, 4), body=b"\1" * 16), "y": npy((1,), body=b"\0")}
    with zipfile.ZipFile(tmp_path / "path.npz", "w") as archive:
        for name, content in good.items():
            archive.writestr(f"../{name}.npy", content)
    before = sorted(tmp_path.parent.iterdir())
    load_data(str(tmp_path / "path.npz"))  # read as a stream: there is nothing to traverse
    assert sorted(tmp_path.parent.iterdir()) == before


# --- images


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    raw = bytearray(png())
    side = int(IMAGE_PIXELS**0.5) + 1
    raw[16:24] = struct.pack(">II", side, side)
    raw[29:33] = struct.pack(">I", __import__("zlib").crc32(raw[12:29]))
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").write_bytes(raw)
    refused(f"folder:{tmp_path / 'set'}", f"{side}x{side} is over", "pixels; refused")


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refused(f"folder:{tmp_path / 'set'}", "x.png", "cannot be decoded")


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "set" / "a" / "x.png").symlink_to(tmp_path / "secret.png")
    refused(f"folder:{tmp_path / 'set'}", "a link to", "outside of", "refused")


# --- tar


def tar(file: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png"])
def test_paths_that_leave_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    file = tar(tmp_path / "set.tar", (name, png()), (name.replace("png", "cls"), b"0"))
    refused(file, "leads out of the archive; refused")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    refused(tar(tmp_path / "set.tar", info), "a link or a device, not a file; refused")


def test_a_member_that_declares_too_much(tmp_path: Path) -> None:
    file = tar(tmp_path / "set.tar", ("a.png", png()))
    raw = bytearray(file.read_bytes())
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    raw[:512] = info.tobuf(tarfile.GNU_FORMAT)
    file.write_bytes(raw)
    refused(file, "member a.png", "over the limit")


def test_an_extended_header_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 34
    (tmp_path / "set.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    refused(tmp_path / "set.tar", "extended header of 17179869184 bytes")


@pytest.mark.parametrize("keep", [0, 100, 700, 0.6])
def test_truncated_archives(tmp_path: Path, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    file = tar(tmp_path / "set.tar", ("a.png", png(noise)), ("a.cls", b"0"))
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else 1400])
    refused(file, "set.tar")


# --- Parquet


def test_a_parquet_image_of_too_many_pixels(tmp_path: Path) -> None:
    raw = bytearray(png())
    raw[16:24] = struct.pack(">II", 100_000, 100_000)
    raw[29:33] = struct.pack(">I", __import__("zlib").crc32(raw[12:29]))
    pq.write_table(pa.table({"image": [bytes(raw)], "label": [0]}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "row 0", "pixels")


def test_a_parquet_file_that_inflates_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", "0.001")
    table = pa.table({"image": [b"\0" * (4 << 20)], "label": [0]})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 16
    refused(tmp_path / "x.parquet", "over the limit of 0.001 GiB")


# --- weights and limits


def test_altered_bytes_of_a_checkpoint_are_noticed(tmp_path: Path) -> None:
    """torch loads them as they are."""
    file = tmp_path / "w.pt"
    model = torch.nn.Linear(64, 64)
    torch.save(model.state_dict(), file)
    whole = bytearray(file.read_bytes())
    whole[whole.index(model.weight.detach().numpy().tobytes()) + 7] ^= 0x40
    file.write_bytes(whole)
    torch.load(file, weights_only=True)
    with pytest.raises(ModelError, match=r"damaged \(w/data/\d+ does not match its checksum\)"):
        load_weights(torch.nn.Linear(64, 64), file)


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """torch never compresses; what does may inflate without end."""
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as source, zipfile.ZipFile(tmp_path / "z.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="compressed"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "z.pt")


def test_a_checkpoint_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", "0.001")
    for name, save in (("w.pt", torch.save), ("w.safetensors", None)):
        if save:
            save({"w": torch.zeros(1 << 20)}, tmp_path / name)
        else:
            __import__("safetensors.torch").torch.save_file({"w": torch.zeros(1 << 20)}, tmp_path / name)
        with pytest.raises(ModelError, match="over the limit"):
            load_weights(torch.nn.Linear(1, 1), tmp_path / name)


@pytest.mark.parametrize("text", ["many", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ROBUST_MAX_GIB", text)
    np.savez(tmp_path / "x.npz", x=IMAGE[None], y=np.zeros(1, np.int64))
    with pytest.raises(InputError, match="ROBUST_MAX_GIB"):
        load_data(str(tmp_path / "x.npz"))
