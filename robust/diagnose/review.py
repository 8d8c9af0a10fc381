"""What the finished attacks say about themselves and each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, Final

import pandas as pd

from robust.diagnose import checks as named
from robust.diagnose.checks import Finding

# In l0 gradients see little of what whole changes do: of honest models, too, these break most of what gradients leave, or
# more than gradients broke, but not both.
_OF_WHOLE_CHANGES: Final = ("sparse-rs", "swap-search")
_APPROACHED: Final = 5  # samples; fewer tell nothing
_ASCENDED: Final = 8
_ASCENTS: Final = ("pgd", "apgd")
_LONG: Final = 40  # steps
_A_FEW: Final = 3  # samples, fewer of which tell nothing of the rest
_FEW: Final = 50  # passes
_FEW_OF_TWO: Final = 35  # where there is one boundary to search
_SURFACES: Final = {
    check.name for check in (named.SHATTERED_GRADIENT, named.ROUGH_SURFACE, named.SCATTERED_GRADIENTS)
}
_WITHOUT_GRADIENTS: Final = {"score", "decision"}  # older records name no access


def review_passes(verdicts: pd.DataFrame, draws: int) -> list[Finding]:
    """Does a sample stand because it was hardly attacked?

    Args:
        verdicts: the report's table of a whole suite in a norm ball.
        draws: passes of the model that an answer takes.
    """
    standing = verdicts[verdicts["status"] == "survived"]
    spent = (standing["forwards"] + standing["backwards"]) / draws
    classes = verdicts[["label", "prediction", "prediction_adv"]].to_numpy().max(initial=0) + 1
    least = _FEW if classes > 2 else _FEW_OF_TWO
    few = int((spent < least).sum())
    if few < _a_share(verdicts):
        return []
    most = int(spent[spent < least].max())
    return [
        named.SHORT_SEARCH.finding(f"{few} of {len(verdicts)} samples stand after {most} passes or fewer")
    ]


def spared(findings: list[Finding], verdicts: pd.DataFrame, checks: dict[str, float]) -> list[Finding]:
    """The findings without those of a surface on which ascents are misled, where next to nothing stands or random points say the same.

    Args:
        findings: of a whole suite.
        verdicts: the report's table.
        checks: counts of samples that stand and had random points, where these are all over the threat, and of those that
            such points broke.
    """
    standing = int((verdicts["status"] == "survived").sum())
    needless: set[str] = set()
    if standing < _A_FEW and standing <= 0.05 * len(verdicts):
        needless = _SURFACES
    elif _borne_out(checks):
        needless = {*_SURFACES, named.TURNING_GRADIENTS.name, named.MASKED_ASCENT.name}
    return [finding for finding in findings if finding.check not in needless]


def review_access(verdicts: pd.DataFrame, attacks: list[dict[str, Any]]) -> list[Finding]:
    """Was a model that gives gradients attacked without them alone?

    Args:
        verdicts: the report's table of a whole suite in a norm ball.
        attacks: the report's attack entries.
    """
    standing = int((verdicts["status"] == "survived").sum())
    used = {entry["access"] for entry in attacks if entry["attacked"]}
    if standing < _a_share(verdicts) or not used <= _WITHOUT_GRADIENTS:
        return []
    return [
        named.BLACK_BOX_ALONE.finding(
            f"{standing} of {len(verdicts)} samples stand and no attack used gradients"
        )
    ]


def _a_share(verdicts: pd.DataFrame) -> float:
    """So many samples that stand are too many to be left unsaid."""
    return max(2, 0.05 * len(verdicts))


def review(
    attacks: list[dict[str, Any]], correct: int, *, cascade: bool, checks: dict[str, float] | None = None
) -> list[Finding]:
    """Findings from the report's attack entries.

    Args:
        attacks: the report's attack entries, in order.
        correct: samples that were classified correctly before any attack.
        cascade: each attack saw only the survivors of those before it.
        checks: counts of the second opinion: survivors asked about, and those that random search brought nearer; survivors
            that were seen broken near by, and those of them whose margins are flat; survivors, and those whose logits shrank;
            samples that the first ascent left, and those of them whose gradients turned; survivors seen broken outside, and
            those of them that searches inside show nearer.
    """
    rejecting = [entry for entry in attacks if entry["rejected"]]
    silent = [entry for entry in attacks if entry["silent"] > max(1, 0.01 * entry["attacked"])]
    found = [
        named.AUDIT.finding(
            f"{first['rejected']} adversarial examples claimed by {first['label']} did not hold outside the attack{_others(rejecting)}"
        )
        for first in rejecting[:1]
    ]
    found += [
        named.SILENT_SUCCESS.finding(
            f"{first['label']} passed misclassified points of {first['silent']} samples that it does not claim{_others(silent)}"
        )
        for first in silent[:1]
    ]
    if cascade:
        found += _black_box(attacks, correct)
        found += _hidden(attacks, correct)
    if not any(finding.check == named.BLACK_BOX_WINS.name for finding in found):
        found += list(_second_opinion(checks or {})) or _at_random(checks or {})
    found += _flat(checks or {})
    found += _shrunk(checks or {}, correct)
    found += (
        _turned(checks or {})
        or _ahead(checks or {})
        or (_by_small_steps(attacks, correct) if cascade else [])
    )
    found += _by_longer(attacks, correct) if cascade else []
    if not cascade:
        found += _compare(attacks, correct)
    return found


def _others(entries: list[dict[str, Any]]) -> str:
    """That not only the first of the attacks did so."""
    return f", and so with {len(entries) - 1} attacks more" if len(entries) > 1 else ""


def _black_box(attacks: list[dict[str, Any]], correct: int) -> Iterator[Finding]:
    """Does an attack without gradients break what those with gradients left?"""
    after_gradients, standing, by_gradients = False, correct, 0
    for entry in attacks:
        # Of a few that were chosen because they are near, or searches move them still, some always fall.
        selection = entry.get("selection", {})
        chosen = selection.get("follows") or selection.get("near") is not None
        given = standing if chosen else entry["attacked"]
        standing -= entry["broke"]
        if entry["access"] == "gradient":
            after_gradients, by_gradients = True, by_gradients + entry["broke"]
            continue
        sparse = entry["name"] in _OF_WHOLE_CHANGES
        share, least = (0.5, by_gradients + 1) if sparse else (0.05, 2)
        if after_gradients and entry["broke"] >= max(2, share * given, least):
            check = named.SPARSE_SEARCH_WINS if sparse else named.BLACK_BOX_WINS
            yield check.finding(
                f"{entry['label']} breaks {entry['broke']} of {given} samples that gradient attacks left"
            )
            return


def _hidden(attacks: list[dict[str, Any]], correct: int) -> Iterator[Finding]:
    """Does an attack break what all searches before saw far from any boundary, so that more of what stands may be near?"""
    if not _a_few_stand(attacks, correct):
        return
    unmisled = [entry for entry in attacks if _sees_no_other_class(entry)]
    broke = sum(entry["broke"] for entry in unmisled)
    if unmisled and broke >= max(_A_FEW, 0.05 * unmisled[0]["attacked"]):
        yield named.HIDDEN_BOUNDARY.finding(
            f"searches that do not follow other classes break {broke} of {unmisled[0]['attacked']} samples that ascents on margins left far"
        )
        return
    for entry in attacks:
        shown = {condition for condition, value in entry.get("selection", {}).items() if value}
        if shown - {"unless_far"} == {"beyond"} and entry["broke"] >= max(_A_FEW, 0.05 * entry["attacked"]):
            yield named.HIDDEN_BOUNDARY.finding(
                f"{entry['label']} breaks {entry['broke']} of {entry['attacked']} samples that no search had seen broken within "
                f"{entry['selection']['beyond']:g} times the radius"
            )
            return


def _sees_no_other_class(entry: dict[str, Any]) -> bool:
    """Whether it brought down the label's logit, or came from far out, for samples that others had left far."""
    chosen = any(entry.get("selection", {}).get(condition) for condition in ("flat", "closer"))
    return chosen and (entry["name"] == "outer-boundary" or entry["parameters"].get("loss") == "logit")


def _turned(counts: dict[str, float]) -> list[Finding]:
    """Do gradients turn from step to step of an ascent?"""
    ascended, turned = int(counts.get("ascended", 0)), int(counts.get("turned", 0))
    if ascended < _ASCENDED or turned <= ascended / 2:
        return []
    told = f"the gradients of {turned} of {ascended} samples turned from one step of the first ascent to the next"
    return [named.TURNING_GRADIENTS.finding(told)]


def _ahead(counts: dict[str, float]) -> list[Finding]:
    """Do searches inside show boundaries nearer than any that was seen outside?"""
    seen, ahead = int(counts.get("seen", 0)), int(counts.get("ahead", 0))
    if seen < _ASCENDED or ahead <= 0.2 * seen:
        return []
    told = f"{ahead} of {seen} samples that stand are much nearer a boundary by what searches inside show than any break that was seen"
    return [named.TURNING_GRADIENTS.finding(told)]


def _by_small_steps(attacks: list[dict[str, Any]], correct: int) -> list[Finding]:
    """Do ascents for samples whose gradients turn, by small steps and by such as adapt, break what wider ones left?"""
    if not _a_few_stand(attacks, correct):
        return []
    for i, entry in enumerate(attacks):
        if not (_turns(entry) and entry["name"] == "pgd"):
            continue
        later = takewhile(lambda entry: _turns(entry) or _follows(entry), attacks[i + 1 :])
        broke = sum(search["broke"] for search in (entry, *later) if search["name"] in _ASCENTS)
        if broke >= max(_A_FEW, 0.05 * entry["attacked"]):
            told = f"smaller steps break {broke} of {entry['attacked']} samples whose gradients turned from one step to the next"
            return [named.TURNING_GRADIENTS.finding(told)]
    return []


def _by_longer(attacks: list[dict[str, Any]], correct: int) -> list[Finding]:
    """Do long ascents from inside break many near samples that all others left, so that longer ones would break more?"""
    long = [entry for entry in attacks if _is_long(entry)]
    broke = sum(entry["broke"] for entry in long)
    if not long or broke < max(_A_FEW, 0.05 * long[0]["attacked"]) or not _a_few_stand(attacks, correct):
        return []
    told = f"APGD of {_LONG} steps and more breaks {broke} of {long[0]['attacked']} near samples that all searches before left"
    return [named.LONGER_ASCENT_WINS.finding(told)]


def _is_long(entry: dict[str, Any]) -> bool:
    """Whether it is APGD of many steps from inside, for samples that came near; what is for those that gradients do not mislead is not."""
    selection = entry.get("selection", {})
    near = selection.get("near") is not None and selection.get("unless_behind") is None
    parameters = entry.get("parameters", {})
    steps = parameters.get("steps")
    inside = parameters.get("outside") is None and isinstance(steps, int) and steps >= _LONG
    return entry["name"] == "apgd" and near and inside


def _a_few_stand(attacks: list[dict[str, Any]], correct: int) -> bool:
    return correct - sum(entry["broke"] for entry in attacks) >= _A_FEW


def _follows(entry: dict[str, Any]) -> bool:
    """Whether it was shown only what the attack before brought nearer."""
    return bool(entry.get("selection", {}).get("follows"))


def _turns(entry: dict[str, Any]) -> bool:
    """Whether it was shown only samples whose gradients turned."""
    return entry.get("selection", {}).get("turning") is not None


def _second_opinion(counts: dict[str, float]) -> Iterator[Finding]:
    """Does random search come nearer than all gradient attacks to samples that they left?"""
    asked, nearer = int(counts.get("asked", 0)), int(counts.get("nearer", 0))
    crossed = int(counts.get("crossed", 0))
    if nearer >= max(2, 0.1 * asked) and (crossed > 1 or not _borne_out(counts)):
        across = f", {crossed} of them across the boundary though they count as survived" if crossed else ""
        yield named.BLACK_BOX_WINS.finding(
            f"48 queries of random search bring {nearer} of {asked} samples nearer than all gradients did{across}"
        )


def _at_random(counts: dict[str, float]) -> Iterator[Finding]:
    """Of few features: do random points break what gradients left?"""
    sampled, reached = int(counts.get("sampled", 0)), int(counts.get("reached", 0))
    if reached >= _reached_enough(sampled):
        yield named.BLACK_BOX_WINS.finding(
            f"random points inside the threat break {reached} of {sampled} samples that count as survived"
        )


def _reached_enough(sampled: int) -> float:
    return max(2, 0.05 * sampled)


def _borne_out(counts: dict[str, float]) -> bool:
    """Whether random points, where they are all over the threat, broke next to nothing of what stands."""
    sampled, reached = int(counts.get("sampled", 0)), int(counts.get("reached", 0))
    return sampled >= _A_FEW and reached < _reached_enough(sampled)


def _flat(counts: dict[str, float]) -> Iterator[Finding]:
    """Do margins inside tell nothing of boundaries that are near?"""
    approached, flat = int(counts.get("approached", 0)), int(counts.get("flat", 0))
    if approached >= _APPROACHED and flat > approached / 2:
        yield named.FLAT_MARGINS.finding(
            f"{flat} of {approached} samples that stand were seen broken within twice the radius, and have kept over 95 % of "
            "their margin within it"
        )


def _shrunk(counts: dict[str, float], correct: int) -> Iterator[Finding]:
    """Did every class come near, the farthest too?"""
    shrunk, standing = int(counts.get("shrunk", 0)), int(counts.get("standing", 0))
    if shrunk >= max(2, 0.05 * correct, 0.25 * standing):
        yield named.SHRINKING_LOGITS.finding(
            f"{shrunk} samples stand though every class came within a small share of the farthest's clean gap"
        )


def _compare(attacks: list[dict[str, Any]], correct: int) -> Iterator[Finding]:
    """Attacks that saw the same samples: does the weaker kind win?"""
    single = [a for a in attacks if a["name"] == "fgsm"]
    iterated = [a for a in attacks if a["name"] == "pgd"]
    for weak in single:
        for strong in iterated:
            same_loss = weak["parameters"].get("loss") == strong["parameters"].get("loss")
            if same_loss and weak["broke"] > strong["broke"] + max(2, 0.05 * correct):
                yield named.SINGLE_STEP.finding(
                    f"{weak['label']} breaks {weak['broke']} samples, {strong['label']} only {strong['broke']}"
                )
    for plain in iterated:
        for other in iterated:
            same = {**plain["parameters"], "loss": None} == {**other["parameters"], "loss": None}
            if (
                same
                and plain["parameters"].get("loss") == "ce"
                and other["broke"] > plain["broke"] + 0.05 * correct
            ):
                yield named.LOSS_GAP.finding(
                    f"{other['label']} breaks {other['broke']} of {correct} samples, "
                    f"{plain['label']} {plain['broke']}"
                )
