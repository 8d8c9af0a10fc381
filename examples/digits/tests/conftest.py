"""The model under test, and the data that it is tested on."""

from __future__ import annotations

import model as project
import pytest
from torch import nn

from robust.sources import Samples, load_data


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return project.load()


@pytest.fixture(scope="session")
def data() -> Samples:
    return load_data("builtin:digits:test")
