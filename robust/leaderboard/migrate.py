"""Records of older schemas, brought up to the present one step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Content = dict[str, Any]
OLDEST: Final = 1


def migrate(content: Content) -> Content:
    """A record's JSON content in the present schema; what an older one did not say is left unsaid."""
    while (step := _STEPS.get(content["schema_version"])) is not None:
        content = step(content)
    return content


def _from_1(content: Content) -> Content:
    """Schema 1 named the verdict table by its file alone and had no classes, paper or cost of checks."""
    artefacts = {**content["artefacts"], "verdicts_sha256": None}
    artefacts["verdicts_file_sha256"] = content["artefacts"]["verdicts_sha256"]
    data = {**content["data"], "name": content["data"]["spec"]}
    return {**content, "schema_version": 2, "artefacts": artefacts, "data": data}


_STEPS: Final[dict[int, Callable[[Content], Content]]] = {1: _from_1}
