"""Models and data by name: files, built-ins and other libraries' model collections."""

from robust.sources.architectures import (
    MODELS,
    Architecture,
    PreActResNet18,
    ResNet18,
    SmallCNN,
    TinyMLP,
    WideResNet,
)
from robust.sources.builtin_data import DATASETS, SPLITS
from robust.sources.data import as_samples, check_groups, data_form, load_data
from robust.sources.models import Opened, load, load_model, model_form, open_model, untrained
from robust.sources.origin import named_sha256, origin_sha256
from robust.sources.preprocess import Preprocessing
from robust.sources.samples import Samples, check_labels, check_samples
from robust.sources.weights import load_weights, model_sha256, save_weights

__all__ = [
    "DATASETS",
    "MODELS",
    "SPLITS",
    "Architecture",
    "Opened",
    "PreActResNet18",
    "Preprocessing",
    "ResNet18",
    "Samples",
    "SmallCNN",
    "TinyMLP",
    "WideResNet",
    "as_samples",
    "check_groups",
    "check_labels",
    "check_samples",
    "data_form",
    "load",
    "load_data",
    "load_model",
    "load_weights",
    "model_form",
    "model_sha256",
    "named_sha256",
    "open_model",
    "origin_sha256",
    "save_weights",
    "untrained",
]
