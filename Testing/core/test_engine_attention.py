"""Memory attention on the CPU gives what sam2's own module gives."""

import pytest
import torch
from medsam2_core.engine.architecture import STOCK_CONFIGS, build_module
from medsam2_core.engine.attention import attend, is_foldable
from support.model import stir


@pytest.mark.parametrize(
    ("config", "size", "frames", "pointers"),
    [
        *((config, 128, 3, 5) for config in STOCK_CONFIGS),
        ("sam2.1_hiera_t", 512, 7, 16),  # more queries than are attended to at once
        ("embedded", 256, 7, 16),
        ("embedded", 256, 1, 0),
        ("embedded", 320, 2, 4),  # another image size than the positions were made for
    ],
)
def test_the_folded_attention_is_sam2s(config, size, frames, pointers):
    module = build_module(config, size)
    stir(module, 5.0)
    attention, places, channels = module.memory_attention, (size // 16) ** 2, module.hidden_dim
    random = torch.Generator().manual_seed(1)
    current, position = torch.randn(2, places, 1, channels, generator=random)
    pointer_tokens = pointers * channels // module.mem_dim
    memory, memory_position = torch.randn(
        2, frames * places + pointer_tokens, 1, module.mem_dim, generator=random
    )
    assert is_foldable(attention)
    with torch.inference_mode():
        theirs = attention(
            curr=[current],
            curr_pos=[position],
            memory=memory,
            memory_pos=memory_position,
            num_obj_ptr_tokens=pointer_tokens,
        )
        ours = attend(attention, current, position, memory, memory_position, pointer_tokens)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-5


def test_attention_of_other_shapes_is_left_to_sam2():
    attention = build_module("embedded").memory_attention
    assert not is_foldable(attention.train())
    attention.eval().layers[0].cross_attn_image.num_heads = 2
    assert not is_foldable(attention)
