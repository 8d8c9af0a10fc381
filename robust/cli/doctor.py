"""`robust doctor`."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from robust.cli import common

EPILOG = "Example: robust doctor builtin:digits-mlp builtin:digits --weights weights.safetensors"

_EXTRAS = {
    "torchattacks": "torchattacks",
    "adversarial-robustness-toolbox": "art",
    "foolbox": "foolbox",
    "matplotlib": "plots",
    "ray": "ray",
    "onnx": "onnx",
    "onnx2fx": "onnx",
    "onnxruntime": "onnx",
    "transformers": "hf",
    "timm": "hf",
    "datasets": "hf",
}
_NEEDED = ("torch", "lightning-fabric", "numpy", "pandas", "pyarrow", "safetensors", "scipy")


def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="as for --model of attack")] = None,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="as for --data of attack")] = None,
    weights: common.WeightsOption = None,
    limit: common.LimitOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "auto",
    normalize: common.NormalizeOption = None,
) -> int:
    """Look at a model on a few samples and give advice. Without MODEL: versions, devices, what is missing."""
    from robust.errors import InputError

    if model is None:
        if weights is not None or normalize is not None or limit is not None:
            raise InputError("doctor: --weights, --normalize and --limit are for a MODEL; give it, and DATA")
        return _installation()
    if data is None:
        raise InputError("doctor: MODEL needs DATA to look at it with, such as builtin:digits")
    return _examine(model, data, weights, limit, seed, device, normalize)


def _examine(
    model: str,
    data: str,
    weights: str | None,
    limit: int | None,
    seed: int,
    device: str,
    normalize: tuple[str, str] | None,
) -> int:
    from textwrap import fill

    from robust.examination import examine

    target = common.target(model, weights, normalize, device)
    lines = examine(target, common.samples(data, limit, target), seed=seed)
    for line in lines:
        head = f"{line.state:4}  {line.what:18} "
        print(fill(line.found, 80, initial_indent=head, subsequent_indent=" " * len(head)))
        if line.advice:
            print(fill(f"-> {line.advice}", 80, initial_indent=" " * 25, subsequent_indent=" " * 28))
    bad, look = (sum(line.state == state for line in lines) for state in ("bad", "look"))
    print(f"\n{len(lines)} looked at: {bad} bad, {look} worth a look")
    sys.stdout.flush()
    return 0


def _installation() -> int:
    import torch
    from tabulate import tabulate

    import robust

    rows = [["robust-harness", robust.__version__], ["python", platform.python_version()]]
    rows += [[name, _version(name) or "missing: reinstall robust-harness"] for name in _NEEDED]
    rows += [[name, _version(name) or f"not installed (extra {extra})"] for name, extra in _EXTRAS.items()]
    missing = sorted({extra for name, extra in _EXTRAS.items() if _version(name) is None})
    rows.append(["CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"])
    if torch.cuda.is_available():
        rows += [[f"cuda:{i}", torch.cuda.get_device_name(i)] for i in range(torch.cuda.device_count())]
    else:
        rows.append(["GPU", "none that this torch can use; everything runs on the CPU"])
    print(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 78 - max(len(row[0]) for row in rows)]))
    if missing:
        print(f'\nwhat is missing: pip install "robust-harness[{",".join(missing)}]"')
    return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
