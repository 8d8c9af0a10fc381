"""What a gate is told, and who has the last word. Nothing here loads torch: the plugin reads it at start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from robust.errors import InputError
from robust.registry import Registry

Gate = Literal["sequential", "fixed", "interval"]
GATES: Final = get_args(Gate)


@dataclass(frozen=True)
class Preset:
    """How much a session spends: a suite, and the most samples a test may use (None: all)."""

    suite: str
    max_samples: int | None


PRESETS: Registry[Preset] = Registry("preset")
PRESETS.register("smoke")(Preset("quick", 100))
PRESETS.register("standard")(Preset("standard", 1000))
PRESETS.register("full")(Preset("thorough", None))

TEST_OPTIONS: Final = (
    "threat",
    "suite",
    "at_least",
    "confidence",
    "max_samples",
    "gate",
    "require_trust",
    "normalize",
    "bounds",
    "seed",
    "device",
    "batch_size",
    "precision",
    "diagnose",
    "eot",
    "vote",
)
"""What the marker and `check` take; `check` says what each means."""


@dataclass(frozen=True)
class Source:
    """Options of the whole session from one place: the command line, or the configuration file."""

    preset: str | None = None
    samples: int | None = None
    seed: int | None = None
    device: str | None = None

    def settings(self) -> dict[str, Any]:
        """As options of a test; what was not given is absent."""
        found: dict[str, Any] = {}
        if self.preset is not None:
            preset = PRESETS[self.preset]
            found.update(suite=preset.suite, max_samples=preset.max_samples)
        given = {"max_samples": self.samples, "seed": self.seed, "device": self.device}
        return {**found, **{key: value for key, value in given.items() if value is not None}}


@dataclass(frozen=True)
class Session:
    """Everything that holds for all tests of a session."""

    command_line: Source = field(default_factory=Source)
    configuration: Source = field(default_factory=Source)
    baseline: Path | None = None
    root: Path = field(default_factory=Path)
    update_baseline: bool = False
    fail_on_undecided: bool = False

    def resolve(self, marker: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
        """Options of one check: command line, call, marker, configuration file, in this order of weight.

        Raises:
            InputError: an option that does not exist, or no threat.
        """
        check_names("robust", call)
        preset = PRESETS["standard"]
        default = {"suite": preset.suite, "max_samples": preset.max_samples, "seed": 0, "device": "auto"}
        found = {**default, **self.configuration.settings(), **marker, **call, **self.command_line.settings()}
        if "threat" not in found:
            raise InputError(
                "threat: expected one such as 'linf:8/255', got none; give it to the marker or to the call"
            )
        found["strict"] = False
        own, imposed = {**marker, **call}.get("max_samples"), self.command_line.settings()
        if own is not None and "max_samples" in imposed:
            # A test's own number is a promise about its data; the session's is a ceiling over many tests.
            ceiling = imposed["max_samples"]
            own = own if ceiling is not None and ceiling >= own else None
        if own is not None:
            found.update(max_samples=own, strict=True)
        return found


def check_names(where: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that `check` does not have."""
    unknown = [name for name in options if name not in TEST_OPTIONS]
    if unknown:
        raise InputError(f"{where}: no option {unknown[0]!r}; there are {', '.join(TEST_OPTIONS)}")


def check_marker(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Refuse a marker whose values can be seen to be wrong before anything is computed.

    Raises:
        InputError: a positional argument, an unknown option, or a value out of range.
    """
    if arguments:
        raise InputError(
            f"marker robust: expected named options only, got {arguments[0]!r}; "
            "write robust(threat='linf:8/255', at_least=0.45)"
        )
    check_names("marker robust", options)
    check_values(options)


def check_values(options: Mapping[str, Any]) -> None:
    """Check the values of `at_least`, `confidence`, `max_samples` and `gate`, where given."""
    from robust.stats import check_fraction  # which the plugin does not load before a test runs

    for name, example in (("at_least", "0.45"), ("confidence", "0.95")):
        if name in options:
            check_fraction(name, options[name], example)
    limit = options.get("max_samples")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"max_samples: expected a positive integer or None for all, got {limit!r}")
    if options.get("gate", "sequential") not in GATES:
        raise InputError(f"gate: expected one of {', '.join(GATES)}, got {options['gate']!r}")
