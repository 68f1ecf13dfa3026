"""What the matrix products of a slice take alone, to compare the time of a slice with.

This is no lower bound: features that are cached are not computed again, and convolutions can be computed with
fewer operations than are counted here.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from medsam2_core.engine.devices import wait_for
from medsam2_core.engine.segmentation_model import SegmentationModel


def gigaflops_of(work: Callable[[], object]) -> float:
    """Return the operations of matrix products in what `work` computes, in thousand millions."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # is not in torch's own list

    def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    with FlopCounterMode(display=False, custom_mapping={attention: of_attention}) as counter:
        work()
    return counter.get_total_flops() / 1e9


def gigaflops_of_slice(model: SegmentationModel) -> float:
    """Return those of one slice that is encoded and tracked with a full memory by the model's module."""
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
            enlarged = torch.nn.functional.interpolate(logits.float(), size=(side, side), mode="bilinear")
            module._encode_new_memory(
                [tokens], [fine[-1].shape[-2:]], enlarged, score, is_mask_from_pts=False
            )

    return gigaflops_of(work)


def seconds_of(gigaflops: float, device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds so many operations take at the speed of one large product, the best of ten."""
    side = 1024 if device.type == "cpu" else 4096
    with torch.inference_mode():
        square = torch.rand(side, side, device=device, dtype=dtype)
        seconds = min(_seconds(square) for _ in range(10))
    return gigaflops * 1e9 / (2 * side**3) * seconds


def _seconds(square: torch.Tensor) -> float:
    wait_for(square.device)
    started = time.perf_counter()
    torch.mm(square, square)
    wait_for(square.device)
    return time.perf_counter() - started
