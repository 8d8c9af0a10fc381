"""Every attack of a norm at equal passes on the same models, next to the peers' at their best settings.

python benchmarks/train.py --out NETS && python benchmarks/strength.py --nets NETS [--norm linf]... [--cifar DIR]

Table-driven: ours are whatever is registered for the norm; theirs are named in PEERS below. Each attack gets
the number of steps or queries that costs about --passes forwards and backwards a sample (score and decision
attacks: --queries forwards), found by measuring the cost of few and of more steps, and no sample may cost more.
The samples are those that the model classifies correctly. Libraries get all of them as one batch. Results of a
norm replace those of the same norm in the results file.
"""

from __future__ import annotations

import argparse
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import advlib
import torch
from torch import Tensor
from train import HERE, NETS

from robust import memory
from robust.attacks import ATTACKS, Attack, make_attack
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
    "mifgsm": [{}, {"step_size": 0.2}],
    "superdeepfool": [{"rounds": 3}],
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
    "mifgsm(step_size=0.2)": [("foolbox:MIFGSM", {}), ("foolbox:L2MomentumIterativeFastGradientMethod", {})],
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


@dataclass
class Outcome:
    """An attack on one model: who broke, how near, what it cost."""

    broken: Tensor
    distance: Tensor
    passes: float
    seconds: float

    @classmethod
    def of(cls, ledger: Ledger, seconds: float) -> Outcome:
        passes = (ledger.forwards + ledger.backwards).double().mean().item()
        return cls(ledger.broken, ledger.distance.double(), passes, seconds)

    def cell(self, minimum_norm: bool) -> str:
        standing = 100 * (1 - self.broken.double().mean().item())
        median = self.distance.median().item()
        near = "-" if not minimum_norm else "none" if math.isinf(median) else f"{median:.3g}"
        return f"{standing:.1f} | {near} | {self.passes:.0f} | {self.seconds:.2f}"


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
        return cls(
            f"{name}, {norm}:{eps}, {len(right)} images", target, x[right], y[right], Threat(norm, eps)
        )

    def run(
        self, attack: Attack, budget: int | None, rows: slice = slice(None), shrink: bool = False
    ) -> Outcome:
        """One attack; `shrink` makes the radius so small that nothing breaks."""
        x, y = self.x[rows], self.y[rows]
        threat = Threat(self.threat.norm, str(self.threat.radius * 1e-4)) if shrink else self.threat
        with self.target:
            oracle = Oracle(
                self.target, x, y, torch.arange(len(x)), threat,
                purpose=attack.label, access=attack.access, micro_batch=len(x), budget=budget,
                minimize=attack.minimum_norm, stays_inside=attack.stays_inside,
            )  # fmt: skip
            start = time.process_time()
            attack(oracle)
            return Outcome.of(oracle.ledger, time.process_time() - start)


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
        gradient = ATTACKS[name].access == "gradient"
        budget = options.passes if gradient else options.queries
        try:
            attack = fitted(name, settings, budget, cases[0])
            key = group, attack.label
            made[key] = attack
            found[key] = [case.run(attack, budget) for case in cases]
        except Exception as error:
            if ":" not in name:
                raise
            failed.append(f"{name} ({type(error).__name__}: {str(error).splitlines()[0]})")
            continue
        cells = [outcome.cell(attack.minimum_norm) for outcome in found[key]]
        print(f"{norm} {attack.label}: {cells}", file=sys.stderr, flush=True)
    crashed = [f"Does not run here: {', '.join(failed)}.", ""] if failed else []
    return [f"## {norm}", "", *crashed, *table(cases, found, made), "", *pairs(found, made)]


def table(
    cases: list[Case], found: dict[tuple[str, str], list[Outcome]], made: dict[tuple[str, str], Attack]
) -> list[str]:
    lines = []
    for i, case in enumerate(cases):
        lines += [
            f"{case.title}:",
            "",
            "| attack | robust % | median distance | passes | seconds |",
            "|---|---|---|---|---|",
        ]
        ranked = sorted(
            found, key=lambda k: (-int(found[k][i].broken.sum()), found[k][i].distance.median().item())
        )
        lines += [f"| {shown(made[k])} | {found[k][i].cell(made[k].minimum_norm)} |" for k in ranked]
        lines.append("")
    return lines


def pairs(found: dict[tuple[str, str], list[Outcome]], made: dict[tuple[str, str], Attack]) -> list[str]:
    """Ours against its namesakes, over the three models together."""
    lines = ["| ours | theirs | broke: ours | theirs | either | only ours | only theirs | nearer: ours | theirs | seconds, ours / theirs | a pass |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for group, name in found:
        if (
            ":" not in name
            or (ours := next(((g, n) for g, n in found if g == group and ":" not in n), None)) is None
        ):
            continue
        a, b = found[ours], found[group, name]
        mine, theirs = torch.cat([o.broken for o in a]), torch.cat([o.broken for o in b])
        near = ["-", "-"]
        if made[ours].minimum_norm:
            d, e = torch.cat([o.distance for o in a]), torch.cat([o.distance for o in b])
            near = [str(int((d < 0.99 * e).sum())), str(int((e < 0.99 * d).sum()))]
        ratio, each = (
            statistics.median(cost(o) / cost(p) for o, p in zip(a, b, strict=True))
            for cost in (lambda o: o.seconds, lambda o: o.seconds / o.passes)
        )
        lines.append(
            f"| {shown(made[ours])} | {shown(made[group, name])} | {int(mine.sum())} | {int(theirs.sum())} | {int((mine | theirs).sum())} | "
            f"{int((mine & ~theirs).sum())} | {int((theirs & ~mine).sum())} | {near[0]} | {near[1]} | {ratio:.2f} | {each:.2f} |"
        )
    return lines


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
    parser.add_argument("--images", type=int, default=150, help="a model; half as many for CIFAR-10")
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument(
        "--beside", default="", metavar="TEXT", help="what else ran on the machine, for the record"
    )
    parser.add_argument("--results", default="strength-cpu", metavar="NAME", help="of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(
        1
    )  # seconds are those of the processor: what else runs on the machine is not in them
    memory.keep_freed_memory()  # for all: what it gains is not counted as ours
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
        lines += ["", f"At most {options.passes} passes (score and decision attacks {options.queries}) a sample. {hardware()}, "
                  f"one thread, {versions}, {time.perf_counter() - start:.0f} s.", *[options.beside] * bool(options.beside)]  # fmt: skip
        keep(norm, "\n".join(lines), options.results)


def keep(norm: str, section: str, name: str) -> None:
    """Put a norm's section into the results, in the place of an older one."""
    print(section, flush=True)
    results = HERE / "results" / f"{name}.md"
    old = results.read_text().split("\n## ")[1:] if results.exists() else []
    sections = {part.partition("\n")[0]: f"## {part}".strip() for part in old} | {norm: section}
    head = (
        "# Attacks at equal passes\n\nSee `strength.py`. Robust accuracy among samples that the model classifies "
        "correctly; distances in the threat's norm.\n*broke*, *either* and *nearer* (by 1 % at least) count samples of "
        "the three models together; seconds are those of the processor, their ratios medians over the models. "
        "Another single-threaded process\nmay have run beside. Ours let a broken sample go, hence fewer passes; "
        "*a pass* compares the seconds of one, forward or backward: a backward takes longer, so that an attack with more\n"
        "backwards to a forward than its namesake (DeepFool: 9 to 1 where foolbox has 1 to 1; VFGA) takes longer a pass."
    )
    results.write_text("\n\n".join([head, *(sections[n] for n in CASES if n in sections)]) + "\n")


if __name__ == "__main__":
    main()
