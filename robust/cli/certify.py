"""`robust certify`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from robust.cli import common

EPILOG = (
    "Example: robust certify --model builtin:mnist-cnn --weights hardened/weights.safetensors "
    "--data builtin:mnist5k:test --limit 100 --sigma 0.25 --n 10000"
)


def certify(
    model: common.ModelOption,
    data: common.DataOption,
    sigma: Annotated[float, typer.Option("--sigma", help="deviation of the noise, in input units")],
    weights: common.WeightsOption = None,
    n0: Annotated[int, typer.Option("--n0", help="draws that choose the class")] = 100,
    n: Annotated[int, typer.Option("--n", help="draws that bound its probability")] = 100_000,
    alpha: Annotated[
        float, typer.Option("--alpha", help="a certificate is wrong at most this often")
    ] = 0.001,
    radii: Annotated[
        str | None, typer.Option("--radii", metavar="R,R,...", help="l2 radii of the table; 0,0.25,0.5")
    ] = None,
    limit: common.LimitOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "auto",
    normalize: common.NormalizeOption = None,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="write the result; - for standard output")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="keep the certificate of every sample")
    ] = None,
) -> int:
    """Certified l2 accuracy of a model smoothed with noise. Gaussian noise, after Cohen et al. 2019."""
    from robust.smoothing import Interrupted
    from robust.smoothing import certify as run

    chosen = _radii(radii)
    if out is not None:
        common.writable_folder(out)
    common.writable_file(json_, folders=(out,))
    target = common.target(model, weights, normalize, device, seed)
    interrupted = False
    with common.bars() as bars:
        task = bars.add_task("certifying")
        try:
            found = run(
                target,
                common.samples(data, limit, target),
                sigma=sigma,
                n0=n0,
                n=n,
                alpha=alpha,
                seed=seed,
                progress=lambda done, total: bars.update(task, completed=done, total=total),
            )
        except Interrupted as cut:
            found, interrupted = cut.found, True
    text = json.dumps(found.to_dict(chosen), indent=2)
    unwritten = common.write_all(
        lambda: print(text if json_ == "-" else found.format(chosen)),
        lambda: found.save(out) if out is not None else None,
        lambda: common.write_json(json_, text) if json_ not in (None, "-") else None,
    )
    if unwritten:
        common.fail(unwritten)
    if interrupted:
        common.fail(f"interrupted; {len(found.table)} of {found.asked} samples were certified", 130)
    return 0


def _radii(text: str | None) -> list[float] | None:
    from robust.errors import InputError

    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= radius < math.inf for radius in found):
        raise InputError(f"--radii: expected finite numbers >= 0 such as 0,0.25,0.5, got {text!r}")
    return found
