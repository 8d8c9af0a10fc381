"""The site of a demonstration sweep and of 236 imported entries, used as a reader uses it.

ROBUST_ROBUSTBENCH names RobustBench's own entries (a file or its model_info folder); without it, entries of the
same form are made up.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from chromium import BINARY, Chromium

from robust.leaderboard import Store, compare, read_robustbench
from robust.leaderboard.site import publish
from robust.sweep import demonstration, run_sweep
from robust.sweep.config import ModelEntry

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BINARY is None, reason="no Chromium here")]

MODELS = "[...document.querySelectorAll('#board tbody tr:not([hidden]) th a')].map(a => a.textContent)"
HEADING = "[...document.querySelectorAll('#board thead th')].find(th => th.textContent.startsWith('{}'))"
SHOWN = "document.getElementById('shown').textContent"


def entries(folder: Path) -> Path:
    """RobustBench's entries, or 236 like them: 120 on one board, the others on seven."""
    if given := os.environ.get("ROBUST_ROBUSTBENCH"):
        return Path(given)
    rows = []
    for i in range(236):
        data, threat, eps = "cifar10", "Linf", "8/255"
        if i >= 120:
            data, threat = (
                ("cifar10", "cifar100", "imagenet")[i % 3],
                ("L2", "corruptions", "Linf")[i // 3 % 3],
            )
            eps = None if threat == "corruptions" else "4/255"
        rows.append(
            {"dataset_dir": data, "threat": threat, "id": f"Author{i:03}", "name": f"Paper {i}", "architecture": f"Net-{i % 7}",
             "eps": eps, "clean_acc": f"{95 - i / 10:.2f}", "reported": f"{60 - i / 8:.2f}", "unreliable": i % 50 == 9,
             "autoattack_acc": f"{59 - i / 8:.2f}", "link": "https://paper.example/1", "dataset": data}
        )  # fmt: skip
    path = folder / "entries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The demonstration's defenses, threats and attacks, on small digits with a few epochs of training each."""
    folder, plan = tmp_path_factory.mktemp("demo"), demonstration()
    small = plan.model_copy(
        update={
            "models": [ModelEntry(spec="builtin:digits-mlp")], "data": "builtin:digits", "train": "builtin:digits:train",
            "limit": 40, "defenses": [d.model_copy(update={"training": {"epochs": 4}}) for d in plan.defenses],
        }
    )  # fmt: skip
    result = run_sweep(small, folder, device="cpu")
    assert len(result.records) == 12
    store = Store(folder)
    for reference in read_robustbench(entries(folder)).references:
        store.add_reference(reference)
    return store


def test_a_reader_finds_sorts_filters_opens_and_compares(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site)
    references = store.references()
    assert len(references) == 236
    assert len(list((site / "entries").iterdir())) == 12 + 236
    with Chromium(tmp_path / "profile") as browser:
        browser.open(site / "index.html")
        counts = "[...document.querySelectorAll('tbody td.n:nth-of-type(3)')].map(td => +td.textContent)"
        assert sum(browser.run(counts)) == 12 + 236
        board = [
            ref for ref in references if (ref.dataset, ref.norm, ref.eps) == ("cifar10", "linf", "8/255")
        ]
        assert len(board) > 60
        row = "[...document.querySelectorAll('tbody tr')].find(tr => tr.textContent.includes('cifar10') && "
        browser.run(row + "tr.textContent.startsWith('linf:8/255')).querySelector('a').click()")
        browser.until("document.getElementById('shown') && document.readyState === 'complete'")
        many = ", the first 100 shown" if len(board) > 100 else ""
        assert browser.run(SHOWN) == f"{len(board)} of {len(board)}{many}"
        assert len(browser.run(MODELS)) == min(100, len(board))
        reliable = sorted((ref for ref in board if not ref.unreliable), key=lambda ref: -(ref.robust or 0))
        assert browser.run(MODELS)[0] == reliable[0].name
        if many:
            browser.run("document.getElementById('more').click()")
            assert len(browser.run(MODELS)) == min(200, len(board))
            assert browser.run("document.getElementById('more').hidden") == (len(board) <= 200)
        browser.run(HEADING.format("clean") + ".click()")
        best = max(reliable, key=lambda ref: ref.clean or 0)
        assert browser.run(MODELS)[0] in {ref.name for ref in reliable if ref.clean == best.clean}
        wanted = reliable[1].name
        browser.run(f"filter.value = {json.dumps(wanted)}; filter.dispatchEvent(new Event('input'))")
        assert wanted in browser.run(MODELS)
        assert len(browser.run(MODELS)) < 20
        browser.run(
            f"[...document.querySelectorAll('#board th a')].find(a => a.textContent === {json.dumps(wanted)}).click()"
        )
        browser.until(
            "document.querySelector('h1') && document.readyState === 'complete' && !document.getElementById('board')"
        )
        assert browser.run("document.querySelector('h1').textContent") == wanted

        browser.open(site / "index.html")
        browser.run("document.querySelector('tbody a').click()")
        browser.until("document.getElementById('board') && document.readyState === 'complete'")
        assert len(browser.run(MODELS)) == 3
        browser.run("document.querySelector('#board tbody a').click()")
        browser.until("document.querySelector('.figures') !== null && document.readyState === 'complete'")
        text = browser.run("document.querySelector('main').textContent")
        assert all(
            part in text
            for part in ("Accuracy against eps", "Attacks", "Classes", "Confusion under attack", "Cost")
        )

        one, *others = (record for record in store.records() if str(record.threat.eps) == "0.1")
        other = others[0]
        browser.open(site / "compare.html", f"?a={one.short_id}&b={other.short_id}")
        browser.run(f"document.getElementById('b').value = '{other.short_id}'")
        browser.run("document.getElementById('b').dispatchEvent(new Event('change'))")
        browser.until("document.querySelector('.verdict') !== null")
        found = compare(one, other, store.verdicts(one), store.verdicts(other)).whole
        cells = browser.run(
            "[...document.querySelectorAll('#result tbody tr')[0].cells].map(c => c.textContent)"
        )
        assert [int(cells[5]), int(cells[6])] == [found.only_a, found.only_b]
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
