"""Labelled samples in memory, and the checks that every source must pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robust.errors import DataError
from robust.rng import Streams
from robust.sources.digest import add_tensor
from robust.sources.spool import Pages, Stored, gathered, in_parts
from robust.threat import TOLERANCE

Bounds = tuple[float, float]
Index = Tensor | slice | Sequence[int]
UNIT: Bounds = (0.0, 1.0)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled samples. `as_samples` makes and checks them; the tensors are not to be modified.

    Args:
        x: (N, ...) uint8 or float32, as stored; a uint8 value v stands for v / 255.
        y: (N,) int64 labels.
        ids: (N,) int64 stable sample ids: the position in the full source unless the source has others.
        spec: where they came from: a data SPEC, or "memory".
        class_names: name of label 0, 1, ... where the source names them.
        groups: (N,) int64 group of each sample, for fairness; None where the source has none.
        group_names: name of group 0, 1, ...
        pages: of the file that x is mapped from; None where x is in memory.
        x_sha256: of the bytes of x, where they were hashed while they were read.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    spec: str = "memory"
    class_names: tuple[str, ...] | None = None
    groups: Tensor | None = None
    group_names: tuple[str, ...] | None = None
    pages: Pages | None = field(default=None, repr=False)
    x_sha256: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Samples({self.spec!r}, {len(self)} of {tuple(self.x.shape[1:])}, {str(self.x.dtype).removeprefix('torch.')})"

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Index) -> Tensor:
        """Inputs at these positions as a fresh float32 tensor, uint8 scaled by 1/255: -> (n, ...)."""
        part = self.x[index]
        if part.dtype == torch.uint8:
            rows = part.to(torch.float32).div_(255)
        else:
            rows = part.to(torch.float32, copy=True)
        if self.pages is not None:
            self.pages.release()
        return rows

    def take(self, index: Index) -> Samples:
        """The samples at these positions (a slice, positions or an (N,) bool mask), ids kept."""
        if self.pages is None or isinstance(index, slice):
            stored = Stored(self.x[index], "", self.pages)
        else:
            where = torch.arange(len(self))[index]
            stored = gathered(self.x, where, self.pages, f"data {self.spec}")
        return replace(
            self,
            x=stored.rows,
            y=self.y[index],
            ids=self.ids[index],
            groups=None if self.groups is None else self.groups[index],
            pages=stored.pages,
            x_sha256=stored.sha256 or None,
        )

    def limit(self, n: int | None, seed: int = 0) -> Samples:
        """A fair sample of n: the first n of a seeded random order of the ids, put back in id order.

        A larger n keeps what a smaller one chose. None is all, as they stand.

        Raises:
            DataError: n < 1 or n > len(self).
        """
        if n is None:
            return self
        if not 1 <= n <= len(self):
            raise DataError(f"limit: expected 1 to {len(self)} (the number of samples), got {n}")
        order = Streams(seed, self.ids, ("limit",)).integers((1,), 0, 1 << 31).squeeze(1)
        chosen = order.argsort(stable=True)[:n]
        return self.take(chosen[self.ids[chosen].argsort(stable=True)])

    def grouped(self, labels: object) -> Samples:
        """The same samples with these groups.

        Args:
            labels: N group labels, whole numbers or text, in the order of the samples: a list, array, tensor
                or Series.

        Raises:
            DataError: another number of labels, or labels of another kind.
        """
        values = labels.tolist() if hasattr(labels, "tolist") else labels
        if not isinstance(values, (list, tuple)) or len(values) != len(self):
            got = f"{len(values)}" if isinstance(values, (list, tuple)) else type(labels).__name__
            raise DataError(f"groups: expected {len(self)} labels, one per sample, got {got}")
        plain = [label.item() if hasattr(label, "item") else label for label in values]  # numpy's scalars
        groups, names = coded(plain, "groups")
        return replace(self, groups=groups, group_names=names)

    @property
    def group_labels(self) -> list[str] | None:
        """The name of each sample's group, or its number; None where there are no groups."""
        if self.groups is None:
            return None
        names = self.group_names or ()
        return [names[i] if 0 <= i < len(names) else str(i) for i in self.groups.tolist()]

    @property
    def about(self) -> dict[str, Any]:
        """What a report says of them: spec, sha256, and class_names where there are any."""
        names = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {"spec": self.spec, "sha256": self.sha256, **names}

    @property
    def sha256(self) -> str:
        """Hash over type, shape and bytes of x, y and ids; of x only once."""
        if self.x_sha256 is None:
            object.__setattr__(self, "x_sha256", _bytes_sha256(self.x, self.pages))
        digest = hashlib.sha256(f"{self.x.dtype} {tuple(self.x.shape)} {self.x_sha256}".encode())
        for name, tensor in (("y", self.y), ("ids", self.ids)):
            add_tensor(digest, name, tensor)
        return digest.hexdigest()


def coded(labels: Sequence[object], where: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Whole numbers as they are, text as numbers with their names: -> (N,) int64, names or None.

    Raises:
        DataError: neither whole numbers throughout nor text throughout; `where` begins the message.
    """
    if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        try:
            return torch.tensor(labels, dtype=torch.int64), None
        except (OverflowError, RuntimeError, ValueError) as error:
            raise DataError(f"{where}: expected whole numbers of at most 64 bits: {error}") from error
    texts = [label for label in labels if isinstance(label, str)]
    if len(texts) != len(labels):
        odd = next(label for label in labels if not isinstance(label, str))
        raise DataError(f"{where}: expected whole numbers, or text throughout, got {odd!r}")
    names = tuple(sorted(set(texts)))
    codes = {name: code for code, name in enumerate(names)}
    return torch.tensor([codes[text] for text in texts], dtype=torch.int64), names


def _bytes_sha256(rows: Tensor, pages: Pages | None) -> str:
    digest = hashlib.sha256()
    for part in in_parts(rows):
        digest.update(rows[part].cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if pages is not None:
            pages.release()
    return digest.hexdigest()


def check_samples(samples: Samples, bounds: Bounds = UNIT, num_classes: int | None = None) -> Samples:
    """The same samples, x as uint8 or float32 and y as int64, after every check; inputs stay as they are.

    Args:
        samples: what to check.
        bounds: lowest and highest valid value of a float x.
        num_classes: labels must lie below it; by default the number of class names, if there are any.

    Raises:
        DataError: lengths that differ, no samples, an id that is there twice, labels that are not integers in [0, num_classes),
            x of another type, not finite, or outside the bounds.
    """
    if samples.x.ndim < 2:
        raise DataError(f"x: expected shape (N, ...) with at least two axes, got {tuple(samples.x.shape)}")
    if len(samples.x) != (samples.y.shape[0] if samples.y.ndim else 0):
        raise DataError(
            f"x and y: expected as many inputs as labels, got x {tuple(samples.x.shape)} "
            f"and y {tuple(samples.y.shape)}"
        )
    if samples.ids.shape != (len(samples.x),) or samples.ids.dtype != torch.int64:
        raise DataError(
            f"ids: expected int64 of shape ({len(samples.x)},), got {samples.ids.dtype} "
            f"{tuple(samples.ids.shape)}"
        )
    _check_distinct(samples.ids)
    if samples.x.numel() == 0:
        raise DataError(f"x: expected at least one sample, got shape {tuple(samples.x.shape)}")
    if num_classes is None and samples.class_names:
        num_classes = len(samples.class_names)
    if samples.groups is not None and samples.groups.shape != samples.y.shape:
        raise DataError(
            f"groups: expected one per sample, shape {tuple(samples.y.shape)}, got {tuple(samples.groups.shape)}"
        )
    x = _inputs(samples.x, bounds, samples.pages)
    same = x.dtype == samples.x.dtype
    return replace(
        samples, x=x, y=_labels(samples.y, num_classes), x_sha256=samples.x_sha256 if same else None
    )


def _check_distinct(ids: Tensor) -> None:
    """A sample's random numbers hang on its id: those of one id would all draw the same."""
    values, counts = ids.unique(return_counts=True)
    if len(values) < len(ids):
        most = int(counts.argmax())
        times = "twice" if counts[most] == 2 else f"{int(counts[most])} times"
        raise DataError(
            f"ids: expected distinct integers, got {int(values[most])} {times}; number the samples, as torch.arange(N) does"
        )


def check_labels(samples: Samples, classes: int) -> None:
    """Raise DataError where there is a label that a model of so many classes has none for."""
    highest = int(samples.y.max())
    if highest >= classes:
        raise DataError(
            f"data: labels go up to {highest}, but the model has {classes} classes (0 to {classes - 1}); "
            "renumber the labels, or give a model with more outputs"
        )


def _labels(y: Tensor, num_classes: int | None) -> Tensor:
    if y.ndim != 1:
        raise DataError(
            f"y: expected one label per sample, shape (N,), got {tuple(y.shape)}; "
            "for one-hot labels pass y.argmax(1), for a column y.squeeze(1)"
        )
    if y.dtype not in _SIGNED + _UNSIGNED:
        whole = not y.is_complex() and bool((y == y.to(torch.int64)).all())
        advice = "convert them with y.long()" if whole else "they are no numbers of classes"
        raise DataError(f"y: expected integer labels, got {y.dtype}; {advice}")
    y = y.to(torch.int64)
    top = torch.iinfo(torch.int64).max if num_classes is None else num_classes - 1
    wrong = (y < 0) | (y > top)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        wanted = ">= 0" if num_classes is None else f"in 0..{top} ({num_classes} classes)"
        raise DataError(
            f"y: expected labels {wanted}, got {int(y[first])} at sample {first} "
            f"({int(wrong.sum())} such labels); number the classes from 0"
        )
    return y


def _inputs(x: Tensor, bounds: Bounds, pages: Pages | None = None) -> Tensor:
    if x.dtype == torch.uint8:
        if tuple(bounds) != UNIT:
            raise DataError(
                f"x: uint8 stands for value / 255 and needs bounds (0.0, 1.0), got bounds {bounds}; "
                "pass floats, or leave bounds out"
            )
        return x
    if not x.is_floating_point():
        raise DataError(
            f"x: expected uint8 (0..255) or floats, got {x.dtype}; convert pixels of 0..255 with "
            "x.to(torch.uint8), anything else with x.float()"
        )
    x = x.to(torch.float32)
    low, high = _extremes(x, pages)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(_not_finite(x))
    if low < bounds[0] - TOLERANCE or high > bounds[1] + TOLERANCE:
        raise DataError(
            f"x: expected values in [{bounds[0]:g}, {bounds[1]:g}], found {low:g} to {high:g}; {_range_advice(low, high)}"
        )
    return x


def _extremes(x: Tensor, pages: Pages | None) -> tuple[float, float]:
    """Least and largest value; NaN where there is any."""
    found = []
    for part in in_parts(x):
        found += list(x[part].aminmax())  # aminmax hands NaN on
        if pages is not None:
            pages.release()
    low, high = torch.stack(found).aminmax()
    return float(low), float(high)


def _not_finite(x: Tensor) -> str:
    bad = ~torch.isfinite(x.flatten(1))
    first = int(bad.any(1).nonzero()[0])
    return (
        f"x: expected finite values, found {int(bad.sum())} NaN or infinite in {int(bad.any(1).sum())} "
        f"samples, first in sample {first}; repair or drop them"
    )


def _range_advice(low: float, high: float) -> str:
    if low >= 0 and 128 <= high <= 255:
        return "this looks like 0..255: convert x to uint8, or divide it by 255"
    if low >= 0 and 2 < high < 128:
        return "divide x by the highest value that it can take, 255 for pixels of 0..255"
    return (
        "undo what was done to them and give the (mean, std) that the model expects as normalize= "
        "(--normalize MEAN STD), or, in Python, another range as bounds=(low, high)"
    )
