"""3x3 convolutions of the embedded model with fewer multiplications, for the CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016): a tile of 6 x 6 inputs becomes 4 x 4 outputs with 36
multiplications a pair of channels instead of 144. Results differ from torch's by rounding only.
"""

import torch
from torch import nn
from torch.nn import functional

# With fewer channels, transforming tiles costs more than it saves; with more, on their few places, reading
# the transformed weights does.
_CHANNELS = range(96, 256)
_TILE, _OUT = 6, 4

_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0),
          (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_WEIGHT = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
           (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Conv3x3(nn.Conv2d):
    """A convolution that keeps the image's size, without bias.

    For inference in fp32 on the CPU it keeps its weights a second time, in the form that is faster there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self._prepared: tuple[tuple[int, int], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        plain = torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32
        if plain or torch.is_autocast_enabled("cpu") or self.weight.is_inference():
            return super().forward(x)
        weights = self._weights()
        if weights.ndim == 4:
            return functional.conv2d(x, weights, padding=1)
        height, width = x.shape[2:]
        fits = height % _OUT == 0 and width % _OUT == 0
        return _winograd(x, weights) if fits else super().forward(x)

    def _weights(self) -> torch.Tensor:
        """Return the weights (C, C, 3, 3) channels last, or (36, C, C); prepared anew when they were
        changed."""
        made_of = (self.weight.data_ptr(), self.weight._version)
        if self._prepared is None or self._prepared[0] != made_of:
            weight = self.weight.detach()
            if weight.shape[0] in _CHANNELS:
                self._prepared = made_of, _transformed(weight)
            else:
                self._prepared = made_of, weight.contiguous(memory_format=torch.channels_last)
        return self._prepared[1]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_prepared": None}


def _transformed(weight: torch.Tensor) -> torch.Tensor:
    """Return (O, I, 3, 3) weights as (36, I, O)."""
    matrix = torch.tensor(_WEIGHT, dtype=torch.float64)
    turned = torch.einsum("ai,bj,ocij->abco", matrix, matrix, weight.double())
    return turned.flatten(0, 1).to(weight.dtype).contiguous()


def _both_ways(rows: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """Return the matrix that transforms flattened tiles along rows and columns at once."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float().contiguous()


_INPUTS, _OUTPUTS = _both_ways(_INPUT), _both_ways(_OUTPUT)


def _winograd(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Convolve (N, C, H, W), H and W multiples of 4, with (36, C, O); the result lies channels last."""
    count, channels, height, width = x.shape
    down, across, made = height // _OUT, width // _OUT, weights.shape[2]
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, one = padded.stride()
    places = (_TILE, _TILE, count, down, across, channels)
    tiles = padded.as_strided(places, (row, column, image, _OUT * row, _OUT * column, one))
    inputs = torch.mm(_INPUTS, tiles.reshape(_TILE**2, -1))
    products = torch.bmm(inputs.view(_TILE**2, -1, channels), weights)
    outputs = torch.mm(_OUTPUTS, products.view(_TILE**2, -1)).view(_OUT, _OUT, count, down, across, made)
    return outputs.permute(2, 3, 0, 4, 1, 5).reshape(count, height, width, made).permute(0, 3, 1, 2)
