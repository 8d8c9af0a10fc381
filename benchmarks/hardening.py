"""Adversarial training: seconds per epoch beside other loops, and what defenses hold.

python benchmarks/hardening.py speed [--images 2000] [--repeats 5]
python benchmarks/hardening.py strength [--defenses none pgd-at ...] [--suite standard] [--out FOLDER]

speed: an epoch of PGD-7 adversarial training of the same small CNN (builtin:mnist-cnn) on the same images
in the same batches of 128 with Adam, the best of interleaved repeats: ours without its validation, a plain
hand-written loop, a hand-written loop around torchattacks' PGD, and ART's AdversarialTrainerMadryPGD with its
attack in batches of 32 (its default), 64 and 128.
strength: builtin:mnist5k, linf:0.2, every defense trained by the recipe "mnist" and attacked by a suite
("standard") on the 1,000 test digits.
Each part writes its half of results/hardening-cpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import robust
from robust.defenses import RECIPES, Trainer, TrainingOptions, make_defense
from robust.errors import TrainingError
from robust.sources import Samples, load_data, load_model

EPS, STEPS, BATCH, RATE = 0.2, 7, 128, 1e-3
RESULTS = Path(__file__).parent / "results"
EPOCHS = {"pgd-at": 20, "trades": 15, "n-fgsm": 30}


def by_hand(
    net: nn.Module, x: Tensor, y: Tensor, attack: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> None:
    """One epoch, as anybody would write it."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    net.train()
    for rows in torch.randperm(len(x)).split(BATCH):
        x_adv = attack(net, x[rows], y[rows])
        optimizer.zero_grad()
        functional.cross_entropy(net(x_adv), y[rows]).backward()
        optimizer.step()


def plain_pgd(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net(x_adv), y), x_adv)
        x_adv = x_adv.detach() + 2.5 / STEPS * EPS * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def ours(net: nn.Module, data: Samples, *, channels_last: bool = False) -> float:
    """Seconds from the call to the last batch, preparations included: the other loops validate nothing."""
    options = TrainingOptions(
        epochs=1,
        batch_size=BATCH,
        learning_rate=RATE,
        schedule="constant",
        validation_steps=1,
        device="cpu",
        channels_last=channels_last,
    )
    ends: list[float] = []
    trainer = Trainer(
        options, validation=data.take(slice(0, 50)), ticks=lambda *_: ends.append(time.perf_counter())
    )
    defense = make_defense("pgd-at", steps=STEPS, warmup=0.0)
    start = time.perf_counter()
    with contextlib.suppress(TrainingError):  # a single epoch may well end with one constant prediction
        defense.fit(net, data, threat=threat(), trainer=trainer)
    return ends[-1] - start


def threat() -> robust.Threat:
    return robust.Linf(str(EPS))


def art(net: nn.Module, x: Tensor, y: Tensor, attack_batch: int) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        from art.defences.trainer import AdversarialTrainerMadryPGD
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            net,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            10,
            torch.optim.Adam(net.parameters(), RATE),
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        trainer = AdversarialTrainerMadryPGD(
            classifier, 1, BATCH, eps=EPS, eps_step=2.5 / STEPS * EPS, max_iter=STEPS, num_random_init=1
        )
        trainer.attack.set_params(batch_size=attack_batch)
        trainer.fit(x.numpy(), y.numpy(), nb_epochs=1)


def with_torchattacks(net: nn.Module, x: Tensor, y: Tensor) -> None:
    import torchattacks

    attack = torchattacks.PGD(net, eps=EPS, alpha=2.5 / STEPS * EPS, steps=STEPS)
    by_hand(net, x, y, lambda _net, x, y: attack(x, y))


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    found = run()
    return found if isinstance(found, float) else time.perf_counter() - start


def speed(options: argparse.Namespace) -> str:
    data = load_data("builtin:mnist5k:train").limit(options.images)
    x, y = data.rows(slice(None)), data.y
    floats = Samples(x, y, data.ids)
    model = load_model("builtin:mnist-cnn")
    runs: dict[str, Callable[[nn.Module], object]] = {
        "ours": lambda net: ours(net, floats),
        "ours, channels_last=true": lambda net: ours(net, floats, channels_last=True),
        "hand-written loop": lambda net: by_hand(net, x, y, plain_pgd),
        "torchattacks PGD in a hand-written loop": lambda net: with_torchattacks(net, x, y),
        **{
            f"ART AdversarialTrainerMadryPGD, attack in batches of {size}": lambda net, size=size: art(
                net, x, y, size
            )
            for size in (32, 64, 128)
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    shuffled = random.Random(0)
    for _ in range(options.repeats):
        for name in shuffled.sample(list(runs), len(runs)):
            net = copy.deepcopy(model)
            seconds[name].append(clock(lambda run=runs[name], net=net: run(net)))
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    hand = seconds["hand-written loop"]
    rows = [
        f"| {name} | {min(s):.2f} | {min(s) / min(hand):.2f} | {statistics.median(s) / statistics.median(hand):.2f} |"
        for name, s in seconds.items()
    ]
    return "\n".join(
        [
            f"## Seconds per epoch of PGD-{STEPS} adversarial training",
            "",
            f"builtin:mnist-cnn, {len(x)} images, batch {BATCH}; {options.repeats} repeats, interleaved in changing "
            "order. The attack of the hand-written loop computes no weight gradients. Ours with its preparations, "
            "without its validation.",
            "",
            "| loop | best, s | best, over the hand-written loop's | median, likewise |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def strength(options: argparse.Namespace) -> str:
    train, test = (load_data(f"builtin:mnist5k:{split}") for split in ("train", "test"))
    rows, first = [], None
    for name in options.defenses:
        training = {"epochs": EPOCHS.get(name, RECIPES["mnist"].epochs), "validation_steps": 5}
        result = robust.harden(
            load_model("builtin:mnist-cnn"),
            train,
            defense=name,
            threat=threat(),
            training=training,
            out=options.out / name if options.out else None,
        )
        seconds = sum(epoch.seconds for epoch in result.history)
        report = robust.evaluate(result.model, test, threat=threat(), suite=options.suite)
        first = report.robust_accuracy if first is None else first
        checks = ", ".join(finding["check"] for finding in report.findings) or "-"
        rows.append(
            f"| {name} | {training['epochs']} | {seconds:.0f} | {report.clean_accuracy:.1%} | "
            f"{report.robust_accuracy:.1%} | {100 * (report.robust_accuracy - first):+.1f} | {report.trust} | "
            f"{checks} |"
        )
        print(rows[-1], flush=True)
    return "\n".join(
        [
            f"## What defenses hold: builtin:mnist5k, linf:{EPS}, suite {options.suite}, {len(test)} test digits",
            "",
            f"Trained by the recipe mnist for so many epochs; the best epoch on a tenth split off. Points are those "
            f"of robust accuracy over {options.defenses[0]}. Seconds of the epochs with their validation; of distillation, the student's.",
            "",
            "| defense | epochs | training s | clean | robust | points | trust | checks that fired |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def write(part: str, text: str) -> None:
    """Put a part into the results, beside the other one."""
    path = RESULTS / "hardening-cpu.md"
    parts = {"speed": "", "strength": ""}
    marks = {"speed": "## Seconds", "strength": "## What"}
    old = path.read_text() if path.exists() else ""
    for section in old.split("\n## ")[1:]:
        key = next(key for key, mark in marks.items() if f"## {section}".startswith(mark))
        parts[key] = f"## {section}".strip()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    parts[part] = (
        f"{text}\n\n{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        f"Command: python {' '.join(sys.argv)}"
    )
    path.write_text("\n\n".join(["# Hardening on a CPU", *(p for p in parts.values() if p)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["speed", "strength"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--defenses", nargs="+", default=["none", "pgd-at", "trades", "n-fgsm", "distillation"]
    )
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--out", type=Path, help="keep the trained models here")
    options = parser.parse_args()
    text = {"speed": speed, "strength": strength}[options.part](options)
    print(text)
    write(options.part, text)


if __name__ == "__main__":
    main()
