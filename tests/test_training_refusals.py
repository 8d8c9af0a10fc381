"""What the training loop refuses before the first epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fitting import OPTIONS, build_net, some_digits, train
from torch import Tensor, nn

from robust.defenses import Batch, Trainer
from robust.errors import DataError, InputError, ModelError, UnsupportedError
from robust.sources import Samples
from robust.threat import Linf, Threat


def never(model: nn.Module, batch: Batch) -> Tensor:
    raise AssertionError("an epoch began")


NAN = Samples(torch.full((50, 1, 8, 8), torch.nan), torch.zeros(50, dtype=torch.int64), torch.arange(50))


@pytest.mark.parametrize(
    ("model", "data", "threat", "error", "message"),
    [
        (
            nn.Linear(3, 10),
            some_digits(),
            None,
            ModelError,
            r"fails on input \(2, 1, 8, 8\) \(.*\); give data of the size",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            some_digits(),
            None,
            DataError,
            r"labels go up to 9, but the model has 4 classes",
        ),
        (nn.Flatten(), some_digits(), None, ModelError, "no parameter to train"),
        (build_net(), NAN, None, DataError, "finite"),
        (build_net(), some_digits(9), None, InputError, "too few.* at least 10"),
        (build_net(), some_digits(), Linf("1.5"), InputError, "eps is larger than the box"),
        (build_net(), some_digits(), Threat("l2", "9"), InputError, "eps is larger than the box"),
        (build_net(), some_digits(), Threat("l0", "4"), UnsupportedError, "not for l0"),
        (build_net(), some_digits(), Linf("0.1", (0.0, 0.5)), DataError, "expected values in"),
    ],
)
def test_what_cannot_fit_is_refused(
    model: nn.Module, data: Samples, threat: Threat | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Trainer(OPTIONS).fit(model, data, never, threat=threat, title="")


def test_validation_of_another_shape_is_refused() -> None:
    flat = some_digits(20)
    flat = Samples(flat.rows(slice(None)).flatten(1), flat.y, flat.ids)
    with pytest.raises(DataError, match=r"validation: expected samples of the training data's shape"):
        Trainer(OPTIONS, validation=flat).fit(build_net(), some_digits(), never, threat=None, title="")
    with pytest.raises(InputError, match="augment crops images"):
        Trainer(replace(OPTIONS, augment=True), validation=flat).fit(
            build_net(), flat, never, threat=None, title=""
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"validation_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1.0},
        {"gradient_clip": 0.0},
    ],
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(OPTIONS, **wrong)  # type: ignore[arg-type]


def test_half_precision_needs_cuda() -> None:
    with pytest.raises(InputError, match="'16-mixed' needs CUDA"):
        train(replace(OPTIONS, precision="16-mixed"))
