"""Randomised smoothing: certified l2 radii, and the smoothed classifier as a target."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robust.default_device import books_on_the_cpu
from robust.errors import InputError, StoreError
from robust.failures import naming_failures
from robust.files import replacing, why_unwritten
from robust.in_front import Normalization
from robust.rng import Streams, checked_seed
from robust.sources import Samples, as_samples, check_labels, model_sha256
from robust.stats import interval
from robust.target import Target, check_given
from robust.threat import UNIT
from robust.whole_box import tell, wide_noise

ABSTAIN: Final = -1
_NUMBER: Final = (int, float, np.integer, np.floating)
_DRAWS: Final = 100  # a pass: fixed, so that a sample's noise depends on nothing but its id


@dataclass(frozen=True)
class Certificates:
    """What `certify` found, sample by sample.

    Attributes:
        table: a row per sample: sample_id, label, prediction (-1: abstained), radius (l2; 0 where it
            abstained), count (draws that gave the predicted class).
        sigma, n0, n, alpha, seed: as given.
        not_finite: answers of the model that were no finite logits; they count for no class.
        asked: samples that were to be certified; more than `table` has rows after an interruption.
    """

    table: pd.DataFrame
    sigma: float
    n0: int
    n: int
    alpha: float
    seed: int
    seconds: float
    model: dict[str, Any]
    data: dict[str, Any]
    not_finite: int = 0
    asked: int | None = None  # None: those of the table

    @property
    def abstained(self) -> float:
        """Share of samples without a prediction."""
        return float((self.table["prediction"] == ABSTAIN).mean())

    def accuracy(self, radius: float = 0.0) -> float:
        """Certified accuracy: share that is right with a certified l2 radius of at least this (> 0 for 0)."""
        return self._certified(radius) / len(self.table)

    def _certified(self, radius: float) -> int:
        right = self.table["prediction"] == self.table["label"]
        return int((right & (self.table["radius"] >= radius)).sum())

    def radii(self) -> list[float]:
        """0, 1, ... times sigma, as far as n draws can certify: the steps of the printed table."""
        most = _radius(self.sigma, self.n, self.n, self.alpha)
        return [step * self.sigma for step in range(math.floor(most / self.sigma) + 1)]

    def rows(self, radii: Sequence[float] | None = None) -> list[dict[str, float]]:
        """Certified accuracy with its 95 % interval, at these radii."""
        found = []
        for radius in self.radii() if radii is None else radii:
            low, high = interval(self._certified(radius), len(self.table))
            found.append({"radius": radius, "accuracy": self.accuracy(radius), "low": low, "high": high})
        return found

    def to_dict(self, radii: Sequence[float] | None = None) -> dict[str, Any]:
        """Everything but the table, for JSON."""
        names = ("sigma", "n0", "n", "alpha", "seed", "seconds", "model", "data", "abstained", "not_finite")
        own = {name: getattr(self, name) for name in names}
        return {**own, "samples": len(self.table), "asked": self._asked, "certified": self.rows(radii)}

    @property
    def _asked(self) -> int:
        return len(self.table) if self.asked is None else self.asked

    def save(self, folder: str | Path) -> Path:
        """Write certificates.json and certificates.parquet, both or neither.

        Raises:
            StoreError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            with (
                replacing(folder / "certificates.json") as summary,
                replacing(folder / "certificates.parquet") as table,
            ):
                table.write_bytes(self.table.to_parquet(index=False))  # see Report.save
                summary.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"out: cannot write to {folder}: {why_unwritten(error)}") from error
        return folder

    def format(self, radii: Sequence[float] | None = None) -> str:
        """The table as papers print it: a column per radius."""
        from tabulate import tabulate

        rows = self.rows(radii)
        head = ["l2 radius", *(f"{row['radius']:g}" for row in rows)]
        body = [
            ["certified accuracy", *(f"{row['accuracy']:.1%}" for row in rows)],
            ["95 % from", *(f"{row['low']:.1%}" for row in rows)],
            ["95 % to", *(f"{row['high']:.1%}" for row in rows)],
        ]
        done = (
            f"{len(self.table)}"
            if len(self.table) == self._asked
            else f"the first {len(self.table)} of {self._asked}"
        )
        said = (
            f"{done} samples, sigma {self.sigma:g}, n0 {self.n0}, n {self.n}, alpha {self.alpha:g}; "
            f"abstained on {self.abstained:.1%}"
        )
        if self.not_finite:
            said += f"\n{self.not_finite} answers of the model were not finite and count for no class"
        return f"{tabulate(body, head, tablefmt='simple', disable_numparse=True)}\n{said}"

    def __repr__(self) -> str:
        return (
            f"Certificates({len(self.table)} samples, sigma {self.sigma:g}, n {self.n}, alpha {self.alpha:g})"
        )

    def __str__(self) -> str:
        return self.format()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while samples were certified. `found`: certificates of those before, which stand as they are."""

    def __init__(self, found: Certificates) -> None:
        super().__init__(f"interrupted after {len(found.table)} of {found.asked} samples")
        self.found = found


@books_on_the_cpu
def certify(
    model: nn.Module | Target,
    data: Any,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    normalize: Normalization | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Certificates:
    """Certified l2 radii of the classifier smoothed with Gaussian noise (Cohen et al. 2019, arXiv 1902.02918).

    The class is the commonest under n0 draws; its probability has the one-sided Clopper-Pearson lower bound
    p over n further draws; the radius is sigma Phi^-1(p), or it abstains where p <= 1/2. Each certificate is
    wrong with probability at most alpha. A sample's noise depends on (seed, id) alone. Answers that are not
    finite count for no class: `not_finite` says how many they were.

    Args:
        model: base classifier, best trained under the same noise (defense "gaussian"); or a Target.
        data: as for `robust.evaluate`.
        sigma: deviation of the noise in input units, > 0.
        n0, n: draws that choose the class, and that bound its probability; at least 1.
        alpha: in (0, 1).
        normalize, bounds, device: as for `robust.evaluate`.
        progress: called with (done, total) after every sample.

    Raises:
        InputError and its kin: a parameter out of its range, or a model that fails on the data.
        Interrupted: Ctrl-C once a sample was certified; its `found` keeps what was.
    """
    _check_sigma(sigma)
    _check_draws("n0", n0)
    _check_draws("n", n)
    _check_alpha(alpha)
    seed = checked_seed(seed)
    if isinstance(model, Target):
        check_given(model, normalize, bounds)
        target = model
    else:
        target = Target(model, normalize=normalize, bounds=UNIT if bounds is None else bounds, device=device)
    samples = as_samples(data, bounds=target.bounds)
    tell(wide_noise(sigma, target.bounds))
    start, rows, not_finite = time.perf_counter(), [], 0
    cut: KeyboardInterrupt | None = None
    with target.sparing_randomness(), target, torch.no_grad(), naming_failures():
        try:
            for i in range(len(samples)):
                row, lost = _certified(target, samples, i, sigma=sigma, n0=n0, n=n, alpha=alpha, seed=seed)
                rows.append(row)
                not_finite += lost
                if progress:
                    progress(i + 1, len(samples))
        except KeyboardInterrupt as error:
            if not rows:
                raise
            cut = error
    found = Certificates(
        pd.DataFrame(rows, columns=["sample_id", "label", "prediction", "radius", "count"]),
        sigma,
        n0,
        n,
        alpha,
        seed,
        time.perf_counter() - start,
        {"sha256": model_sha256(target.model)},
        {"spec": samples.spec, "sha256": samples.sha256},
        not_finite,
        len(samples),
    )
    if cut is not None:
        raise Interrupted(found) from cut
    return found


def _certified(
    target: Target, samples: Samples, i: int, *, sigma: float, n0: int, n: int, alpha: float, seed: int
) -> tuple[tuple[int, int, int, float, int], int]:
    """The row of the i-th sample in the table, and how many answers were not finite."""
    x = samples.rows([i]).to(target.device)
    noise = Streams(seed, samples.ids[i : i + 1].to(target.device), ("certify",))
    first = _counts(target, x, sigma, n0, noise.child("select"))
    check_labels(samples, len(first))
    further = _counts(target, x, sigma, n, noise.child("estimate"))
    chosen = int(first.argmax())
    count = int(further[chosen])
    radius = _radius(sigma, count, n, alpha)
    prediction = chosen if radius > 0 else ABSTAIN
    row = (int(samples.ids[i]), int(samples.y[i]), prediction, radius, count)
    return row, n0 + n - int(first.sum() + further.sum())


def _check_sigma(sigma: float) -> None:
    if not (isinstance(sigma, _NUMBER) and 0 < sigma < math.inf):
        raise InputError(f"sigma: expected a finite number > 0, got {sigma!r}")


def _check_alpha(alpha: float) -> None:
    if not (isinstance(alpha, _NUMBER) and 0 < alpha < 1):
        raise InputError(f"alpha: expected a probability in (0, 1), got {alpha!r}")


def _check_draws(name: str, draws: int) -> None:
    if not isinstance(draws, int | np.integer) or isinstance(draws, bool) or draws < 1:
        raise InputError(f"{name}: expected an integer of at least 1 draw, got {draws!r}")


def _counts(target: Target, x: Tensor, sigma: float, draws: int, noise: Streams) -> Tensor:
    """How often each class wins under noise, in answers that are finite: (C,)."""
    total: Tensor | None = None
    for part in range(-(-draws // _DRAWS)):
        size = min(_DRAWS, draws - part * _DRAWS)
        drawn = noise.child(part).normal((_DRAWS, *x.shape[1:]))[0, :size]
        logits = target.logits(x + sigma * drawn)
        finite = logits[logits.isfinite().all(1)]
        won = finite.argmax(1).bincount(minlength=logits.shape[1])
        total = won if total is None else total + won
    assert total is not None
    return total


def _radius(sigma: float, count: int, n: int, alpha: float) -> float:
    """The certified radius; 0 where the class's probability may be 1/2 or less."""
    from scipy.stats import binomtest, norm

    low = binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    return float(sigma * norm.ppf(low)) if low > 0.5 else 0.0


class SmoothedTarget(Target):
    """The smoothed classifier as a target: the mean of the model's probabilities over fixed noise.

    Logits are log(mean softmax(model(x + sigma e))) over `draws` standard normal e, the same for every
    input: a deterministic, differentiable classifier, so that attacks see what they attack (Salman et al.
    2019, arXiv 1906.04584). A pass costs `draws` passes of the model. It gives no certificate: `certify` does.

    Args:
        model, normalize, bounds, device: as for Target.
        sigma: deviation of the noise in input units, > 0.
        draws: at least 1.
        seed: of the noise.
    """

    def __init__(
        self, model: nn.Module, *, sigma: float, draws: int = 32, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(model, **options)
        _check_sigma(sigma)
        _check_draws("draws", draws)
        seed = checked_seed(seed)
        self.sigma, self.draws, self.seed = sigma, draws, seed

    def logits(self, x: Tensor) -> Tensor:
        """Logarithm of the mean probabilities: (N, ...) -> (N, C)."""
        ids = torch.arange(self.draws, device=x.device)
        noise = Streams(self.seed, ids, ("smoothed",)).normal(x.shape[1:])
        parts = [super(SmoothedTarget, self).logits(x + self.sigma * e).log_softmax(1) for e in noise]
        return torch.stack(parts).logsumexp(0) - math.log(self.draws)
