"""ART's preprocessors in front of a model. They hide gradients and hold nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robust.attacks.adapters.isolation import quiet
from robust.defenses.adapters.art import ART, Peer, make_class
from robust.defenses.wrappers import Wrapper
from robust.errors import InputError


@dataclass(frozen=True)
class Preprocessor(Wrapper):
    """A preprocessor of ART as a wrapping defense; subclasses are made by name."""

    library: ClassVar[ART]
    peer: ClassVar[Peer]
    label: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]

    def transform(self, bounds: tuple[float, float]) -> nn.Module:
        options = {key: getattr(self, key) for key in self.keys}
        made = self.library.call(
            self.label, {**options, "clip_values": (0.0, 1.0), "channels_first": self.peer.layout == "NCHW"}
        )
        return Preprocessed(made, self.peer.layout, bounds, f"{self.label} {json.dumps(options)}")


class Preprocessed(nn.Module):
    """A preprocessor of ART as a layer: inputs in bounds (N, ...) -> (N, ...), without gradient.

    Args:
        preprocessor: maps arrays in the unit box to such arrays.
        layout: of its images.
        bounds: of the inputs here.
        setting: tells settings apart; its bytes are kept in the state dict, and so enter a model's hash.
    """

    def __init__(self, preprocessor: Any, layout: str, bounds: tuple[float, float], setting: str) -> None:
        super().__init__()
        self._preprocessor, self._moves, self._bounds = preprocessor, layout == "NHWC", bounds
        self.register_buffer("setting", torch.tensor(list(setting.encode()), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self._bounds
        unit = ((x.detach() - low) / (high - low)).clamp(0, 1)
        moves = self._moves and x.dim() == 4
        given = (unit.movedim(1, -1) if moves else unit).cpu().numpy()
        try:
            with quiet():
                found, _ = self._preprocessor(np.ascontiguousarray(given))
        except ValueError as error:
            raise InputError(f"art: {error} (samples of shape {tuple(x.shape[1:])})") from error
        out = torch.from_numpy(np.ascontiguousarray(found)).to(x)
        return (out.movedim(-1, 1) if moves else out) * (high - low) + low


def preprocessor_of(library: ART, name: str) -> type[Preprocessor]:
    """The preprocessor of that name as a defense."""
    return make_class(library, name, Preprocessor)
