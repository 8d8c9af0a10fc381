"""A leaderboard of thousands: how long `publish` takes, and a browser to sort and filter the board.

    python benchmarks/site.py make --store STORE --entries 2000
    python benchmarks/site.py time --store STORE --out SITE

`make` files records of random verdicts (200 tables of 1,000 samples, shared by ten names each); `time`
publishes them and, where there is a Chromium, times clicks on headings and key strokes in the filter, each up
to the frame that shows the result; the figures go to benchmarks/results/site-cpu.md. The page is driven by tests/chromium.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from robust.leaderboard import Record, Store
from robust.leaderboard.artefacts import verdicts_bytes
from robust.leaderboard.site import publish
from robust.report import Report
from robust.threat import Threat

SAMPLES, TABLES = 1000, 200
ATTACKS = ("fgsm", "pgd(steps=20)", "pgd(steps=20,loss=margin)")


def verdicts(rng: np.random.Generator) -> pd.DataFrame:
    """A table of random verdicts in which each sample has a difficulty of its own."""
    hard = rng.random(SAMPLES)
    wrong, broken = hard < rng.uniform(0.02, 0.2), hard < rng.uniform(0.3, 0.9)
    label = np.arange(SAMPLES) % 10
    other = (label + rng.integers(1, 10, SAMPLES)) % 10
    status = np.where(wrong, "misclassified", np.where(broken, "broken", "survived"))
    attack = np.where(status == "broken", rng.choice(ATTACKS, SAMPLES), "")
    return pd.DataFrame(
        {
            "sample_id": np.arange(SAMPLES), "label": label, "prediction": np.where(wrong, other, label),
            "status": status, "attack": attack, "distance": np.where(status == "broken", 0.02, np.nan),
            "margin": rng.normal(size=SAMPLES), "prediction_adv": np.where(status == "survived", label, other),
            "forwards": rng.integers(20, 60, SAMPLES), "backwards": rng.integers(20, 60, SAMPLES),
        }
    )  # fmt: skip


def report(table: pd.DataFrame, seed: int) -> Report:
    """A report around a table."""
    right, left = (
        int((table["prediction"] == table["label"]).sum()),
        int((table["status"] == "survived").sum()),
    )
    attacks = [
        {"name": label.partition("(")[0], "label": label, "parameters": {}, "attacked": right, "broke": right - left,
         "survived": left, "forwards": 10_000, "backwards": 10_000, "seconds": 1.0}
        for label in ATTACKS
    ]  # fmt: skip
    return Report(
        threat=Threat("linf", "8/255"), suite="standard", seed=seed, verdicts=table, attacks=attacks,
        trust="trusted" if seed % 5 else "unreliable", findings=[], checks={"forwards": 0, "backwards": 0, "seconds": 0.0},
        model={"spec": "random", "sha256": f"{seed:064x}", "architecture": "Net", "parameters": 1},
        data={"spec": "builtin:random", "sha256": "0" * 64}, device="none", versions={}, seconds=3.0, cascade=False,
    )  # fmt: skip


def make(folder: Path, entries: int) -> None:
    """File so many records."""
    rng, store = np.random.default_rng(0), Store(folder)
    for table in range(min(TABLES, entries)):
        made = report(verdicts(rng), table)
        record = Record.from_report(made, name="net", defense={"name": "random", "parameters": {}})
        content = verdicts_bytes(made.verdicts)
        for name in range(table, entries, TABLES):
            model = record.model.model_copy(update={"name": f"net-{name:05d}"})
            store.add(record.model_copy(update={"model": model}), content)


CLICK = """new Promise(done => {{
  const start = performance.now();
  {action};
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
}})"""


def browse(site: Path) -> dict[str, list[float]]:
    """Milliseconds from an action to its frame, for every heading twice and for some filters."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from chromium import BINARY, Chromium

    if BINARY is None:
        return {}
    (board,) = site.glob("board-*.html")
    found: dict[str, list[float]] = {"sort": [], "filter": []}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Chromium(Path(profile)) as browser,
    ):
        browser.open(board)
        heads = browser.run("document.querySelectorAll('#board thead th').length")
        for column in [*range(heads)] * 2:
            action = f"document.querySelectorAll('#board thead th')[{column}].click()"
            found["sort"].append(browser.run(CLICK.format(action=action)))
        for text in ("net-0", "net-00", "net-001", "", "random 19", "zzz", ""):
            action = f"filter.value = '{text}'; filter.dispatchEvent(new Event('input'))"
            found["filter"].append(browser.run(CLICK.format(action=action)))
    return found


def measure(folder: Path, out: Path, results: Path) -> None:
    """Publish, browse, print the figures and keep them."""
    start = time.perf_counter()
    files = publish(Store(folder), out)
    seconds = time.perf_counter() - start
    entries = sum(name.startswith("entries/") for name in files)
    rows = [f"| publish, {len(files):,} files | {seconds:.1f} s | |"]
    for action, times in browse(out).items():
        rows.append(
            f"| {action}, {len(times)} times | {statistics.median(times):.0f} ms | {max(times):.0f} ms |"
        )
    machine = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name\t: ")[2].partition("\n")[0]
    )
    text = (
        f"# A leaderboard of {entries:,} entries on one board\n\n| what | median | longest |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nSorting and filtering: from the click or the key to the frame after it, in headless Chromium.\n"
        f"{machine or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}. "
        "Command: `python benchmarks/site.py time --store STORE --out SITE`.\n"
    )
    print(text)
    results.write_text(text, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["make", "time"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("site"))
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "site-cpu.md")
    options = parser.parse_args()
    if options.step == "make":
        make(options.store, options.entries)
    else:
        measure(options.store, options.out, options.results)


if __name__ == "__main__":
    main()
