"""Devices and precisions this machine lacks are refused in words."""

import pytest
import torch
from medsam2_core.engine.devices import Precision, choose_device, choose_precision
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import DeviceError
from support.errors import raises

CPU = torch.device("cpu")


def test_automatic_choices_are_something_this_machine_has():
    device = choose_device()
    assert torch.zeros(1, device=device).device.type == device.type
    assert choose_precision(CPU) is Precision.FP32


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tpu", {"code": "unknown-device"}),
        ("cuda:x", {"code": "unknown-device"}),
        ("xla", {"code": "unsupported-device", "device": "xla"}),
    ],
)
def test_names_that_mean_nothing_are_refused(name, problem):
    with raises(**problem, error_type=DeviceError):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_missing_cuda_card_is_reported(name):
    with raises("no-cuda", DeviceError, device=name):
        choose_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_cuda_card_is_chosen_and_counted():
    assert choose_device().type == "cuda"
    with raises("no-such-card", DeviceError):
        choose_device("cuda:99")
    assert choose_precision(torch.device("cuda")) in (Precision.BF16, Precision.FP16, Precision.FP32)


def test_the_second_card_of_two_is_not_the_third(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with raises("no-such-card", DeviceError, count=2):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("capability", "automatic"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_precision_follows_the_generation_of_the_card(monkeypatch, capability, automatic):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    card = torch.device("cuda")
    assert choose_precision(card) == automatic
    if capability < (8, 0):
        with raises("unsupported-precision", DeviceError, precision="bf16"):
            choose_precision(card, "bf16")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_a_missing_apple_gpu_is_reported():
    with raises("no-mps", DeviceError):
        choose_device("mps")


def test_precisions_are_chosen_by_name():
    assert choose_precision(CPU, "bf16") is Precision.BF16
    assert choose_precision(CPU, Precision.FP32).dtype is torch.float32
    with raises("unsupported-precision", DeviceError, precision="fp16"):
        choose_precision(CPU, "fp16")
    with raises("unknown-precision", DeviceError, precision="fp8"):
        choose_precision(CPU, "fp8")


def test_autocast_computes_in_the_precision_asked_for():
    layer, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with Precision.BF16.autocast(CPU):
        assert layer(x).dtype is torch.bfloat16
    with Precision.FP32.autocast(CPU):
        assert layer(x).dtype is torch.float32


def test_a_full_card_is_no_defect():
    model = SegmentationModel("tiny", torch.nn.Identity(), 64, STOCK, "", CPU, Precision.FP32)
    with raises("device-memory", DeviceError, device="cpu"), model.computing():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
