"""The published site in a browser: sorted, filtered, compared, and in sight at every width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import BINARY, Chromium
from sites import file_report

from robust.leaderboard import Store, compare
from robust.leaderboard.site import publish

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
