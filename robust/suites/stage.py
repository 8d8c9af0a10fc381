"""A stage of a suite: an attack, and the samples that it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from robust.attacks import Attack


@dataclass(frozen=True)
class Stage:
    """An attack of a suite, and which of the survivors it is let at.

    Samples are chosen one by one, by what is known of them alone, so that a verdict never depends on
    who else is in the data. How near a sample is to its boundary is told by its highest margin so far
    as a share of its clean margin: 1 has not moved, 0 is broken.

    Args:
        attack: what to run.
        near: only samples that came within this share; None for all.
        within: only samples of which an adversarial point was seen within this multiple of eps.
        beyond: only samples of which none was seen within this multiple of eps, though searches began farther out: what
            leads nowhere there may be masked.
        ahead: only samples of which searches inside say the boundary is nearer than any point seen: their share is by more
            than this under 1 - eps / distance, which a straight surface has.
        behind: only samples of which a point seen says the boundary is nearer than searches inside do: their share is by
            more than this over 1 - eps / distance. Gradients inside mislead there.
        longer: (passes, share, multiple): only samples on which a minimum-norm search spent more than so many passes, for
            it ends early where it has no hope (of several classes all passes count), and which came within that share or
            were seen broken within that multiple of eps. Of near, within, beyond, ahead, behind, longer, flat, level and
            shrunk any will do.
        flat: only samples of which all searches so far left more than this share of the clean margin: gradients inside may
            be those of a plateau.
        level: (lead, share): only samples whose other classes are level at the sample, the leading one ahead of the mean of the
            rest by at most this share of the clean margin, and of which all searches so far left more than that share: which
            class is near cannot be told from the logits.
        shrunk: only samples of which every class, the farthest too, came within this share of the clean gap of the farthest, of
            three classes and more: the logits shrink, and no boundary comes near by that.
        share: of the other samples, those whose random draw is under this share are seen too.
        turning: of all these, only samples whose gradients turned from one step to the next: in the later half of the first
            ascent from the sample they agree to a mean cosine under this.
        unless_behind: of all these, none that is behind by more than this.
        unless_far: of all these, none that is left with more than this share.
        follows: only samples that the stage before brought nearer than they were.
        closer: only samples of which the stage before saw an adversarial point nearer than those before.
    """

    attack: Attack
    near: float | None = None
    within: float | None = None
    beyond: float | None = None
    ahead: float | None = None
    behind: float | None = None
    longer: tuple[int, float, float] | None = None
    flat: float | None = None
    level: tuple[float, float] | None = None
    shrunk: float | None = None
    share: float = 0.0
    turning: float | None = None
    unless_behind: float | None = None
    unless_far: float | None = None
    follows: bool = False
    closer: bool = False

    @property
    def selection(self) -> dict[str, Any]:
        """Its conditions, as a record lists them: those that older versions had not only where they are set."""
        conditions = {key: value for key, value in vars(self).items() if key != "attack"}
        return {
            key: value
            for key, value in conditions.items()
            if key not in _LATER or not (value is None or value is False)
        }


_LATER: Final = ("behind", "unless_behind", "unless_far", "closer", "flat", "level", "shrunk", "turning")


def for_all(*attacks: Attack) -> list[Stage]:
    """Attacks that see every sample that stands."""
    return [Stage(attack) for attack in attacks]
