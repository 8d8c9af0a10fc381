"""One registry for everything that is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from robust.errors import UnknownNameError

T = TypeVar("T")


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
        if name not in self._items:
            self._load_entry_points()
        try:
            return self._items[name]
        except KeyError:
            raise UnknownNameError(self._miss(name)) from None

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            self._load_entry_points()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _load_entry_points(self) -> None:
        group, self._group = self._group, None
        for entry in entry_points(group=group) if group else ():
            self.register(entry.name)(entry.load())

    def _miss(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self._items), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self._items)) or 'none'}"
        return f"unknown {self.kind} {name!r}; {hint}"
