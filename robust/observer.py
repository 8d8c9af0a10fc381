"""What is noted of the points that an attack visits: margins, failures, the nearest adversarial one."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from robust.arriving import Arriving
from robust.ledger import Ledger
from robust.rows import LiveRows, by_row
from robust.target import Target
from robust.threat import Threat


class _Seen(NamedTuple):
    """A point of every live row, and what the model said of it, before anything is made of that."""

    x_adv: Tensor  # (N, ...)
    logits: Tensor  # (N, C)
    gaps: Tensor  # (N, C)
    lead: Tensor  # (N,): the highest gap, and what the logits may be off by
    place: tuple[Tensor, Tensor] | None  # `Observer._measure` of x_adv where it was measured
    worst: Arriving  # the highest lead that somebody has to look at; NaN where a logit is not finite


class Observer:
    """Writes into a ledger what the live rows' points show, and lets rows leave that are done.

    Args:
        live: the rows that points are of.
        ledger: of all rows.
        threat: what a point has to lie in.
        blur: how far the observed logits may be off, in units of their spread; see `Target.blur`.
        judge: whose word is the last on what is adversarial; None: the observed logits'.
        minimize: broken rows stay, for a nearer point.
        stays_inside: every point lies in the threat; else only those that do count for the gaps.
        lags: what a point shows is taken in after the next one was asked about, or when it is needed (`settle`), so that
            a GPU need not stand still while its answer is looked at. A row that is done leaves a query later.
    """

    def __init__(
        self,
        live: LiveRows,
        ledger: Ledger,
        threat: Threat,
        *,
        blur: float = 0.0,
        judge: Target | None = None,
        minimize: bool = False,
        stays_inside: bool = True,
        lags: bool = False,
    ) -> None:
        self.ledger = ledger
        # What a blurred copy gave as gap where the judge saw no break, at its highest: (n,) of all rows.
        self.denied = torch.full_like(ledger.distance, -torch.inf)
        self._denials = False  # whether there are any
        self._live, self._threat = live, threat
        self._blur, self._judge = blur, judge
        self._minimize, self._stays_inside = minimize, stays_inside
        self._lags = lags
        self._waiting: _Seen | None = None
        self._lost: Exception | None = None  # what kept a point from being taken in
        self._vouched: tuple[Tensor, int] | None = None  # the last point vouched for, and its version then
        # The last point measured, its version then, what it changes, and how far it is.
        self._measured: tuple[Tensor, int, Tensor, Tensor] | None = None

    def of(self, live: LiveRows, ledger: Ledger, denied: Tensor) -> Observer:
        """The same for other rows."""
        other = copy.copy(self)
        other._live, other.ledger, other.denied = live, ledger, denied
        other._vouched = other._measured = other._waiting = None
        return other

    def take_denials(self, rows: Tensor, denied: Tensor, found: Observer) -> None:
        """Take what the judge denied from an observer of these rows' copies: (M,) int64, (M,)."""
        self.denied[rows] = denied
        self._denials |= found._denials

    def vouch(self, point: Tensor) -> Tensor:
        """The point, which lies inside the threat by the attack's word: unless it is changed, it is not measured."""
        self._vouched = point, point._version
        return point

    def distance(self, x_adv: Tensor) -> Tensor:
        """How far the live rows' points are from x, (N,): measured once where they were observed just now."""
        known = self._known(x_adv)
        return self._threat.distance(x_adv, self._live.x) if known is None else known[1]

    def change(self, x_adv: Tensor) -> Tensor:
        """x_adv - x of the live rows, (N, ...): subtracted once where they were observed just now."""
        known = self._known(x_adv)
        return x_adv - self._live.x if known is None else known[0]

    def observe(self, x_adv: Tensor, logits: Tensor) -> None:
        """Note margins, failures and new adversarial points of the live rows: (N, ...), (N, C)."""
        seen = self._look(x_adv, logits)
        if self._lags:
            self.settle()
            self._waiting = seen
        else:
            self._take_in(seen)

    def settle(self) -> None:
        """Take in what was seen last: before rows change, and before what is known is read.

        An error on the way is raised here, and from then on: without it what is known is not all that was seen. After
        Ctrl-C it is taken in yet.
        """
        if self._lost is not None:
            raise self._lost
        seen, self._waiting = self._waiting, None
        if seen is not None:
            try:
                self._take_in(seen)
            except KeyboardInterrupt:
                self._waiting = seen
                raise
            except Exception as error:
                self._lost = error
                raise

    def forget(self) -> None:
        """Before rows change to which what was seen last, and never taken in, belongs no more."""
        self._waiting = None

    def _look(self, x_adv: Tensor, logits: Tensor) -> _Seen:
        y = self._live.y[:, None]
        place = None if self._is_inside(x_adv) else self._measure(x_adv)
        gaps = (logits - logits.gather(1, y)).scatter_(1, y, -torch.inf)
        lead = gaps.amax(1)
        if self._blur:
            lead, gaps = self._allow_for_blur(logits, lead, gaps)
        pressing = lead if place is None or not self._outside_waits else lead.where(place[0], -torch.inf)
        worst = Arriving(pressing.amax().add(logits.sum(), alpha=0))  # NaN where a logit is not finite
        if (
            self._lags
        ):  # until it is taken in an attack may change its point, and a model the memory of its answer
            x_adv, logits = x_adv.clone(), logits.clone()
        return _Seen(x_adv, logits, gaps, lead, place, worst)

    def _take_in(self, seen: _Seen) -> None:
        if seen.place is not None and self._outside_waits:
            self._note_outside(seen, *seen.place)
        gaps, worst = seen.gaps, float(seen.worst)
        if not worst < 0:
            gaps = self._look_closer(seen, finite=worst >= 0)
        self.note_gaps(gaps if seen.place is None else gaps.masked_fill(~seen.place[0][:, None], -torch.inf))

    @property
    def _outside_waits(self) -> bool:
        """Whether adversarial points beyond the threat are noted without a look at them: on a GPU they are all too many."""
        return self._lags and not self._minimize

    def _note_outside(self, seen: _Seen, inside: Tensor, distance: Tensor) -> None:
        """Keep adversarial points beyond the threat that are nearer than before; the device alone knows which."""
        claimed = (seen.gaps.amax(1) > 0) & ~inside & seen.logits.isfinite().all(1)
        self.note_points(self._live.rows, seen.x_adv, None, distance.where(claimed, torch.inf))

    def note_gaps(self, gaps: Tensor) -> None:
        """Raise the live rows' gaps to these, (N, C), where they are higher."""
        ledger, rows = self.ledger, self._live.rows
        if ledger.gaps is None:
            ledger.gaps = gaps.new_full((len(ledger.broken), gaps.shape[1]), -torch.inf)
        if len(rows) == len(ledger.broken):
            ledger.gaps = ledger.gaps.fmax(gaps)
        else:
            ledger.gaps.index_copy_(0, rows, ledger.gaps.index_select(0, rows).fmax(gaps))

    def note_points(self, rows: Tensor, x_adv: Tensor, places: Tensor | None, distance: Tensor) -> None:
        """Keep those adversarial points that are nearer than before.

        Args:
            rows: whose they are, (M,) int64, as the ledger numbers them.
            x_adv: has them among others, (N, ...).
            places: where they stand in it, (M,) int64; None: they are all there are.
            distance: (M,); inf where there is none.
        """
        ledger = self.ledger
        before = ledger.distance.index_select(0, rows)
        if rows.device.type == "cpu":
            nearer = (distance < before).nonzero().squeeze(1)
            if len(nearer) == 0:
                return
            rows, distance = rows[nearer], distance[nearer]
            places = nearer if places is None else places[nearer]
            points = x_adv.detach().index_select(0, places)  # copied once
        else:  # to name them would have the host wait
            shape = (-1, *([1] * (x_adv.dim() - 1)))
            points = x_adv.detach() if places is None else x_adv.detach().index_select(0, places)
            nearer = distance < before
            points = points.where(nearer.view(shape), ledger.x_adv.index_select(0, rows))
            distance = distance.where(nearer, before)
        ledger.distance.index_copy_(0, rows, distance)
        ledger.x_adv.index_copy_(0, rows, points)

    def _is_inside(self, x_adv: Tensor) -> bool:
        """Whether that is known without measuring: by the attack's word, or of this point."""
        if self._stays_inside or self._vouched is None:
            return self._stays_inside
        point, version = self._vouched
        return x_adv is point and point._version == version

    def _known(self, x_adv: Tensor) -> tuple[Tensor, Tensor] | None:
        """Change and distance of the point measured last, if it is this one as it was then."""
        if self._measured is None:
            return None
        point, version, change, distance = self._measured
        return (change, distance) if x_adv is point and point._version == version else None

    def _measure(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the live rows' points lie inside the threat, and how far all are, inf beyond the box: (N,) each."""
        threat, change = self._threat, x_adv - self._live.x
        distance = threat.distance(x_adv, self._live.x, change)
        self._measured = x_adv, x_adv._version, change, distance
        in_box = threat.in_box(x_adv)  # a point beyond it is none, however near
        return in_box & threat.within(distance), distance.masked_fill(~in_box, torch.inf)

    def _allow_for_blur(self, logits: Tensor, lead: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """What the copy may be wrong about is for the judge to say, once: for the leads that it denied, and lower ones."""
        low, high = logits.aminmax(dim=1)
        doubt = (high - low).mul_(self._blur)
        if not self._denials:
            return lead + doubt, gaps
        known = lead <= self.denied.index_select(0, self._live.rows)
        return torch.where(known, -doubt, lead + doubt), torch.where(known[:, None], gaps.clamp_max(0), gaps)

    def _look_closer(self, seen: _Seen, *, finite: bool) -> Tensor:
        """Mark rows that are broken or failed.

        Args:
            finite: all logits are.

        Returns:
            the gaps, at most 0 where the copy's blur explains that the judge denies a claim.
        """
        x_adv, logits, gaps, lead, place, _ = seen
        rows, tied = self._live.rows, (lead == 0) & (logits.argmax(1) != self._live.y)
        claims = (lead > 0) | tied  # of equal logits the first is the model's answer
        if not finite:
            failed = self._fails(x_adv, ~logits.isfinite().all(1))
            self.ledger.failed[rows[failed]] = True
            self.ledger.strayed[rows[failed]] = ~x_adv[failed].flatten(1).isfinite().all(1)
            self._live.leave(failed)
            claims &= ~failed
        if self._lags:  # what is done since the point before is still here
            claims &= ~self._done()
        if self._outside_waits and place is not None:
            claims &= place[0]
        wrong = claims.nonzero().squeeze(1)
        if len(wrong) == 0:
            return gaps
        gap = gaps.amax(1) if self._blur else lead
        found, denied = self._keep(x_adv, wrong, (gap[wrong] > 0) | tied[wrong], place)
        if not self._minimize and (self._lags or bool(found.any())):
            self._live.leave(torch.zeros_like(claims).index_copy_(0, wrong, found))
        if denied is not None:
            self._excuse(wrong, denied, gaps, gap, lead)
        return gaps

    def _done(self) -> Tensor:
        """Which of the live rows, or of their copies, failed or are broken and to leave: (N,) bool."""
        ledger, copies = self.ledger, self._live.copies
        done = ledger.failed if self._minimize else ledger.failed | ledger.broken
        return by_row(done, copies).any(1).index_select(0, self._live.rows // copies)

    def _excuse(self, wrong: Tensor, denied: Tensor, gaps: Tensor, gap: Tensor, lead: Tensor) -> None:
        """Note of which of the claims ((M,) int64) the judge's denial ((M,) bool) is explained by the copy's blur."""
        excused = wrong[denied & (2 * gap[wrong] <= lead[wrong])]  # the blur is lead - gap
        if len(excused) == 0:
            return
        gaps[excused] = gaps[excused].clamp_max(0)
        if not self._minimize:  # which may ask about a nearer point that is no surer
            self._denials = True
            self.denied[self._live.rows[excused]] = gap[excused]

    def _fails(self, x_adv: Tensor, failed: Tensor) -> Tensor:
        """Which rows fail ((N,) bool): of those that a copy of the model fails on, those that the judge does."""
        if self._judge is None or not bool(failed.any()):
            return failed
        with torch.no_grad():
            fine = self._judge.logits(x_adv[failed]).isfinite().all(1)
        return failed.masked_scatter(failed, ~fine)

    def _keep(
        self, x_adv: Tensor, wrong: Tensor, sure: Tensor, place: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Keep adversarial points that are nearer than before; tell which lie inside the threat, and which are none.

        Args:
            x_adv: (N, ...).
            wrong: the misclassified among the live rows, or what may be, (M,) int64.
            sure: which are by the target's word, (M,) bool.
            place: `_measure` of x_adv where it was measured.

        Returns:
            (M,) bool each; the judge's word is the last, and without one none is denied: None.
        """
        rows, denied = self._live.rows.index_select(0, wrong), None
        if place is None:
            inside, distance = self._threat.measure(x_adv[wrong], self._live.x[wrong])
        else:
            inside, distance = (part.index_select(0, wrong) for part in place)
        if self._judge is not None:
            claimed, distance = inside, distance.masked_fill(~(inside | sure), torch.inf)
            inside, distance = self._confirm(self._judge, x_adv, wrong, inside, distance)
            denied = claimed & ~inside
        self.note_points(rows, x_adv, wrong, distance)
        self.ledger.broken[rows] |= inside
        return inside, denied

    def _confirm(
        self, judge: Target, x_adv: Tensor, wrong: Tensor, inside: Tensor, distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the plain model says of the claims; those it denies are as if they had not been seen."""
        asked = torch.ones_like(inside) if self._minimize or self._lags else inside
        live = wrong if self._lags else wrong[asked]
        if len(live) == 0:
            return inside, distance
        with torch.no_grad():
            right = judge.logits(x_adv[live]).argmax(1) == self._live.y[live]
        self.ledger.forwards[self._live.rows[live]] += judge.draws
        real = torch.ones_like(inside).masked_scatter(asked, ~right)
        return inside & real, distance.masked_fill(~real, torch.inf)
