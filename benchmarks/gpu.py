"""On a GPU: what the search's copies gain, verdicts beside the public AutoAttack, and PGD-40 beside torchattacks.

python benchmarks/gpu.py --case MODEL,WEIGHTS,DATA,THREAT [--case ...] [--auto-attack DIR] [--limit 1000] [--many 10000] \\
    [--cpu-limit 64]

A process for each case shows what its first evaluation costs, too.
For each case three tables: microseconds that a sample's forward and input gradient take, of the model as it is, as
torch runs it by default (TF32) and as the engine chose to search with; `standard` with that engine and in float32,
and the public AutoAttack (DIR holds the package) in torch's default arithmetic; PGD-40 of both libraries. "Inside" is
the share of the attacks' seconds between the start and the end of the model's passes, measured on the device. Some images are
attacked on the CPU too: how many verdicts differ is printed. Writes results/gpu-NAME.md with --results NAME.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import verdict
from torch import Tensor, nn

import robust
from robust import copies, engine
from robust.attacks import PGD
from robust.oracle import Oracle
from robust.run import WAVE, Run
from robust.sources import Samples
from robust.target import Target
from robust.threat import Threat
from robust.timing import pick_micro_batch

RESULTS = Path(__file__).parent / "results"
STEPS = 40


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds, the best of some."""
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


@contextlib.contextmanager
def default_arithmetic() -> Iterator[None]:
    """As torch runs convolutions if nothing is said: in TF32 where there is such a thing."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


class Inside:
    """Seconds on the device between the start and the end of the passes that attacks ask for."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks, self._attacking = device, [], False  # type: ignore[var-annotated]

    def __enter__(self) -> Inside:
        def without_gradient(target: Target, x: Tensor) -> Tensor:
            """A pass with one is counted as a whole."""
            return answer(target, x) if torch.is_grad_enabled() else timed(target, x)

        def stage(*arguments: Any, **options: Any) -> None:
            self._attacking = True
            attack(*arguments, **options)
            self._attacking = False

        answer, attack = Target.logits, Run.attack
        timed = self._around(answer)
        changed: list[tuple[Any, str, Any]] = [
            (Run, "attack", stage),
            (Target, "logits", without_gradient),
            *(
                (robust.passes, name, self._around(getattr(robust.passes, name)))
                for name in ("differentiate", "weigh", "jacobian")
            ),
        ]
        self._plain = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
        for place in changed:
            setattr(*place)
        return self

    def __exit__(self, *_: object) -> None:
        for place in self._plain:
            setattr(*place)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _around(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if not self._attacking:
                return plain(*arguments)
            start = self._mark()
            out = plain(*arguments)
            self._marks.append((start, self._mark()))
            return out

        return run

    @property
    def seconds(self) -> float:
        wait(self._device)
        if self._device.type != "cuda":
            return sum(end - start for start, end in self._marks)
        return sum(start.elapsed_time(end) for start, end in self._marks) / 1e3


def passes(name: str, target: Target, x: Tensor, y: Tensor) -> list[str]:
    """Microseconds a sample, forward and input gradient, for three ways to run the model."""
    with default_arithmetic():  # outside the target, which would switch it off
        model = target.model.to(target.device).eval().requires_grad_(False)
        loose = Target(model, normalize=target.normalize, device=target.device, tf32=True)
        ways = {"torch's default": [cost(loose, x, y, rows) for rows in (32, 512)]}
    with target:
        ways["float32"] = [cost(target, x, y, rows) for rows in (32, 512)]
        start = time.perf_counter()
        search, chosen = engine.fastest(target, x, y, 10_000)
        wait(target.device)
        sought = time.perf_counter() - start
        ways[chosen] = [cost(search, x, y, rows) for rows in (32, 512)]
        if target.device.type == "cuda":
            half = copies.Cast(copies.channels_last(target.model), torch.float16)
            start = time.perf_counter()
            compiled = target.twin(torch.compile(half, dynamic=False))  # type: ignore[arg-type]
            many = cost(compiled, x, y, 512)
            compiling = time.perf_counter() - start
            ways[f"channels_last, float16, torch.compile ({compiling:.0f} s)"] = [torch.nan, many]
    rows = [
        f"| {name} | {way} | {f'{few:.1f}' if few == few else '-'} | {many:.1f} |"
        for way, (few, many) in ways.items()
    ]
    return [*rows, f"| {name} | (seconds to choose) | | {sought:.1f} s |"]


def cost(target: Target, x: Tensor, y: Tensor, rows: int) -> float:
    index = torch.arange(rows, device=x.device) % len(x)
    many = x[index], y[index]
    engine._look(target, *many)
    return 1e6 * clock(lambda: [engine._look(target, *many) for _ in range(5)], target.device) / (5 * rows)


class Found(NamedTuple):
    """Which samples an evaluation leaves standing, what it cost, and which part of the time was the model's."""

    survives: Tensor
    forwards: int
    backwards: int
    seconds: float
    inside: str


def ours(
    model: nn.Module, samples: Samples, threat: Threat, device: Any, precision: Any
) -> tuple[str, Found]:
    """`standard`, and what it searched with."""
    with Inside(torch.device(device)) as inside:
        report = robust.evaluate(model, samples, threat=threat, device=device, precision=precision)
    survives = torch.from_numpy((report.verdicts.status == "survived").to_numpy(copy=True))
    attacking = sum(entry["seconds"] for entry in report.attacks)
    share = f"{attacking:.1f} | {inside.seconds / attacking:.0%}"
    return report.engine, Found(survives, report.forwards, report.backwards, report.seconds, share)


def public(folder: str, model: nn.Module, samples: Samples, threat: Threat, device: torch.device) -> Found:
    x, y = samples.rows(slice(None)).to(device), samples.y.to(device)
    model.to(device).requires_grad_(False)
    with default_arithmetic():
        found = verdict.public_autoattack(folder, model, x, y, threat)
    return Found(found.survives.cpu(), *found[1:], "- | -")


def line(name: str, found: Found, reference: Tensor) -> str:
    survives = found.survives
    apart = f"{int((~survives & reference).sum())} | {int((survives & ~reference).sum())}"
    return (
        f"| {name} | {len(survives)} | {100 * float(survives.float().mean()):.1f} | {apart} | {found.forwards} | "
        f"{found.backwards} | {found.seconds:.1f} | {len(survives) / found.seconds:.0f} | {found.inside} |"
    )


def verdicts(case: str, device: torch.device, options: argparse.Namespace) -> list[str]:
    """`standard` in the engine's choice and in float32, the public AutoAttack, and some images on the CPU."""
    name, model, samples, threat = verdict.case_of(case, options.limit)
    found = {}
    for precision, when in (("auto", ", the first evaluation of its process"), ("auto", ""), ("float32", "")):
        how, one = ours(model, samples, threat, device, precision)
        found[f"robust, standard, {precision} ({how}){when}"] = one
    reference = next(iter(found.values())).survives
    if options.auto_attack:
        found["public AutoAttack"] = public(options.auto_attack, model, samples, threat, device)
        reference = found["public AutoAttack"].survives
    rows = [line(f"{name} {threat} | {way}", one, reference) for way, one in found.items()]
    if options.many:
        how, one = ours(model, verdict.case_of(case, options.many)[2], threat, device, "auto")
        rows.append(line(f"{name} {threat} | robust, standard, auto ({how})", one, one.survives))
    if options.cpu_limit:
        few = samples.limit(options.cpu_limit)
        (_, there), (_, here) = (ours(model, few, threat, d, "auto") for d in (device, "cpu"))
        rows.append(
            line(
                f"{name} {threat} | robust, standard, auto, on the CPU, beside the GPU", here, there.survives
            )
        )
    return rows


def pgd(name: str, model: nn.Module, samples: Samples, threat: Threat, device: torch.device) -> str:
    """PGD-40 on the cross-entropy, on images that stand it or not: nobody leaves, so that both do the same work."""
    import torchattacks

    x, y = samples.rows(slice(None)).to(device), samples.y.to(device)
    attack = PGD(steps=STEPS, loss="ce")
    with Target(model, device=device) as target:
        search, _ = engine.fastest(target, x, y, len(x))
        batch = pick_micro_batch(search, lambda size: x[torch.arange(size, device=device) % len(x)], len(x))

        def run(on: Target) -> None:
            for rows in torch.arange(len(x), device=device).split(WAVE * batch):
                oracle = Oracle(
                    on,
                    x[rows],
                    y[rows],
                    rows,
                    threat,
                    purpose=attack.label,
                    micro_batch=batch,
                    observe=False,
                    judge=target if on is not target else None,
                )
                attack(oracle)

        own = [clock(lambda on=on: run(on), device) for on in (search, target)]  # type: ignore[misc]
    model.to(device).requires_grad_(False)
    theirs = torchattacks.PGD(model, eps=threat.radius, alpha=2.5 * threat.radius / STEPS, steps=STEPS)

    def peer() -> None:
        for rows in torch.arange(len(x), device=device).split(512):
            theirs(x[rows], y[rows])

    with default_arithmetic():
        other = clock(peer, device)
    return (
        f"| {name} {threat} | {len(x)} | {own[0]:.2f} | {own[1]:.2f} | {other:.2f} | {own[0] / other:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, metavar="MODEL,WEIGHTS,DATA,THREAT")
    parser.add_argument("--auto-attack", metavar="DIR")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--many", type=int, default=0, help="images of one more run")
    parser.add_argument("--cpu-limit", type=int, default=64, help="images that the CPU attacks too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", metavar="NAME")
    options = parser.parse_args()
    device = robust.Target(nn.Identity(), device=options.device).device
    name_of = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    tables: list[list[str]] = [
        ["| model | arithmetic | 32 rows, us | 512 rows, us |", "|---|---|---|---|"],
        ["| model and threat | suite | images | robust % | broken here only | left here only | forwards | backwards | seconds | images/s | attacking s | inside |", "|---|---|---|---|---|---|---|---|---|---|---|---|"],
        ["| model and threat | images | ours s | ours, float32 s | torchattacks, TF32 s | ours / torchattacks |", "|---|---|---|---|---|---|"],
    ]  # fmt: skip
    for case in options.case:
        name, model, samples, threat = verdict.case_of(case, options.limit)
        if threat.norm != "linf":
            tables[1] += verdicts(case, device, options)
            continue
        tables[1] += verdicts(case, device, options)
        print("\n".join(tables[1]), flush=True)
        x, y = samples.rows(slice(0, 64)).to(device), samples.y[:64].to(device)
        tables[0] += passes(name, Target(model, device=device), x, y)
        print("\n".join(tables[0]), flush=True)
        tables[2].append(pgd(name, model, samples, threat, device))
        print("\n".join(tables[2]), flush=True)
    command = f"Command: python benchmarks/gpu.py --limit {options.limit}{' --auto-attack DIR' * bool(options.auto_attack)}, with the cases named in the rows."
    text = "\n\n".join(
        [f"# On {name_of}", *("\n".join(table) for table in tables), f"torch {torch.__version__}. {command}"]
    )
    if options.results:
        (RESULTS / f"{options.results}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
