"""Agreement with other libraries: same model, same parameters, same points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import need_art
from torch import Tensor, nn

from robust.attacks import FGSM, PGD, Attack
from robust.oracle import Oracle
from robust.target import Target
from robust.threat import Threat

pytestmark = pytest.mark.filterwarnings("ignore")


def last_points(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, threat: str) -> Tensor:
    with Target(net, device="cpu") as target:
        oracle = Oracle(target, x, y, torch.arange(len(x)), Threat.parse(threat), observe=False)
        points = attack.run(oracle)
    assert points is not None
    return points


def same_verdicts(net: nn.Module, ours: Tensor, theirs: Tensor, y: Tensor, threat: str) -> None:
    with torch.no_grad():
        right = [(net(points).argmax(1) == y).sum().item() for points in (ours, theirs)]
    assert abs(right[0] - right[1]) <= 1
    difference = (ours - theirs).abs()
    if threat.startswith("linf"):
        assert (difference < 1e-4).float().mean() > 0.97  # signs of gradients that are all but zero
    else:
        # They scale into the ball and then cut off at the box; ours is the nearest point of both together.
        assert difference.mean() < 0.01


CASES = [
    (FGSM(), "linf:0.1"),
    (PGD(steps=8, step_size=0.25, random_start=False), "linf:0.1"),
    (PGD(steps=8, step_size=0.25, random_start=False), "l2:0.8"),
]


@pytest.mark.parametrize(("attack", "threat"), CASES, ids=str)
def test_torchattacks(attack: Attack, threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    torchattacks = pytest.importorskip("torchattacks", exc_type=ImportError)
    x, y = digits
    eps = Threat.parse(threat).radius
    if isinstance(attack, FGSM):
        peer = torchattacks.FGSM(net, eps=eps)
    else:
        kind = torchattacks.PGD if threat.startswith("linf") else torchattacks.PGDL2
        peer = kind(net, eps=eps, alpha=eps * 0.25, steps=8, random_start=False)
    same_verdicts(net, last_points(attack, net, x, y, threat), peer(x, y), y, threat)


@pytest.mark.parametrize(("attack", "threat"), CASES, ids=str)
def test_art(attack: Attack, threat: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    need_art()
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    x, y = digits
    parsed = Threat.parse(threat)
    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    norm = np.inf if parsed.norm == "linf" else 2
    if isinstance(attack, FGSM):
        peer = FastGradientMethod(classifier, norm=norm, eps=parsed.radius)
    else:
        peer = ProjectedGradientDescentPyTorch(
            classifier, norm=norm, eps=parsed.radius, eps_step=parsed.radius * 0.25, max_iter=8, verbose=False
        )
    theirs = torch.from_numpy(peer.generate(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]))
    net.eval()
    same_verdicts(net, last_points(attack, net, x, y, threat), theirs, y, threat)
