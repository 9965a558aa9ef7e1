"""Image models in plain torch.nn, small enough for tests: what their layers need is what the large ones need."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.mix = nn.Sequential(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
        self.expand = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.mix(self.relu(self.reduce(x))))
        return self.relu(self.expand(y) + self.shortcut(x))


class ResNet(nn.Module):
    """The residual network with bottlenecks; (3, 4, 6, 3) layers of width 64 are ResNet-50."""

    def __init__(self, layers: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        channels, blocks = width, []
        for stage, count in enumerate(layers):
            inner = width << stage
            for index in range(count):
                blocks.append(Bottleneck(channels, inner, 2 if stage and not index else 1))
                channels = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of [N, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """A depthwise convolution, then a network on every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)


def convnext(width: int = 24) -> nn.Module:
    """Two stages of ConvNeXt."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4), LayerNorm2d(width), ConvNextBlock(width), LayerNorm2d(width),
        nn.Conv2d(width, 2 * width, 2, 2), ConvNextBlock(2 * width), nn.AdaptiveAvgPool2d(1), LayerNorm2d(2 * width),
        nn.Flatten(1), nn.Linear(2 * width, 10),
    )  # fmt: skip


class InvertedResidual(nn.Module):
    """An expanded depthwise block with a gate per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.into = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
        )  # fmt: skip
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, width, 1), nn.SiLU(), nn.Conv2d(width, wide, 1), nn.Sigmoid()
        )
        self.out = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x)
        return x + self.out(y * self.gate(y))


class Segmenter(nn.Module):
    """Down, up by a transposed convolution, and joined with what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.pool, self.deep = nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=2, dilation=2)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm(self.first(x)))
        return self.last(torch.cat([y, self.up(functional.relu(self.deep(self.pool(y))))], 1))


class Patches(nn.Module):
    """An image as tokens behind a class token, as vision transformers read it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(torch.cat([self.first.expand(y.shape[0], -1, -1), y], 1)))


def settled(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, its batch norms with statistics that differ by channel."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.2)
    return model.eval()
