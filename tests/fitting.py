"""A small net, a few digits and one run of the training loop on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust.defenses import Batch, Trainer, TrainingOptions
from robust.sources import Samples, load_data
from robust.threat import Linf

OPTIONS = TrainingOptions(epochs=4, batch_size=64, learning_rate=1e-2, device="cpu")
THREAT = Linf("0.1")


def build_net() -> nn.Module:
    """Batch norm and dropout: both would betray a resume that is not exact."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(24, 10),
        )


def some_digits(count: int = 300) -> Samples:
    return load_data("builtin:digits:train").take(slice(0, count))


def clean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.x), batch.y)


def train(options: TrainingOptions = OPTIONS, **keywords: object) -> tuple[nn.Module, Trainer]:
    trainer = Trainer(options, **keywords)  # type: ignore[arg-type]
    return trainer.fit(build_net(), some_digits(), clean_loss, threat=THREAT, title="clean"), trainer


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (key, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), key


def plain_net() -> nn.Module:
    """No batch norm, whose statistics are each process's own, and no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
