"""Networks for the benchmarks beside the built-in ones: `benchmarks/nets.py:FACTORY` as a model spec."""

from __future__ import annotations

from torch import Tensor, nn

from robust.sources.architectures import WideResNet, mnist_cnn


def mnist_mlp() -> nn.Module:
    """Three linear layers, no convolution."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def mnist_deep() -> nn.Module:
    """Four convolutions, two of them strided: a small cousin of the nets that verifiers are tried on."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def mnist_b() -> nn.Module:
    """Two wider strided convolutions, after CNN-B of Dathathri et al. 2020 (arXiv 2010.11645), which verifiers are tried on."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 36, 250), nn.ReLU(), nn.Linear(250, 10),
    )  # fmt: skip


def cifar_small() -> nn.Module:
    """The built-in MNIST net, for colour images."""
    return mnist_cnn(in_channels=3, image_size=32)


def cifar_cnn() -> nn.Module:
    """Three strided convolutions and two linear layers, ReLU, no normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(48, 64, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 64, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def cifar_wrn10() -> nn.Module:
    """Residual, batch norm: WRN-10-1."""
    return WideResNet(depth=10, widen=1)


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def cifar_silu() -> nn.Module:
    """Smooth activations, group norm, global average pooling."""

    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride=stride, padding=1), nn.GroupNorm(4, b), nn.SiLU()]

    return nn.Sequential(
        *block(3, 24, 1), *block(24, 48, 2), *block(48, 96, 2), *block(96, 96, 1), _Pool(), nn.Linear(96, 10)
    )
