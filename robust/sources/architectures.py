"""Built-in classifiers. All map (N, in_channels, H, W) to logits (N, num_classes)."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robust.errors import ModelError
from robust.registry import Registry


class Architecture(Protocol):
    """Makes a freshly initialised model; without arguments, for the data set that its name tells of."""

    def __call__(self, *, num_classes: int = ..., in_channels: int = ..., image_size: int = ...) -> nn.Module:
        """A new module giving logits."""


MODELS: Registry[Architecture] = Registry("built-in model", "robust.models")
"""Name -> Architecture; the first line of its docstring describes it."""


class SmallCNN(nn.Module):
    """The small network of Wong & Kolter 2018 (arXiv 1711.00851): two convolutions, two linear layers.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input.
        image_size: height and width of the input, at least 4.

    Raises:
        ModelError: image_size < 4.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        side = image_size // 2 // 2
        if side < 1:
            raise ModelError(f"image_size: SmallCNN halves it twice and needs at least 4, got {image_size}")
        self.conv1 = nn.Conv2d(in_channels, 16, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.hidden = nn.Linear(32 * side * side, 100)
        self.head = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, in_channels, image_size, image_size) -> logits (N, num_classes)."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        logits: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return logits


class TinyMLP(nn.Module):
    """Two hidden layers of 64: enough for 8x8 digits, and quick.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input.
        image_size: height and width of the input.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(in_channels * image_size * image_size, 64)
        self.hidden2 = nn.Linear(64, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, in_channels, image_size, image_size) -> logits (N, num_classes)."""
        x = F.relu(self.hidden2(F.relu(self.hidden1(x.flatten(1)))))
        logits: Tensor = self.head(x)
        return logits


class _PostActBlock(nn.Module):
    """Basic residual block of He et al. 2016: batch norm after each convolution, ReLU after the sum."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3x3(width, width), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(_conv1x1(width_in, width, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class _PreActBlock(nn.Module):
    """Basic residual block of He et al. 2016b: batch norm and ReLU before each convolution.

    Where the shape changes, the shortcut is a bare 1x1 convolution of the activated input.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), _conv3x3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv3x3(width, width)
        changes = stride != 1 or width_in != width
        self.shortcut = _conv1x1(width_in, width, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with the 3x3 stem used on CIFAR; 11,173,962 parameters.

    The last feature map is averaged, so any image size from 8 on will do.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_bn = _conv3x3(in_channels, 64), nn.BatchNorm2d(64)
        self.stages = _stages(_PostActBlock, 64, (64, 128, 256, 512), 2)
        self.head = nn.Linear(512, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, in_channels, H, W) -> logits (N, num_classes)."""
        x = self.stages(F.relu(self.stem_bn(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 (He et al. 2016b, arXiv 1603.05027) with a 3x3 stem.

    With the batch norm and ReLU that the paper puts after the last block: 11,172,170 parameters. Some
    implementations leave them out and have 11,171,146.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv3x3(in_channels, 64)
        self.stages = _stages(_PreActBlock, 64, (64, 128, 256, 512), 2)
        self.last_bn = nn.BatchNorm2d(512)
        self.head = nn.Linear(512, num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, in_channels, H, W) -> logits (N, num_classes)."""
        x = F.relu(self.last_bn(self.stages(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class WideResNet(nn.Module):
    """Wide ResNet (Zagoruyko & Komodakis 2016, arXiv 1605.07146); WRN-28-10 has 36,479,194 parameters.

    Args:
        num_classes: width of the output.
        in_channels: channels of the input.
        depth: 6 n + 4 for n blocks in each of the three stages.
        widen: factor on the widths 16, 32, 64.

    Raises:
        ModelError: a depth that is not 6 n + 4 with n >= 1, or widen < 1.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, *, depth: int = 28, widen: int = 10
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(f"depth: a WideResNet's is 6 n + 4 (10, 16, 22, 28, 34...), got {depth}")
        if widen < 1:
            raise ModelError(f"widen: expected a factor of at least 1, got {widen}")
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.stem = _conv3x3(in_channels, 16)
        self.stages = _stages(_PreActBlock, 16, widths, (depth - 4) // 6)
        self.last_bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, in_channels, H, W) -> logits (N, num_classes)."""
        x = F.relu(self.last_bn(self.stages(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _conv3x3(width_in: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)


def _conv1x1(width_in: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 1, stride=stride, bias=False)


def _stages(
    block: type[_PostActBlock] | type[_PreActBlock], width_in: int, widths: tuple[int, ...], blocks: int
) -> nn.Sequential:
    """One stage of `blocks` blocks a width; every stage but the first halves the image."""
    stages = nn.Sequential()
    for i, width in enumerate(widths):
        first = block(width_in, width, 1 if i == 0 else 2)
        stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(blocks - 1))))
        width_in = width
    return stages


def _kaiming(model: nn.Module) -> None:
    """Initialise the convolutions after He et al. 2015 (arXiv 1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@MODELS.register("mnist-cnn")
def mnist_cnn(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """SmallCNN for 28x28 gray images: two convolutions, 166,406 parameters (Wong & Kolter 2018)."""
    return SmallCNN(num_classes, in_channels, image_size)


@MODELS.register("digits-mlp")
def digits_mlp(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> nn.Module:
    """TinyMLP for 8x8 gray images: two hidden layers of 64, 8,970 parameters."""
    return TinyMLP(num_classes, in_channels, image_size)


@MODELS.register("cifar-resnet18")
def cifar_resnet18(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """ResNet-18 with a 3x3 stem for 32x32 colour images, 11.2 M parameters (He et al. 2016)."""
    _check_pooled("cifar-resnet18", image_size)
    return ResNet18(num_classes, in_channels)


@MODELS.register("cifar-preactresnet18")
def cifar_preactresnet18(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Pre-activation ResNet-18 for 32x32 colour images, 11.2 M parameters (He et al. 2016b)."""
    _check_pooled("cifar-preactresnet18", image_size)
    return PreActResNet18(num_classes, in_channels)


@MODELS.register("cifar-wrn28-10")
def cifar_wrn28_10(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """WideResNet-28-10 for 32x32 colour images, 36.5 M parameters (Zagoruyko & Komodakis 2016)."""
    _check_pooled("cifar-wrn28-10", image_size)
    return WideResNet(num_classes, in_channels, depth=28, widen=10)


def _check_pooled(name: str, image_size: int) -> None:
    if image_size < 8:
        raise ModelError(
            f"image_size: {name} halves it up to three times and needs at least 8, got {image_size}"
        )
