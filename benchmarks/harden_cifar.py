"""ResNet-18 on CIFAR-10: a fast recipe, its accuracy under the standard suite, and its speed.

python benchmarks/harden_cifar.py --data FOLDER [--defense n-fgsm] [--epochs 30] [--precision bf16-mixed] [--out FOLDER]

FOLDER holds train.parquet and test.parquet (columns image, label); $ROBUST_CIFAR10 names it too. Trains by
the recipe cifar10 (one-cycle) with channels_last, goes on where an earlier call with the same --out was cut
off, attacks the test images by PGD-10 and by a suite, and times an epoch's first batches beside a plain
hand-written float32 loop of the same method. Writes results/harden-cifar-DEVICE.md unless --results is given.

Any accelerator, or none: `--images 256 --test 20 --epochs 1 --model benchmarks/nets.py:cifar_small` tries it.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import robust
import robust.attacks
import robust.hardening
from robust.defenses import EpochResult
from robust.errors import TrainingError
from robust.sources import Samples, load_data, load_model

THREAT, EPS = "linf:8/255", 8 / 255
STEPS = {"n-fgsm": 1, "pgd-at": 7}
RESULTS = Path(__file__).parent / "results"


def attacked(net: nn.Module, x: Tensor, y: Tensor, defense: str) -> Tensor:
    """What the plain loop trains on, by the papers: N-FGSM's single step, or PGD-7."""
    single = defense == "n-fgsm"
    start = torch.empty_like(x).uniform_(-EPS, EPS) * (2 if single else 1)
    x_adv = (x + start).clamp(0, 1)
    for _ in range(STEPS[defense]):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net(x_adv), y), x_adv)
        x_adv = x_adv.detach() + (EPS if single else 2.5 / 7 * EPS) * gradient.sign()
        if not single:
            x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
        x_adv = x_adv.clamp(0, 1)
    return x_adv


def plain_rate(net: nn.Module, data: Samples, options: argparse.Namespace, device: torch.device) -> float:
    """Images a second of a plain float32 loop with random flips, data on the device."""
    net = copy.deepcopy(net).to(device).train()
    x, y = data.rows(slice(None)).to(device), data.y.to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    parts = torch.randperm(len(x), device=device).split(options.batch)[: options.timed]
    done, start = 0, 0.0
    for i, rows in enumerate(parts):
        if i == min(2, len(parts) - 1):  # the first ones warm up
            _wait(device)
            done, start = 0, time.perf_counter()
        images = torch.where(torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, x[rows].flip(3), x[rows])
        points = attacked(net, images, y[rows], options.defense)
        optimizer.zero_grad()
        functional.cross_entropy(net(points), y[rows]).backward()
        optimizer.step()
        done += len(rows)
    _wait(device)
    return done / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(
    model: nn.Module, data: Samples, options: argparse.Namespace, device: torch.device
) -> tuple[robust.hardening.Hardened, float]:
    """The hardened model, and images a second over whole epochs, without their validation."""
    marks: list[float] = []
    rates: list[float] = []

    def tick(done: int, total: int) -> None:
        if done in (min(3, total), total):
            _wait(device)
            marks.append(time.perf_counter())
        if done == total and total > 3:
            rates.append((total - 3) * options.batch / (marks[-1] - marks[-2]))

    def show(result: EpochResult) -> None:
        print(
            f"epoch {result.epoch}/{result.epochs}: loss {result.loss:.3f} clean {result.clean_accuracy:.3f} "
            f"robust {result.robust_accuracy:.3f} {result.seconds:.1f} s",
            flush=True,
        )

    found = robust.harden(
        model,
        data,
        defense=options.defense,
        threat=THREAT,
        recipe="cifar10",
        training={
            "epochs": options.epochs,
            "batch_size": options.batch,
            "precision": options.precision,
            "channels_last": True,
            "ema": options.ema,
        },
        out=options.out,
        device=options.device,
        progress=show,
        ticks=tick,
    )
    return found, max(rates, default=float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ROBUST_CIFAR10"))
    parser.add_argument("--model", default="builtin:cifar-resnet18")
    parser.add_argument("--defense", choices=list(STEPS), default="n-fgsm")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--images", type=int, help="train on so many")
    parser.add_argument("--test", type=int, help="attack so many")
    parser.add_argument("--timed", type=int, default=40, help="batches of the plain loop")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="checkpoints, weights and history")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.data is None or not (Path(options.data) / "train.parquet").exists():
        parser.exit(2, "harden_cifar: --data: a folder with train.parquet and test.parquet is needed\n")
    print(run(options))


def run(options: argparse.Namespace) -> str:
    folder = Path(options.data)
    data, test = (
        load_data(str(folder / f"{part}.parquet")).limit(count)
        for part, count in (("train", options.images), ("test", options.test))
    )
    torch.manual_seed(0)
    model = load_model(options.model)
    device = robust.Target(nn.Identity(), device=options.device).device
    plain = plain_rate(model, data, options, device)
    start = time.perf_counter()
    try:
        found, rate = train(model, data, options, device)
    except TrainingError as error:  # a trial on a handful of images learns nothing: say so, and stop
        return f"no result: {error}"
    minutes = (time.perf_counter() - start) / 60
    attacks = {"PGD-10": [robust.attacks.PGD(steps=10)], options.suite: options.suite}
    reports = {
        name: robust.evaluate(found.model, test, threat=THREAT, suite=suite, device=options.device)
        for name, suite in attacks.items()
    }
    epochs = [result.seconds for result in found.history]
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    last = reports[options.suite]
    rows = [
        ("training in this call, min", f"{minutes:.1f}"),
        ("seconds an epoch, with its validation (median)", f"{sorted(epochs)[len(epochs) // 2]:.1f}"),
        (f"images a second, {options.precision}, channels_last", f"{rate:.0f}"),
        ("images a second, plain float32 loop", f"{plain:.0f}"),
        ("clean accuracy", f"{last.clean_accuracy:.2%}"),
        *((f"robust accuracy, {name}", f"{r.robust_accuracy:.2%}") for name, r in reports.items()),
        ("trust", last.trust),
    ]
    text = "\n".join(
        [
            f"# Hardening on CIFAR-10: {options.defense}, {options.model}, {THREAT}",
            "",
            f"{len(data)} images, {options.epochs} epochs, batch {options.batch}; {len(test)} test images.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows),
            "",
            f"{name}, torch {torch.__version__}. Command: python benchmarks/harden_cifar.py --data FOLDER "
            f"--model {options.model} --defense {options.defense} --epochs {options.epochs} --batch {options.batch} "
            f"--precision {options.precision} --ema {options.ema}",
        ]
    )
    path = options.results or RESULTS / f"harden-cifar-{device.type}.md"
    path.write_text(text + "\n")
    return text


if __name__ == "__main__":
    main()
