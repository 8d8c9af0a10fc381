"""`robust doctor`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

EPILOG = "Example: robust doctor"

_EXTRAS = {
    "torchattacks": "torchattacks",
    "adversarial-robustness-toolbox": "art",
    "foolbox": "foolbox",
    "matplotlib": "plots",
    "ray": "ray",
}
_NEEDED = ("torch", "lightning-fabric", "numpy", "pandas", "pyarrow", "safetensors", "scipy")


def doctor() -> int:
    """Show versions, devices and what is missing."""
    import torch
    from tabulate import tabulate

    import robust

    rows = [["robust-harness", robust.__version__], ["python", platform.python_version()]]
    rows += [[name, _version(name) or "missing: reinstall robust-harness"] for name in _NEEDED]
    rows += [
        [name, _version(name) or f'not installed (optional): pip install "robust-harness[{extra}]"']
        for name, extra in _EXTRAS.items()
    ]
    rows.append(["CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"])
    if torch.cuda.is_available():
        rows += [[f"cuda:{i}", torch.cuda.get_device_name(i)] for i in range(torch.cuda.device_count())]
    else:
        rows.append(["GPU", "none that this torch can use; everything runs on the CPU"])
    print(tabulate(rows, tablefmt="plain"))
    return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
