"""Convolutions with fewer multiplications give what torch's give, up to rounding."""

import copy

import pytest
import torch
from medsam2_core.engine.architecture import build_module
from medsam2_core.engine.convolution import Conv3x3
from medsam2_core.engine.encoder import image_features
from support.model import DRAWN, embedded_model, stir
from torch.nn import functional


def a_convolution(channels: int) -> Conv3x3:
    """With weights of the size that keeps values as large as they are."""
    torch.manual_seed(0)
    return Conv3x3(channels).requires_grad_(False)


def largest_error(convolution: Conv3x3, x: torch.Tensor) -> float:
    """Relative to the largest value."""
    wanted = functional.conv2d(x.double(), convolution.weight.double(), padding=1)
    with torch.inference_mode():
        return float((convolution(x) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("channels", [16, 96, 192, 256])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 12), (2, 10, 7)])
def test_a_convolution_is_that_of_torch(channels, shape):
    count, height, width = shape
    x = torch.randn(count, channels, height, width)
    convolution = a_convolution(channels)
    assert largest_error(convolution, x) < 2e-5
    assert largest_error(convolution, x.contiguous(memory_format=torch.channels_last)) < 2e-5


@pytest.mark.parametrize("channels", [16, 96])
def test_changed_weights_count_at_once(channels):
    x, convolution = torch.randn(1, channels, 8, 8), a_convolution(channels)
    assert largest_error(convolution, x) < 2e-5
    convolution.weight.mul_(2)
    assert largest_error(convolution, x) < 2e-5
    convolution.load_state_dict(a_convolution(channels).state_dict())
    assert largest_error(copy.deepcopy(convolution), x) < 2e-5
    assert list(convolution.state_dict()) == ["weight"]


def test_training_uses_torch_own_convolution():
    convolution = Conv3x3(96)
    x = torch.randn(1, 96, 8, 8, requires_grad=True)
    convolution(x).sum().backward()
    assert x.grad is not None and convolution.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert convolution(x.detach()).dtype is torch.bfloat16


def test_features_are_those_of_sam2_without_their_positions():
    images = torch.randn(2, 3, 128, 128)
    torch.manual_seed(0)
    stock = build_module("sam2.1_hiera_t", 128)
    stir(stock, 5.0)
    own = embedded_model(DRAWN).module
    with torch.no_grad():
        for ours, theirs in zip(
            image_features(stock, images), stock.forward_image(images)["backbone_fpn"], strict=True
        ):
            assert torch.equal(ours, theirs)
        plain = own.forward_image(images)["backbone_fpn"]
        ours_of_each = image_features(own, images)
    with torch.enable_grad():  # torch's own convolutions
        exact = own.forward_image(images)["backbone_fpn"]
    for ours, theirs, reference in zip(ours_of_each, plain, exact, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(theirs, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))
