"""The standard suite against the public AutoAttack: verdicts, passes and seconds on the same images.

python benchmarks/verdict.py --auto-attack DIR [--limit 100] [--results NAME] \\
    --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

DIR holds the public implementation (the package `autoattack`); without it, it is left out. Passes of
AutoAttack are counted by hooks on the model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import robust
from robust.sources import Samples, load_data, load_model
from robust.threat import Threat


class Counter:
    """Counts rows through a model, forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.backwards = 0
        self._handle = model.register_forward_hook(self._forward)

    def stop(self) -> None:
        self._handle.remove()

    def _forward(self, _: nn.Module, __: object, out: Tensor) -> None:
        self.forwards += len(out)
        if out.requires_grad:
            out.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def public_autoattack(
    folder: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    components: Sequence[str] = (),
) -> tuple[Tensor, Counter, float]:
    """Which samples survive the original (or some of its components), what it cost, and its seconds."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from autoattack import AutoAttack

    counter = Counter(model)
    start = time.perf_counter()
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    attack = AutoAttack(
        model, norm=norm, eps=threat.radius, version="standard", device="cpu", verbose=False, seed=0
    )
    attack.attacks_to_run = list(components) or attack.attacks_to_run
    x_adv = attack.run_standard_evaluation(x, y, bs=250)
    seconds = time.perf_counter() - start
    counter.stop()
    with torch.no_grad():
        return model(x_adv).argmax(1) == y, counter, seconds


def row(name: str, survives: Tensor, reference: Tensor, cost: tuple[int, int, float]) -> str:
    forwards, backwards, seconds = cost
    ours_only, theirs_only = int((~survives & reference).sum()), int((survives & ~reference).sum())
    return (
        f"| {name} | {100 * float(survives.float().mean()):.1f} | {ours_only} | {theirs_only} | "
        f"{forwards} | {backwards} | {seconds:.1f} |"
    )


def case_of(case: str, limit: int) -> tuple[str, nn.Module, Samples, Threat]:
    """The model's name, the model, the samples and the threat that a --case names."""
    spec, weights, source, threat = case.split(",")
    return (
        _name(weights),
        load_model(spec, weights).eval(),
        load_data(source).limit(limit),
        Threat.parse(threat),
    )


def hardware() -> str:
    """Processor, threads and torch, for the foot of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}."


def compare(case: str, limit: int, folder: str | None, suites: list[str]) -> list[str]:
    name_of_model, model, samples, threat = case_of(case, limit)
    x, y = samples.rows(slice(None)), samples.y
    found = {}
    for suite in suites:
        report = robust.evaluate(model, samples, threat=threat, suite=suite, device="cpu")
        standing = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
        found[f"robust, {suite}"] = (standing, (report.forwards, report.backwards, report.seconds))
    reference = next(iter(found.values()))[0]
    if folder:
        reference, counter, seconds = public_autoattack(folder, model, x, y, threat)
        found["public AutoAttack"] = (reference, (counter.forwards, counter.backwards, seconds))
    return [
        row(f"{name_of_model} {threat} | {name}", s, reference, cost) for name, (s, cost) in found.items()
    ]


def _name(weights: str) -> str:
    """A weights file that is called weights is named by its folder."""
    path = Path(weights)
    return path.parent.name if path.stem == "weights" else path.stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR")
    parser.add_argument("--suite", action="append")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    lines = [
        f"# Verdicts on {options.limit} images each",
        "",
        "| model and threat | suite | robust % | broken here only | left here only | forwards | backwards | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in options.case:
        rows = compare(case, options.limit, options.auto_attack, options.suite or ["standard"])
        print("\n".join(rows), flush=True)
        lines += rows
    lines += ["", hardware()]
    print("\n".join(lines[-2:]), flush=True)
    if options.results:
        (Path(__file__).parent / "results" / f"{options.results}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
