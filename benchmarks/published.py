"""Architectures of published checkpoints, for the MODEL of a case of verdict.py.

From the verifier alpha,beta-CROWN (github.com/Verified-Intelligence/alpha-beta-CROWN, complete_verifier/models):
CNN-A for MNIST and CIFAR-10 (sdp), MadryCNN without max pooling, tiny (bab_attack), perceptrons of five and eight hidden
layers (eran), the small net of MN-BaB with sigmoids (non_relu). From Wong et al. 2018
(github.com/locuslab/convex_adversarial): the small nets of models_scaled and models_scaled_l2, of whose list of states the
first is to be saved alone. From TRADES (Zhang et al. 2019), as shipped with A3 (github.com/liuye6666/adaptive_auto_attack):
the small CNN for MNIST. From the verifiers' competitions (github.com/stanleybak/vnncomp2021, github.com/ChristopherBrix/
vnncomp2022_benchmarks and vnncomp2024_benchmarks, github.com/shizhouxing/ViT_vnncomp2023) and COLT (github.com/eth-sri/colt):
ONNX files, each with the normalisation that it expects. From fast adversarial training (Wong et al. 2020,
github.com/locuslab/fast_adversarial, MNIST/models): CNN-A. From advertorch (github.com/BorealisAI/advertorch): LeNet5.
From Salman et al. 2019 (github.com/Hadisalman/robust-verify-benchmark, weights): perceptrons of two and nine hidden layers,
CNN-A, wide and deep nets, those for CIFAR-10 behind Wong et al.'s normalisation. From MMR-Universal (Croce & Hein 2020,
github.com/fra31/mmr-universal, first commit, .mat files, of which the first linear layer takes rows, columns, channels): CNN-A,
for CIFAR-10 without a normalisation. From auto_LiRPA (github.com/Verified-Intelligence/auto_LiRPA, examples/vision/pretrained):
mnist_cnn_small, trained to be certified (mnist_certified; first the convolutions, then the linear layers), kw_mnist, CNN-A, and cifar_2c2f. From
oval-bab (github.com/oval-group/oval-bab, models): mnist_wide_kw, CNN-A, and cifar_madry_8px, Wong et al.'s small net. From the
verifier MN-BaB (Ferrari et al. 2022, github.com/eth-sri/mn-bab, networks), behind the normalisations of its configurations:
convSmall (mnist_convSmallRELU__Point, cifar10_convSmallRELU__PGDK), mnist_2_50_flattened, resnet_4b_bn_adv with its batch norms
folded. From AnalysisBySynthesis (Schott et al. 2019, github.com/bethgelab/AnalysisBySynthesis, exp/mnist_cnn/nets): vanilla_cnn,
trained without a defense. From scaling-the-convex-barrier (De Palma et al. 2021, github.com/oval-group/scaling-the-convex-barrier,
models): cifar_sgd_8px, Wong et al.'s small net, trained without a defense. The files are not part of this project.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
from torch import Tensor, nn

_SDP: Final = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
_WONG: Final = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
_NONE: Final = ((0.0,), (1.0,))
_MNIST: Final = ((0.1307,), (0.3081,))
_CIFAR: Final = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))
_CIFAR_WIDER: Final = (_CIFAR[0], _SDP[1])
MOMENTS: Final = {"sdp": _SDP, "wong": _WONG, "none": _NONE}


class _Normalized(nn.Sequential):
    """Layers behind a normalisation that has no entry in the state."""

    def __init__(self, moments: tuple[tuple[float, ...], tuple[float, ...]], *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._moments = [torch.tensor(values).view(-1, 1, 1) for values in moments]

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self._moments
        out: Tensor = super().forward((x - mean) / std)  # type: ignore[no-untyped-call]
        return out


def _layers(
    channels: int,
    side: int,
    widths: tuple[int, int] = (16, 32),
    hidden: int = 100,
    padding: int = 1,
    unit: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Two strided convolutions and two linear layers: CNN-A, which is Wong et al.'s small net as well, unless told otherwise."""
    first, second = widths
    left = side // 4 + 2 * (padding - 1)
    return [
        nn.Conv2d(channels, first, 4, stride=2, padding=padding), unit(),
        nn.Conv2d(first, second, 4, stride=2, padding=padding), unit(),
        nn.Flatten(), nn.Linear(second * left**2, hidden), unit(), nn.Linear(hidden, 10),
    ]  # fmt: skip


def mnist_cnn_a() -> nn.Module:
    return nn.Sequential(*_layers(1, 28))


def mnist_certified() -> nn.Module:
    return nn.Sequential(*_layers(1, 28, (8, 16), 256))


def cifar_cnn_a() -> nn.Module:
    return _Normalized(_SDP, *_layers(3, 32))


def cifar_wong_small() -> nn.Module:
    return _Normalized(_WONG, *_layers(3, 32))


def cifar_small() -> nn.Module:
    return nn.Sequential(*_layers(3, 32))


def mnist_conv_small() -> nn.Module:
    return _Normalized(_MNIST, *_layers(1, 28, padding=0))


def cifar_conv_small() -> nn.Module:
    return _Normalized(_CIFAR, *_layers(3, 32, padding=0))


def cifar_conv_small_sigmoid() -> nn.Module:
    return _Normalized(_CIFAR, *_layers(3, 32, padding=0, unit=nn.Sigmoid))


def cifar_2c2f() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 28**2, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _wide(channels: int, side: int, width: int) -> list[nn.Module]:
    return _layers(channels, side, (4 * width, 8 * width), 128 * width)


def mnist_wide_1() -> nn.Module:
    return nn.Sequential(*_wide(1, 28, 1))


def mnist_wide_2() -> nn.Module:
    return nn.Sequential(*_wide(1, 28, 2))


def mnist_wide_4() -> nn.Module:
    return nn.Sequential(*_wide(1, 28, 4))


def cifar_wide_1() -> nn.Module:
    return _Normalized(_WONG, *_wide(3, 32, 1))


def cifar_wide_2() -> nn.Module:
    return _Normalized(_WONG, *_wide(3, 32, 2))


def mnist_deep_1() -> nn.Module:
    return nn.Sequential(*_layers(1, 28, (8, 16)))


def mnist_deep_2() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def mnist_abs_cnn() -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 1
    for number, (channels, size, stride) in enumerate(((20, 5, 1), (70, 4, 2), (256, 3, 2))):
        layers[f"conv_{number}"] = nn.Conv2d(before, channels, size, stride)
        layers[f"bn_{number}"] = nn.BatchNorm2d(channels)
        layers[f"act_{number}"] = nn.ELU()
        before = channels
    return nn.Sequential(OrderedDict(**layers, conv_3=nn.Conv2d(before, 10, 5), flat=nn.Flatten()))


def _perceptron(hidden: int, width: int = 100) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, width), nn.ReLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def mnist_mlp_2_50() -> nn.Module:
    return _perceptron(2, 50)


def mnist_mlp_2_100() -> nn.Module:
    return _perceptron(2)


def mnist_mlp_5_100() -> nn.Module:
    return _perceptron(5)


def mnist_mlp_5_200() -> nn.Module:
    return _perceptron(5, 200)


def mnist_mlp_8_100() -> nn.Module:
    return _perceptron(8)


def mnist_mlp_9_100() -> nn.Module:
    return _perceptron(9)


def mnist_madry_tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(4, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(392, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, which has a convolution of its own where the size changes."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.path_b = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )  # fmt: skip
        shortcut = nn.Sequential(nn.Identity(), nn.Conv2d(before, channels, 1, stride))
        self.path_a = nn.Identity() if stride == 1 else shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.path_a(x) + self.path_b(x)
        return out


def _two_residuals(before: int, channels: int) -> nn.Module:
    return nn.Sequential(
        _Residual(before, channels, 2), nn.ReLU(), _Residual(channels, channels, 1), nn.ReLU()
    )


def cifar_resnet_4b() -> nn.Module:
    return _Normalized(
        _CIFAR_WIDER, nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), _two_residuals(8, 16), _two_residuals(16, 32),
        nn.Flatten(), nn.Linear(512, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def normalized(model: nn.Module, moments: str) -> nn.Module:
    """A model behind the normalisation of this name; behind `columns`, one that takes each image column by column."""
    if moments == "columns":
        return nn.Sequential(_Columns(), model)
    return _Normalized(MOMENTS[moments], model)


class _Columns(nn.Module):
    """Height and width in each other's place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


class LeNet5(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(7 * 7 * 64, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(convolution(x).relu(), 2)
        out: Tensor = self.linear2(self.linear1(x.flatten(1)).relu())
        return out


class TradesCNN(nn.Module):
    """Four convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 64, 64)
        convolutions: list[tuple[str, nn.Module]] = []
        for i in range(4):
            convolutions += [
                (f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], 3)),
                (f"relu{i + 1}", nn.ReLU()),
            ]
            convolutions += [(f"maxpool{i}", nn.MaxPool2d(2))] if i % 2 else []
        self.feature_extractor = nn.Sequential(OrderedDict(convolutions))
        linear = {"fc1": nn.Linear(1024, 200), "relu1": nn.ReLU(), "fc2": nn.Linear(200, 200)}
        self.classifier = nn.Sequential(
            OrderedDict({**linear, "relu2": nn.ReLU(), "fc3": nn.Linear(200, 10)})
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.feature_extractor(x).flatten(1))
        return out
