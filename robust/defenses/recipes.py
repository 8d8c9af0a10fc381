"""Training options by name, as published; `robust harden --recipe NAME`."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from robust.defenses.options import TrainingOptions
from robust.registry import Registry

RECIPES: Registry[TrainingOptions] = Registry("recipe", "robust.recipes")

_SGD: Final = TrainingOptions(
    optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, schedule="step", augment=True
)

_NAMED: Final = {
    # Ours: minutes on two cores.
    "mnist": TrainingOptions(),
    "mnist-quick": TrainingOptions(epochs=12, validation_steps=5),
    "cifar10": TrainingOptions(
        epochs=30, learning_rate=0.1, optimizer="sgd", weight_decay=5e-4, augment=True
    ),
    # Madry et al. 2018: Adam 1e-4, batches of 50, 100,000 steps on 60,000 images. Their attack: pgd-at with
    # steps=40, step_size=0.0333 (.01 of eps .3), warmup=0.
    "mnist-madry": TrainingOptions(epochs=83, batch_size=50, learning_rate=1e-4, schedule="constant"),
    # Pang et al. 2021 (arXiv 2010.00467).
    "cifar10-resnet18": replace(_SGD, epochs=110, milestones=(100 / 110, 105 / 110)),
    # Rice et al. 2020 (arXiv 2002.11569).
    "cifar10-preactresnet18": replace(_SGD, epochs=200),
    # Zhang et al. 2019 (arXiv 1901.08573), who use WRN-34-10; their code stops early, at 76 epochs.
    "cifar10-wrn": replace(_SGD, epochs=100, weight_decay=2e-4, milestones=(0.75, 0.9)),
    # Wong et al. 2020 (arXiv 2001.03994), who train PreActResNet-18 in half precision.
    "cifar10-fast": replace(_SGD, epochs=15, learning_rate=0.2, schedule="cyclic"),
    # Wang et al. 2023 (arXiv 2302.04638), WRN-28-10 with generated images as extra data.
    "cifar10-generated": replace(
        _SGD, epochs=400, batch_size=512, learning_rate=0.2, schedule="cosine", ema=0.995, label_smoothing=0.1
    ),
}
for _name, _options in _NAMED.items():
    RECIPES.register(_name)(_options)
