"""What a record says of itself, held against this version: its trust, its suite by name, and its findings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from robust import __version__
from robust.attacks import ATTACKS, FMN
from robust.diagnose import CHECKS, verdict
from robust.errors import RobustError
from robust.leaderboard.drawn import preflight_on
from robust.leaderboard.layout import plain, suite_text
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.record import Record, name_and_split
from robust.leaderboard.schema import ACCESS, AttackInfo, as_json
from robust.leaderboard.suite_history import HISTORY, fingerprint
from robust.leaderboard.trust import ERRORS, follows, misstated, objections
from robust.sources import Samples
from robust.suites import AND_FMN, SUITES, Stage, resolve, resolve_minimizing, version_of
from robust.target import Target
from robust.threat import Threat


def check_trust(record: Record) -> Outcome:
    """Whether the findings are of known checks, as severe as those are, and give the trust that is stated."""
    problems = [
        f"{plain(found.check)} makes a verdict {CHECKS[found.check].severity}, the record says {found.severity}"
        for found in misstated(record.findings)
    ]
    if (merited := follows(record.findings)) != record.trust:
        problems.append(f"the findings give {merited}, the record says {record.trust}")
    if ERRORS in (found := objections(record)):
        problems.append(f"{found[ERRORS]}, yet the record says {record.trust}")
    if problems:
        return Outcome("trust", False, "; ".join(problems))
    unknown = sorted({plain(found.check) for found in record.findings if found.check not in CHECKS})
    if unknown:
        return Outcome.unverified("trust", f"this version knows no check {', '.join(unknown)}; upgrade")
    return Outcome("trust", True, f"{record.trust}, as the findings give it")


def check_suite(record: Record) -> Outcome:
    """Whether the attacks are those that the suite's name stands for under this threat, in the version that is stated."""
    name, known = plain(record.suite.name), suite_of(record) in SUITES
    stated, installed = record.suite.version, version_of(record.suite.name)
    if stated is not None and installed is not None and stated != installed:
        return _another_version(record, stated, installed)
    try:
        named, stages = stages_of(record, suite_of(record) if known else attacks_of(record))
    except (RobustError, TypeError, ValueError) as error:
        return Outcome.unverified("suite", f"this version cannot make the attacks of {name}: {error}")
    same = [_said(entry) for entry in record.attacks] == [
        _made(stage, entry) for stage, entry in zip(stages, record.attacks, strict=False)
    ]
    if same and len(stages) > len(record.attacks) and record.statuses.error:
        return Outcome.unverified("suite", f"the last attacks of {name} are missing: the run was cut short")
    if same and len(stages) == len(record.attacks) and named == record.suite.name:
        return Outcome("suite", True, f"the attacks are those that {suite_text(record.suite)} stands for")
    if not known and same:
        return Outcome.unverified("suite", f"this version knows no suite {name}; ask for its source")
    made_by = record.environment.get("robust")
    if known and stated is None and made_by != __version__:
        return Outcome.unverified(
            "suite",
            f"the record, of robust {plain(made_by)}, does not say which version of {name} it is of, and its attacks "
            f"are not those of version {installed}, which is installed",
        )
    return Outcome("suite", False, f"the attacks are not those that {suite_text(record.suite)} stands for")


def check_threat(record: Record) -> Outcome:
    """Whether the attacks saw what the record says they were let see."""
    said, seen = record.threat.knowledge, [access for access in accesses(record) if access]
    if record.threat.targeted:
        return Outcome("threat", False, "the record says targeted, and no evaluation is")
    if len(seen) < len(record.attacks):  # the record does not say, and these attacks are not known here
        return Outcome("threat", None, f"the attacks do not say what they saw, the record says {said}")
    if seen and (most := max(seen, key=ACCESS.index)) != said:
        return Outcome("threat", False, f"the record says knowledge {said}, its attacks see {most} at most")
    return Outcome("threat", True, f"{record.threat.norm}:{record.threat.eps}, knowledge {said}")


def check_name(record: Record) -> Outcome:
    """Whether the data set's name and split, which a model card has, are those of its SPEC."""
    said = {"name": record.data.name, "split": record.data.split}
    if said == (given := name_and_split(record.data.spec)):
        return Outcome("data.name", True, plain(record.data.name))
    problem = f"the record says {_data(said)}, its SPEC gives {_data(given)}"
    if (made_by := record.environment.get("robust")) == __version__:
        return Outcome("data.name", False, problem)
    return Outcome.unverified("data.name", f"{problem}, and is of version {plain(made_by)}")


def _data(named: dict[str, str | None]) -> str:
    return plain(":".join(part for part in named.values() if part))


def _another_version(record: Record, stated: int, installed: int) -> Outcome:
    """Whether the attacks are those of a version of the suite that is not installed."""
    versions, suite = f"version {installed} is installed", suite_text(record.suite)
    if stated > installed:
        return Outcome.unverified("suite", f"the record is of {suite}, and {versions}; upgrade")
    base = suite_of(record)
    known = HISTORY.get((base, stated))
    if known is None:
        first = min((version for name, version in HISTORY if name == base), default=installed)
        reason = f"the record is of {suite}, yet versions are stated from {first} on"
        return Outcome("suite", False, f"{reason}; {versions}")
    own, added = _without_fmn(record)
    if known.get(record.threat.norm) == fingerprint(own):
        if [_said(entry) for entry in added] != [_made(Stage(FMN()), entry) for entry in added]:
            reason = f"the record adds another fmn to {suite} than this version does; {versions}"
            return Outcome.unverified("suite", reason)
        return Outcome("suite", True, f"the attacks are those that {suite} stood for; {versions}")
    if record.statuses.error:
        return Outcome.unverified("suite", f"not all attacks of {suite}: the run was cut short; {versions}")
    return Outcome("suite", False, f"the attacks are not those that {suite} stood for; {versions}")


def check_findings(record: Record, samples: Samples | None, target: Target | None) -> Iterator[Outcome]:
    """Whether the checks that look at the model alone find it worse, on the same samples, than the record says."""
    if target is None or samples is None or samples.sha256 != record.data.sha256:
        return
    try:
        found = preflight_on(samples, target, threat_of(record)).findings
    except RobustError as error:
        yield Outcome("findings", False, f"the model given is not one for these samples: {error}")
        return
    named = {finding.check for finding in record.findings}
    worse = [each for each in found if each.check not in named and verdict([each]) != record.trust]
    if record.trust == "unreliable" or not worse:
        yield Outcome("findings", True, "checks of the model find nothing worse than the record says")
        return
    problem = f"{'; '.join(f'{each.check}: {each.message}' for each in worse)}; the record says nothing of it"
    if (made_by := record.environment.get("robust")) == __version__:
        yield Outcome("findings", False, problem)
    else:
        yield Outcome.unverified("findings", f"{problem}, and is of version {plain(made_by)}")


def threat_of(record: Record) -> Threat:
    """The threat of a record."""
    return Threat(record.threat.norm, record.threat.eps, record.threat.bounds)


def accesses(record: Record) -> list[str | None]:
    """The most that each attack sees: where the record does not say, what one of this name does; None of unknown ones.

    A record of schema 1 may leave it out, and is spared no finding that rests on it.
    """
    return [entry.access or _access_of(entry.name) for entry in record.attacks]


def _access_of(name: str) -> str | None:
    with suppress(RobustError):  # an unknown name, or of a library that is not installed
        return str(ATTACKS[name].access)
    return None


def suite_of(record: Record) -> str:
    """The name of a record's suite, without what `evaluate(minimize=True)` adds to it."""
    name = record.suite.name
    return name.removesuffix(AND_FMN) if record.suite.minimize else name


def stages_of(record: Record, suite: Any) -> tuple[str, list[Stage]]:
    """What a suite stands for under the record's threat, with FMN where the record says that it was added."""
    added = suite_of(record) != record.suite.name
    return (resolve_minimizing if added else resolve)(suite, threat_of(record))


def _without_fmn(record: Record) -> tuple[list[AttackInfo], list[AttackInfo]]:
    """The attacks of the suite itself, and what was added to it."""
    attacks, last = record.attacks, record.attacks[-1:]
    added = suite_of(record) != record.suite.name and [entry.name for entry in last] == [FMN.name]
    return (attacks[:-1], last) if added else (attacks, [])


def attacks_of(record: Record) -> list[dict[str, Any]]:
    """The attacks by their names and options, as `evaluate` takes them."""
    return [{"name": entry.name, **entry.parameters} for entry in record.attacks]


def _said(entry: AttackInfo) -> tuple[Any, ...]:
    return entry.name, entry.label, entry.parameters, entry.selection, entry.access


def _made(stage: Stage, entry: AttackInfo) -> tuple[Any, ...]:
    """A stage as a record would say it; who is let at it only where this record says so."""
    attack = stage.attack
    selection = as_json(stage.selection) if entry.selection else {}
    access = attack.access if entry.access else None  # one of schema 1 may not
    return attack.name, attack.label, as_json(attack.parameters), selection, access
