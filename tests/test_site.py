"""The published site: what is on it, that names cannot break it, and that a browser agrees."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import BINARY, Chromium
from reports import make_record, make_report
from test_leaderboard_compare import ROWS

from robust.cli import main
from robust.errors import StoreError
from robust.leaderboard import Record, Store, compare, examples_bytes, read_robustbench, verify
from robust.leaderboard.site import _Site, publish
from robust.leaderboard.site.exports import badge
from robust.leaderboard.site.pages import described
from robust.threat import Threat

NASTY = "<script>alert(1)</script>\"'&</textarea>\u202e\x1b[31m"


def file_report(store: Store, name: str, robust: int, *, shift: int = 0, **changes: Any) -> Record:
    """File a record of 100 samples of ten classes, the broken ones taken for the next class."""
    report = make_report(robust=robust, **changes)
    verdicts = report.verdicts
    statuses = verdicts.drop(columns="sample_id").to_dict("list")
    for column, values in statuses.items():
        verdicts[column] = values[shift:] + values[:shift]
    verdicts["label"] = [index % 10 for index in range(100)]
    verdicts["prediction"] = (verdicts["label"] + (verdicts["status"] == "misclassified")) % 10
    verdicts["prediction_adv"] = (verdicts["label"] + (verdicts["status"] != "survived")) % 10
    verdicts["distance"] = verdicts["distance"] * 0.02
    ids = verdicts["sample_id"][verdicts["status"] == "broken"].to_numpy()[:3]
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    examples = examples_bytes({"sample_id": torch.tensor(ids), "x_adv": (x + 0.01).clamp(0, 1), "x": x})
    record = Record.from_report(
        report, name=name, defense={"name": "none", "parameters": {}}, examples=examples, command=f"robust {name}",
        model={"source": "https://host.example/weights"}, paper={"title": name, "url": "https://paper.example/1"},
    )  # fmt: skip
    store.add(record, verdicts, examples=examples)
    return record


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder)
    finding = {"check": "zero-gradient", "severity": "unreliable", "message": f"{NASTY} seen"}
    file_report(store, "strong", 60)
    file_report(store, "strong", 45, threat=Threat("linf", "16/255"))
    file_report(store, "middle", 40, shift=30)
    file_report(store, NASTY, 40)
    file_report(store, "masked", 85, wrong=10, trust="unreliable", findings=[finding])
    entries = folder / "entries.jsonl"
    entries.write_text("".join(json.dumps({**row, "name": NASTY}) + "\n" for row in ROWS))
    for reference in read_robustbench(entries).references:
        store.add_reference(reference)
    return store


@pytest.fixture(scope="module")
def site(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    publish(store, folder)
    return folder


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_front_page_says_how_sure_its_firsts_are(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    finding = {"check": "short-search", "severity": "suspect", "message": "few passes"}
    file_report(store, "hasty", 60, trust="suspect", findings=[finding])
    file_report(store, "other", 59)
    publish(store, tmp_path / "site")
    text = (tmp_path / "site" / "index.html").read_text()
    record = next(record for record in store.records() if record.model.name == "hasty")
    low, high = (f"{100 * value:.1f}" for value in (record.robust.low, record.robust.high))
    assert f"60.0 <small>[{low}, {high}]</small>" in text
    assert 'hasty + none <b class="trust suspect" title="suspect">?</b> <small>rank 1-2</small>' in text
    assert "from 2 records. Every record lies" in re.sub(r"\s+", " ", text)


def test_the_front_page_tells_versions_of_a_suite_and_figures_of_others_apart(site: Path) -> None:
    index = re.sub(r"\s+", " ", (site / "index.html").read_text())
    assert f"from 5 records and {len(ROWS)} figures reported elsewhere." in index
    heading = "linf:8/255, d.npz (n = 5), suite standard version 7, in turn"
    entry = make_record(suite="standard")
    entry = entry.model_copy(update={"suite": entry.suite.model_copy(update={"version": 7})})
    assert described(entry, heading)["suite"] == "standard version 7"
    assert described(entry, heading.replace(" version 7", ""))["suite"] == "standard"


def test_publishing_twice_gives_the_same_bytes(store: Store, site: Path, tmp_path: Path) -> None:
    publish(Store(store.url), tmp_path)
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if (site / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_links_lead_to_files_and_scripts_come_from_the_site(site: Path) -> None:
    for path in site.rglob("*.html"):
        for tag, attributes in Page(path).tags:
            for key in ("href", "src"):
                address = attributes.get(key)
                if address is None or address.startswith(("#", "data:")):
                    continue
                if address.startswith("https://"):
                    assert (tag, key) == ("a", "href"), "only links that the reader follows lead off the site"
                    continue
                assert (path.parent / address.partition("?")[0]).is_file(), (path.name, address)


def test_names_cannot_break_out(site: Path) -> None:
    pages = [Page(path) for path in site.rglob("*.html")]
    assert any("<script>alert(1)</script>" in page.text for page in pages)
    for page in pages:
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert all(attributes.get("src", "").startswith(("static/", "data/")) for attributes in scripts)  # type: ignore[union-attr]
        assert not [
            tag
            for tag, attributes in page.tags
            if any(key.startswith("on") and key != "onsubmit" for key in attributes)
        ]
        assert not [a for _, a in page.tags if str(a.get("href", "")).startswith("javascript")]
        assert "\x1b" not in page.text
        assert "\u202e" not in page.text


def test_an_entry_shows_what_its_record_says(site: Path, store: Store) -> None:
    records = {(r.model.name, r.threat.eps): r for r in store.records()}
    strong, masked = records["strong", "8/255"], records["masked", "8/255"]
    text = " ".join(Page(site / f"entries/{strong.short_id}.html").text.split())
    for wanted in ("60.0 % robust", "90.0 % clean", "Accuracy against eps", "90.0 % at 0, 60.0 % at 8/255, 45.0 % at 16/255",
                   "Worst class", "Confusion under attack", "sample", strong.id, strong.data.sha256):  # fmt: skip
        assert wanted in text
    page = Page(site / f"entries/{strong.short_id}.html")
    assert sum(tag == "img" for tag, _ in page.tags) == 9
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden")
        for tag, attributes in page.tags
        if tag == "svg"
    )
    flagged = " ".join(Page(site / f"entries/{masked.short_id}.html").text.split())
    assert "! unreliable" in flagged
    assert "zero-gradient (unreliable)" in flagged


def test_a_curve_is_drawn_from_nearest_points_where_they_were_searched(tmp_path: Path) -> None:
    report = make_report(robust=40, minimize=True)
    left = report.verdicts["status"] == "survived"
    report.verdicts["nearest"] = [i * 8 / 255 / 100 for i in range(100)]
    report.verdicts.loc[left, "nearest"] = float("nan")
    record = Record.from_report(report, name="near", defense={"name": "none", "parameters": {}})
    Store(tmp_path / "store").add(record, report.verdicts)
    publish(Store(tmp_path / "store"), tmp_path / "site")
    page = tmp_path / f"site/entries/{record.short_id}.html"
    text = " ".join(Page(page).text.split())
    assert "90.0 % at 0, 89.0 % at 0.00314, 79.0 % at 0.00627" in text
    assert "40.0 % at 0.0314." in text
    below = re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">([^<]+)</text>', page.read_text())
    ends = [(float(x) - 4 * len(eps), float(x) + 4 * len(eps)) for x, eps in below]
    assert all(left[1] < right[0] for left, right in pairwise(ends))  # no label lies on the next one
    assert below[-1][1] == "0.0314"
    assert len(below) > 3


def test_a_thousand_classes_leave_a_page_that_can_be_read(tmp_path: Path) -> None:
    """Bars of the lowest classes, and the pairs that are confused most, instead of a table of a million cells."""
    report = make_report(n=2000, wrong=0, robust=1000)
    table = report.verdicts
    table["label"] = table["prediction"] = [i % 1000 for i in range(2000)]
    table["prediction_adv"] = (table["label"] + (table["status"] == "broken")) % 1000
    record = Record.from_report(
        report,
        name="wide",
        defense={"name": "none", "parameters": {}},
        class_names=[f"<{i}>" for i in range(1000)],
    )
    Store(tmp_path / "store").add(record, table)
    publish(Store(tmp_path / "store"), tmp_path / "site")
    path = tmp_path / f"site/entries/{record.short_id}.html"
    assert path.stat().st_size < 60_000
    page = Page(path)
    assert "The 40 lowest of 1000 classes" in page.text
    assert "The 40 pairs that are confused most, of 1000 classes" in page.text
    assert "<0>" in page.text
    assert "1 of 2" in page.text


def test_unreliable_entries_stand_in_a_body_of_their_own(site: Path) -> None:
    (board,) = (path for path in site.glob("board-*.html") if "masked" in path.read_text())
    text = board.read_text()
    first, second = re.findall(r"<tbody.*?</tbody>", text, re.DOTALL)
    assert ("masked" in first, "masked" in second, 'class="unreliable"' in second) == (False, True, True)


def test_the_site_is_a_store_that_can_be_verified(site: Path) -> None:
    paths = list((site / "records").glob("*.json"))
    assert len(paths) == 5
    checks = [
        outcome
        for path in paths
        for outcome in verify(*Store.locate(path))
        if outcome.check in ("record", "verdicts")
    ]
    assert [outcome.ok for outcome in checks] == [True] * 10
    assert len(Store(site).references()) == len(ROWS)


def test_exports(site: Path, store: Store) -> None:
    rows = list(csv.DictReader((site / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 5 + len(ROWS) == len(json.loads((site / "leaderboard.json").read_text()))
    assert r"\begin{tabular}" in (site / "leaderboard.tex").read_text()
    assert "| # | model" in " ".join((site / "leaderboard.md").read_text().split())
    assert json.loads((site / "record.schema.json").read_text())["title"] == "Record"
    strong = next(r for r in store.records() if (r.model.name, r.threat.eps) == ("strong", "8/255"))
    assert json.loads((site / f"badges/{strong.short_id}.json").read_text()) == {
        "schemaVersion": 1, "label": "robust linf:8/255", "message": "60.0 % [50.2, 69.1]", "color": "blue",
    }  # fmt: skip
    masked = next(r for r in store.records() if r.trust == "unreliable")
    assert json.loads(badge(masked))["message"] == "unreliable"


def test_the_model_card_fragment_is_yaml_that_the_hub_reads(site: Path, store: Store) -> None:
    yaml = pytest.importorskip("yaml")
    for record in store.records():
        text = (site / f"cards/{record.short_id}.md").read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        (model,) = yaml.safe_load(front)["model-index"]
        (result,) = model["results"]
        assert model["name"] == f"{record.model.name} + none"
        assert result["task"]["type"] == "image-classification"
        assert (result["dataset"]["name"], result["dataset"]["type"]) == ("digits", "digits")
        assert [(m["type"], m["value"]) for m in result["metrics"]] == [
            ("accuracy", record.clean.value), ("robust_accuracy", record.robust.value),
        ]  # fmt: skip
        assert record.id in body
        assert "<script" not in body


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


@pytest.mark.parametrize(
    ("examples", "shown"),
    [
        (examples_bytes({"sample_id": torch.arange(10, 12), "x_adv": torch.rand(2, 1, 4, 4)}), True),
        (examples_bytes({"x_adv": torch.rand(2, 1, 4, 4)}), False),
        (examples_bytes({"sample_id": torch.arange(10, 12)}), False),
        (examples_bytes({"sample_id": torch.arange(10, 12), "x_adv": torch.rand(1, 1, 4, 4)}), False),
        (examples_bytes({"sample_id": torch.arange(10, 12), "x_adv": torch.rand(2, 1, 0, 4)}), False),
        (examples_bytes({"sample_id": torch.arange(0, 2), "x_adv": torch.rand(2, 1, 4, 4)}), False),
        (b"examples", False),
        (b"", False),
    ],
)
def test_examples_of_another_form_are_not_shown(tmp_path: Path, examples: bytes, shown: bool) -> None:
    """And do not keep the others' records from being published."""
    report, store = make_report(), Store(tmp_path / "store")
    record = Record.from_report(
        report, name="net", defense={"name": "none", "parameters": {}}, examples=examples
    )
    store.add(record, report.verdicts, examples=examples)
    publish(store, tmp_path / "site")
    page = (tmp_path / "site" / "entries" / f"{record.short_id}.html").read_text()
    assert ("data:image/png" in page) == shown


def test_an_entry_that_is_not_ranked_says_why(tmp_path: Path) -> None:
    record = file_report(Store(tmp_path / "store"), "cut short", 50, error=20)
    publish(Store(tmp_path / "store"), tmp_path / "site")
    text = " ".join(Page(tmp_path / f"site/entries/{record.short_id}.html").text.split())
    assert "! unreliable" in text
    assert "samples-in-error: 20 of 100 samples ended in an error" in text
    assert "trust: unreliable" in (tmp_path / f"site/cards/{record.short_id}.md").read_text()


# -- in a browser -----------------------------------------------------------------------------------

browser_needed = pytest.mark.skipif(BINARY is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


MODELS = "[...document.querySelectorAll('#board tbody tr:not([hidden]) th a')].map(a => a.textContent)"


@browser_needed
def test_a_browser_sorts_filters_opens_and_compares(browser: Chromium, site: Path, store: Store) -> None:
    browser.open(site / "index.html")
    browser.run("[...document.querySelectorAll('tbody a')].find(a => a.textContent === 'linf:8/255').click()")
    browser.until("document.getElementById('board') && document.readyState === 'complete'")
    nasty = "<script>alert(1)</script>\"'&</textarea> [31m"
    models = browser.run(MODELS)
    assert (models[0], models[-1], len(models)) == ("strong", "masked", 4)
    heading = "[...document.querySelectorAll('#board thead th')].find(th => th.textContent.startsWith('{}'))"
    browser.run(heading.format("model") + ".focus()")
    browser.press("Enter", "\r")
    down = browser.run(MODELS)
    browser.press(" ", " ")
    up = browser.run(MODELS)
    assert sorted(map(str.lower, up[:3])) == [name.lower() for name in up[:3]] == down[2::-1]
    assert down[3] == up[3] == "masked"  # below, whatever the order
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    browser.run(
        "var f = document.getElementById('filter'); f.value = 'MID none'; f.dispatchEvent(new Event('input'))"
    )
    assert browser.run(MODELS) == ["middle"]
    assert browser.run("document.getElementById('shown').textContent") == "1 of 4"
    browser.run("f.value = ''; f.dispatchEvent(new Event('input'))")
    browser.run(
        "var t = document.getElementById('trust'); t.value = 'unreliable'; t.dispatchEvent(new Event('change'))"
    )
    assert browser.run(MODELS) == ["masked"]
    browser.run("document.querySelector('#board tbody tr:not([hidden]) a').click()")
    browser.until("document.querySelector('.findings') !== null && document.readyState === 'complete'")
    assert nasty.split('"')[0] in browser.run("document.querySelector('.findings').textContent")
    assert browser.run("document.querySelectorAll('main script').length") == 0

    records = {(r.model.name, r.threat.eps): r for r in store.records()}
    a, b = records["strong", "8/255"], records["middle", "8/255"]
    browser.open(site / "compare.html", f"?a={a.short_id}")
    browser.run(
        f"var s = document.getElementById('b'); s.value = '{b.short_id}'; s.dispatchEvent(new Event('change'))"
    )
    browser.until("document.querySelector('.verdict') !== null")
    cells = browser.run(
        "[...document.querySelectorAll('#result tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    found = compare(a, b, store.verdicts(a), store.verdicts(b))
    whole = found.whole
    assert cells[0][:4] == ["all", "100", "60.0", "40.0"]
    assert cells[0][4] == f"+20.0 [{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
    assert [int(text) for text in cells[0][5:7]] == [whole.only_a, whole.only_b]
    assert float(cells[0][7]) == pytest.approx(whole.p, rel=0.05)
    for row, part in zip(cells[1:11], found.classes, strict=True):
        assert [row[0], int(row[5]), int(row[6])] == [part.name, part.only_a, part.only_b]
        assert float(row[8]) == pytest.approx(part.p_holm, rel=0.05)
    assert len(cells) == 11 + whole.only_a + whole.only_b
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@browser_needed
@pytest.mark.parametrize("width", [390, 1200])
def test_no_page_is_wider_than_its_window(browser: Chromium, site: Path, store: Store, width: int) -> None:
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    entry = store.records()[0].short_id
    for path in (
        site / "index.html",
        *site.glob("board-*.html"),
        site / f"entries/{entry}.html",
        site / "compare.html",
    ):
        browser.open(path)
        assert browser.run("document.documentElement.scrollWidth") <= width, path.name
    assert browser.errors == []


@browser_needed
def test_statistics_in_the_browser_are_those_of_python(browser: Chromium, site: Path) -> None:
    from robust.stats import holm, mcnemar, paired_interval

    browser.open(site / "compare.html")
    for b, c, n in ((0, 0, 10), (5, 0, 5), (12, 3, 40), (300, 250, 10000), (1, 9, 1000), (2000, 1500, 10000)):
        found = browser.run(f"[robustStats.mcnemar({b}, {c}), ...robustStats.interval({b}, {c}, {n})]")
        assert found == pytest.approx([mcnemar(b, c), *paired_interval(b, c, n)], rel=1e-6, abs=1e-7)
    p = [0.01, 0.04, 0.03, 0.9]
    assert browser.run(f"robustStats.holm({p})") == pytest.approx(holm(p))


@browser_needed
def test_the_compare_page_calls_nobody_more_robust_across_boards(
    browser: Chromium, site: Path, store: Store
) -> None:
    easy, hard = sorted(
        (r for r in store.records() if r.model.name == "strong"), key=lambda r: r.threat.radius
    )
    browser.open(site / "compare.html", f"?a={easy.short_id}&b={hard.short_id}")
    browser.until("document.querySelector('.verdict') !== null")
    said = browser.run("document.querySelector('.verdict').textContent")
    assert said.startswith("A held on more samples, under other conditions (p = ")


@browser_needed
def test_the_compare_page_says_who_must_not_be_trusted(browser: Chromium, site: Path, store: Store) -> None:
    ids = {r.model.name: r.short_id for r in store.records() if r.threat.eps == "8/255"}
    browser.open(site / "compare.html", f"?a={ids['masked']}&b={ids['middle']}")
    browser.until("document.querySelector('.verdict') !== null")
    said = browser.run("document.querySelector('.verdict').textContent")
    assert said.startswith("A is more robust (p = ")
    assert said.endswith("), but A must not be trusted.")
    browser.open(site / "compare.html", f"?a={ids['strong']}&b={ids['middle']}")
    browser.until("document.querySelector('.verdict') !== null")
    assert "trusted" not in browser.run("document.querySelector('.verdict').textContent")


@browser_needed
def test_names_and_trust_stay_in_sight_on_a_wide_board(browser: Chromium, tmp_path: Path) -> None:
    """Eight attacks with long labels in 1,200 pixels."""
    labels = [f"basin-hopping(steps={n},radii=(2, 1),hop_steps=14,hop_odi_steps=0)" for n in range(8)]
    store = Store(tmp_path / "store")
    file_report(store, "masked", 40, alone=dict.fromkeys(labels, 40), trust="unreliable")
    publish(store, tmp_path / "site")
    (page,) = (tmp_path / "site").glob("board-*.html")
    browser.open(page)
    cells = "[...document.querySelectorAll('#board tr')].map(r => [r.cells[1], r.cells[r.cells.length - 1]]).flat()"
    seen = f"{cells}.every(c => {{ var b = c.getBoundingClientRect(); return b.left >= 0 && b.right <= innerWidth }})"
    assert browser.run(seen)
    browser.run("document.querySelector('.scroll').scrollLeft = 9999")
    assert browser.run("document.querySelector('.scroll').scrollLeft") > 0, (
        "the board is wider than the window"
    )
    assert browser.run(seen)
    widths = "[...document.querySelectorAll('th.attack')].map(c => c.getBoundingClientRect().width)"
    assert max(browser.run(widths)) < 200
    assert browser.run("document.querySelector('#board tbody th .trust').textContent") == "!"
    assert browser.run("document.querySelector('th.attack').title") == labels[0]
