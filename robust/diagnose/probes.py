"""The costly checks: `evaluate(..., diagnose="full")` runs all, by default only the search of the whole box.

Each looks at a few samples (`Subject`) and gives a finding or nothing. Samples they break are told in the
finding and not counted: a suite's verdict is what its attacks found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from robust.attacks import PGD, Attack
from robust.attacks.geometry import random_start
from robust.diagnose import checks
from robust.diagnose.checks import Finding
from robust.ledger import Ledger
from robust.oracle import Evaluation, Oracle
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

PROBED: Final = 64  # correctly classified samples at most
_FEW: Final = 16
NOISE_DRAWS: Final = 1000
_BOX: Final = PGD(steps=30, loss="margin", schedule="cosine", step_size=0.5, random_start=False)
_STUCK: Final = 0.15  # in the box; nets trained for verified bounds are constant around some
# Of so few features classes alternate within the box, and one ascent ends on a top of its own; but random points are all over it.
_FEW_FEATURES: Final = 16
_BOX_DRAWS: Final = 256


@dataclass
class Subject:
    """Correctly classified samples under check, and what checking has cost.

    Args:
        target: entered.
        x, y, ids: the samples, on its device.
        survived: which of them the suite left standing, (N,) bool.
        attacks: the suite's.
    """

    target: Target
    threat: Threat
    x: Tensor
    y: Tensor
    ids: Tensor
    survived: Tensor
    attacks: Sequence[Attack]
    micro_batch: int
    seed: int = 0
    forwards: int = field(default=0, init=False)
    backwards: int = field(default=0, init=False)
    figures: dict[str, float] = field(default_factory=dict, init=False)  # for the report, beside the findings

    def __len__(self) -> int:
        return len(self.x)

    def survivors(self, limit: int = PROBED) -> Tensor:
        """Rows that the suite left standing: (M,)."""
        return self.survived.nonzero().squeeze(1)[:limit]

    def search(self, attack: Attack, rows: Tensor | slice = slice(None), **changes: Any) -> Ledger:
        """What an attack finds on some rows; `changes` go to the oracle, such as another threat."""
        return self._book(self.oracle(attack, rows, **changes), attack)

    def trace(self, attack: Attack, rows: Tensor) -> Tensor:
        """The highest margin so far after every gradient query of an attack: (queries, M)."""
        oracle = self.oracle(attack, rows, kind=_Tracing)
        assert isinstance(oracle, _Tracing)
        self._book(oracle, attack)
        return (
            torch.stack(oracle.margins) if oracle.margins else self.x.new_empty(0, len(oracle.ledger.broken))
        )

    def oracle(
        self, attack: Attack, rows: Tensor | slice, kind: type[Oracle] | None = None, **changes: Any
    ) -> Oracle:
        options = {
            "seed": self.seed, "purpose": f"check/{attack.label}", "access": attack.access,
            "micro_batch": self.micro_batch, "stays_inside": attack.stays_inside, "threat": self.threat, **changes,
        }  # fmt: skip
        return (kind or Oracle)(self.target, self.x[rows], self.y[rows], self.ids[rows], **options)

    def _book(self, oracle: Oracle, attack: Attack) -> Ledger:
        attack(oracle)
        self.forwards += int(oracle.ledger.forwards.sum())
        self.backwards += int(oracle.ledger.backwards.sum())
        return oracle.ledger

    @property
    def longest(self) -> Attack | None:
        """The suite's gradient attack with the most steps, of those that stay inside the threat all the way."""
        with_steps = [
            a for a in self.attacks if a.access == "gradient" and hasattr(a, "steps") and a.stays_inside
        ]
        return max(with_steps, key=lambda a: int(a.steps), default=None)

    @property
    def pgd(self) -> PGD:
        """The suite's first PGD, or one of 20 steps on the margin."""
        return next((a for a in self.attacks if isinstance(a, PGD)), PGD(steps=20, loss="margin"))


class _Tracing(Oracle):
    """Notes the highest margins as the attack goes on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.margins: list[Tensor] = []

    def gradient(self, x_adv: Tensor, loss: Callable[..., Tensor], *columns: Tensor) -> Evaluation:
        return self._noted(super().gradient(x_adv, loss, *columns))

    def slope(self, x_adv: Tensor, weights: Tensor) -> Evaluation:
        return self._noted(super().slope(x_adv, weights))

    def _noted(self, out: Evaluation) -> Evaluation:
        self.margins.append(self.ledger.margin.clone())
        return out


def unbounded(subject: Subject) -> Finding | None:
    """A search that cannot fail on an honest model: the whole box."""
    low, high = subject.threat.bounds
    rows = torch.arange(min(32, len(subject)))
    ledger = subject.search(_BOX, rows, threat=Threat("linf", repr(high - low), subject.threat.bounds))
    standing = ~ledger.broken & ~ledger.failed
    least = max(2, _STUCK * len(rows))
    if int(standing.sum()) < least or _one_class(subject):
        return None
    if subject.x[0].numel() <= _FEW_FEATURES:
        standing &= _in_all_the_box(subject, rows)
    left = int(standing.sum())
    if left < least:
        return None
    return checks.UNBOUNDED.finding(f"{left} of {len(rows)} samples withstand a search of the whole box")


@torch.no_grad()
def _one_class(subject: Subject) -> bool:
    """Whether the model takes the samples, their negatives and noise all for one class: nothing shows another."""
    low, high = subject.threat.bounds
    x = subject.x[:32]
    noise = Streams(subject.seed, subject.ids[:32], ("check/unbounded",)).uniform(x.shape[1:], low, high)
    points = torch.cat([x, low + high - x, noise.to(x.dtype)])
    subject.forwards += len(points) * subject.target.draws
    classes = torch.cat([subject.target.logits(part).argmax(1) for part in points.split(subject.micro_batch)])
    return bool((classes == classes[0]).all())


@torch.no_grad()
def _in_all_the_box(subject: Subject, rows: Tensor) -> Tensor:
    """Which samples are of the only class that the model gives at random points of the box: (M,) bool."""
    streams = Streams(subject.seed, torch.arange(_BOX_DRAWS, device=subject.x.device), ("check/box",))
    points = streams.uniform(subject.x.shape[1:], *subject.threat.bounds).to(subject.x.dtype)
    subject.forwards += len(points) * subject.target.draws
    classes = torch.cat([subject.target.logits(part).argmax(1) for part in points.split(subject.micro_batch)])
    return (classes[None, :] == subject.y[rows, None]).all(1)


def not_converged(subject: Subject) -> Finding | None:
    """Does the suite's longest gradient attack still gain when it ends?"""
    rows, attack = subject.survivors(32), subject.longest
    if not len(rows) or attack is None:
        return None
    margins = subject.trace(attack, rows)
    steps = int(attack.steps)  # type: ignore[attr-defined]
    if len(margins) < max(5, steps):
        return None
    tail = min(10, steps // 5)
    margins = margins[:steps]  # the first run: later ones start again
    rise = margins[-1] - margins[0]
    late = (margins[-1] - margins[-1 - tail]) / rise.clamp_min(1e-12)
    moved = float(late[rise > 0].mean()) if bool((rise > 0).any()) else 0.0
    if moved <= 0.05:
        return None
    return checks.NOT_CONVERGED.finding(
        f"{moved:.0%} of what {attack.label} gains on survivors comes in its last {tail} of {steps} steps"
    )


def doubled_budget(subject: Subject) -> Finding | None:
    """Do twice the steps, from other random starts, break what the suite left?"""
    rows = subject.survivors()
    if not len(rows):
        return None
    broken = torch.zeros(len(rows), dtype=torch.bool, device=subject.x.device)
    for attack in subject.attacks:
        if attack.access == "gradient" and hasattr(attack, "steps"):
            longer: Attack = replace(attack, steps=2 * attack.steps)  # type: ignore[call-arg]
            broken |= subject.search(longer, rows, seed=subject.seed + 1).broken
    count = int(broken.sum())
    if count < 2 or count <= 0.005 * len(subject):
        return None
    return checks.DOUBLED_BUDGET.finding(
        f"twice the steps break {count} more of {len(subject)} correctly classified samples"
    )


def step_size(subject: Subject) -> Finding | None:
    """Is a quarter or four times the step better than the step?"""
    plain = subject.pgd
    if subject.threat.norm not in plain.norms:
        return None
    size = plain.step_size or (1.0 if plain.schedule == "cosine" else 2.5 / plain.steps)
    usual = int(subject.search(plain).broken.sum())
    for factor in (0.25, 4):
        broke = int(subject.search(replace(plain, step_size=factor * size)).broken.sum())
        if broke - usual >= _notable(len(subject)):
            return checks.STEP_SIZE.finding(
                f"{plain.label} breaks {broke} of {len(subject)} samples with {factor:g} times its step, {usual} with its own"
            )
    return None


def monotone(subject: Subject) -> Finding | None:
    """Is what breaks at eps broken at twice eps?"""
    if subject.threat.norm not in subject.pgd.norms:
        return None
    wider = replace(subject.threat, eps=repr(2 * subject.threat.radius))
    near = subject.search(subject.pgd).broken
    far = subject.search(subject.pgd, threat=wider).broken
    lost = int((near & ~far).sum())
    if lost < _notable(len(subject)):
        return None
    return checks.MONOTONE.finding(
        f"{lost} of {int(near.sum())} samples that {subject.pgd.label} breaks at {subject.threat} stand at {wider}"
    )


def random_noise(subject: Subject) -> Finding | None:
    """Do random points inside the threat break what gradients left?"""
    rows = subject.survivors(_FEW)
    random = subject.target.randomized  # thousands of points would profit from lucky draws
    if random or not len(rows) or all(attack.access != "gradient" for attack in subject.attacks):
        return None
    samples = (subject.x[rows], subject.y[rows], subject.ids[rows])
    broken = broken_at_random(subject.target, subject.threat, *samples, seed=subject.seed)
    subject.forwards += NOISE_DRAWS * len(rows) * subject.target.draws
    count = int(broken.sum())
    if count < min(2, len(rows)):
        return None
    return checks.RANDOM_NOISE.finding(
        f"{NOISE_DRAWS} random points inside the threat break {count} of {len(rows)} samples that the suite left"
    )


@torch.no_grad()
def broken_at_random(
    target: Target, threat: Threat, x: Tensor, y: Tensor, ids: Tensor, *, seed: int
) -> Tensor:
    """Which samples are misclassified at one of 1,000 random points inside the threat: (N,) bool."""
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for draw in range(NOISE_DRAWS):
        point = random_start(x, threat, Streams(seed, ids, ("check/noise", draw)))
        broken |= target.logits(point).argmax(1) != y
    return broken


def _notable(n: int) -> float:
    """Of n samples, how many must show a flaw."""
    return max(2, 0.05 * n)
