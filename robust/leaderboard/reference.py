"""Figures that others reported: rows to look at beside one's own, never measured here."""

from __future__ import annotations

import json
from typing import Final, Literal

from pydantic import Field, ValidationError

from robust.errors import StoreError
from robust.leaderboard.artefacts import sha256
from robust.leaderboard.schema import Finite, Name, Parameters, Part, Text, Url, canonical, unwrapped

REFERENCE_VERSION: Final = 1


class Reference(Part):
    """An entry of another leaderboard.

    `clean` and `robust` are fractions, None where none was given; `robust` is the score named by
    `ranked_by`. `scores` holds all of them, `notes` what was odd, `raw` the entry as it came. `norm` is
    the threat's name there ("corruptions" has no eps; one given all the same stays in `raw`).
    """

    schema_version: Literal[1] = REFERENCE_VERSION
    origin: Name
    name: Name
    architecture: Name
    dataset: Name
    norm: Name
    eps: Name | None = None
    radius: Finite | None = None
    clean: Finite | None = None
    robust: Finite | None = None
    ranked_by: Name | None = None
    scores: dict[Name, Finite] = Field(default_factory=dict)
    unreliable: bool = False
    extra_data: bool | None = None
    title: Text | None = None
    authors: Text | None = None
    venue: Name | None = None
    url: Url | None = None
    footnote: Text | None = None
    notes: list[Text] = Field(default_factory=list)
    raw: Parameters

    @property
    def id(self) -> str:
        """Content address, 64 hex digits."""
        return sha256(canonical(self.model_dump(mode="json")).encode())

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Which entry this is, whatever it says."""
        return self.origin, self.dataset, self.norm, self.name

    @property
    def short_id(self) -> str:
        """The first 16 digits of `id`, to show."""
        return self.id[:16]

    def dumps(self) -> str:
        """The text of its file."""
        whole = {"id": self.id, "reference": self.model_dump(mode="json")}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def loads(text: str, where: str = "reference") -> Reference:
        """Read what `dumps` wrote.

        Raises:
            StoreError: malformed, of a newer schema, or altered since it was written.
        """
        content, version = unwrapped(text, "reference", where)
        if version != REFERENCE_VERSION:
            raise StoreError(
                f"{where}: schema version {version!r}, this program reads {REFERENCE_VERSION}; "
                "upgrade robust-harness"
            )
        try:
            found = Reference.model_validate(content)
        except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise StoreError(f"{where}: not a reference: {type(error).__name__}: {first}") from None
        if text.replace("\r\n", "\n") != found.dumps():
            raise StoreError(f"{where}: the content does not match its id; it was altered or damaged")
        return found
