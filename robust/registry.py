"""One registry for everything that is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Generic, TypeVar

from robust.errors import MissingDependencyError, UnknownNameError

T = TypeVar("T")
_ALIKE: Final = 0.5  # as difflib has it: enough where something must have been meant


@dataclass(frozen=True)
class Annex(Generic[T]):
    """Names under a prefix that are made when they are asked for.

    Args:
        make: from a name without its prefix, one of `names`.
        names: all of them.
        refuse: raises for a name that is known and cannot be had; else returns.
    """

    make: Callable[[str], T]
    names: Callable[[], Iterable[str]]
    refuse: Callable[[str], None]


class Registry(Generic[T]):
    """Names to objects, filled by decorator and by the entry points of other packages.

    Args:
        kind: what it holds, in the singular, for messages ("attack").
        group: entry-point group in which other packages announce theirs; loaded on the first miss
            or listing, so that importing this package never imports a stranger's.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self._group = group
        self._items: dict[str, T] = {}
        self._broken: dict[str, str] = {}  # entry points that do not load, and why
        self.annexes: dict[str, Annex[T]] = {}

    def annex(
        self,
        prefix: str,
        make: Callable[[str], T],
        names: Callable[[], Iterable[str]],
        refuse: Callable[[str], None],
    ) -> None:
        """Let `prefix:NAME` be found too. Such names are not iterated over: see `annexes`."""
        self.annexes[prefix] = Annex(make, names, refuse)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`. A taken name raises ValueError."""

        def file(item: T) -> T:
            if self._items.get(name, item) is not item:
                raise ValueError(
                    f"{self.kind} name {name!r} is taken by {self._items[name]!r}; choose another"
                )
            self._items[name] = item
            return item

        return file

    def __getitem__(self, name: str) -> T:
        prefix, _, rest = name.partition(":")
        if prefix in self.annexes:
            annex = self.annexes[prefix]
            annex.refuse(rest)
            if rest in annex.names():
                return annex.make(rest)
            raise UnknownNameError(self._miss(name))
        if name not in self._items:
            self._load_entry_points()
        if name in self._broken:
            raise MissingDependencyError(self._broken[name])
        try:
            return self._items[name]
        except KeyError:
            raise UnknownNameError(self._miss(name)) from None

    def __contains__(self, name: object) -> bool:
        prefix, _, rest = str(name).partition(":")
        if prefix in self.annexes:
            return rest in self.annexes[prefix].names()
        if name not in self._items:
            self._load_entry_points()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def broken(self) -> dict[str, str]:
        """Names that other packages announce and that cannot be loaded, and why."""
        self._load_entry_points()
        return dict(self._broken)

    def _load_entry_points(self) -> None:
        group, self._group = self._group, None
        for entry in entry_points(group=group) if group else ():
            try:
                self.register(entry.name)(entry.load())
            except Exception as error:  # a stranger's package must not take ours down
                self._broken[entry.name] = self._blame(entry, error)

    def _blame(self, entry: EntryPoint, error: Exception) -> str:
        package = entry.dist.name if entry.dist else "a package"
        return (
            f"{self.kind} {entry.name!r} is announced by {package} ({entry.value}) and cannot be loaded: "
            f"{type(error).__name__}: {error}"
        )

    def _miss(self, name: str) -> str:
        near, prefix = self.near(name), name.partition(":")[0]
        if near:
            hint = f"did you mean {near!r}?"
        elif prefix in self.annexes:
            hint = f"{len([*self.annexes[prefix].names()])} are known: `robust list {self.kind}s {prefix}`"
        else:
            hint = f"known: {', '.join(sorted(self._items)) or 'none'}"
        return f"unknown {self.kind} {name!r}; {hint}"

    def near(self, name: str, likeness: float = _ALIKE) -> str | None:
        """The name that another most likely means; see `nearest`."""
        self._load_entry_points()
        prefix = name.partition(":")[0]
        if ":" not in name and prefix not in self.annexes:
            return nearest(name, self._items, likeness)
        annexes = {prefix: self.annexes[prefix]} if prefix in self.annexes else self.annexes
        known = [f"{key}:{each}" for key, annex in annexes.items() for each in annex.names()]
        return nearest(name, known, likeness)


def nearest(name: str, known: Iterable[str], likeness: float = _ALIKE) -> str | None:
    """The known name that `name` most likely means, whatever its capitals; None where none is so much like it, in [0, 1]."""
    lowered = {each.lower(): each for each in known}
    swapped = [each for each in lowered if sorted(each) == sorted(name.lower())]
    if swapped:
        return lowered[swapped[0]]
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=likeness)
    return lowered[near[0]] if near else None
