"""Adversarial examples as small pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor

from robust.errors import StoreError
from robust.leaderboard.artefacts import read_examples
from robust.leaderboard.record import Record

_SHOWN = 8
_LARGEST = 512  # pixels a side


def panels(
    record: Record, verdicts: pd.DataFrame, examples: bytes | None, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The first examples: what they are of, and clean, adversarial and difference as data URLs.

    Only grey and RGB images of moderate size can be shown; the clean side needs the points saved beside. Of a file that
    holds no examples of this record nothing is shown: `leaderboard verify` says so.
    """
    try:
        saved = {} if examples is None else read_examples(examples)
    except StoreError:
        return []
    if not saved or not _are_images(saved["x_adv"]):
        return []
    broken, found = verdicts[verdicts["status"] == "broken"], []
    table = broken.drop_duplicates("sample_id").set_index("sample_id")
    low, high = record.threat.bounds
    for place, id_ in enumerate(saved["sample_id"][:_SHOWN].tolist()):
        if id_ not in table.index:
            continue
        row = table.loc[id_]
        x_adv = (saved["x_adv"][place].float() - low) / (high - low)
        images = [(_png(x_adv), "adversarial")]
        if "x" in saved:
            x = (saved["x"][place].float() - low) / (high - low)
            change = x_adv - x
            images = [
                (_png(x), "clean"),
                *images,
                (_png(0.5 + change / (2 * change.abs().amax().clamp_min(1e-9))), "difference, scaled"),
            ]
        label, taken = int(row["label"]), int(row.get("prediction_adv", -1))
        found.append(
            {
                "sample": id_,
                "label": names[label],
                "taken": names[taken] if 0 <= taken < len(names) else "another class",
                "distance": f"{record.threat.norm} distance {row['distance']:.4g}",
                "images": images,
            }
        )
    return found


def _are_images(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape) > 0 and max(x.shape[2:]) <= _LARGEST


def _png(x: Tensor) -> str:
    """A (C, H, W) picture in [0, 1] as a data URL."""
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    sink = BytesIO()
    image.save(sink, "PNG")
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
