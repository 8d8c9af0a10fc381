"""Precision, formats, compilers and several processes: training ends where plain training does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitting import OPTIONS, THREAT, build_net, clean_loss, plain_net, some_digits
from torch import Tensor, nn

from robust.defenses import RECIPES, Batch, Trainer, make_defense
from robust.sources import Samples


def test_recipes_train_in_every_precision() -> None:
    options = replace(
        RECIPES["cifar10"],
        epochs=1,
        learning_rate=0.01,
        device="cpu",
        precision="bf16-mixed",
        gradient_clip=1.0,
    )
    trainer = Trainer(replace(options, augment=True))
    trainer.fit(build_net(), some_digits(), clean_loss, threat=THREAT, title="")
    assert len(trainer.history) == 1


_TOGETHER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
from dataclasses import replace
from fitting import OPTIONS, THREAT, plain_net, some_digits
from robust.defenses import Trainer, make_defense
torch.set_num_threads(1)
options = replace(OPTIONS, epochs=2, batch_size=60)
trainer = Trainer(options, validation=some_digits(60), out=Path(sys.argv[1]))
net = make_defense("trades", steps=2).fit(plain_net(), some_digits(240), threat=THREAT, trainer=trainer)
"""


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, extra in (("one", []), ("two", launcher)):
        done = subprocess.run(
            [sys.executable, *extra, str(script), str(tmp_path / name), str(Path(__file__).parent)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "model.pt", weights_only=True) for name in ("one", "two")
    )
    for key, start in plain_net().state_dict().items():
        apart, moved = one["model"][key] - two["model"][key], one["model"][key] - start
        assert apart.norm() < 0.05 * moved.norm(), key  # gradients are added up in another order
    first, second = (json.loads(state["history"])[-1] for state in (one, two))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)
    assert first["clean_accuracy"] == pytest.approx(second["clean_accuracy"], abs=0.02)


def conv_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip


def test_channels_last_trains_to_the_same_weights_but_for_rounding() -> None:
    formats: list[bool] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        formats.append(batch.x.is_contiguous(memory_format=torch.channels_last) and batch.x.stride(1) == 1)
        return clean_loss(model, batch)

    data = some_digits()
    wide = Samples(data.rows(slice(None)).expand(-1, 3, -1, -1).contiguous(), data.y, data.ids)
    net = conv_net()
    net[0] = nn.Conv2d(3, 8, 3, padding=1)  # type: ignore[index,operator]
    nets = []
    for channels_last in (False, True):
        options = replace(OPTIONS, epochs=4, optimizer="sgd", channels_last=channels_last)
        nets.append(Trainer(options).fit(net, wide, loss, threat=None, title=""))
        assert formats[-1] is channels_last
    plain, last = nets
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
    for (key, a), b in zip(plain.state_dict().items(), last.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3), key


def _compiles() -> bool:
    try:
        torch.compile(nn.Linear(2, 2))(torch.zeros(1, 2))
    except Exception:
        return False
    return True


@pytest.mark.slow
def test_compiled_training_ends_where_plain_training_does() -> None:
    if not _compiles():
        pytest.skip("needs a compiler that torch.compile can use")
    nets = []
    for compiled in (False, True):
        options = replace(OPTIONS, epochs=2, optimizer="sgd", compile=compiled)
        defense = make_defense("pgd-at", steps=2)
        nets.append(defense.fit(plain_net(), some_digits(), threat=THREAT, trainer=Trainer(options)))
    plain, fast = (dict(net.state_dict()) for net in nets)
    assert set(plain) == set(fast)
    for key, value in plain.items():
        assert torch.allclose(value, fast[key], atol=2e-3), key
