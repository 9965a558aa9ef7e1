"""Image models at full size, weights drawn at random: ResNet-50 in plain torch.nn, ViT-B/16 of transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

PIXELS = 224


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_normed(channels, width, 1), nn.ReLU(inplace=True), *_normed(width, width, 3, stride),
            nn.ReLU(inplace=True), *_normed(width, 4 * width, 1),
        )  # fmt: skip
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(channels, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


def _normed(channels: int, out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)


def resnet_50() -> nn.Module:
    """Stages of 3, 4, 6 and 3 bottlenecks; statistics of the norms drawn, too, so that none is the identity."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [*_normed(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for index in range(count):
            blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
            channels = 4 * width
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 1000))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]  # tracked by default
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return Named(model)


class Named(nn.Module):
    """Gives the argument a name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(image)
        return found


class Logits(nn.Module):
    """transformers' classifier, its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values=image).logits
        return found


def vit_b() -> nn.Module:
    """ViT-B/16: 12 layers, hidden 768, 12 heads, patches of 16 by 16."""
    import transformers

    torch.manual_seed(0)
    return Logits(
        transformers.ViTForImageClassification(transformers.ViTConfig(id2label={n: str(n) for n in range(1000)}))
    )


def images(sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Drawn pixels."""
    generator = torch.Generator().manual_seed(sizes["batch"])
    return {"image": torch.randn(sizes["batch"], 3, PIXELS, PIXELS, generator=generator)}
