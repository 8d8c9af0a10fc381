"""The pages of the published site: what is on them, and that names and examples cannot break them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reports import ROWS, make_record, make_report
from sites import Page, file_report

from robust.leaderboard import Record, Store, examples_bytes
from robust.leaderboard.site import publish
from robust.leaderboard.site.pages import described


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
