"""What an attack is, and how one is found by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from enum import Enum
from numbers import Integral, Real
from typing import Any, ClassVar, Final, get_args

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from robust.errors import InputError, UnsupportedError
from robust.oracle import Access, Finished, Oracle
from robust.registry import Registry, nearest
from robust.threat import Threat

_INTEGERS: Final = (int, "int")
_NUMBERS: Final = (float, float | None, "float", "float | None")


@dataclass(frozen=True)
class Attack(ABC):
    """A way to search for adversarial examples; its fields are its parameters.

    Subclasses are frozen dataclasses with four class attributes and one method. They hold neither the
    model nor any state of a run, and leave masking, counting, seeding and remembering to the oracle.
    """

    name: ClassVar[str]
    norms: ClassVar[tuple[str, ...]]
    access: ClassVar[Access]
    paper: ClassVar[str]
    minimum_norm: ClassVar[bool] = False  # searches the nearest adversarial point, whatever eps

    @abstractmethod
    def run(self, oracle: Oracle) -> Tensor | None:
        """Search. `oracle` shows the live rows; every point asked about is recorded by it.

        Returns:
            The last point, for callers that want one per row (training); None for attacks whose
            points differ in number from the rows. Scores never read it: they read the oracle's ledger.
        """

    def __call__(self, oracle: Oracle) -> None:
        """Run to the end: out of rows, out of budget, or out of steps."""
        with suppress(Finished):
            self.run(oracle)

    @property
    def stays_inside(self) -> bool:
        """Whether every point it visits lies in the threat set."""
        return not self.minimum_norm

    @property
    def ascends(self) -> bool:
        """Whether it raises margins inside the threat, if it comes there: minimum-norm searches need not."""
        return not self.minimum_norm

    @property
    def begins_at_break(self) -> bool:
        """Whether it begins at the nearest adversarial point that attacks before it saw beyond the threat."""
        return False

    @property
    def least_classes(self) -> int:
        """How many classes a model must have for it to have anything to do."""
        return 2

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters with their effective values, as JSON can hold them."""
        return {key: json_value(value) for key, value in asdict(self).items()}

    @property
    def source(self) -> str:
        """Whose implementation it is: the package, and of other libraries' attacks the version."""
        return type(self).__module__.partition(".")[0]

    @property
    def batch_dependent(self) -> bool:
        """Whether a sample's result may depend on the samples beside it. Never for attacks that use the oracle alone."""
        return False

    @property
    def loads(self) -> tuple[str, ...]:
        """SPECs of models that it loads when it runs: some run code, or are fetched."""
        return ()

    @property
    def at_once(self) -> int | None:
        """Samples that it works on at a time at most, after which progress is shown and kept; None for any number."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its results must know."""
        return ()

    @property
    def label(self) -> str:
        """Name with the parameters that differ from the defaults: "pgd(loss=margin)"."""
        changed = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return f"{self.name}({','.join(changed)})" if changed else self.name

    def check_numbers(self, *positive: str) -> None:
        """Raise InputError unless all numbers are of their field's type and finite, and those of these names above 0."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in _INTEGERS and (type(value) is bool or not isinstance(value, Integral)):
                raise InputError(f"{self.name}: {f.name}: expected an integer, got {value!r}")
            if f.type in _NUMBERS and not isinstance(value, Real | None):
                raise InputError(f"{self.name}: {f.name}: expected a number, got {value!r}")
            numbers = [
                n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, float | int)
            ]
            if not all(map(math.isfinite, numbers)):
                raise InputError(f"{self.name}: {f.name}: expected a finite number, got {value}")
            if f.name in positive and not all(n > 0 for n in numbers):
                raise InputError(f"{self.name}: {f.name}: expected a number above 0, got {value}")

    def check(self, threat: Threat) -> None:
        """Raise UnsupportedError unless the attack knows the threat's norm."""
        if threat.norm not in self.norms:
            raise UnsupportedError(
                f"attack {self.name!r} works for {', '.join(self.norms)}, not for {threat.norm} "
                f"(threat {threat}); `robust list attacks` shows which attacks do"
            )


ATTACKS: Registry[type[Attack]] = Registry("attack", "robust.attacks")


def make_attack(spec: str | Attack | Mapping[str, Any] | Any, **options: object) -> Attack:
    """An attack from its name and options, a mapping {"name": ..., option: ...}, or itself.

    Option values may be text; they are read by the field's type.

    Raises:
        UnknownNameError: no such attack.
        InputError: no such option, a value that does not fit, or a class that lacks what every attack's has.
    """
    if isinstance(spec, Attack):
        return _declared(spec)
    if isinstance(spec, Mapping):
        options = {**spec, **options}
        spec = name_of("attack", options)
    if not isinstance(spec, str):
        hint = f"; make one: {spec.__name__}()" if isinstance(spec, type) and issubclass(spec, Attack) else ""
        raise InputError(f"attack: expected a name, an attack, or a mapping with a name, got {spec!r}{hint}")
    return _declared(build(ATTACKS[spec], f"attack {spec!r}", options))


def name_of(kind: str, options: dict[str, object]) -> str:
    """The name of an attack or defense, taken out of the mapping that it was given as.

    Raises:
        InputError: it has none.
    """
    name = options.pop("name", None)
    if isinstance(name, str) and name:
        return name
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    raise InputError(
        f"{kind}: expected a mapping with a `name`, got {'none' if name is None else repr(name)}"
        f"{f' beside {given}' if given else ''}; `robust list {kind}s` shows the names"
    )


def _declared(attack: Attack) -> Attack:
    """The attack, if its class says what every attack's must."""
    for attribute, expected, fits in (
        ("name", "text", lambda value: isinstance(value, str) and value),
        ("norms", "names of norms, such as ('linf', 'l2')", _are_names),
        ("access", f"one of {', '.join(get_args(Access))}", lambda value: value in get_args(Access)),
        ("paper", "where the attack is from, as text", lambda value: isinstance(value, str)),
    ):
        value = getattr(attack, attribute, None)
        if not fits(value):
            raise InputError(
                f"attack: {type(attack).__name__}.{attribute}: expected {expected}, got {value!r}; set it in the class "
                "(docs/adding_an_attack.md)"
            )
    return attack


def _are_names(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0 and all(isinstance(v, str) for v in values)


def json_value(value: object) -> Any:
    """The value as JSON can hold it, for reports and records: a path, say, as its text. What it holds as it is comes back so."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Enum):
        return json_value(value.value)
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return (
            type(value)(map(json_value, value)) if type(value) in (tuple, list) else [*map(json_value, value)]
        )
    if isinstance(value, set | frozenset):
        return sorted(map(json_value, value), key=str)
    if isinstance(value, Integral | Real):
        return int(value) if isinstance(value, Integral) else float(value)
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text  # an address is another one every time


def build(cls: type[Any], what: str, options: Mapping[str, object]) -> Any:
    """Instantiate a frozen dataclass of parameters from options that may be text."""
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near!r}? " if near else ""
            if key in ("eps", "epsilon", "norm", "bounds"):
                hint = "the threat sets that; "
            elif (
                key in ("targets", "targeted", "target")
                and issubclass(cls, Attack)
                and "targets" not in known
            ):
                hint = "it has no targeted variant here (`multitargeted` is PGD towards each class); "
            raise InputError(f"{what}: no option {key!r}; {hint}it has {', '.join(known) or 'none'}")
    try:
        made = TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # the class itself refused: its message says all
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        raise InputError(
            f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}, "
            f"got {first['input']!r}"
        ) from None
    for key, value in options.items():  # true is 1 to pydantic, and "yes" is true to YAML
        if (
            isinstance(value, bool)
            and isinstance(getattr(made, key), int | float)
            and getattr(made, key) is not value
        ):
            raise InputError(f"{what}: {key}: expected a number, got {value}")
    return made
