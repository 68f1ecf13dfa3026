"""Devices and precisions.

Weights stay in fp32; a lower precision means autocast around the model's calls, as Meta's own examples do.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path

import torch

from medsam2_core.errors import DeviceError


class Precision(str, Enum):
    """The number format of a model's calculations."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the same name."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.value]

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Return a context in which modules on `device` compute in this precision; nothing at all for
        fp32."""
        if self is Precision.FP32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Pick where to compute.

    Parameters
    ----------
    name
        ``auto`` (a CUDA card, else Apple's GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` … or ``mps``.

    Raises
    ------
    DeviceError
        The name means nothing, or this machine (or this build of torch) does not have the device.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"{name!r} is not a device: use auto, cpu, cuda, cuda:1 or mps"
        raise DeviceError(message, code="unknown-device", device=str(name)) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda":
        _check_cuda(device)
        return device
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            message = "mps was asked for, but this machine has no Apple GPU that torch can use: use cpu"
            raise DeviceError(message, code="no-mps", device=str(device))
        return device
    message = f"device {name!r} is not supported: use auto, cpu, cuda, cuda:1 or mps"
    raise DeviceError(message, code="unsupported-device", device=str(name))


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no working NVIDIA card or driver was found" if built else "this torch is a build without CUDA"
        message = f"{device} was asked for, but {why} (torch {torch.__version__}): use cpu or auto"
        raise DeviceError(message, code="no-cuda", device=str(device))
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        last = f"cuda:{count - 1}"
        message = f"{device} was asked for, but this machine has {count} CUDA card(s), up to {last}"
        raise DeviceError(message, code="no-such-card", device=str(device), count=count)


def processor_name() -> str:
    """Return the processor's name; its architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def wait_for(device: torch.device) -> None:
    """Wait until a graphics card or Apple's GPU has computed what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_precision(device: torch.device, name: str | Precision = "auto") -> Precision:
    """Pick the precision for a device.

    ``auto`` is bf16 on CUDA cards that have it (Ampere and later), fp16 on Volta and Turing, and fp32
    elsewhere: on a CPU without matrix units bf16 is three times slower than fp32, and on ``mps`` it depends
    on the system version.

    Raises
    ------
    DeviceError
        The name means nothing, or the device cannot compute in it.
    """
    if str(getattr(name, "value", name)) == "auto":
        return _automatic_precision(device)
    try:
        precision = Precision(name)
    except ValueError as error:
        message = f"{name!r} is not a precision: use auto, fp32, bf16 or fp16"
        raise DeviceError(message, code="unknown-precision", precision=str(name)) from error
    if precision is Precision.FP16 and device.type == "cpu":
        message = "fp16 is not supported on the CPU: use fp32 (or bf16), or a GPU"
        raise DeviceError(message, code="unsupported-precision", device=str(device), precision="fp16")
    if precision is Precision.BF16 and device.type == "cuda" and not _cuda_has_bf16(device):
        card = torch.cuda.get_device_name(device)
        message = f"{card} has no bf16: use fp16 or fp32"
        raise DeviceError(message, code="unsupported-precision", device=str(device), precision="bf16")
    return precision


def _automatic_precision(device: torch.device) -> Precision:
    if device.type != "cuda":
        return Precision.FP32
    if _cuda_has_bf16(device):
        return Precision.BF16
    return Precision.FP16 if torch.cuda.get_device_capability(device) >= (7, 0) else Precision.FP32


def _cuda_has_bf16(device: torch.device) -> bool:
    # torch.cuda.is_bf16_supported() also says yes to emulation, which is slower than fp32.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 itself: emulated, it takes ten times as long as fp32."""
    if device.type == "cuda":
        return _cuda_has_bf16(device)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # which earlier releases lack
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def out_of_memory(device: torch.device) -> DeviceError:
    """Return the error for a graphics card without free memory."""
    message = (
        f"the memory of {device} is full: take a smaller model or --image-size, fewer objects at once, close "
        "other programs that use the card, or take --device cpu"
    )
    return DeviceError(message, code="device-memory", device=str(device))
