"""What a curve over eight eps costs beside its dearest single eps, in passes; and the least it could.

    python benchmarks/curves.py [--limit 64] [--out benchmarks/results/curves-cpu.md]

A net on the built-in digits, trained as usual and adversarially. "least": every sample pays for one survival by
the whole suite, at the largest eps that it survives, and nothing else is paid for. A curve can cost less still, as
below the largest eps its searches begin at a known break and are fewer (`robust.suites.resolve_below`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from verdict import hardware

import robust
from robust.defenses import Trainer, make_defense
from robust.hardening import training_options
from robust.run import Settings
from robust.sources import load_data, load_model
from robust.sweep.curves import attack_curve, points
from robust.target import Target
from robust.threat import Threat

EPS = ("0.02", "0.04", "0.06", "0.08", "0.1", "0.14", "0.18", "0.25")
DEFENSES: dict[str, dict[str, Any]] = {"none": {}, "pgd-at": {"steps": 4}}


def compare(defense: str, limit: int) -> str:
    """A row of the table."""
    threats = [Threat("linf", eps) for eps in EPS]
    trainer = Trainer(training_options("mnist-quick", {"epochs": 8, "device": "cpu"}))
    made = make_defense(defense, **DEFENSES[defense])
    trained_threat = Threat("linf", "0.1") if defense != "none" else None
    train = load_data("builtin:digits:train")
    net = made.fit(load_model("builtin:digits-mlp"), train, threat=trained_threat, trainer=trainer)
    samples = load_data("builtin:digits:test").limit(limit)
    given: dict[str, Any] = {"device": "cpu", "batch_size": 64, "precision": "float32"}
    tables = [robust.evaluate(net, samples, threat=threat, **given).verdicts for threat in threats]
    settings = Settings(micro_batch=64, precision="float32")
    curve = attack_curve(
        Target(net, device="cpu"), samples, threats, "standard", settings, range(len(samples))
    )
    alone = np.stack([(table["forwards"] + table["backwards"]).to_numpy() for table in tables])
    stood = np.stack([(table["status"] == "survived").to_numpy() for table in tables])
    hardest = np.where(stood.any(0), len(EPS) - 1 - stood[::-1].argmax(0), -1)
    least = sum(int(alone[index, sample]) for sample, index in enumerate(hardest) if index >= 0)
    cost, dearest = int(curve.table[["forwards", "backwards"]].to_numpy().sum()), int(alone.sum(1).max())
    above = max(
        point["k"] - int(single.sum())
        for point, single in zip(points(curve.table, threats), stood, strict=True)
    )
    return (
        f"| {defense} | {stood.mean(1)[0]:.0%} to {stood.mean(1)[-1]:.0%} | {dearest:,} | {alone.sum() / dearest:.2f} | "
        f"{cost / dearest:.2f} | {least / dearest:.2f} | {above} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        "# Curves",
        "",
        f"Digits net, {options.limit} samples, suite standard, linf at {', '.join(EPS)}. Costs are passes as multiples of "
        "the dearest single eps; the last column is the most samples by which the curve lies above a single evaluation.",
        "",
        "| defense | robust at the smallest and largest eps | dearest eps, passes | all eps apart | curve | least | above |",
        "|---|---|---|---|---|---|---|",
        *(compare(defense, options.limit) for defense in DEFENSES),
        "",
        hardware(),
        "",
    ]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
