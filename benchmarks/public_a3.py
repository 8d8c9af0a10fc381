"""The public A3 (Liu et al. 2022, arXiv 2203.05154), which reads image files and prints what it finds.

It is one script, written for CUDA, an older NumPy and a folder of pictures. Its text is adapted in memory for the
processor: the device, two types that NumPy has dropped, no loader processes. What it computes stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from robust.threat import Threat

_ADAPTED = {
    'torch.device("cuda")': 'torch.device("cpu")',
    ".to('cuda')": ".to('cpu')",
    "np.bool)": "bool)",
    "np.int)": "int)",
    "num_workers=8": "num_workers=0",
    "pin_memory=True": "pin_memory=False",
}
_FOLDERS = {1: "data/mnist_test", 3: "data/cifar10/test"}  # by channels: where the script looks
_SETS = {1: "mnist", 3: "cifar10"}
_ITERATIONS = 1000  # an image at most, so that its own schedule ends the run


class Printed(NamedTuple):
    """What it says of itself at the end."""

    robust: float  # share of all images
    forwards: int
    backwards: int
    seconds: float


def attack(folder: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int = 0) -> Printed:
    """All of its rounds, at its own settings, on 8-bit images of MNIST's or CIFAR-10's shape and ten classes."""
    numpy.random.seed(seed)  # noqa: NPY002 - where it draws from
    torch.manual_seed(seed)
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    kind = _SETS[x.shape[1]]
    run: Any = _module(Path(folder))["Adaptive_Auto_white_box_attack"]
    said = io.StringIO()
    with _pictures(x, y), contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        run(model, torch.device("cpu"), threat.radius, True, 250, _ITERATIONS, "model", kind, norm)
        seconds = time.perf_counter() - start
    last = [line for line in said.getvalue().splitlines() if "used_bp_num" in line][-1]
    robust, backwards, forwards = (
        float(re.search(f"{name}: ([0-9.]+)", last)[1])  # type: ignore[index]
        for name in ("robust acc", "used_bp_num", "used_fp_num")
    )
    return Printed(robust, int(forwards), int(backwards), seconds)


def _module(folder: Path) -> dict[str, Any]:
    text = (folder / "Adaptive_Auto_Attack_main.py").read_text(encoding="utf-8")
    for theirs, here in _ADAPTED.items():
        text = text.replace(theirs, here)
    names: dict[str, Any] = {"__name__": "adaptive_auto_attack"}
    exec(compile(text, "Adaptive_Auto_Attack_main.py", "exec"), names)
    return names


@contextlib.contextmanager
def _pictures(x: Tensor, y: Tensor) -> Iterator[None]:
    """A folder, for the time being the current one, with the images where the script looks for them."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        for i, (image, label) in enumerate(zip((x * 255).round().byte(), y.tolist(), strict=True)):
            place = Path(name, _FOLDERS[x.shape[1]], str(label))
            place.mkdir(parents=True, exist_ok=True)
            pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / f"{i}.png")
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(home)
