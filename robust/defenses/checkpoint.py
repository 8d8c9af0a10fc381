"""The state of a training run after an epoch, in one file, replaced atomically."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robust.defenses.options import EpochResult
from robust.errors import InputError, StoreError
from robust.failures import out_of_memory
from robust.files import replacing, why, why_unwritten


class Checkpoint:
    """A run's checkpoint in `folder`.

    Args:
        folder: also gets history.json.
        stage: part of the training it belongs to; stages of one defense lie side by side.
        identity: what the run is made of (data, model, options ...), by name, as text.
    """

    def __init__(self, folder: Path, stage: str, identity: Mapping[str, str]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self._path = folder / "checkpoints" / f"{stage}.pt"

    def keep(self, state: Mapping[str, Any], history: Sequence[EpochResult]) -> None:
        """Write the state and the history.

        Raises:
            StoreError: the folder cannot be written.
        """
        text = json.dumps([asdict(result) for result in history])
        try:
            with replacing(self._path) as partial:
                torch.save({**state, "identity": self._identity, "history": text}, partial)
            with replacing(self._folder / "history.json") as partial:
                partial.write_text(text, encoding="utf-8")
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            reason = why_unwritten(error)
            raise StoreError(f"out: cannot write a checkpoint to {self._folder}: {reason}") from error

    def load(self, device: torch.device) -> tuple[dict[str, Any], list[EpochResult]] | None:
        """State and history, or None where there is no checkpoint yet.

        Raises:
            InputError: the file is damaged, or another run's.
        """
        if not self._path.exists():
            return None
        try:
            state, history = _read(self._path, device)
        except InputError as error:
            raise InputError(f"{error}; delete it, or train with resume=False (--no-resume)") from error
        identity = state["identity"]
        if identity != self._identity:
            keys = [k for k in {**identity, **self._identity} if identity.get(k) != self._identity.get(k)]
            raise InputError(
                f"checkpoint {self._path} is of another run: it differs in {', '.join(keys)}; choose another "
                "folder, or train with resume=False (--no-resume) to replace it"
            )
        return state, history


def drop_damaged(folder: Path) -> list[str]:
    """Delete the checkpoints of a run's folder that cannot be read; why each could not.

    Raises:
        StoreError: one cannot be deleted.
    """
    reasons = []
    for path in sorted((folder / "checkpoints").glob("*.pt")):
        try:
            _read(path, torch.device("cpu"))
        except InputError as error:
            reasons.append(str(error))
            try:
                path.unlink()
            except OSError as kept:
                raise StoreError(f"out: cannot delete the damaged {path}: {why(kept)}") from kept
    return reasons


def _read(path: Path, device: torch.device) -> tuple[dict[str, Any], list[EpochResult]]:
    """State and history.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not compare the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is not what was written")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        _ = state["identity"]
        history = [EpochResult(**result) for result in json.loads(state["history"])]
    except Exception as error:  # a damaged archive or pickle fails in as many ways as there are files
        if out_of_memory(error):
            raise
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path} cannot be read ({reason})") from error
    return state, history
