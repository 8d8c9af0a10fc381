"""`robust harden`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robust.cli import common
from robust.cli.together import run_together

if TYPE_CHECKING:
    from robust.defenses import EpochResult
    from robust.hardening import Hardened
    from robust.run import Progress
    from robust.sources import Samples
    from robust.target import Target

EPILOG = (
    "Example: robust harden --model builtin:mnist-cnn --data builtin:mnist5k:train "
    "--validation builtin:mnist5k:test --threat linf:0.2 --defense pgd-at --out hardened"
)


def harden(
    model: common.ModelOption,
    data: common.DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="weights, history, checkpoints, reports")],
    threat: Annotated[
        str | None, typer.Option("--threat", metavar="NORM:EPS", help="what to harden against")
    ] = None,
    defense: Annotated[
        str, typer.Option("--defense", metavar="NAME", help="see `robust list defenses`")
    ] = "pgd-at",
    set_: common.SetOption = None,
    weights: common.WeightsOption = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="SPEC", help="held-out data; evaluated before and after"),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="named training options: mnist, cifar10, cifar10-resnet18, ...")
    ] = "mnist",
    train: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="NAME=VALUE", help="a training option; may be repeated"),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help="for the evaluations before and after")] = "standard",
    extra: Annotated[
        str | None,
        typer.Option("--extra", metavar="SPEC", help="more data: --train extra_share=0.7 of each batch"),
    ] = None,
    pseudo_labels: Annotated[
        str | None,
        typer.Option(
            "--pseudo-labels", metavar="SPEC", help="a trained model whose predictions label --extra"
        ),
    ] = None,
    pseudo_weights: Annotated[
        str | None, typer.Option("--pseudo-weights", metavar="FILE", help="weights of --pseudo-labels")
    ] = None,
    limit: common.LimitOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "auto",
    normalize: common.NormalizeOption = None,
    devices: Annotated[
        int, typer.Option("--devices", metavar="N", min=1, help="train on N GPUs, or in N processes on CPUs")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="go on from the checkpoint in --out")
    ] = True,
) -> int:
    """Train a hardened copy of a model. Robust accuracy is measured before and after."""
    common.writable_folder(out)
    again = "" if resume else " without --no-resume"
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        with common.resumable(again):
            return run_together(devices, sys.argv[1:])
    from robust.defenses.devices import leave, rank
    from robust.hardening import harden as run

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every process and precision
    target = common.target(model, weights, normalize, device, seed, to_train=True)
    with common.resumable(again), common.naming_theirs("training"), common.bars() as bars:
        watch = Watch(bars)
        result = run(
            target,
            common.samples(data, limit, target),
            defense={"name": defense, **common.settings(set_)},
            threat=threat,
            validation=_more("--validation", validation, target),
            extra=_more("--extra", extra, target),
            pseudo_labels=None if pseudo_labels is None else _labeller(pseudo_labels, pseudo_weights, device),
            name=model.rpartition(":")[2],
            command=shlex.join(["robust", *sys.argv[1:]]),
            out=out,
            recipe=recipe,
            training=common.settings(train, "--train"),
            suite=suite,
            seed=seed,
            device=device,
            resume=resume,
            progress=watch.epoch,
            ticks=watch.batch,
            attack_progress=watch.attack,
        )
    leave()
    if rank():
        return 0
    _tell(result, out, defense, set_)
    return 0


def _more(option: str, spec: str | None, target: Target) -> Samples | None:
    """The samples that an option names beside those of --data."""
    from robust.errors import samples_of

    with samples_of(option):
        return None if spec is None else common.samples(spec, None, target)


def _labeller(spec: str, weights: str | None, device: str) -> Target:
    """The trained model of --pseudo-labels."""
    from robust.errors import InputError
    from robust.sources import load, untrained

    if weights is None and untrained(spec):
        raise InputError(
            f"--pseudo-weights: {spec} has initial weights, which nothing has trained; give the file of its weights"
        )
    return load(spec, weights, device=device)


def _tell(result: Hardened, out: Path, defense: str, set_: list[str] | None) -> None:
    """What hardening gave, and how to go on."""
    from robust.defenses import make_defense

    for title, report in (("before", result.before), ("after", result.report)):
        if report is not None:
            print(common.wrapped(f"{title}: {report}"))
    if make_defense(defense).masks_gradients:
        print("this defense masks gradients: it is here to be measured, and does not hold")
    print(f"weights: {out / 'weights.safetensors'}{_in_front(defense, set_)}")
    if result.report is not None:
        print(f"records: robust leaderboard show {out}")


def _in_front(defense: str, set_: list[str] | None) -> str:
    """How to attack what was hardened, where a transform is in front of it that the weights alone do not bring."""
    from robust.defenses import Wrapper, make_defense

    options = common.settings(set_)
    made = make_defense({"name": defense, **options})
    if not isinstance(made, Wrapper):
        return ""
    if made.stacked:
        return (
            "\nof model and transforms: `robust attack` takes one transform; in Python these weights fit "
            f"robust.defenses.make_defense({defense!r}, ...).deployed(robust.load(SPEC).as_module())"
        )
    own = {
        key: value
        for key, value in made.parameters.items()
        if key in options and key not in ("of", "options")
    }
    text = ",".join([made.name, *(f"{key}={value}" for key, value in own.items())])
    return f"\nattack them with: robust attack --transform {text}"


class Watch:
    """Shows training and attacks as bars, and every epoch as a line."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def epoch(self, result: EpochResult) -> None:
        """Print an epoch's figures."""
        undone = ", undone: catastrophic overfitting, the step is lowered" if result.rolled_back else ""
        robust = "" if result.robust_accuracy is None else f", robust {result.robust_accuracy:.1%}"
        self._bars.console.print(
            f"epoch {result.epoch}/{result.epochs}: loss {result.loss:.3f}, validation clean "
            f"{result.clean_accuracy:.1%}{robust}, {result.seconds:.1f} s{undone}"
        )

    def batch(self, done: int, total: int) -> None:
        """Move the bar of the epoch."""
        self._update("training", done, total)

    def attack(self, step: Progress) -> None:
        """Move the bar of the attack."""
        self._update(step.stage, step.done, step.total)

    def _update(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name)
        self._bars.update(self._tasks[name], completed=done, total=total)
