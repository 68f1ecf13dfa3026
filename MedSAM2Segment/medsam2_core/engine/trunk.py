"""The convolutional trunk of the embedded model, in place of Hiera inside sam2's ``ImageEncoder``.

A network trained from nothing on a workstation learns faster with convolutions than with windowed
attention, and they are cheaper on a CPU. Everything behind the trunk (neck, prompt encoder, mask decoder,
memory) is sam2's own.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from medsam2_core.engine.convolution import Conv3x3


def _norm(channels: int) -> nn.GroupNorm:
    # Group norm, not batch norm: a slice is often encoded alone, and CT, MR and ultrasound share one model.
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm around an identity (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels)
        self.norm1 = _norm(channels)
        self.conv2 = Conv3x3(channels)
        self.norm2 = _norm(channels)
        # The block starts as the identity, which lets a deep stack train from the first step.
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(inner)))


class ConvTrunk(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    Parameters
    ----------
    channels
        Width of each stage, finest first.
    depths
        Residual blocks in each stage.
    """

    def __init__(self, channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        channels, depths = list(channels), list(depths)
        if len(channels) != 4 or len(depths) != 4:
            raise ValueError(f"four stages wanted, got channels {channels} and depths {depths}")
        half = max(16, channels[0] // 2)
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            _norm(half),
            nn.ReLU(),
            nn.Conv2d(half, channels[0], 3, stride=2, padding=1, bias=False),
            _norm(channels[0]),
            nn.ReLU(),
        )
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            layers: list[nn.Module] = []
            if stage > 0:
                layers += [nn.Conv2d(channels[stage - 1], width, 2, stride=2, bias=False), _norm(width)]
            layers += [ResidualBlock(width) for _ in range(depth)]
            self.stages.append(nn.Sequential(*layers))
        # sam2's FpnNeck wants the widths coarsest first.
        self.channel_list = channels[::-1]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, 3, S, S) to four maps (N, C_i, S/s, S/s), s = 4, 8, 16, 32, finest first."""
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last)  # saves turning every map for its convolution
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
