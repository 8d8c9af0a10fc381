"""The only door from an attack to the model.

An attack sees N rows and writes the loop of its paper. Everything else happens here: rows leave when
they are broken and the rest closes ranks, passes are counted per sample, budgets end the run, the
nearest adversarial point is kept, randomness is drawn per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from robust.errors import ModelError
from robust.losses import margin
from robust.rng import Streams
from robust.target import Target
from robust.threat import Threat

Access = Literal["gradient", "score", "decision"]
_RANK = {"decision": 0, "score": 1, "gradient": 2}


class State:
    """Per-row tensors that an attack keeps across steps; the oracle drops rows that are done.

    Attributes are free; every tensor among them has a row per live sample in its first dimension.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...

        def __setattr__(self, name: str, value: Tensor) -> None: ...


class Evaluation(NamedTuple):
    """What a gradient query gives: all for the point that was asked about."""

    gradient: Tensor  # (N, ...)
    value: Tensor  # (N,) loss
    logits: Tensor  # (N, C)


class Finished(Exception):  # noqa: N818 - control flow, caught by `Oracle.drive`
    """No row is left to work on, or the budget is spent."""


@dataclass
class Ledger:
    """What is known of every row of a run, whether still live or not. All (N,) but `x_adv`."""

    broken: Tensor  # an adversarial point inside the threat was seen
    failed: Tensor  # the model gave a non-finite logit
    distance: Tensor  # of x_adv, in the threat's norm; inf where none was seen
    margin: Tensor  # the highest margin seen (best other - label); negative while right
    forwards: Tensor
    backwards: Tensor
    x_adv: Tensor  # the adversarial point with the least distance; x where none was seen

    @staticmethod
    def empty(x: Tensor) -> Ledger:
        n, device = len(x), x.device
        no = torch.zeros(n, dtype=torch.bool, device=device)
        count = torch.zeros(n, dtype=torch.int64, device=device)
        return Ledger(
            broken=no,
            failed=no.clone(),
            distance=torch.full((n,), torch.inf, device=device),
            margin=torch.full((n,), -torch.inf, device=device),
            forwards=count,
            backwards=count.clone(),
            x_adv=x.clone(),
        )


class Oracle:
    """Access to a target for one attack on N samples.

    Args:
        target: the model, entered (frozen) by the caller.
        x: clean samples in the threat's box, float32 (N, ...), on the target's device.
        y: labels, (N,) int64.
        ids: sample ids, (N,) int64: they key the random streams.
        threat: norm, radius, box.
        seed, purpose: key of the random streams beside the id; the purpose is the attack's label.
        access: what the attack may ask for.
        micro_batch: rows a forward pass takes at most.
        budget: forwards plus backwards a sample may cost; None for no limit.
        minimize: go on after the first success to find a nearer one (minimum-norm curves);
            otherwise a row leaves once it is broken inside the threat.
        observe: watch the points; without, no row ever leaves and the ledger stays empty: for
            training, which wants the attack's last point of every row.
    """

    def __init__(
        self,
        target: Target,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        purpose: str = "",
        access: Access = "gradient",
        micro_batch: int = 256,
        budget: int | None = None,
        minimize: bool = False,
        observe: bool = True,
    ) -> None:
        self.x, self.y, self.ids, self.threat = x, y, ids, threat
        self.ledger = Ledger.empty(x)
        self._target = target
        self._seed, self._purpose = seed, purpose
        self._access, self._micro_batch = access, micro_batch
        self._budget, self._spent = budget, 0
        self._minimize, self._observe = minimize, observe
        self._rows = torch.arange(len(x), device=x.device)
        self._states: list[State] = []
        self._leaving: Tensor | None = None  # live rows that go at the next step
        self._pausing: Tensor | None = None  # live rows that sit out the current loop

    def __len__(self) -> int:
        """Live rows."""
        return len(self._rows)

    # -- what an attack asks --------------------------------------------------------------------

    def gradient(self, x_adv: Tensor, loss: Callable[..., Tensor], *columns: Tensor) -> Evaluation:
        """Gradient of a loss with its value: one forward, one backward.

        The loss is called with (logits, y, *columns); `columns` are per-row tensors such as target
        classes. The point counts as visited: if it is adversarial, that is recorded.
        """
        self._pay(1, 1)
        parts = [
            self._gradient(x_adv[rows], loss, self.y[rows], *(column[rows] for column in columns))
            for rows in self._batches()
        ]
        out = parts[0] if len(parts) == 1 else Evaluation(*(torch.cat(p) for p in zip(*parts, strict=True)))
        self._record(x_adv, out.logits)
        return out

    def logits(self, x_adv: Tensor) -> Tensor:
        """Logits at a visited point, (N, C): one forward."""
        self._require("score")
        return self._visit(x_adv)

    def visit(self, x_adv: Tensor) -> None:
        """Have a point recorded whose logits the attack does not need: one forward where points are watched."""
        if self._observe:
            self._visit(x_adv)

    def decide(self, x_adv: Tensor) -> Tensor:
        """Whether the visited point is misclassified, (N,) bool: one forward."""
        return self._visit(x_adv).argmax(1) != self.y

    def project(self, x_adv: Tensor) -> Tensor:
        """Nearest point inside the threat."""
        return self.threat.project(x_adv, self.x)

    def clip(self, x_adv: Tensor) -> Tensor:
        """Nearest point inside the box."""
        return x_adv.clamp(*self.threat.bounds)

    def random(self, *purpose: str | int) -> Streams:
        """Random numbers of the live rows for a stated purpose; see `Streams`."""
        return Streams(self._seed, self.ids, (self._purpose, *purpose))

    def state(self) -> State:
        """A bag for per-row tensors that live across steps."""
        self._states.append(State())
        return self._states[-1]

    def steps(self, count: int) -> Iterator[int]:
        """The steps of a loop. Between them rows that are done leave `x`, `y` and every state.

        Tensors taken from the oracle before a step must not be used after it, unless in a state.
        Rows named to `rest` sit out the remainder of this loop and are back, in order, after it.
        """
        away: list[_Absent] = []
        try:
            for step in range(count):
                self._close_ranks(away)
                if len(self) == 0:
                    break
                yield step
        finally:
            self._close_ranks(away)
            if away:
                self._wake(away)

    def rest(self, rows: Tensor) -> None:
        """Let these live rows ((N,) bool) sit out the rest of the innermost `steps` loop."""
        self._pausing = rows

    # -- how it is driven -----------------------------------------------------------------------

    def _visit(self, x_adv: Tensor) -> Tensor:
        self._pay(1, 0)
        with torch.no_grad():
            parts = [self._target.logits(x_adv[rows]) for rows in self._batches()]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._record(x_adv, logits)
        return logits

    def _gradient(self, x: Tensor, loss: Callable[..., Tensor], *columns: Tensor) -> Evaluation:
        self._require("gradient")
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._target.logits(x)
            value = loss(logits, *columns)
        if not value.requires_grad:
            raise ModelError(
                "model: no gradient reaches the input (forward detaches or runs under no_grad); use score or "
                "decision attacks, or give the non-differentiable part a substitute gradient (BPDA)"
            )
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return Evaluation(gradient, value.detach(), logits.detach())

    def _batches(self) -> Iterator[slice]:
        """The live rows in as few micro-batches as will do, of about equal size."""
        n = len(self)
        pieces = max(1, -(-n // self._micro_batch))
        size = -(-n // pieces)
        for start in range(0, n, size):
            yield slice(start, start + size)

    def _require(self, access: Access) -> None:
        assert _RANK[self._access] >= _RANK[access], (
            f"{self._purpose}: declared {self._access}, asked for {access}"
        )

    def _pay(self, forwards: int, backwards: int) -> None:
        if len(self) == 0 or (self._budget is not None and self._spent + forwards + backwards > self._budget):
            raise Finished
        self._spent += forwards + backwards
        self.ledger.forwards[self._rows] += forwards
        self.ledger.backwards[self._rows] += backwards

    def _record(self, x_adv: Tensor, logits: Tensor) -> None:
        """Note margins, failures and new adversarial points of the live rows."""
        if not self._observe:
            return
        gap = margin(logits, self.y)
        finite = gap.isfinite()
        notable = (gap > 0) | ~finite
        self.ledger.margin[self._rows] = self.ledger.margin[self._rows].fmax(gap)
        if not bool(notable.any()):
            return
        failed = ~finite & ~logits.isfinite().all(1)
        self.ledger.failed[self._rows[failed]] = True
        wrong = ((gap > 0) & ~failed).nonzero().squeeze(1)
        done = failed
        if len(wrong):
            done = done.index_fill(0, wrong[self._keep(x_adv[wrong], wrong)], True)
        self._leaving = done if self._leaving is None else self._leaving | done

    def _keep(self, x_adv: Tensor, live: Tensor) -> Tensor:
        """Keep adversarial points that are nearer than before; tell which rows are done by it."""
        rows, x, ledger = self._rows[live], self.x[live], self.ledger
        distance = self.threat.distance(x_adv, x)
        inside = self.threat.contains(x_adv, x)
        better = distance < ledger.distance[rows]
        ledger.distance[rows[better]] = distance[better]
        ledger.x_adv[rows[better]] = x_adv[better].detach()
        ledger.broken[rows] |= inside
        return inside & (not self._minimize)

    # -- closing ranks --------------------------------------------------------------------------

    def _close_ranks(self, away: list[_Absent]) -> None:
        leaving, pausing = self._leaving, self._pausing
        self._leaving = self._pausing = None
        if pausing is not None:
            pausing = pausing if leaving is None else pausing & ~leaving
            if bool(pausing.any()):
                away.append(self._snapshot(pausing))
                leaving = pausing if leaving is None else leaving | pausing
        if leaving is not None and bool(leaving.any()):
            self._restore([self._snapshot(~leaving)])

    def _wake(self, away: list[_Absent]) -> None:
        self._restore([self._snapshot(torch.ones_like(self._rows, dtype=torch.bool)), *away])

    def _snapshot(self, mask: Tensor) -> _Absent:
        states = [{k: v[mask] for k, v in vars(s).items() if isinstance(v, Tensor)} for s in self._states]
        return _Absent(self._rows[mask], self.x[mask], self.y[mask], self.ids[mask], states)

    def _restore(self, groups: list[_Absent]) -> None:
        """Make the live rows those of the groups together, in their original order."""
        rows = torch.cat([g.rows for g in groups])
        order = rows.argsort() if len(groups) > 1 else slice(None)

        def join(parts: list[Tensor]) -> Tensor:
            return parts[0] if len(parts) == 1 else torch.cat(parts)[order]

        self._rows = join([g.rows for g in groups])
        self.x, self.y, self.ids = (join([getattr(g, k) for g in groups]) for k in ("x", "y", "ids"))
        for i, state in enumerate(self._states):
            for key in groups[0].states[i]:
                setattr(state, key, join([g.states[i][key] for g in groups]))


@dataclass
class _Absent:
    """Rows set aside, with all that belongs to them."""

    rows: Tensor
    x: Tensor
    y: Tensor
    ids: Tensor
    states: list[dict[str, Tensor]]
