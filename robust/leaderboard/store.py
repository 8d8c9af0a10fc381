"""Where records live: files in a folder or behind any fsspec URL, safe under many writers."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import fsspec
import pandas as pd
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from robust.errors import StoreError, UnknownNameError
from robust.files import why, why_unwritten
from robust.leaderboard.artefacts import read_examples, read_verdicts, sha256, verdicts_bytes, verdicts_sha256
from robust.leaderboard.record import Record
from robust.leaderboard.reference import Reference

_IO_ERRORS: Final = (OSError, NotImplementedError)  # the latter from read-only kinds of filesystem
_DIGITS: Final = 64  # of an id
KINDS: Final = ("records", "references")  # folders of entries


class Store:
    """Records as `records/<id>.json` beside `verdicts/<sha256>.parquet` and `examples/<sha256>.safetensors`.

    Files are named by their content, written under a temporary name and then renamed: writers never
    collide, readers never see half a file, and any number of writers may work on one store at once.

    Args:
        url: a folder, such as a sweep's --out, or an fsspec URL. It is made on the first `add`.

    Raises:
        StoreError: no such kind of URL.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"store: cannot open {self.url}: {error}; give a folder or an fsspec URL"
            ) from error
        self._root = root.rstrip("/")

    @staticmethod
    def locate(path: str | Path) -> tuple[Store, str]:
        """The store that a record's file lies in, and the file's name there.

        Raises:
            StoreError: no such file, or not in a folder "records".
        """
        folder, _, name = str(path).replace("\\", "/").rpartition("/")
        root, _, records = folder.rpartition("/")
        if records != "records" and folder != "records":
            raise StoreError(f"record: expected STORE/records/ID.json, got {path}")
        store = Store(root or ".")
        if not store._has(f"records/{name}"):
            raise StoreError(f"record: no such file {path}; expected STORE/records/ID.json")
        return store, name

    def lies_in(self, folder: Path) -> bool:
        """Whether this folder is the store."""
        local = isinstance(self._fs, LocalFileSystem)
        return local and Path(self._root).resolve() == folder.resolve()

    def read(self, name: str) -> Record:
        """The record in a file of the folder "records".

        Raises:
            StoreError: missing, damaged, or filed under another name.
        """
        return self._read_record(name)

    def add(self, record: Record, verdicts: pd.DataFrame | bytes, *, examples: bytes | None = None) -> str:
        """File a record with its verdict table, which comes first; what is there already is left alone.

        Args:
            record: to file.
            verdicts: the table that the record was made from, or the bytes of its Parquet file.
            examples: its adversarial examples, as `examples_bytes` gave them; wanted if the record has
                their hash.

        Returns:
            The record's id.

        Raises:
            StoreError: the store cannot be written, or a file is not the one that the record names.
        """
        expected = record.artefacts
        table = verdicts if isinstance(verdicts, bytes) else verdicts_bytes(verdicts)
        if sha256(table) != expected.verdicts_file_sha256:
            same = (
                isinstance(verdicts, pd.DataFrame) and verdicts_sha256(verdicts) == expected.verdicts_sha256
            )
            raise StoreError(
                "verdicts: written by another version of pyarrow than the record's; give the bytes of its file"
                if same
                else "verdicts: this table is not the one that the record was made from; give the report's own"
            )
        if (None if examples is None else sha256(examples)) != expected.examples_sha256:
            raise StoreError(
                "examples: not the bytes that the record was made with; give both the same, or neither any"
            )
        self._keep(_verdicts_path(record), table)
        if examples is not None:
            self._keep(_examples_path(record), examples)
        self._keep_record(record)
        return record.id

    def add_reference(self, reference: Reference) -> str:
        """File a figure that others reported; what is there already is left alone.

        Raises:
            StoreError: the store cannot be written.
        """
        name, content = f"{reference.id}.json", reference.dumps().encode()
        if not self._has(f"references/{name}"):
            self._write(f"references/{name}", content)
        return reference.id

    def amend_references(self, references: Sequence[Reference]) -> int:
        """File figures that others reported, in place of what the same entries said before.

        Returns:
            How many entries had said something else.

        Raises:
            StoreError: the store cannot be written, or holds a damaged reference (named).
        """
        before = self.references()
        now = {reference.key: self.add_reference(reference) for reference in references}
        outdated = [old for old in before if now.get(old.key, old.id) != old.id]
        for old in outdated:
            try:
                self._fs.rm_file(f"{self._root}/references/{old.id}.json")
            except _IO_ERRORS as error:
                raise StoreError(
                    f"store: cannot remove {self.url}/references/{old.id}.json, which was amended: {why(error)}"
                ) from error
        return len({old.key for old in outdated})

    def references(self) -> list[Reference]:
        """All figures that others reported, sorted by id; there may be none.

        Raises:
            StoreError: a damaged one (named).
        """
        found = []
        for name in self._names("references"):
            where = f"{self.url}/references/{name}"
            try:
                text = self._fs.cat_file(f"{self._root}/references/{name}").decode()
            except (*_IO_ERRORS, UnicodeDecodeError) as error:
                raise StoreError(
                    f"{where}: cannot be read: {why(error)}; restore it, or move it out of the store"
                ) from error
            reference = Reference.loads(text, where)
            if name != f"{reference.id}.json":
                raise StoreError(f"{where}: holds {reference.short_id}; it was renamed, name it by its id")
            found.append(reference)
        return found

    def entries(self) -> tuple[list[Record], list[Reference]]:
        """All records and all references.

        Raises:
            StoreError: neither any record nor any reference there, or a damaged one (named).
        """
        references = self.references()
        return (self.records() if self._names() or not references else []), references

    def records(self) -> list[Record]:
        """All records, sorted by id.

        Raises:
            StoreError: no store there, or a damaged record (named).
        """
        names = self._names()
        if not names:
            raise StoreError(self._empty())
        return [self._read_record(name) for name in names]

    def get(self, prefix: str) -> Record:
        """The record whose id begins so.

        Raises:
            UnknownNameError: none, or several.
            StoreError: damaged.
        """
        whole = len(prefix) == _DIGITS and self._has(f"records/{prefix}.json")  # no need to list all
        return self._read_record(f"{prefix if whole else self.find(prefix)}.json")

    def count(self) -> int:
        """How many records there are, by the names of their files alone."""
        return len(self._names())

    def find(self, prefix: str) -> str:
        """The id that begins so.

        Raises:
            UnknownNameError: none, or several.
        """
        ids = [name.removesuffix(".json") for name in self._names()]
        found = [id_ for id_ in ids if prefix and id_.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if not ids:
            raise UnknownNameError(self._empty())
        if found:
            raise UnknownNameError(
                f"record {prefix!r} in {self.url}: {len(found)} begin so, {_some(found)}; give more digits"
            )
        if near := difflib.get_close_matches(prefix, [id_[: max(len(prefix), 8)] for id_ in ids], n=1):
            hint = f"did you mean {near[0]!r}?"
        else:
            hint = f"known: {_some(ids)}"
        raise UnknownNameError(f"unknown record {prefix!r} in {self.url}; {hint}")

    def _empty(self) -> str:
        return f"store: no records in {self.url}; `robust sweep --out DIR` makes a folder that has some"

    def verdicts(self, record: Record) -> pd.DataFrame:
        """The verdict table of a record.

        Raises:
            StoreError: missing, or altered.
        """
        return read_verdicts(self.verdicts_file(record), record.data.n)

    def record_file(self, record: Record) -> bytes:
        """The file of a record, as it is filed.

        Raises:
            StoreError: missing.
        """
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/records/{record.id}.json")
        except _IO_ERRORS as error:
            raise StoreError(f"{self.url}/records/{record.id}.json: cannot be read: {why(error)}") from error
        return content

    def verdicts_file(self, record: Record) -> bytes:
        """The Parquet file of a record's verdict table.

        Raises:
            StoreError: missing, or altered.
        """
        return self._artefact(record, _verdicts_path(record), record.artefacts.verdicts_file_sha256)

    def examples(self, record: Record) -> dict[str, Tensor] | None:
        """The adversarial examples of a record (see `Report.examples`), None if it was filed without.

        Raises:
            StoreError: missing, altered, or of another form.
        """
        file = self.examples_file(record)
        return None if file is None else read_examples(file)

    def examples_file(self, record: Record) -> bytes | None:
        """The safetensors file of a record's adversarial examples, None if it was filed without.

        Raises:
            StoreError: missing, or altered.
        """
        if record.artefacts.examples_sha256 is None:
            return None
        return self._artefact(record, _examples_path(record), record.artefacts.examples_sha256)

    def _has(self, path: str) -> bool:
        self._fs.invalidate_cache()
        try:
            return bool(self._fs.isfile(f"{self._root}/{path}"))
        except _IO_ERRORS as error:
            raise StoreError(f"store: cannot read {self.url}: {why(error)}") from error

    def _names(self, folder: str = "records") -> list[str]:
        """File names of the records, or of another folder, sorted; those under a temporary name are no records yet."""
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(f"{self._root}/{folder}", detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except _IO_ERRORS as error:
            raise StoreError(f"store: cannot read {self.url}: {why(error)}") from error
        names = (str(path).rpartition("/")[2] for path in paths)
        return sorted(name for name in names if name.endswith(".json"))

    def _read_record(self, name: str) -> Record:
        where = f"{self.url}/records/{name}"
        try:
            text = self._fs.cat_file(f"{self._root}/records/{name}").decode()
        except (*_IO_ERRORS, UnicodeDecodeError) as error:
            raise StoreError(
                f"{where}: cannot be read: {why(error)}; restore it, or move it out of the store"
            ) from error
        record = Record.loads(text, where)
        if name != f"{record.id}.json":
            raise StoreError(
                f"{where}: holds the record {record.short_id}; it was renamed, name it by its id"
            )
        return record

    def _artefact(self, record: Record, path: str, digest: str) -> bytes:
        """A file that a record names."""
        try:
            return self._read(path, digest)
        except StoreError as error:
            raise StoreError(
                f"{error}; restore it, or move the record that names it, {record.short_id}, out of the store"
            ) from error.__cause__

    def _read(self, path: str, digest: str) -> bytes:
        where = f"{self.url}/{path}"
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{path}")
        except _IO_ERRORS as error:
            raise StoreError(f"{where}: cannot be read: {why(error)}") from error
        if sha256(content) != digest:
            raise StoreError(f"{where}: does not match its name, it was altered or damaged")
        return content

    def _keep(self, path: str, content: bytes) -> None:
        """Write a file that is named by its hash, unless it is there whole."""
        with suppress(StoreError):
            self._read(path, sha256(content))
            return
        self._write(path, content)

    def _keep_record(self, record: Record) -> None:
        """Write a record, unless it is there whole (perhaps with the times of an earlier run)."""
        name = f"{record.id}.json"
        with suppress(StoreError):
            self._read_record(name)
            return
        self._write(f"records/{name}", record.dumps().encode())

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._replace(f"{self._root}/{name}", content)
        except _IO_ERRORS as error:
            told = why_unwritten(error, otherwise="give a folder or URL that can be written")
            raise StoreError(f"store: cannot write {self.url}/{name}: {told}") from error

    def _replace(self, path: str, content: bytes) -> None:
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(partial, content)
            if isinstance(self._fs, LocalFileSystem):
                Path(partial).replace(path)  # atomic on every system, over an existing file too
            else:
                self._fs.mv(partial, path)
        except BaseException:
            with suppress(*_IO_ERRORS):
                self._fs.rm_file(partial)
            raise


def _verdicts_path(record: Record) -> str:
    return f"verdicts/{record.artefacts.verdicts_file_sha256}.parquet"


def _examples_path(record: Record) -> str:
    return f"examples/{record.artefacts.examples_sha256}.safetensors"


def _some(ids: list[str]) -> str:
    return ", ".join(id_[:16] for id_ in ids[:5]) + (", ..." if len(ids) > 5 else "")
