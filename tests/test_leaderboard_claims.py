"""What records say of themselves is not believed: trust and suite; what is said of it fits eighty columns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.resources import files
from typing import Any

import pytest
from reports import DEFENSE, UNRELIABLE, make_record, make_report, sealed
from torch import Tensor, nn

from robust import evaluate
from robust.errors import InputError, UnsupportedError
from robust.leaderboard import (
    Record,
    comparison_text,
    leaderboard_frame,
)
from robust.leaderboard import compare as compare_records
from robust.leaderboard.claims import check_suite, check_trust
from robust.leaderboard.compare import Paired
from robust.leaderboard.derive import derive
from robust.leaderboard.outcome import Outcome
from robust.leaderboard.schema import AttackInfo
from robust.leaderboard.site.exports import badge
from robust.leaderboard.suite_history import HISTORY, fingerprint
from robust.report import Report
from robust.suites import SUITES, VERSIONS, Stage, resolve
from robust.threat import NORMS, Threat

SOFTENED = {"check": "randomized", "severity": "suspect", "message": "m"}
UNKNOWN = {"check": "not-yet-invented", "severity": "suspect", "message": "m"}


# -- trust ------------------------------------------------------------------------------------------

CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"findings": [UNRELIABLE]}, "the findings give unreliable, the record says trusted"),
    ({"findings": [SOFTENED]}, "randomized makes a verdict unreliable, the record says suspect"),
    ({"findings": [SOFTENED], "trust": "suspect"}, "randomized makes a verdict unreliable"),
    ({"findings": [UNKNOWN]}, "the findings give suspect, the record says trusted"),
    ({"trust": "suspect"}, "the findings give trusted, the record says suspect"),
    ({"trust": "unknown"}, "the findings give trusted, the record says unknown"),
]


@pytest.mark.parametrize(("changes", "reason"), CLAIMS)
def test_a_trust_that_does_not_follow_fails_and_is_not_ranked(changes: dict[str, Any], reason: str) -> None:
    forged = sealed(make_record(robust=80, name="forged"), **changes)
    outcome = check_trust(forged)
    assert outcome.ok is False
    assert reason in outcome.message
    frame = leaderboard_frame([forged, make_record()])
    assert list(zip(frame["model"], frame["rank"], frame["trust"], strict=True)) == [
        ("net", "1", "trusted"), ("forged", "-", "unreliable"),
    ]  # fmt: skip
    assert "trust-as-stated" in frame["checks"].iloc[1]
    assert '"message": "unreliable"' in badge(forged)


def test_a_record_with_errors_is_not_ranked_as_trusted() -> None:
    """As of a run that was interrupted, which earlier versions filed without a finding."""
    cut_short = make_record(robust=50, error=30, name="cut short", alone={})
    outcome = check_trust(cut_short)
    assert (outcome.ok, "30 of 100 samples ended in an error" in outcome.message) == (False, True)
    frame = leaderboard_frame([cut_short, make_record()])
    assert list(frame["rank"]) == ["1", "-"]
    assert list(frame["checks"]) == ["", "samples-in-error"]
    told = make_record(robust=50, error=30, trust="unreliable")
    assert check_trust(told).ok is True


def test_a_trust_that_follows_stands_and_unknown_checks_are_said() -> None:
    for trust in ("trusted", "suspect", "unreliable"):
        assert check_trust(make_record(trust=trust)) == Outcome(
            "trust", True, f"{trust}, as the findings give it"
        )
    newer = check_trust(make_record(trust="suspect", findings=[UNKNOWN]))
    assert (newer.ok, newer.asked) == (None, True)
    assert "knows no check not-yet-invented" in newer.message


def test_a_report_whose_trust_was_edited_makes_no_record() -> None:
    with pytest.raises(InputError, match=r"^report: trust: expected 'unreliable', which its findings give"):
        make_record(findings=[UNRELIABLE], trust="trusted")


def test_a_comparison_says_who_must_not_be_trusted() -> None:
    honest, table = make_record(), make_report().verdicts
    forged = sealed(make_record(robust=80), findings=[UNRELIABLE])
    text = comparison_text(compare_records(honest, forged, table, make_report(robust=80).verdicts))
    assert "B is more robust" in text
    assert "but B must not be trusted" in text.replace("\n", " ")


# -- suites -----------------------------------------------------------------------------------------


@pytest.fixture
def few(net: nn.Module, digits: tuple[Tensor, Tensor]) -> Callable[[Any], Report]:
    def attacked(suite: Any) -> Report:
        return evaluate(net, (digits[0][:8], digits[1][:8]), threat="linf:0.05", suite=suite, device="cpu")

    return attacked


def suite_of(report: Report, **changes: Any) -> Outcome:
    return check_suite(sealed(Record.from_report(report, name="net", defense=DEFENSE), **changes))


@pytest.mark.parametrize(
    "suite",
    [
        "quick",
        "standard",
        "fgsm",
        ["fgsm", {"name": "basin-hopping", "radii": (2, 1), "steps": 4, "hops": 1}],
    ],
)
def test_suites_by_their_names_stand(few: Callable[[Any], Report], suite: Any) -> None:
    outcome = suite_of(few(suite))
    assert outcome.ok is True, outcome


def test_one_step_is_not_the_suite_standard(few: Callable[[Any], Report]) -> None:
    report = few("fgsm")
    report.suite = "standard"
    assert suite_of(report).ok is False
    report.attacks[0]["label"] = "standard"
    report.verdicts["attack"] = report.verdicts["attack"].replace("fgsm", "standard")
    assert suite_of(report).ok is False
    report.suite_version = None
    older = suite_of(report, environment={"robust": "0.0.1"})
    assert (older.ok, older.asked) == (None, True)
    assert "the record, of robust 0.0.1, does not say which version of standard it is of" in older.message


NOW = VERSIONS["standard"]
FIRST = min(version for name, version in HISTORY if name == "standard")


@pytest.mark.parametrize(
    ("version", "ok", "reason"),
    [
        (NOW, False, f"not those that standard version {NOW} stands for"),
        (NOW + 1, None, f"the record is of standard version {NOW + 1}, and version {NOW} is installed; upgrade"),
        (1, False, f"of standard version 1, yet versions are stated from {FIRST} on; version {NOW} is installed"),
    ],
)  # fmt: skip
def test_an_older_program_excuses_no_record_that_states_its_suites_version(
    few: Callable[[Any], Report], version: int, ok: bool | None, reason: str
) -> None:
    report = few("fgsm")
    report.suite, report.suite_version = "standard", version
    outcome = suite_of(report, environment={"robust": "0.0.1"})
    assert (outcome.ok, outcome.asked) == (ok, ok is None)
    assert reason in outcome.message


def test_a_record_of_an_older_version_is_held_to_what_that_was(
    few: Callable[[Any], Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = few("quick")
    then = VERSIONS["quick"]
    monkeypatch.setitem(VERSIONS, "quick", then + 1)
    outcome = suite_of(report)
    assert outcome.ok is True
    said = f"the attacks are those that quick version {then} stood for; version {then + 1} is installed"
    assert outcome.message == said
    report.attacks[1]["selection"]["near"] = 1e-9
    assert suite_of(report).ok is False


def test_a_record_without_a_version_stands_where_its_attacks_do(few: Callable[[Any], Report]) -> None:
    report = few("quick")
    report.suite_version = None
    assert suite_of(report).ok is True


def test_a_suite_that_changes_has_a_version_of_its_own() -> None:
    """Where this fails: raise the suite's number in VERSIONS, and add to suite_history.csv what is printed."""
    now: dict[tuple[str, int], dict[str, str]] = {}
    for name, version in VERSIONS.items():
        for norm, eps in {
            **dict.fromkeys(NORMS, "1"),
            "spatial": "30,0.1",
            "corruptions": "1-5",
            "patch": "5x5",
        }.items():
            with suppress(UnsupportedError):
                _, stages = resolve(name, Threat(norm, eps))
                now.setdefault((name, version), {})[norm] = fingerprint([_listed(stage) for stage in stages])
    new = {key: by_norm for key, by_norm in now.items() if HISTORY.get(key) != by_norm}
    print(
        *(f"{name},{n},{norm},{mark}" for (name, n), by in new.items() for norm, mark in by.items()), sep="\n"
    )
    assert not new
    assert set(VERSIONS) <= set(SUITES)


def test_what_a_version_has_stood_for_is_never_changed() -> None:
    """Records of them are about. Of the first lines, to version 36 of standard; there may be more below."""
    lines = (files("robust.leaderboard") / "suite_history.csv").read_bytes().splitlines()
    landed = sha256(b"\n".join(lines[:476])).hexdigest()
    assert landed == "3b46b78edd973f414d514f298816d70249a5041e615be3e84ebda55209bc7872"
    assert len({line.rpartition(b",")[0] for line in lines}) == len(lines)


def _listed(stage: Stage) -> AttackInfo:
    attack = stage.attack
    counts = dict.fromkeys(("attacked", "broke", "survived", "forwards", "backwards"), 0)
    return AttackInfo(
        name=attack.name,
        label=attack.label,
        parameters=attack.parameters,
        selection=stage.selection,
        seconds=0,
        **counts,
    )


def test_attacks_shown_other_samples_than_the_suite_says_are_another_suite(
    few: Callable[[Any], Report],
) -> None:
    report = few("quick")
    report.attacks[1]["selection"]["near"] = 1e-9
    assert suite_of(report).ok is False


@pytest.mark.parametrize("name", ["mine", "Standard", "pgd"])
def test_an_unknown_suite_is_not_verified(few: Callable[[Any], Report], name: str) -> None:
    report = few("fgsm")
    report.suite = name
    outcome = suite_of(report)
    assert (outcome.ok, outcome.asked) == (None, True)
    assert f"knows no suite {name}" in outcome.message


def test_a_suite_that_was_cut_short_is_not_verified(few: Callable[[Any], Report]) -> None:
    report = few("quick")
    del report.attacks[1:]
    report.verdicts.loc[report.verdicts["status"] == "survived", "status"] = "error"
    assert suite_of(report).ok is None


def test_an_attack_is_what_it_may_see(few: Callable[[Any], Report]) -> None:
    """Who calls square a gradient attack hides that it won without gradients."""
    report = few(["pgd", {"name": "square", "queries": 20}])
    assert suite_of(report).ok is True
    report.attacks[1]["access"] = "gradient"
    assert suite_of(report).ok is not True


# -- eighty columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ok", [True, False, None])
def test_a_line_fits_eighty_columns(ok: bool | None) -> None:
    text = str(Outcome("artefacts.verdicts_sha256", ok, f"{'word ' * 40}{'x' * 200}"))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith({True: "ok    ", False: "FAIL  ", None: "-     "}[ok])


def test_a_comparison_fits_eighty_columns() -> None:
    table = make_report(n=60_000, wrong=2_000, robust=30_000).verdicts
    record = make_record(n=60_000, wrong=2_000, robust=30_000)
    found = compare_records(record, record, table, table)
    long = Paired("c" * 300, 60_000, 0, 30_000, 30_000, 0, -1.0, -1.0, 1.0, 1.2e-300, 1.2e-299)
    object.__setattr__(found, "classes", [long])
    assert max(map(len, comparison_text(found).splitlines())) <= 80


def test_messages_begin_in_one_column_whatever_the_checks_are_called() -> None:
    table = make_report(robust=80).verdicts
    names = ["record", "fairness", *derive(table)]
    assert max(map(len, names)) > 12
    for name in names:
        lines = str(Outcome(name, True, "0123456789abcdef... " * 9)).splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].split()[:2] == ["ok", name]
        messages = [line for line in lines if "0123" in line]
        assert {line.index("0123") for line in messages} == {20}
