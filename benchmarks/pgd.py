"""PGD-40: ours against torchattacks, and engine overhead over the cost of the passes alone.

python benchmarks/pgd.py [--images 1000] [--cifar-images 64] [--repeats 5]

The radius is so small that hardly an image breaks, so that both make the same passes (ours lets broken
images leave, which would flatter it). As in `evaluate`, the small net is searched as it is and the large one
on the fastest copy that agrees with it. The floor is the passes ours made, each at the measured cost of a
forward and input-gradient pass of the same model and micro-batch with frozen parameters.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchattacks
from torch import Tensor, nn

from robust import engine, memory
from robust.attacks import PGD
from robust.oracle import Oracle
from robust.run import WAVE
from robust.sources import load_data, load_model
from robust.target import Target
from robust.threat import Threat
from robust.timing import pick_micro_batch

STEPS, EPS = 40, 1e-4
PEER_BATCHES = (16, 32, 64, 128, 256, 1000)


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ours(target: Target, search: Target, x: Tensor, y: Tensor, micro_batch: int) -> int:
    passes, judge = 0, None if search is target else target
    with target:
        for rows in torch.arange(len(x)).split(WAVE * micro_batch):
            oracle = Oracle(
                search, x[rows], y[rows], rows, Threat("linf", str(EPS)), micro_batch=micro_batch, judge=judge
            )
            PGD(steps=STEPS)(oracle)
            passes += int(oracle.ledger.backwards.sum())
    return passes


def theirs(model: nn.Module, x: Tensor, y: Tensor, batch: int, steps: int = STEPS) -> None:
    attack = torchattacks.PGD(model, eps=EPS, alpha=2.5 * EPS / STEPS, steps=steps)
    for rows in torch.arange(len(x)).split(batch):
        attack(x[rows], y[rows])


def floor(target: Target, x: Tensor, y: Tensor, micro_batch: int, passes: int) -> None:
    done = 0
    with target:
        while done < passes:
            for rows in torch.arange(len(x)).split(micro_batch):
                point = x[rows].clone().requires_grad_()
                loss = nn.functional.cross_entropy(target.logits(point), y[rows], reduction="sum")
                torch.autograd.grad(loss, point)
                done += len(rows)


def compare(name: str, model: nn.Module, x: Tensor, y: Tensor, repeats: int, *, slow: bool) -> str:
    model.eval()
    target = Target(model, device="cpu")
    with target:
        search, name_of = engine.fastest(target, x, y, len(x)) if slow else (target, engine.PLAIN)
        best = pick_micro_batch(search, lambda size: x[torch.arange(size) % len(x)], len(x))
    batches = [size for size in PEER_BATCHES if size <= len(x)]
    peer_batch = min(batches, key=lambda size: clock(lambda: theirs(model, x, y, size, STEPS // 8)))
    passes = ours(target, search, x, y, best)
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": []}
    for _ in range(repeats):
        times["ours"].append(clock(lambda: ours(target, search, x, y, best)))
        times["theirs"].append(clock(lambda: theirs(model, x, y, peer_batch)))
        times["floor"].append(clock(lambda: floor(search, x, y, best, passes)))
    a, b, c = (min(times[key]) for key in ("ours", "theirs", "floor"))
    return f"| {name} | {name_of} | {len(x)} | {best} | {peer_batch} | {a:.2f} | {b:.2f} | {c:.2f} | {a / b:.2f} | {a / c:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cifar-images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed_memory()  # for both: what it gains is not counted as ours
    digits = load_data("builtin:mnist5k:test").limit(options.images)
    mnist = load_model("builtin:mnist-cnn")
    resnet = load_model("builtin:cifar-resnet18")
    noise = torch.rand(options.cifar_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # labels as predicted: nothing is broken from the start
        labels = [net.eval()(x).argmax(1) for net, x in ((mnist, digits.rows(slice(None))), (resnet, noise))]
    rows = [
        compare("mnist-cnn", mnist, digits.rows(slice(None)), labels[0], options.repeats, slow=False),
        compare("cifar-resnet18", resnet, noise, labels[1], options.repeats, slow=True),
    ]
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    text = "\n".join(
        [
            f"# PGD-{STEPS}, linf, eps {EPS}: seconds, the best of {options.repeats} interleaved repeats",
            "",
            "| model | engine | images | our batch | its batch | ours s | torchattacks s | floor s | ours / torchattacks | overhead |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{cpu or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"torchattacks {torchattacks.__version__}. Untrained weights. Command: python {' '.join(sys.argv)}",
        ]
    )
    print(text)
    (Path(__file__).parent / "results" / "pgd-cpu.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
