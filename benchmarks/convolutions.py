"""What a search's passes cost on a CPU, beside those of the same model as torch computes it.

python benchmarks/convolutions.py --weights DIR [--results NAME]

DIR holds what train.py wrote. Each figure is the least of several turns, the two ways by turns; a pass is forward and
back to the input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from train import NETS
from verdict import hardware

from robust import memory, passes
from robust.sources import load_model
from robust.target import Target

NAMES = ("mnist-mart-.3", "mnist-b-.3", "mnist-deep-trades-.2", "cifar-cnn-8", "cifar-wrn10-8", "pairs-.1")
SHAPES = {"mnist": (1, 28, 28), "pairs": (1, 28, 56), "cifar": (3, 32, 32)}
ROWS = (1, 2, 4, 8, 16, 32, 96)
TURNS, PASSES = 10, 4


def seconds(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    for _ in range(PASSES):
        run()
    return (time.perf_counter() - start) / PASSES


def compared(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a pass as torch computes it, and in a search."""
    model.eval().requires_grad_(False)
    weights = torch.randn_like(model(x))

    def plain() -> object:
        point = x.detach().requires_grad_()
        return torch.autograd.grad((model(point) * weights).sum(), point)

    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        best[0] = min(best[0], seconds(plain))
        with Target(model, device="cpu") as target:
            best[1] = min(best[1], seconds(lambda: passes.weigh(target, x, weights)))
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR")
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    memory.keep_freed_memory()
    lines = [
        "# A pass: milliseconds as torch computes it / in a search, and their ratio",
        "",
        "| net | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |",
        "|---" * (len(ROWS) + 1) + "|",
    ]
    for name in NAMES:
        model = load_model(NETS[name].spec, str(options.weights / name / "weights.safetensors"))
        cells = []
        for rows in ROWS:
            plain, ours = compared(model, torch.rand(rows, *SHAPES[NETS[name].data]))
            cells.append(f"{1e3 * plain:.2f} / {1e3 * ours:.2f} = {plain / ours:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{hardware()} {options.note}".strip(),
        "Command: python benchmarks/convolutions.py --weights DIR",
    ]
    print("\n".join(lines))
    if options.results:
        folder = Path(__file__).parent / "results"
        (folder / f"{options.results}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
