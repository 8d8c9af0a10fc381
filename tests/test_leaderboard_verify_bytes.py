"""Verification of files: any byte changed, cut off or missing is caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forgeries import failed, outcomes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["records", "verdicts", "examples"]),
    place=st.floats(0, 1, exclude_max=True),
    mask=st.integers(1, 255),
)
def test_any_changed_byte_is_caught(
    means_filed: Path, tmp_path: Path, kind: str, place: float, mask: int
) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(means_filed, copy)
    (path,) = (copy / kind).iterdir()
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= mask
    path.write_bytes(content)
    assert failed(outcomes(copy))


@pytest.mark.parametrize("kind", ["records", "verdicts", "examples"])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b" ", lambda b: b""])
def test_cut_and_lengthened_files_are_caught(
    means_filed: Path, tmp_path: Path, kind: str, change: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(means_filed, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / kind).iterdir()
    path.write_bytes(change(path.read_bytes()))
    assert failed(outcomes(tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["verdicts", "examples"])
def test_a_missing_file_is_caught(means_filed: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(means_filed, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / kind)
    assert failed(outcomes(tmp_path / "copy")) == {kind}
