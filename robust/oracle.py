"""The only door from an attack to the model.

An attack sees N rows and writes the loop of its paper. Everything else happens here: rows leave when
they are broken and the rest closes ranks (`rows`), passes are counted per sample, budgets end the run, the
nearest adversarial point is kept (`observer`), randomness is drawn per sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robust import passes
from robust.ledger import Ledger, Prior
from robust.observer import Observer
from robust.passes import Evaluation as Evaluation  # attacks have these two from here
from robust.passes import Jacobian as Jacobian
from robust.rng import Streams
from robust.row_copies import absorb, copied_observer, copied_rows, repeated
from robust.rows import Absent, LiveRows, by_row
from robust.rows import State as State  # attacks have it from here
from robust.target import Target
from robust.threat import Threat

Access = Literal["gradient", "score", "decision"]
_RANK = {"decision": 0, "score": 1, "gradient": 2}


class Finished(Exception):  # noqa: N818 - control flow, caught by `Attack.__call__`
    """No row is left to work on, or the budget is spent."""


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
        judge: the plain model, where `target` is a faster copy of it: a row leaves only when the judge
            agrees that its point is adversarial. None: the target judges itself.
        prior: what earlier attacks have found out; without, the attack pays for what it asks of it.
        stays_inside: every visited point lies in the threat; else only those that do count for the gaps.
        tick: called after every query with the passes spent so far by a row that took part in all.
        observe: watch the points; without, no row ever leaves and the ledger stays empty: for
            training, which wants the attack's last point of every row.
        lags: look at an answer when the next query is under way; see `Observer`. None: on a GPU.
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
        judge: Target | None = None,
        prior: Prior | None = None,
        stays_inside: bool = True,
        tick: Callable[[int], None] | None = None,
        observe: bool = True,
        lags: bool | None = None,
    ) -> None:
        self.threat = threat
        self._live = LiveRows(x, y, ids, self._settle)
        self._observer = Observer(
            self._live, Ledger.empty(x, prior.gaps if prior else None), threat,
            blur=target.blur, judge=judge, minimize=minimize, stays_inside=stays_inside,
            lags=x.device.type == "cuda" if lags is None else lags,
        )  # fmt: skip
        self._watched, self._minimize = observe, minimize
        self._clean_margin = prior.clean_margin if prior else None
        self._near = prior.near if prior else None
        self._bend = prior.bend if prior else 1.0
        self._target = target
        self._seed, self._purpose = seed, purpose
        self._access, self._micro_batch = access, max(1, micro_batch // target.draws)
        self._budget, self._spent, self._tick = budget, 0, tick
        self._unbooked = [0, 0]  # passes of the live rows that the ledger does not show yet
        # Ends of the live rows' linf balls within the box, by radius.
        self._balls: dict[float, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Live rows."""
        return len(self._live)

    @property
    def x(self) -> Tensor:
        """Clean samples of the live rows, (N, ...)."""
        return self._live.x

    @property
    def y(self) -> Tensor:
        """Their labels, (N,)."""
        return self._live.y

    @property
    def ids(self) -> Tensor:
        """Their sample ids, (N,)."""
        return self._live.ids

    @property
    def _rows(self) -> Tensor:
        """Where they stand in the ledger, (N,)."""
        return self._live.rows

    @property
    def ledger(self) -> Ledger:
        """What is known of every row, live or not."""
        self._observer.settle()
        self._book()
        return self._observer.ledger

    @property
    def gaps(self) -> Tensor:
        """Each class's logit minus the label's at its highest so far inside the threat: live (N, C)."""
        known = self._observer.ledger
        self._observer.settle()
        if known.gaps is None:
            self.logits(self.x)
            self._observer.settle()
        assert known.gaps is not None
        return known.gaps[self._rows]

    @property
    def spent(self) -> Tensor:
        """Forwards plus backwards of the live rows so far, (N,)."""
        ledger = self.ledger
        return (ledger.forwards + ledger.backwards)[self._rows]

    @property
    def clean_margin(self) -> Tensor:
        """The margin at x, (N,); ask for it before any other point is visited."""
        if self._clean_margin is None:
            self._clean_margin = self._known_margin()
        return self._clean_margin[self._rows]

    def left_at(self, way: float) -> float:
        """What is left of a clean margin where this part of the way to the boundary is: as much, unless margins are bent.

        For what an attack's `near` and `worth` are held against.
        """
        return way**self._bend

    @property
    def start(self) -> Tensor:
        """Where a search begins that begins at no random point: x, or the point inside nearest to a known break outside."""
        return self.x if self._near is None else self.threat.project(self._near[self._rows], self.x)

    def _known_margin(self) -> Tensor:
        _ = self.gaps
        return self._observer.ledger.margin

    @property
    def reached(self) -> Tensor | None:
        """Live rows that are broken, (N,) bool, and here only to be broken nearer; None where those leave at once."""
        return self.ledger.broken[self._rows] if self._minimize else None

    # -- what an attack asks --------------------------------------------------------------------

    def gradient(self, x_adv: Tensor, loss: Callable[..., Tensor], *columns: Tensor) -> Evaluation:
        """Gradient of a loss with its value: one forward, one backward.

        The loss is called with (logits, y, *columns); `columns` are per-row tensors such as target
        classes. The point counts as visited: if it is adversarial, that is recorded.
        """
        self._require("gradient")
        self._pay(1, 1)
        out = self._in_batches(partial(passes.differentiate, self._target, loss), x_adv, self.y, *columns)
        self._record(x_adv, out.logits)
        return out

    def slope(self, x_adv: Tensor, weights: Tensor) -> Evaluation:
        """As `gradient`, of the logits' sum with these weights, (N, C): with fewer operations, and as one recorded graph."""
        self._require("gradient")
        self._pay(1, 1)
        out = self._in_batches(partial(passes.weigh, self._target), x_adv, weights)
        self._record(x_adv, out.logits)
        return out

    def jacobian(self, x_adv: Tensor, count: int) -> Jacobian:
        """Gaps of the `count` leading classes other than the label, with gradients: one forward, `count` backwards."""
        self._require("gradient")
        count = min(count, self.gaps.shape[1] - 1)
        self._pay(1, count)
        parts = [passes.jacobian(self._target, x_adv[rows], self.y[rows], count) for rows in self._batches()]
        logits, out = parts[0]
        if len(parts) > 1:
            logits = torch.cat([logits for logits, _ in parts])
            out = Jacobian(*(torch.cat(p) for p in zip(*(jacobian for _, jacobian in parts), strict=True)))
        self._record(x_adv, logits)
        return out

    def logits(self, x_adv: Tensor) -> Tensor:
        """Logits at a visited point, (N, C): one forward."""
        self._require("score")
        return self._visit(x_adv)

    def visit(self, x_adv: Tensor) -> None:
        """Have a point recorded whose logits the attack does not need: one forward where points are watched."""
        if self._watched:
            self._visit(x_adv)

    def decide(self, x_adv: Tensor) -> Tensor:
        """Whether the visited point is misclassified, (N,) bool: one forward."""
        return self.label(x_adv) != self.y

    def label(self, x_adv: Tensor) -> Tensor:
        """The class that the visited point is taken for, (N,) int64: one forward."""
        return self._visit(x_adv).argmax(1)

    def gradient_of(self, surrogate: Target, x_adv: Tensor, loss: Callable[..., Tensor]) -> Evaluation:
        """As `gradient`, but of another model: costs no pass of the target, and nothing is recorded."""
        return self._in_batches(partial(passes.differentiate, surrogate, loss), x_adv, self.y)

    def project(self, x_adv: Tensor) -> Tensor:
        """Nearest point inside the threat."""
        return self.vouch(self.brought_into(self.threat, x_adv))

    def vouch(self, point: Tensor) -> Tensor:
        """The point, which lies inside the threat by the attack's word: unless it is changed, it is not measured."""
        return self._observer.vouch(point)

    def brought_into(self, inside: Threat, x_adv: Tensor) -> Tensor:
        """Nearest point inside a set around x of any radius."""
        if inside.norm != "linf":
            return inside.project(x_adv, self.x)
        eps, (low, high) = inside.radius, inside.bounds
        if eps not in self._balls:  # the same for every step until rows leave
            self._balls[eps] = (self.x - eps).clamp_(min=low), (self.x + eps).clamp_(max=high)
        return torch.clamp(x_adv, *self._balls[eps])

    def distance(self, x_adv: Tensor) -> Tensor:
        """How far the points are from x in the threat's norm, (N,): of those asked about just now it is known."""
        return self._observer.distance(x_adv)

    def change(self, x_adv: Tensor) -> Tensor:
        """x_adv - x, (N, ...), not to be written to: of the points asked about just now it is known."""
        return self._observer.change(x_adv)

    def clip(self, x_adv: Tensor) -> Tensor:
        """Nearest point inside the box."""
        return x_adv.clamp(*self.threat.bounds)

    def random(self, *purpose: str | int) -> Streams:
        """Random numbers of the live rows for a stated purpose; see `Streams`."""
        return Streams(self._seed, self.ids, (self._purpose, *purpose))

    def state(self) -> State:
        """A bag for per-row tensors that live across steps."""
        return self._live.state()

    def steps(self, count: int) -> Iterator[int]:
        """The steps of a loop. Between them rows that are done leave `x`, `y` and every state.

        Tensors taken from the oracle before a step must not be used after it, unless in a state.
        Rows named to `rest` sit out the remainder of this loop and are back, in order, after it.

        Raises:
            Finished: there was no row to begin with, neither here nor resting in a loop around. So the attack
                ends, and what follows its loop meets no state that a step should have filled.
        """
        away: list[Absent] = []
        try:
            for step in range(count):
                self._close_ranks(away)
                if len(self) == 0:
                    if step == 0 and self._live.resting == 0:
                        raise Finished
                    break
                yield step
        finally:
            try:
                self._close_ranks(away, settle=bool(away))  # those that come back were not seen last
            finally:
                self._live.wake(away)

    def _close_ranks(self, away: list[Absent], *, settle: bool = False) -> None:
        """Let rows go that are done; where there are any, or as told, what was seen last is taken in before."""
        try:
            if settle or self._live.changing:
                self._observer.settle()
        except KeyboardInterrupt:  # nothing that was seen is lost
            self._observer.settle()
            raise
        finally:
            self._live.close_ranks(away)

    def rest(self, rows: Tensor) -> None:
        """Let these live rows ((N,) bool) sit out the rest of the innermost `steps` loop."""
        self._live.rest(rows)

    def give_up(self, rows: Tensor) -> None:
        """Let these live rows ((N,) bool) go unattacked: nowhere was found to begin. The report says so."""
        self._observer.ledger.stuck[self._rows[rows]] = True
        self._live.leave(rows.clone())

    def note_agreement(self, agreement: Tensor) -> None:
        """Note to which mean cosine successive gradients agreed late in an ascent from x, (N,): not of noisy answers."""
        if self._target.draws == 1:
            self._observer.ledger.agreement[self._rows] = agreement

    @contextmanager
    def multiplied(self, count: int) -> Iterator[Oracle]:
        """An oracle of the live rows, each `count` times in a row, with random numbers of each copy's own.

        Searches from several starts at once fill a batch that one alone does not. Copies of a sample leave together,
        when one of them is broken. What they cost and find is the sample's, once the context ends.
        """
        self._observer.settle()
        self._book()
        many = self._of_copies(count)
        try:
            yield many
        finally:
            self._take_over(many, count)

    def _of_copies(self, count: int) -> Oracle:
        """An oracle that begins with the live rows of this one, `count` times each."""
        many, rows = copy.copy(self), self._rows
        many._live = copied_rows(self._live, count, many._settle)
        many._observer = copied_observer(self._observer, self._live, many._live, count)
        many._clean_margin = None if self._clean_margin is None else repeated(self._clean_margin[rows], count)
        many._near = None if self._near is None else repeated(self._near[rows], count)
        many._budget = None if self._budget is None else (self._budget - self._spent) // count
        if (tick := self._tick) is not None:
            many._tick = lambda spent: tick(self._spent + count * spent)
        many._spent, many._unbooked, many._balls = 0, [0, 0], {}
        return many

    def _take_over(self, many: Oracle, count: int) -> None:
        """Book for the live rows what their copies cost, and note what they found."""
        cost = many.ledger
        self._book_at_once(by_row(cost.forwards, count).sum(1), by_row(cost.backwards, count).sum(1))
        broken, failed = absorb(self._observer, self._live, many._observer, count)
        self._live.leave(failed if self._minimize else broken | failed)

    @property
    def copy_numbers(self) -> Tensor:
        """Which copy of its sample a live row is, (N,): 0 where there is but one."""
        return self._rows % self._live.copies

    @property
    def originals(self) -> Tensor:
        """Of which row that was live when the copies were made a live row is one, (N,)."""
        return self._rows // self._live.copies

    # -- for attacks of other libraries ---------------------------------------------------------

    @property
    def left(self) -> int | None:
        """Answers and gradients that a sample may still be given; None for no limit."""
        return None if self._budget is None else max(0, self._budget - self._spent) // self._target.draws

    def lend(self) -> Callable[[Tensor], Tensor]:
        """The model, for code that cannot ask row by row: points (M, ...) -> logits (M, C), as far as access goes.

        Without gradient access no graph is made; for decision access logits are 0 and 1. Nothing is counted or
        recorded: `charge` what it cost, and `visit` what was found.
        """

        def logits(x: Tensor) -> Tensor:
            with torch.set_grad_enabled(self._access == "gradient" and torch.is_grad_enabled()):
                lent = self._target.retraceable
                out = torch.cat([lent.logits(part) for part in x.split(self._micro_batch)])
            if self._access != "decision":
                return out
            return torch.nn.functional.one_hot(out.argmax(1), out.shape[1]).to(out.dtype)

        return logits

    def charge(self, forwards: Tensor, backwards: Tensor) -> None:
        """Book the answers and gradients that were had on loan, (N,) int64 each."""
        self._book_at_once(forwards * self._target.draws, backwards * self._target.draws)

    # -- how it is driven -----------------------------------------------------------------------

    def _visit(self, x_adv: Tensor) -> Tensor:
        self._pay(1, 0)
        with torch.no_grad(), self._target.passing():
            if len(self) <= self._micro_batch:
                logits = self._target.logits(x_adv)
            else:
                logits = torch.cat([self._target.logits(x_adv[rows]) for rows in self._batches()])
        self._record(x_adv, logits)
        return logits

    def _in_batches(self, evaluate: Callable[..., Evaluation], *columns: Tensor) -> Evaluation:
        """`evaluate` of the live rows' columns, (N, ...) each, in micro-batches."""
        if len(self) <= self._micro_batch:
            return evaluate(*columns)
        parts = [evaluate(*(column[rows] for column in columns)) for rows in self._batches()]
        return Evaluation(*(torch.cat(p) for p in zip(*parts, strict=True)))

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
        forwards, backwards = forwards * self._target.draws, backwards * self._target.draws
        if len(self) == 0 or (self._budget is not None and self._spent + forwards + backwards > self._budget):
            raise Finished
        self._spent += forwards + backwards
        self._unbooked[0] += forwards
        self._unbooked[1] += backwards
        if self._tick is not None:
            self._tick(self._spent)

    def _settle(self) -> None:
        """What has to be done before the live rows change."""
        self._observer.forget()
        self._book()
        self._balls = {}

    def _book(self) -> None:
        """Write the live rows' passes into the ledger: before rows change, and before it is read."""
        if any(self._unbooked):
            ledger, rows = self._observer.ledger, self._rows
            ledger.forwards[rows] += self._unbooked[0]
            ledger.backwards[rows] += self._unbooked[1]
            self._unbooked = [0, 0]

    def _book_at_once(self, forwards: Tensor, backwards: Tensor) -> None:
        """Write passes that differ from row to row, (N,) int64 each, into the ledger."""
        ledger, rows = self._observer.ledger, self._rows
        ledger.forwards[rows] += forwards
        ledger.backwards[rows] += backwards
        self._spent += int((forwards + backwards).max()) if len(rows) else 0

    def _record(self, x_adv: Tensor, logits: Tensor) -> None:
        if self._watched:
            self._observer.observe(x_adv, logits)
