"""Networks for the benchmarks beside the built-in ones: `benchmarks/nets.py:FACTORY` as a model spec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust.sources.architectures import WideResNet, mnist_cnn


def mnist_mlp() -> nn.Module:
    """Three linear layers, no convolution."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


class _Spectrum(nn.Module):
    """Logarithms of the magnitudes of an image's Fourier coefficients, as nets for sound begin with."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.fft2(x).abs() + 1e-3).log()


def mnist_spectrum() -> nn.Module:
    """`mnist_mlp` behind logarithms of a spectrum: where a coefficient is near 0 the surface bends sharply."""
    return nn.Sequential(_Spectrum(), *mnist_mlp())  # type: ignore[misc]


class _Windows(nn.Module):
    """The same of windows, 8 by 8 pixels every 4: magnitudes at 40 frequencies, (N, 40, 6, 6)."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 8, 4).unfold(3, 8, 4)[:, 0]
        magnitudes = torch.fft.rfft2(windows).abs().flatten(3)
        return (magnitudes + 1e-3).log().movedim(3, 1)


def mnist_windows() -> nn.Module:
    """A convolution and two linear layers behind logarithms of the spectra of windows."""
    return nn.Sequential(
        _Windows(), nn.Conv2d(40, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 36, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class _Bumps(nn.Module):
    """A code of each value, (N, 8, H, W): radial basis functions about .08 wide, of which a value is near one or two."""

    def forward(self, x: Tensor) -> Tensor:
        centres = torch.linspace(0, 1, 8, device=x.device).view(1, 8, 1, 1)
        return torch.exp(-(((x - centres) / 0.08) ** 2))


def mnist_bumps() -> nn.Module:
    """Three linear layers behind a code of each value."""
    return nn.Sequential(
        _Bumps(), nn.Flatten(), nn.Linear(8 * 784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )  # fmt: skip


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


class _Mix(nn.Module):
    """A layer of MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): across the patches, then within each."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.across = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches)
        )
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))


class _Patches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class _Positions(nn.Module):
    """Adds to each patch what is learned of its place."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(patches, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


class _MeanOver(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mnist_mixer() -> nn.Module:
    """An MLP-Mixer: 16 patches of 7 x 7, two layers of width 48."""
    return nn.Sequential(
        nn.Conv2d(1, 48, 7, stride=7), _Patches(), _Mix(16, 48), _Mix(16, 48), nn.LayerNorm(48), _MeanOver(),
        nn.Linear(48, 10),
    )  # fmt: skip


def mnist_vit() -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): 16 patches of 7 x 7, two layers of width 48, four heads."""
    return nn.Sequential(
        nn.Conv2d(1, 48, 7, stride=7), _Patches(), _Positions(16, 48), _attention(48), _attention(48),
        nn.LayerNorm(48), _MeanOver(), nn.Linear(48, 10),
    )  # fmt: skip


def _attention(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class _RowByRow(nn.Module):
    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.rows, self.head = rows, nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x[:, 0])[0].mean(1))


def mnist_gru() -> nn.Module:
    """A recurrent net that reads an image row by row, both ways."""
    return _RowByRow(nn.GRU(28, 48, batch_first=True, bidirectional=True))


def mnist_lstm() -> nn.Module:
    """Two layers of LSTM that read an image row by row."""
    return _RowByRow(nn.LSTM(28, 96, num_layers=2, batch_first=True))


class _Prototypes(nn.Module):
    """Minus the squared distance to a point for each class, in units that are learned too."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.points, self.scale = nn.Parameter(torch.randn(classes, width)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * (x[:, None] - self.points).square().mean(2)


def mnist_prototypes() -> nn.Module:
    """Two strided convolutions, tanh, and the nearest of ten prototypes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.Tanh(), _Prototypes(64, 10),
    )  # fmt: skip


def pairs_cnn() -> nn.Module:
    """A hundred classes: two digits side by side (`train.py` joins them), max-pooling and softplus."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2), nn.Softplus(10), nn.MaxPool2d(2), nn.Conv2d(24, 48, 4, stride=2, padding=1), nn.Softplus(10),
        nn.Flatten(), nn.Linear(48 * 7 * 14, 128), nn.Softplus(10), nn.Linear(128, 100),
    )  # fmt: skip
