"""Weights stored with eight bits: a scale for each output channel, as in linear symmetric quantisation.

For files that ship: they are half as large as in half precision, and computation is as before, since weights
become float again when they are read (Krishnamoorthi, *Quantizing deep convolutional networks for efficient
inference*, 2018). ``python -m medsam2_core.engine.eight_bits IN.safetensors OUT.safetensors`` makes one.
"""

from collections.abc import Mapping

import torch

_SCALE = ".scale"
_FEWEST = 4096  # weights of a tensor; smaller ones stay in half precision
# Of 127 there could be: finer steps make files that hardly compress, and the error is small as it is.
_STEPS = 63


def to_eight_bits(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state with large matrices and kernels as int8, and beside each ``NAME.scale`` (C,), float16.

    Everything else that is float becomes float16. The error is at most half a scale, which is a 63rd of the
    largest weight of the channel.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point() or value.ndim < 2 or value.numel() < _FEWEST:
            stored[name] = value.half().contiguous() if value.is_floating_point() else value
            continue
        rows = value.float().flatten(1)
        # Rounded before it is used: what is divided by is what will be multiplied with.
        scale = (rows.abs().amax(1) / _STEPS).half().float().clamp(min=2.0**-24)
        whole = (rows / scale[:, None]).round().clamp(-_STEPS, _STEPS)
        stored[name] = whole.to(torch.int8).view(value.shape).contiguous()
        stored[name + _SCALE] = scale.half()
    return stored


def from_eight_bits(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the float32 state of what :func:`to_eight_bits` returned; other states only become float32."""
    small = {name for name, value in stored.items() if value.dtype == torch.int8 and name + _SCALE in stored}
    state: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        if name in small:
            scale = stored[name + _SCALE].float()
            state[name] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        elif name.removesuffix(_SCALE) not in small:
            state[name] = value.float()
    return state


def main(source: str, target: str) -> None:
    """Store the weights of a safetensors file with eight bits, with the same metadata."""
    from pathlib import Path

    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(source, "pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    with Path(target).open("xb") as stream:
        stream.write(save(to_eight_bits(state), metadata=metadata))


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:3])
