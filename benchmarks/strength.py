"""Every attack of a norm at equal passes on the same models, next to the peers' at their best settings.

python benchmarks/train.py --out NETS && python benchmarks/strength.py --nets NETS [--norm linf]... [--cifar DIR]

Table-driven: ours are whatever is registered for the norm; theirs are named in PEERS below. Each attack gets
the number of steps or queries that costs about --passes forwards and backwards a sample (score and decision
attacks: --queries forwards), found by measuring the cost of few and of more steps, and no sample may cost more.
The samples are those that the model classifies correctly. Libraries get all of them as one batch, and what counting
their passes takes is taken off their seconds. Every attack runs with each of the seeds. Results of a norm replace
those of the same norm in the results file.
"""

from __future__ import annotations

import argparse
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import advlib
import torch
from torch import Tensor
from train import HERE, NETS

from robust import memory
from robust.attacks import ATTACKS, Attack, make_attack
from robust.attacks.adapters import Meter
from robust.errors import InputError
from robust.ledger import Ledger
from robust.oracle import Oracle
from robust.sources import load_data, load_model
from robust.target import Target
from robust.threat import Threat

KNOBS = (
    "steps",
    "queries",
    "max_iter",
    "max_iterations",
    "n_queries",
    "nb_iter",
    "num_steps",
    "n_iter",
    "iter",
)
CASES = {
    "linf": (("mnist-linf.2", "0.25"), ("mnist-mlp-.1", "0.15"), ("cifar-cnn-8", "6/255")),
    "l2": (("mnist-l2", "2"), ("mnist-mlp-.1", "1.5"), ("cifar-silu-l2", "0.5")),
    "l1": (("mnist-l2", "12"), ("mnist-plain", "6"), ("cifar-silu-l2", "8")),
    "l0": (("mnist-l2", "15"), ("mnist-plain", "8"), ("cifar-silu-l2", "12")),
}
Entry = tuple[str, dict[str, Any]]
SHARES = (
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    3 / 4,
)  # of our steps, tried for the fewest that are as strong as a peer
CW = {"binary_search_steps": 4, "initial_const": 1.0}
PER_STEP = object()  # a step size of 2.5 / steps, in units of eps
OURS: dict[str, list[dict[str, Any]]] = {  # variants beside the defaults; [] leaves an attack out
    "pgd": [{}, {"loss": "margin", "schedule": "cosine"}],
    "apgd": [{}, {"loss": "dlr"}, {"targets": 3}],
    "cw": [{**CW, "learning_rate": 0.1, "abort_early": False}],  # few and long steps
    "ead": [CW],
    "deepfool": [{"steps": 50}],  # it stops by itself
    "fab": [{"targets": 3}, {"targets": 0}],
    "multitargeted": [{"targets": 2}],
    "mifgsm": [{}, {"step_size": 0.2, "normalize": False}],  # the latter as foolbox defines it
    "superdeepfool": [{"rounds": 3}],
    "sigma-zero": [{}, {"step_size": 2.0, "threshold": 0.4}],  # as in the paper; few and long steps
    "spsa": [{"samples": 16, "step_size": 1.0}],  # few queries: few and long steps
    "transfer": [],  # its strength is the surrogate's
}
# Ours -> the same attack elsewhere: settings that were better than the libraries' own on these nets or are the
# paper's. Steps and queries are set by the budget; step sizes left out follow eps (see the adapters).
PEERS: dict[str, list[Entry]] = {
    "fgsm": [("torchattacks:FGSM", {}), ("art:FastGradientMethod", {}), ("foolbox:FGSM", {}), ("foolbox:FGM", {}),
             ("foolbox:L1FastGradientAttack", {})],
    "pgd": [("torchattacks:PGD", {}), ("torchattacks:PGDL2", {}), ("adv_lib:pgd_linf", {"relative_step_size": PER_STEP}),
            ("art:ProjectedGradientDescentPyTorch", {"num_random_init": 1}),
            ("foolbox:LinfPGD", {"rel_stepsize": PER_STEP}), ("foolbox:L2PGD", {"rel_stepsize": PER_STEP}),
            ("foolbox:L1PGD", {"rel_stepsize": PER_STEP}), ("foolbox:SparseL1DescentAttack", {"rel_stepsize": PER_STEP})],
    "mifgsm": [("torchattacks:MIFGSM", {}), ("art:MomentumIterativeMethod", {})],
    "apgd": [("torchattacks:APGD", {}), ("adv_lib:apgd", {"loss_function": "ce"}), ("art:AutoProjectedGradientDescent", {"nb_random_init": 1}),
             ("art:AutoConjugateGradient", {"nb_random_init": 1})],
    "apgd(loss=dlr)": [("torchattacks:APGD", {"loss": "dlr"}), ("adv_lib:apgd", {})],
    "apgd(targets=3)": [("torchattacks:APGDT", {}), ("adv_lib:apgd_targeted", {"num_targets": 3})],
    "mifgsm(step_size=0.2,normalize=False)": [("foolbox:MIFGSM", {}), ("foolbox:L2MomentumIterativeFastGradientMethod", {})],
    "fab(targets=0)": [("torchattacks:FAB", {}), ("adv_lib:fab", {})],
    "fab(targets=3)": [("adv_lib:fab", {"targeted_restarts": True, "restarts": 3})],
    "square": [("torchattacks:Square", {}), ("art:SquareAttack", {})],
    "spsa(samples=16,step_size=1.0)": [("torchattacks:SPSA", {"nb_sample": 16, "lr": 0.05})],
    "cw": [("torchattacks:CW", {"c": 10, "lr": 0.05}), ("torchattacks:CW", {"c": 10, "lr": 0.2}),
           ("art:CarliniL2Method", {**CW, "learning_rate": 0.1, "max_halving": 1, "max_doubling": 1}),
           ("foolbox:L2CarliniWagnerAttack", {**CW, "stepsize": 0.05}),
           ("foolbox:L2CarliniWagnerAttack", {**CW, "stepsize": 0.2}),
           ("adv_lib:carlini_wagner_l2", {**CW, "learning_rate": 0.2})],
    "ddn": [("foolbox:DDNAttack", {}), ("adv_lib:ddn", {"levels": None})],
    "fmn": [("adv_lib:fmn", {}), ("foolbox:LInfFMNAttack", {}), ("foolbox:L2FMNAttack", {}), ("foolbox:L1FMNAttack", {}),
            ("foolbox:L0FMNAttack", {})],
    "deepfool": [("torchattacks:DeepFool", {}), ("art:DeepFool", {"epsilon": 0.02}), ("foolbox:L2DeepFoolAttack", {}),
                 ("foolbox:LinfDeepFoolAttack", {}), ("adv_lib:df", {})],
    "superdeepfool(rounds=3)": [("adv_lib:sdf", {"df_steps": 10})],
    "pdpgd": [("adv_lib:pdpgd", {}), ("adv_lib:pdgd", {})],
    "sigma-zero": [("adv_lib:sigma_zero", {})],
    "sigma-zero(step_size=2.0,threshold=0.4)": [("adv_lib:sigma_zero", {})],
    "vfga": [("adv_lib:vfga", {})],
    "ead": [("torchattacks:EADL1", CW), ("art:ElasticNet", {**CW, "decision_rule": "L1", "learning_rate": 0.05}),
            ("foolbox:EADAttack", {**CW, "decision_rule": "L1", "initial_stepsize": 0.05})],
    "hopskipjump": [("art:HopSkipJump", {}), ("foolbox:HopSkipJumpAttack", {})],
}  # fmt: skip
OTHERS: dict[str, list[Entry]] = {  # strong attacks that have no namesake here
    "l2": [("adv_lib:alma", {}), ("torchattacks:EADEN", {"binary_search_steps": 4})],
    "l1": [("adv_lib:alma", {})],
    "l0": [("torchattacks:JSMA", {}), ("torchattacks:SparseFool", {}), ("torchattacks:OnePixel", {}), ("foolbox:PointwiseAttack", {})],
    "linf": [],
}  # fmt: skip


HEAD = """\
# Attacks at equal passes

See `strength.py`. Robust accuracy among samples that the model classifies correctly, over all seeds; distances in the
threat's norm. *broke*, *either* and *nearer* (by 1 % at least) count samples of the three models and all seeds
together. Seconds are those of the processor, without what counting the peers' passes takes; ratios are medians over
the models. Ours let a broken sample go, hence fewer passes. *overhead* is the seconds over what the model alone takes
for as many forwards and backwards (a backward takes longer: up to twice a forward). *at their strength*: the seconds
that ours takes with the fewest steps (of a sixteenth, an eighth, a quarter, half, three quarters or all) at which it
breaks as many as the peer (minimum norm: and is as often the nearer one), over the peer's seconds.
The model alone is timed before and after each attack."""


@dataclass
class Outcome:
    """An attack on one model, with one seed or several in a row: who broke, how near, what it cost (a run, on average)."""

    broken: Tensor
    distance: Tensor
    passes: float
    seconds: float
    alone: float  # seconds that the model alone takes for these forwards and backwards

    def cell(self, minimum_norm: bool) -> str:
        standing = 100 * (1 - self.broken.double().mean().item())
        median = self.distance.median().item()
        near = "-" if not minimum_norm else "none" if math.isinf(median) else f"{median:.3g}"
        return f"{standing:.1f} | {near} | {self.passes:.0f} | {self.seconds:.2f} | {self.seconds / self.alone:.2f}"

    @classmethod
    def joined(cls, runs: list[Outcome]) -> Outcome:
        """Several seeds' runs as one; the seconds are the median's, since a busy machine only adds to them."""
        return cls(
            torch.cat([run.broken for run in runs]),
            torch.cat([run.distance for run in runs]),
            statistics.mean(run.passes for run in runs),
            statistics.median(run.seconds for run in runs),
            statistics.mean(run.alone for run in runs),
        )

    def first(self, count: int) -> Outcome:
        """The outcome of the first `count` samples."""
        return replace(self, broken=self.broken[:count], distance=self.distance[:count])


@dataclass
class Case:
    """A model, the samples it classifies correctly, a threat."""

    title: str
    target: Target
    x: Tensor
    y: Tensor
    threat: Threat

    @classmethod
    def load(cls, name: str, norm: str, eps: str, options: argparse.Namespace) -> Case:
        net = NETS[name]
        model = load_model(net.spec, str(options.nets / name / "weights.safetensors"))
        source = "builtin:mnist5k:test" if net.data == "mnist" else str(options.cifar / "test.parquet")
        count = options.images if net.data == "mnist" else max(8, options.images // 2)
        samples = load_data(source).limit(4 * count)
        x, y = samples.rows(slice(None)), samples.y
        target = Target(model.eval(), device="cpu")
        with target, torch.no_grad():
            right = (target.logits(x).argmax(1) == y).nonzero().squeeze(1)[:count]
        title = f"{name}, {norm}:{eps}, {len(right)} images"
        return cls(title, target, x[right], y[right], Threat(norm, eps))

    def run(
        self,
        attack: Attack,
        budget: int | None,
        rows: slice = slice(None),
        *,
        shrink: bool = False,
        seed: int = 0,
    ) -> Outcome:
        """One attack; `shrink` makes the radius so small that nothing breaks."""
        x, y = self.x[rows], self.y[rows]
        threat = Threat(self.threat.norm, str(self.threat.radius * 1e-4)) if shrink else self.threat
        with self.target:
            oracle = Oracle(
                self.target, x, y, torch.arange(len(x)), threat, seed=seed,
                purpose=attack.label, access=attack.access, micro_batch=len(x), budget=budget,
                minimize=attack.minimum_norm, stays_inside=attack.stays_inside,
            )  # fmt: skip
            before, start = row_seconds(self.target, x), time.process_time() - metering.seconds
            attack(oracle)
            seconds = time.process_time() - metering.seconds - start
            return _outcome(oracle.ledger, seconds, before, row_seconds(self.target, x))


def _outcome(ledger: Ledger, seconds: float, *rows: tuple[float, float]) -> Outcome:
    """Of an attack before and after which the model alone took so long: how fast a machine is changes by the minute."""
    spent = ledger.forwards.sum().item(), ledger.backwards.sum().item()
    alone = statistics.mean(spent[0] * forward + spent[1] * backward for forward, backward in rows)
    return Outcome(ledger.broken, ledger.distance.double(), sum(spent) / len(ledger.broken), seconds, alone)


def row_seconds(target: Target, x: Tensor) -> tuple[float, float]:
    """What a forward and a backward of the model alone take, a sample: the least of several."""
    times = []
    with target:
        for _ in range(4):
            point, start = x.clone().requires_grad_(), time.process_time()
            out = target.logits(point).sum()
            middle = time.process_time()
            torch.autograd.grad(out, point)
            times.append((middle - start, time.process_time() - middle))
    return min(t[0] for t in times) / len(x), min(t[1] for t in times) / len(x)


class Metering:
    """What the hooks take that count the libraries' passes: no time of theirs."""

    seconds = 0.0
    _deep = False  # one of its methods asks another

    def begin(self) -> None:
        for name in ("_count", "_backward", "_afford"):
            setattr(Meter, name, self._timed(getattr(Meter, name)))
        self._deep = False

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            if self._deep:
                return method(*args)
            start, self._deep = time.process_time(), True
            try:
                return method(*args)
            finally:
                self.seconds += time.process_time() - start
                self._deep = False

        return timed


metering = Metering()


def fitted(name: str, options: dict[str, Any], budget: int, case: Case) -> Attack:
    """The attack with as many steps as the budget pays for: cost is taken to be a + b x steps."""
    if ":" in name:
        options = {**options, "group": 1000}
    open_ = [key for key, value in options.items() if value is PER_STEP]
    options = {key: value for key, value in options.items() if value is not PER_STEP}
    base = make_attack(name, **options)
    knob = next((k for k in KNOBS if k in {f.name for f in fields(base)}), None)
    if knob is None or knob in options:
        return base
    few = slice(0, 2)
    if knob == "queries":  # ours: forwards
        return make_attack(name, **options, queries=budget)
    low = 10 if knob == "max_iterations" else 4  # fewer do not run
    costs = [
        case.run(make_attack(name, **options, **{knob: v}), None, few, shrink=True).passes
        for v in (low, 2 * low)
    ]
    slope = max((costs[1] - costs[0]) / low, 1e-9)
    count = max(10 if low == 10 else 1, int(low + min((budget - costs[0]) / slope, budget)))
    return make_attack(name, **options, **{knob: count}, **dict.fromkeys(open_, 2.5 / count))


def entries(norm: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(group, name, options): ours by name with its variants, then its peers."""
    for name in ATTACKS:
        if norm not in ATTACKS[name].norms or name == "transfer":  # it needs a surrogate
            continue
        for options in OURS.get(name, [{}]):
            group = make_attack(name, **options).label if options and name not in ("cw", "ead") else name
            yield group, name, options
            for peer, settings in PEERS.get(group, []):
                if there(peer) and norm in ATTACKS[peer].norms:
                    yield group, peer, settings
    for peer, settings in OTHERS[norm]:
        if there(peer):
            yield peer, peer, settings


def there(peer: str) -> bool:
    """Whether its library can be had; adv_lib is no extra of this project."""
    return peer.partition(":")[0] in ATTACKS.annexes


def measure(norm: str, options: argparse.Namespace) -> list[str]:
    cases = [Case.load(name, norm, eps, options) for name, eps in CASES[norm]]
    found: dict[tuple[str, str], list[Outcome]] = {}
    made: dict[tuple[str, str], Attack] = {}
    failed: list[str] = []
    for group, name, settings in entries(norm):
        if options.attack and group not in options.attack:
            continue
        gradient = ATTACKS[name].access == "gradient"
        budget = options.passes if gradient else options.queries
        try:
            attack = fitted(name, settings, budget, cases[0])
            key = group, attack.label
            made[key] = attack
            found[key] = [
                Outcome.joined([case.run(attack, budget, seed=seed) for seed in range(options.seeds)])
                for case in cases
            ]
        except Exception as error:
            if ":" not in name:
                raise
            failed.append(f"{name} ({type(error).__name__}: {str(error).splitlines()[0]})")
            continue
        cells = [outcome.cell(attack.minimum_norm) for outcome in found[key]]
        print(f"{norm} {attack.label}: {cells}", file=sys.stderr, flush=True)
    crashed = [f"Does not run here: {', '.join(failed)}.", ""] if failed else []
    return [f"## {norm}", "", *crashed, *table(cases, found, made), "", *pairs(cases, found, made)]


def table(
    cases: list[Case], found: dict[tuple[str, str], list[Outcome]], made: dict[tuple[str, str], Attack]
) -> list[str]:
    lines = []
    for i, case in enumerate(cases):
        lines += [
            f"{case.title}:",
            "",
            "| attack | robust % | median distance | passes | seconds | overhead |",
            "|---|---|---|---|---|---|",
        ]
        ranked = sorted(
            found, key=lambda k: (-int(found[k][i].broken.sum()), found[k][i].distance.median().item())
        )
        lines += [f"| {shown(made[k])} | {found[k][i].cell(made[k].minimum_norm)} |" for k in ranked]
        lines.append("")
    return lines


def pairs(
    cases: list[Case], found: dict[tuple[str, str], list[Outcome]], made: dict[tuple[str, str], Attack]
) -> list[str]:
    """Ours against its namesakes, over the three models together."""
    lines = ["| ours | theirs | broke: ours | theirs | either | only ours | only theirs | nearer: ours | theirs | seconds, ours / theirs | overhead | at their strength |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    shorter: dict[tuple[str, str], list[list[Outcome]]] = {}
    for group, name in found:
        if (
            ":" not in name
            or (ours := next(((g, n) for g, n in found if g == group and ":" not in n), None)) is None
        ):
            continue
        a, b = found[ours], found[group, name]
        mine, theirs = (torch.cat([o.broken for o in side]) for side in (a, b))
        near = nearer(a, b) if made[ours].minimum_norm else ("-", "-")
        if ours not in shorter:
            shorter[ours] = [[case.run(attack, None) for case in cases] for attack in fewer(made[ours])]
        enough = next((c for c in shorter[ours] if strong(c, b, made[ours].minimum_norm)), a)
        total = ratio(a, b, lambda o: o.seconds)
        lines.append(
            f"| {shown(made[ours])} | {shown(made[group, name])} | {int(mine.sum())} | {int(theirs.sum())} | {int((mine | theirs).sum())} | "
            f"{int((mine & ~theirs).sum())} | {int((theirs & ~mine).sum())} | {near[0]} | {near[1]} | {total:.2f} | "
            f"{ratio(a, b, lambda o: o.seconds / o.alone):.2f} | {ratio(enough, b, lambda o: o.seconds):.2f} |"
        )
    return lines


def nearer(a: list[Outcome], b: list[Outcome]) -> tuple[int, int]:
    """Samples of which one side's point is nearer than the other's, by a hundredth at least."""
    d, e = (torch.cat([o.distance for o in side]) for side in (a, b))
    return int((d < 0.99 * e).sum()), int((e < 0.99 * d).sum())


def ratio(a: list[Outcome], b: list[Outcome], cost: Callable[[Outcome], float]) -> float:
    return statistics.median(cost(o) / cost(p) for o, p in zip(a, b, strict=True))


def fewer(attack: Attack) -> Iterator[Attack]:
    """The attack with ever larger shares of its steps, where it has a number of them."""
    knob = next((k for k in KNOBS if k in {f.name for f in fields(attack)}), None)
    if knob is not None:
        count = getattr(attack, knob)
        for steps in sorted({max(1, round(count * share)) for share in SHARES} - {count}):
            with suppress(InputError):  # some do not begin with so few
                yield replace(attack, **{knob: steps})


def strong(ours: list[Outcome], theirs: list[Outcome], minimum_norm: bool) -> bool:
    """Whether ours, with one seed, breaks as many as theirs with the same, and is no less often the nearer one."""
    theirs = [p.first(len(o.broken)) for o, p in zip(ours, theirs, strict=True)]
    broke, peers = (sum(int(o.broken.sum()) for o in side) for side in (ours, theirs))
    near = nearer(ours, theirs)
    return broke >= peers and (not minimum_norm or near[0] >= near[1])


def shown(attack: Attack) -> str:
    label = attack.label.replace(",group=1000", "").replace("(group=1000)", "")
    return re.sub(r"(\.\d{3})\d+", r"\1", label)


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=Path, required=True, help="folder of benchmarks/train.py")
    parser.add_argument("--cifar", type=Path, default=HERE.parent.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--norm", action="append", choices=list(CASES))
    parser.add_argument(
        "--attack", action="append", metavar="LABEL", help="only this one of ours with its peers"
    )
    parser.add_argument("--images", type=int, default=150, help="a model; half as many for CIFAR-10")
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--beside", default="", metavar="TEXT", help="what else ran on the machine, for the record"
    )
    parser.add_argument("--results", default="strength-cpu", metavar="NAME", help="of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(
        1
    )  # seconds are those of the processor: what else runs on the machine is not in them
    memory.keep_freed_memory()  # for all: what it gains is not counted as ours
    metering.begin()
    originals = advlib.register()
    for norm in options.norm or list(CASES):
        start = time.perf_counter()
        lines = measure(norm, options)
        versions = ", ".join(
            f"{p} {version(p)}"
            for p in (
                "torch",
                "torchattacks",
                "adversarial-robustness-toolbox",
                "foolbox",
                *["adv-lib"] * originals,
            )
        )
        lines += ["", f"At most {options.passes} passes (score and decision attacks {options.queries}) a sample, {options.seeds} seeds. {hardware()}, "
                  f"one thread, {versions}, {time.perf_counter() - start:.0f} s.", *[options.beside] * bool(options.beside)]  # fmt: skip
        keep(norm, "\n".join(lines), options.results)


def keep(norm: str, section: str, name: str) -> None:
    """Put a norm's section into the results, in the place of an older one."""
    print(section, flush=True)
    results = HERE / "results" / f"{name}.md"
    old = results.read_text().split("\n## ")[1:] if results.exists() else []
    sections = {part.partition("\n")[0]: f"## {part}".strip() for part in old} | {norm: section}
    results.write_text("\n\n".join([HEAD, *(sections[n] for n in CASES if n in sections)]) + "\n")


if __name__ == "__main__":
    main()
