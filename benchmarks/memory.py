"""Peak memory of an evaluation against the number of samples.

Each row runs in a process of its own, which writes its peak resident memory (VmHWM) before and after. The
samples are drawn on the fly by a Dataset, as if they were read from disk; broken samples keep their
adversarial examples.

    python benchmarks/memory.py --table          # the rows of benchmarks/results/memory-cpu.md
    python benchmarks/memory.py --n 10000 --side 32
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from robust.run import Progress

ROWS = (
    {"n": 1000, "side": 32}, {"n": 10000, "side": 32}, {"n": 1000, "side": 224}, {"n": 10000, "side": 224},
)  # fmt: skip
MICRO_BATCH = 32


class Watch(threading.Thread):
    """Notes the resident memory fifty times a second, and the moment when the first wave of an attack is done."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.held: list[tuple[float, float]] = []  # MiB, and of that what is not file pages
        self.started: int | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.held.append((status("VmRSS"), status("RssAnon")))

    def told(self, step: Progress) -> None:
        """Of the evaluation's progress."""
        if step.stage != "clean" and self.started is None:
            self.started = len(self.held)

    def quarters(self) -> tuple[list[float], list[float]]:
        """The most resident memory, and the least anonymous memory, in each quarter of the attack."""
        self._ended.set()
        held = self.held[self.started or 0 :] or [(status("VmRSS"), status("RssAnon"))]
        parts = [
            held[len(held) * i // 4 : max(len(held) * (i + 1) // 4, len(held) * i // 4 + 1)] for i in range(4)
        ]
        return [max(r for r, _ in part) for part in parts], [min(a for _, a in part) for part in parts]


class Drawn(Dataset[tuple[Tensor, int]]):
    """Coarse colour noise: sample i is drawn from seed i alone. The label is the net's, so that it is right."""

    def __init__(self, n: int, side: int, net: nn.Module) -> None:
        self.n, self.side, self.net = n, side, net

    def __len__(self) -> int:
        return self.n

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(i)
        coarse = torch.rand((1, 3, 8, 8), generator=generator)
        x = nn.functional.interpolate(coarse, size=(self.side, self.side)).mul(255).to(torch.uint8)
        return x[0], int(self.net(x / 255).argmax())


def small_net() -> nn.Module:
    """Four strided convolutions and a mean, so that any side will do."""
    torch.manual_seed(0)
    widths = (3, 8, 16, 32, 32)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def measure(n: int, side: int) -> dict[str, Any]:
    """Evaluate in this process; MiB and seconds."""
    import robust
    from robust.attacks import FGSM

    net = small_net()
    images = MICRO_BATCH * 3 * side * side * 4
    _evaluate(
        robust, net, 8 * MICRO_BATCH, side, FGSM
    )  # imports, kernels and work space come before the count
    before, start, watch = status("VmHWM"), time.perf_counter(), Watch()
    watch.start()
    report = _evaluate(robust, net, n, side, FGSM, watch.told)
    most, least = watch.quarters()
    return {
        "n": n, "side": side, "data_mib": n * 3 * side * side / 2**20,
        "examples_mib": report.statuses["broken"] * 3 * side * side * 4 / 2**20,
        "micro_batch_mib": images / 2**20, "start_mib": before, "peak_mib": status("VmHWM"),
        "quarter_peaks_mib": most, "quarter_least_mib": least, "anonymous_end_mib": status("RssAnon"), "broken": report.statuses["broken"],
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _evaluate(robust, net, n, side, attack, progress=None):  # type: ignore[no-untyped-def]
    return robust.evaluate(
        net, Drawn(n, side, net), threat="linf:32/255", suite=[attack(loss="margin")],
        batch_size=MICRO_BATCH, keep_examples=True, device="cpu", progress=progress,
    )  # fmt: skip


def status(field: str) -> float:
    """A field of /proc/self/status, MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - not a real file
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _listed(figures: list[float]) -> str:
    return ", ".join(f"{figure:,.0f}" for figure in figures)


def table() -> None:
    """Every row in a process of its own, as markdown."""
    machine = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name\t: ")[2].partition("\n")[0]
    )
    print(
        f"{machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}\n"
    )
    print(
        "| samples | input | all samples, MiB | examples kept, MiB | at start, MiB | peak, MiB | peak over start, MiB "
        "| peak in each quarter of the attack | least held in each | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        command = [sys.executable, __file__, "--n", str(row["n"]), "--side", str(row["side"])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(out)
        print(
            f"| {found['n']:,} | 3x{found['side']}x{found['side']} | {found['data_mib']:,.0f} | "
            f"{found['examples_mib']:,.0f} | {found['start_mib']:,.0f} | {found['peak_mib']:,.0f} | "
            f"{found['peak_mib'] - found['start_mib']:,.0f} | {_listed(found['quarter_peaks_mib'])} | "
            f"{_listed(found['quarter_least_mib'])} | {found['seconds']:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="all rows")
    chosen = parser.parse_args()
    if chosen.table:
        table()
    else:
        print(json.dumps(measure(chosen.n, chosen.side)))


if __name__ == "__main__":
    main()
