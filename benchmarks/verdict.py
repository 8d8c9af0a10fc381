"""The standard suite against the public AutoAttack: verdicts, passes and seconds on the same images.

python benchmarks/verdict.py --auto-attack DIR [--a3 DIR] [--sparse-rs DIR] [--peers] [--suite NAME ...] [--limit 100] [--repeats 3] \\
    [--results NAME] --case MODEL,WEIGHTS,DATA,THREAT [--case ...]

Of a model onnx:FILE, which has its weights, WEIGHTS names the normalisation that it expects (published.MOMENTS). DIR
holds the public implementation (the package `autoattack`; A3's script; Sparse-RS's `rs_attacks.py`, which with adv_lib's
sigma-zero takes AutoAttack's place in l0); without it, it is left out. Passes of the other libraries are counted by hooks on
the model; A3 counts its own, and says of no image whether it stands. "Broken here only" and "left here only" are against
the public AutoAttack; overhead is the seconds over the passes times the cost of a pass of the model as it is, batched well.
An evaluation of a few samples goes before the first case: what a process does once, such as imports, is in no figure.
The suites of this project take seconds where AutoAttack takes minutes, over which a machine's speed evens out: they run
--repeats times, once before the other libraries and then after them, and the median of their seconds is given. A pass is
timed after each of these runs, and costs the median of that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import public_a3
import public_l0
import published
import torch
from tabulate import tabulate
from torch import Tensor, nn

import robust
from robust.sources import Samples, load_data, load_model
from robust.target import Target
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


class Measured(NamedTuple):
    """Which samples an evaluation leaves standing, what it cost, and, of ours, whether it is to be trusted."""

    survives: Tensor
    forwards: int
    backwards: int
    seconds: float
    trust: str = "-"


def measured(model: nn.Module, x: Tensor, y: Tensor, attack: Callable[[], Tensor]) -> Measured:
    """An attack of another library, its passes counted by hooks, its result judged here."""
    counter = Counter(model)
    start = time.perf_counter()
    x_adv = attack()
    seconds = time.perf_counter() - start
    counter.stop()
    with torch.no_grad():
        return Measured(model(x_adv).argmax(1) == y, counter.forwards, counter.backwards, seconds)


def own(model: nn.Module, samples: Samples, threat: Threat, suite: str) -> Measured:
    """A suite of this project."""
    report = robust.evaluate(model, samples, threat=threat, suite=suite, device="cpu")
    standing = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
    checks = ", ".join(finding["check"] for finding in report.findings)
    trust = report.trust + f": {checks}" * bool(checks)
    return Measured(standing, report.forwards, report.backwards, report.seconds, trust)


def public_autoattack(
    folder: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    components: Sequence[str] = (),
    seed: int = 0,
) -> Measured:
    """The original (or some of its components)."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from autoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    attack = AutoAttack(
        model, norm=norm, eps=threat.radius, version="standard", device=x.device, verbose=False, seed=seed
    )
    attack.attacks_to_run = list(components) or attack.attacks_to_run
    return measured(
        model, x, y, lambda: attack.run_standard_evaluation(x, y, bs=250 if x.device.type == "cpu" else 500)
    )


def torchattacks_autoattack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Measured:
    """torchattacks' AutoAttack: the four components, each with 10 steps by its default (Square with 5,000 queries)."""
    import torchattacks

    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    classes = int(model(x[:1]).shape[1])
    attack = torchattacks.AutoAttack(model, norm=norm, eps=threat.radius, n_classes=classes, seed=0)
    return measured(model, x, y, lambda: torch.cat([attack(*part) for part in _parts(x, y, 250)]))


def art_autoattack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Measured:
    """ART's AutoAttack: APGD on CE and DLR, DeepFool and Square, with its defaults."""
    numpy.random.seed(0)  # noqa: NPY002 - where ART draws from
    from art.attacks.evasion import AutoAttack
    from art.estimators.classification import PyTorchClassifier

    classes = int(model(x[:1]).shape[1])
    estimator = PyTorchClassifier(
        _Whole(model),
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    norm = {"linf": torch.inf, "l2": 2}[threat.norm]
    attack = AutoAttack(estimator, norm=norm, eps=threat.radius, eps_step=threat.radius / 4, batch_size=250)
    return measured(
        model, x, y, lambda: torch.from_numpy(attack.generate(x.numpy(), y.numpy())).to(torch.float32)
    )


class _Whole(nn.Module):
    """A model in one piece: ART calls the layers of a Sequential one by one, past the model's hooks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


PEERS = {
    "torchattacks' AutoAttack (APGD-CE, APGD-T and FAB-T of 10 steps, Square 5,000)": torchattacks_autoattack,
    "ART's AutoAttack (APGD-CE and APGD-DLR from 5 starts, DeepFool, Square 5 x 5,000; no APGD-T, no FAB)": art_autoattack,
}


def row(name: str, found: Measured | public_a3.Printed, reference: Tensor, pass_seconds: float) -> str:
    if isinstance(found, Measured):
        robust, survives, trust = float(found.survives.float().mean()), found.survives, found.trust
        apart = f"{int((~survives & reference).sum())} | {int((survives & ~reference).sum())}"
    else:
        robust, apart, trust = found.robust, "- | -", "-"
    overhead = found.seconds / (pass_seconds * (found.forwards + found.backwards))
    return (
        f"| {name} | {100 * robust:.1f} | {apart} | "
        f"{found.forwards} | {found.backwards} | {found.seconds:.1f} | {overhead:.2f} | {trust} |"
    )


def pass_seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Half of a forward and input-gradient pass of a sample, at the best of a few batch sizes."""
    costs = []
    with Target(model, device="cpu") as target:
        for size in (s for s in (16, 64, 250) if s <= len(x)):
            times = []
            for _ in range(3):
                start = time.perf_counter()
                point = x[:size].clone().requires_grad_()
                torch.autograd.grad(nn.functional.cross_entropy(target.model(point), y[:size]), point)
                times.append(time.perf_counter() - start)
            costs.append(min(times) / (2 * size))
    return min(costs)


def _parts(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(size), y.split(size), strict=True)


def case_of(case: str, limit: int) -> tuple[str, nn.Module, Samples, Threat]:
    """The model's name, the model, the samples and the threat that a --case names."""
    spec, weights, source, threat = case.split(",")
    if spec.startswith("onnx:"):
        name, model = Path(spec).stem, published.normalized(load_model(spec), weights)
    else:
        name, model = _name(weights), load_model(spec, weights)
    return name, model.eval(), load_data(source).limit(limit), Threat.parse(threat)


def hardware() -> str:
    """Processor, threads and torch, for the foot of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}."


def write_figures(
    title: str, heads: Sequence[str], rows: list[list[str]], command: str, results: str | None
) -> None:
    """Print a table with what it was measured on and by, and write it to results/ where it is given a name there."""
    table = tabulate(rows, heads, "github", disable_numparse=True)
    foot = f"{hardware()}\nCommand: python benchmarks/{command}, with the cases named in the rows."
    text = f"# {title}\n\n{table}\n\n{foot}\n"
    print(text)
    if results:
        (Path(__file__).parent / "results" / f"{results}.md").write_text(text, encoding="utf-8")


def compare(case: str, options: argparse.Namespace) -> list[str]:
    name_of_model, model, samples, threat = case_of(case, options.limit)
    x, y = samples.rows(slice(None)), samples.y
    suites = options.suite or ["standard"]
    costs: list[float] = []

    def ours() -> list[Measured]:
        found = [own(model, samples, threat, suite) for suite in suites]
        costs.append(pass_seconds(model, x, y))
        return found

    runs = [ours()]
    reference = runs[0][0]
    found: dict[str, Measured | public_a3.Printed] = {}
    model.requires_grad_(False)  # no library is made to pay for gradients of the weights
    if threat.norm == "l0" and options.sparse_rs:
        attack = public_l0.attack(options.sparse_rs, model, x, y, threat)
        reference = found[public_l0.NAME] = measured(model, x, y, attack)
    elif options.auto_attack:
        reference = found["public AutoAttack"] = public_autoattack(options.auto_attack, model, x, y, threat)
    if options.a3:
        found["public A3"] = public_a3.attack(options.a3, model, x, y, threat)
    if options.peers:
        found |= {name: peer(model, x, y, threat) for name, peer in PEERS.items()}
    runs += [ours() for _ in range(options.repeats - 1)]
    of_suites = {
        f"robust, {suite}": _typical(repeats)
        for suite, repeats in zip(suites, zip(*runs, strict=True), strict=True)
    }
    return [
        row(f"{name_of_model} {threat} | {name}", one, reference.survives, statistics.median(costs))
        for name, one in (of_suites | found).items()
    ]


def _typical(repeats: Sequence[Measured]) -> Measured:
    """The first of several runs, with the median of their seconds."""
    return repeats[0]._replace(seconds=statistics.median(run.seconds for run in repeats))


def _warm_up(case: str) -> None:
    _, model, samples, threat = case_of(case, 8)
    robust.evaluate(model, samples, threat=threat, suite="quick", device="cpu")


def _command(options: argparse.Namespace) -> str:
    suites = "".join(f" --suite {suite}" for suite in options.suite or ())
    public = " --auto-attack DIR" * bool(options.auto_attack) + " --a3 DIR" * bool(options.a3)
    public += " --sparse-rs DIR" * bool(options.sparse_rs)
    return (
        f"Command: python benchmarks/verdict.py{public}{' --peers' * options.peers} --limit {options.limit}"
        f" --repeats {options.repeats}{suites}, "
        "with the cases named in the rows."
    )


def _name(weights: str) -> str:
    """A weights file that is called weights is named by its folder."""
    path = Path(weights)
    return path.parent.name if path.stem == "weights" else path.stem


def write_table(
    head: Sequence[str], command: str, rows_of: Callable[[str], list[str]], options: argparse.Namespace
) -> None:
    """Print a table case by case, and keep it under results/ where --results names it."""
    lines = list(head)
    print("\n".join(lines), flush=True)
    foot = ["", f"{hardware()} {options.note}".strip(), command]
    for case in options.case:
        rows = rows_of(case)
        print("\n".join(rows), flush=True)
        lines += rows
        if options.results:  # after every case: a long run that is cut off keeps what it has
            (Path(__file__).parent / "results" / f"{options.results}.md").write_text(
                "\n".join(lines + foot) + "\n"
            )
    print("\n".join(foot), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR")
    parser.add_argument("--a3", metavar="DIR")
    parser.add_argument("--sparse-rs", metavar="DIR")
    parser.add_argument("--peers", action="store_true", help="torchattacks' and ART's AutoAttack too")
    parser.add_argument("--suite", action="append")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="runs of this project's suites")
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--note", default="", help="said at the foot, such as what else the machine did")
    options = parser.parse_args()
    _warm_up(options.case[0])
    lines = [
        f"# Verdicts on {options.limit} images each",
        "",
        "| model and threat | suite | robust % | broken here only | left here only | forwards | backwards | seconds | overhead | trust |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    write_table(lines, _command(options), lambda case: compare(case, options), options)


if __name__ == "__main__":
    main()
