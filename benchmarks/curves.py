"""What a curve over eight eps costs beside its dearest single eps, in passes; and the least it could.

    python benchmarks/curves.py [--limit 64] [--nets DIR] [--out benchmarks/results/curves-cpu.md]

A net on the built-in digits, trained as usual and adversarially; and the MNIST nets of train.py that are in DIR, at a
quarter to twice the radius that they were trained against. "least": every sample pays for one survival by
the whole suite, at the largest eps that it survives, and nothing else is paid for. A curve can cost less still, as
below the largest eps its searches begin at a known break and are fewer (`robust.suites.resolve_below`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from train import NETS
from verdict import hardware

import robust
from robust.defenses import Trainer, make_defense
from robust.hardening import training_options
from robust.run import Settings
from robust.sources import Samples, load_data, load_model
from robust.sweep.curves import attack_curve, points
from robust.target import Target
from robust.threat import Threat

EPS = ("0.02", "0.04", "0.06", "0.08", "0.1", "0.14", "0.18", "0.25")
DEFENSES: dict[str, dict[str, Any]] = {"none": {}, "pgd-at": {"steps": 4}}


def digits_net(defense: str) -> nn.Module:
    trainer = Trainer(training_options("mnist-quick", {"epochs": 8, "device": "cpu"}))
    made = make_defense(defense, **DEFENSES[defense])
    threat = Threat("linf", "0.1") if defense != "none" else None
    return made.fit(
        load_model("builtin:digits-mlp"), load_data("builtin:digits:train"), threat=threat, trainer=trainer
    )


def cases(nets: Path | None, limit: int) -> Iterator[tuple[str, nn.Module, Samples, list[Threat]]]:
    """Name, net, samples and radii."""
    digits = load_data("builtin:digits:test").limit(limit)
    for defense in DEFENSES:
        yield f"digits, {defense}", digits_net(defense), digits, [Threat("linf", eps) for eps in EPS]
    mnist = load_data("builtin:mnist5k:test").limit(limit)
    for name, net in NETS.items():
        weights = None if nets is None else nets / name / "weights.safetensors"
        if weights is None or net.data != "mnist" or net.threat is None or not weights.exists():
            continue
        trained = Threat.parse(net.threat)
        threats = [Threat(trained.norm, f"{trained.radius * part / 4:.4g}") for part in range(1, 9)]
        yield f"{name}, {trained.norm}", load_model(net.spec, weights), mnist, threats


def compare(name: str, net: nn.Module, samples: Samples, threats: list[Threat]) -> str:
    """A row of the table."""
    given: dict[str, Any] = {"device": "cpu", "batch_size": 64, "precision": "float32"}
    tables = [robust.evaluate(net, samples, threat=threat, **given).verdicts for threat in threats]
    settings = Settings(micro_batch=64, precision="float32")
    curve = attack_curve(
        Target(net, device="cpu"), samples, threats, "standard", settings, range(len(samples))
    )
    alone = np.stack([(table["forwards"] + table["backwards"]).to_numpy() for table in tables])
    stood = np.stack([(table["status"] == "survived").to_numpy() for table in tables])
    hardest = np.where(stood.any(0), len(threats) - 1 - stood[::-1].argmax(0), -1)
    least = sum(int(alone[index, sample]) for sample, index in enumerate(hardest) if index >= 0)
    cost, dearest = int(curve.table[["forwards", "backwards"]].to_numpy().sum()), int(alone.sum(1).max())
    above = max(
        point["k"] - int(single.sum())
        for point, single in zip(points(curve.table, threats), stood, strict=True)
    )
    return (
        f"| {name} | {threats[0].eps} to {threats[-1].eps} | {stood.mean(1)[0]:.0%} to {stood.mean(1)[-1]:.0%} | {dearest:,} | {alone.sum() / dearest:.2f} | "
        f"{cost / dearest:.2f} | {least / dearest:.2f} | {above} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--nets", type=Path, help="folder that train.py wrote")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        "# Curves",
        "",
        f"{options.limit} samples, suite standard, eight eps. Costs are passes as multiples of the dearest single eps; the last "
        "column is the most samples by which the curve lies above a single evaluation.",
        "",
        "| net | eps | robust at the smallest and largest eps | dearest eps, passes | all eps apart | curve | least | above |",
        "|---|---|---|---|---|---|---|---|",
        *(compare(*case) for case in cases(options.nets, options.limit)),
        "",
        hardware(),
        "",
    ]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
