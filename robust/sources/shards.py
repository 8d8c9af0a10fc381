"""Samples from webdataset shards. Nothing is unpacked to disk by name."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from torch import Tensor

from robust.errors import DataError
from robust.sources.images import IMAGE_SUFFIXES, Encoded, decode
from robust.sources.limits import ENTRY_BYTES, check_size, require_file
from robust.sources.preprocess import Preprocessing
from robust.sources.samples import Samples, coded

_BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARDS: Final = 100_000
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
_EXTENDED_HEADER: Final = 1 << 20  # bytes; a name or a time takes a few hundred
_LABEL_BYTES: Final = 64


def shards(spec: str) -> list[Path]:
    """The files that FILE.tar or NAME-{000..009}.tar stands for.

    Raises:
        DataError: too many.
    """
    match = _BRACES.search(spec)
    if match is None:
        return [Path(spec)]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _SHARDS:
        raise DataError(f"data {spec}: expected a range of 1 to {_SHARDS} shards, got {match[0]}")
    width = len(match[1])
    return [Path(f"{spec[: match.start()]}{i:0{width}}{spec[match.end() :]}") for i in range(first, last + 1)]


def read_shards(spec: str, fit: Preprocessing | None = None, group: str | None = None) -> Samples:
    """Samples of webdataset shards: for each key an image (KEY.png, .jpg...), its KEY.cls, maybe KEY.group.

    Members of one key stand side by side. Labels are whole numbers as text, groups any text. Ids count the
    samples in the order of the shards. With `group`, groups are in KEY.`group`, which all must have.

    Raises:
        DataError: no such file, no tar, members with paths that leave the archive, links, a sample
            without image or label, sizes over the limit, or an image that cannot be decoded.
    """
    files = shards(spec)
    for file in files:
        require_file(file)
    labels = _Labels(group or "group")
    stored = decode(_members(files, labels), f"data {spec}", fit)
    if (labels.groups or group) and len(labels.groups) != len(labels.y):
        raise DataError(
            f"data {spec}: {len(labels.groups)} of {len(labels.y)} samples have a group (KEY.{labels.group}); "
            "expected all"
        )
    groups, names = _numbered(labels.groups, spec) if labels.groups else (None, None)
    y = torch.tensor(labels.y, dtype=torch.int64)
    return Samples(
        stored.rows, y, torch.arange(len(y)), spec, groups=groups, group_names=names,
        pages=stored.pages, x_sha256=stored.sha256,
    )  # fmt: skip


def _numbered(texts: list[str], spec: str) -> tuple[Tensor, tuple[str, ...] | None]:
    whole = all(_WHOLE.fullmatch(text) for text in texts)
    return coded([int(text) for text in texts] if whole else texts, f"data {spec}: group")


@dataclass
class _Labels:
    """Labels and groups, in the order in which the images were handed out; groups are in members KEY.`group`."""

    group: str
    y: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


class _Member(tarfile.TarInfo):
    """A header that refuses to read extended headers of absurd size into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (
            tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )  # fmt: skip
        if self.type in extended and self.size > _EXTENDED_HEADER:
            raise tarfile.HeaderError(f"extended header of {self.size} bytes")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


def _members(files: list[Path], labels: _Labels) -> Iterator[Encoded]:
    """The images of all shards; their labels are noted on the way."""
    for file in files:
        try:
            with tarfile.open(file, "r:", tarinfo=_Member) as archive:
                yield from _samples(archive, file, labels)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"data {file}: truncated, damaged or no tar archive ({e})") from e


def _samples(archive: tarfile.TarFile, file: Path, labels: _Labels) -> Iterator[Encoded]:
    key, parts = "", dict[str, bytes]()
    for member in archive:
        if member.isdir():
            continue
        name = _safe(member, file)
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        found = f"{folder}/{stem}"
        if found != key and parts:
            yield _sample(key, parts, file, labels)
            parts = {}
        key = found
        small = suffix in ("cls", labels.group)
        if f".{suffix.lower()}" in IMAGE_SUFFIXES or small:
            most = _LABEL_BYTES if small else ENTRY_BYTES
            check_size(f"data {file}: member {name}", member.size, most, DataError)
            content = archive.extractfile(member)
            raw = b"" if content is None else content.read()
            if len(raw) != member.size:
                raise DataError(f"data {file}: truncated in member {name}")
            parts[suffix if small else suffix.lower()] = raw
        archive.members.clear()  # type: ignore[attr-defined] # else it remembers every header of the archive
    if parts:
        yield _sample(key, parts, file, labels)


def _safe(member: tarfile.TarInfo, file: Path) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataError(f"data {file}: member {member.name!r} leads out of the archive; refused")
    if not member.isreg():
        raise DataError(f"data {file}: member {member.name!r} is a link or a device, not a file; refused")
    return member.name


def _sample(key: str, parts: dict[str, bytes], file: Path, labels: _Labels) -> Encoded:
    images = [suffix for suffix in parts if suffix not in ("cls", labels.group)]
    if len(images) != 1 or "cls" not in parts:
        found = ", ".join(sorted(parts))
        raise DataError(
            f"data {file}: sample {key.lstrip('/')}: expected one image and a label (KEY.png and KEY.cls), found {found}"
        )
    labels.y.append(_number(parts["cls"], key, file))
    if labels.group in parts:
        labels.groups.append(parts[labels.group].decode("utf-8", "replace").strip())
    return Encoded(f"{key.lstrip('/')} of {file}", parts[images[0]])


def _number(raw: bytes, key: str, file: Path) -> int:
    text = raw.decode("ascii", "replace").strip()
    if not _WHOLE.fullmatch(text):
        raise DataError(
            f"data {file}: sample {key.lstrip('/')}: expected a whole number as label, got {text[:40]!r}"
        )
    return int(text)
