"""Publishing: again and after a stop to the same bytes, never over what is not a publication's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sites import file_report

from robust.cli import main
from robust.errors import StoreError
from robust.leaderboard import Store
from robust.leaderboard.site import _Site, publish


def test_publishing_twice_gives_the_same_bytes(store: Store, site: Path, tmp_path: Path) -> None:
    publish(Store(store.url), tmp_path)
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if (site / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_files_of_entries_that_are_gone_go_and_others_stay(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "store")
    record = file_report(other, "alone", 50)
    publish(store, tmp_path / "site")
    (tmp_path / "site" / "CNAME").write_text("mine")
    written = publish(other, tmp_path / "site")
    left = {
        str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()
    }
    assert left == {*written, "site.json", "CNAME"}
    assert f"entries/{record.short_id}.html" in left


def test_a_publication_that_was_stopped_can_be_repeated(
    store: Store, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, and one into the site of another store."""
    whole, other = _Site.files, Store(tmp_path / "store")
    file_report(other, "alone", 50)

    def stopped(self: _Site) -> Iterator[tuple[str, bytes]]:
        for name, content in whole(self):
            yield name, content
            if name.startswith("records/"):
                raise KeyboardInterrupt

    for published in (store, other, store):
        monkeypatch.setattr(_Site, "files", stopped)
        with pytest.raises(KeyboardInterrupt):
            publish(published, tmp_path / "site")
        assert list((tmp_path / "site" / "records").iterdir())
        monkeypatch.setattr(_Site, "files", whole)
        publish(published, tmp_path / "site")
    assert _contents(tmp_path / "site") == _contents(site)


def test_what_a_stopped_publication_left_goes_with_the_next(
    store: Store, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, folder = Store(tmp_path / "store"), tmp_path / "site"
    file_report(other, "alone", 50)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", _refuse)
        with pytest.raises(StoreError, match="cannot write"):
            publish(other, folder)
    publish(store, folder)
    assert _contents(folder) == _contents(site)


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("no space left")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_of_somebody_else_are_left_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("precious")
    monkeypatch.setattr(sys, "argv", ["robust", "leaderboard", "publish", store.url, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    (tmp_path / "site.json").write_text("[]")
    with pytest.raises(StoreError, match="not from a publication"):
        publish(store, tmp_path)
    with pytest.raises(StoreError, match="robust sweep"):
        publish(Store(tmp_path / "nothing"), tmp_path / "new")
    table = tmp_path / "tables" / "leaderboard.csv"  # of `show --format csv`, say
    table.parent.mkdir()
    table.write_text("precious")
    with pytest.raises(StoreError, match=r"^--out: .* holds leaderboard.csv, which no publication put there"):
        publish(store, table.parent)
    assert (list(table.parent.iterdir()), table.read_text()) == ([table], "precious")


def test_a_site_is_never_published_into_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Store(tmp_path / "b1"), Store(tmp_path / "b2")
    file_report(first, "first", 50)
    file_report(second, "second", 40)
    files = sorted(path for path in (tmp_path / "b1").rglob("*") if path.is_file())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"^--out: .* is the store itself; give a folder of its own"):
        publish(first, Path("b2/../b1"))
    with pytest.raises(StoreError, match=r"^--out: .*b1 holds records that no publication put there"):
        publish(second, tmp_path / "b1")
    assert sorted(path for path in (tmp_path / "b1").rglob("*") if path.is_file()) == files
    publish(first, tmp_path / "site")
    file_report(Store(tmp_path / "site"), "added to the site", 30)
    with pytest.raises(StoreError, match="no publication put there"):
        publish(second, tmp_path / "site")
    with pytest.raises(StoreError, match="is the store itself"):
        publish(Store(tmp_path / "site"), tmp_path / "site")


def test_damaged_examples_are_told_of_the_store_before_anything_is_written(tmp_path: Path) -> None:
    other = Store(tmp_path / "store")
    file_report(other, "alone", 50)
    damaged = sorted((tmp_path / "store" / "examples").iterdir())[0]
    damaged.write_bytes(b"")
    with pytest.raises(StoreError, match=f"^{damaged}: does not match its name"):
        publish(other, tmp_path / "site")
    assert not (tmp_path / "site").exists()
