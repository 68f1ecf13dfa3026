"""What the matrix products of a slice take alone, to compare the time of a slice with.

This is no lower bound: features that are cached are not computed again, and convolutions can be computed with
fewer products than are counted here.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medsam2_core.engine.devices import wait_for
from medsam2_core.engine.segmentation_model import SegmentationModel

#: Products of (batch, rows, inner, columns), with how often they occur.
Products = Counter[tuple[int, int, int, int]]


class _Recorder(TorchDispatchMode):
    """Notes the shape of every matrix product, convolution and attention that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Products = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name not in _SHAPES:  # in inference mode, composite operations come as they are
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if name in _SHAPES:
            self.products.update(_SHAPES[name](args, result))
        return result


def _of_mm(args: Any, result: Any) -> list[tuple[int, int, int, int]]:
    a, b = args[:2]
    return [(1, a.shape[0], a.shape[1], b.shape[1])]


def _of_addmm(args: Any, result: Any) -> list[tuple[int, int, int, int]]:
    return [(1, args[1].shape[0], args[1].shape[1], args[2].shape[1])]


def _of_bmm(args: Any, result: Any) -> list[tuple[int, int, int, int]]:
    a, b = args[-2:]
    return [(a.shape[0], a.shape[1], a.shape[2], b.shape[2])]


def _of_convolution(args: Any, result: Any) -> list[tuple[int, int, int, int]]:
    image, weight = args[:2]
    transposed, groups = bool(args[6]), int(args[8])
    if transposed:
        places = image.shape[0] * math.prod(image.shape[2:])
        return [(1, places, weight.shape[0], math.prod(weight.shape[1:]))]
    places = result.shape[0] * math.prod(result.shape[2:])
    return [(groups, places, math.prod(weight.shape[1:]), weight.shape[0] // groups)]


def _of_attention(args: Any, result: Any) -> list[tuple[int, int, int, int]]:
    query, key, value = args[:3]
    batch, rows, columns = query.shape[0] * query.shape[1], query.shape[2], key.shape[2]
    return [(batch, rows, query.shape[3], columns), (batch, rows, columns, value.shape[3])]


_SHAPES: dict[str, Callable[[Any, Any], list[tuple[int, int, int, int]]]] = {
    "mm": _of_mm,
    "addmm": _of_addmm,
    "bmm": _of_bmm,
    "convolution": _of_convolution,
    "scaled_dot_product_attention": _of_attention,
    "_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    "_scaled_dot_product_flash_attention": _of_attention,
    "_scaled_dot_product_efficient_attention": _of_attention,
    "_scaled_dot_product_cudnn_attention": _of_attention,
}


def products_of(work: Callable[[], object]) -> Products:
    """Return the matrix products of what `work` computes."""
    recorder = _Recorder()
    with recorder:
        work()
    return recorder.products


def products_of_slice(model: SegmentationModel) -> Products:
    """Return the matrix products of one slice that is encoded and tracked with a full memory, as the model's
    module computes them."""
    module, side = model.module, model.image_size
    with model.computing():
        image = torch.zeros(1, 3, side, side, device=model.device)
        fine = module.forward_image(image)["backbone_fpn"]
        tokens = fine[-1].flatten(2).permute(2, 0, 1)
        frames, pointers = module.num_maskmem * len(tokens), 4 * module.max_obj_ptrs_in_encoder
        memory = torch.zeros(frames + pointers, 1, module.mem_dim, device=model.device)

    def work() -> None:
        with model.computing():
            module.forward_image(image)
            module.memory_attention(
                curr=[tokens], curr_pos=[tokens], memory=memory, memory_pos=memory,
                num_obj_ptr_tokens=pointers,
            )  # fmt: skip
            *_, logits, _, _, score = module._forward_sam_heads(fine[-1], high_res_features=fine[:2])
            module._encode_new_memory(
                [tokens], [fine[-1].shape[-2:]], _enlarged(logits, side), score, is_mask_from_pts=False
            )

    return products_of(work)


def _enlarged(logits: torch.Tensor, side: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(logits.float(), size=(side, side), mode="bilinear")


def gigaflops(products: Products) -> float:
    """Return how many floating-point operations these are, in thousand millions."""
    return sum(2 * math.prod(shape) * count for shape, count in products.items()) / 1e9


def seconds_of(products: Products, device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds these products take by the clock, one after the other: the best of three runs of
    each shape."""
    total = 0.0
    with torch.inference_mode():
        for (batch, rows, inner, columns), count in products.items():
            a = torch.rand(batch, rows, inner, device=device, dtype=dtype)
            b = torch.rand(batch, inner, columns, device=device, dtype=dtype)
            total += count * min(_seconds(a, b) for _ in range(3))
    return total


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    wait_for(a.device)
    started = time.perf_counter()
    torch.bmm(a, b)
    wait_for(a.device)
    return time.perf_counter() - started
