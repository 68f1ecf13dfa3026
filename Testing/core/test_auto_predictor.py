"""The Prompt Predictor Network computes what its page says, for every model it can be used with."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from medsam2_core.auto.predictor import (
    HEADS,
    BoxHead,
    MaskHead,
    PredictedPrompts,
    PredictorSettings,
    PromptPredictor,
    grid_positions,
    inverse_frequencies,
    token_positions,
)
from medsam2_core.engine.architecture import STOCK_CONFIGS, build_from, read_config
from medsam2_core.errors import TrainingError
from support.auto_model import SIDE, one_of, some_levels
from support.errors import raises
from support.tiny_model import tiny_model
from torch.nn import functional


def a_predictor(classes=2, seed=1, **changes) -> PromptPredictor:
    torch.manual_seed(seed)
    return PromptPredictor(PredictorSettings(classes, **changes)).eval()


def nothing_marked(width=256) -> torch.Tensor:
    return torch.randn(1, width, generator=torch.Generator().manual_seed(9))


def same(one: PredictedPrompts, other: PredictedPrompts, atol=1e-5) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(
        torch.allclose(a, b, atol=atol) if a is not None and b is not None else a is b for a, b in pairs
    )


# --- sizes


@pytest.mark.parametrize("config", [*STOCK_CONFIGS, "embedded"])
def test_its_widths_are_those_of_the_model(config):
    module = build_from(read_config(config, SIDE), config, blank=True)
    settings = PredictorSettings.for_module(module, 3)
    expected = (128, (32, 16)) if config == "embedded" else (256, (64, 32))
    assert (settings.width, settings.fine_widths) == expected
    if config.endswith(("_l", "_b+")):
        return  # encoding with them takes longer than it tells
    with torch.no_grad():
        maps = module.forward_image(torch.zeros(1, 3, SIDE, SIDE))["backbone_fpn"]
    shapes = [(settings.width, 4, 4), (settings.fine_widths[0], 8, 8), (settings.fine_widths[1], 16, 16)]
    assert [tuple(one.shape[1:]) for one in (maps[2], maps[1], maps[0])] == shapes


@pytest.mark.parametrize(("width", "fine"), [(256, (64, 32)), (128, (32, 16))])
@pytest.mark.parametrize("side", [64, 128])
def test_it_predicts_a_box_a_mask_and_tokens_of_every_class_of_every_image(width, fine, side):
    predictor = a_predictor(classes=3, width=width, fine_widths=fine)
    prompts = predictor(some_levels(2, width, side), nothing_marked(width))
    assert prompts.boxes_xyxy.shape == (6, 4)
    assert prompts.mask_logits.shape == (6, 1, side // 4, side // 4)
    assert prompts.tokens.shape == (6, 8, width)


@pytest.mark.parametrize("tokens", [3, 10, 17])
def test_two_tokens_make_the_box_and_the_others_are_prompts(tokens):
    prompts = a_predictor(tokens=tokens)(some_levels(1), nothing_marked())
    assert prompts.tokens.shape == (2, tokens - 2, 256)


def test_it_has_the_published_number_of_parameters():
    predictor = a_predictor(classes=3)
    shared = sum(p.numel() for name, p in predictor.named_parameters() if name != "queries")
    assert shared == 5_080_517
    assert predictor.queries.shape == (3, 10, 256)
    assert float(predictor.queries.detach().std()) == pytest.approx(1 / 16, rel=0.05)


# --- what the page says, computed from it alone


def attended(attention, q, k, v, inner) -> torch.Tensor:
    """Eight heads, written out."""
    assert attention.q_proj.out_features == inner
    q, k, v = attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)
    heads = []
    for part in np.array_split(np.arange(inner), 8):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(len(part))
        heads.append(scores.softmax(-1) @ v[..., part])
    return attention.out_proj(torch.cat(heads, -1))


def normed(norm, x) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def by_the_page(predictor, levels, no_mask_embed):
    """Steps 3 to 5 of the forward pass for one image and one class at a time, after the page."""
    t = torch.arange(10)[:, None] * 10000 ** (-2 * torch.arange(128) / 256)
    query_position = torch.stack([t.sin(), t.cos()], -1).reshape(10, 256)
    rows = []
    for image in range(len(levels.coarse)):
        for number in range(predictor.settings.classes):
            q = predictor.queries[number][None]
            features = [x[image : image + 1] for x in (levels.coarse, levels.middle, levels.fine)]
            d = no_mask_embed[0][None, :, None, None].expand_as(features[0])
            for i, block in enumerate(predictor.layers):
                weight = None if i == 0 else predictor.channel_adapters[i].weight
                f = features[0] if i == 0 else functional.conv2d(features[i], weight)
                if i:
                    f = f + predictor.channel_adapters[i].bias[:, None, None]
                rows_of_d = (torch.arange(f.shape[-1]) * d.shape[-1]) // f.shape[-1]
                keys = (f + d[:, :, rows_of_d][..., rows_of_d]).flatten(2).transpose(1, 2)
                q, keys = block_by_the_page(block, q, keys, query_position, f.shape[-1], first=i == 0)
                d = keys.transpose(1, 2).reshape(f.shape)
            rows.append((q, d))
    return torch.cat([q for q, _ in rows]), torch.cat([d for _, d in rows])


def block_by_the_page(block, q, keys, query_position, side, first):
    steps = torch.arange(1, side + 1) / (side + 1e-6) * 2 * math.pi
    angles = steps[:, None] * 10000.0 ** (-2 * torch.arange(64) / 128)
    features = torch.stack([angles.sin(), angles.cos()], -1).reshape(side, 128)
    y, x = features[:, None].expand(-1, side, -1), features[None].expand(side, -1, -1)
    key_position = torch.cat([y, x], -1).reshape(side * side, 256)
    if first:
        q = attended(block.self_attn, q, q, q, 256)
    else:
        q = q + attended(block.self_attn, q + query_position, q + query_position, q, 256)
    q = normed(block.norm1, q)
    to_image = block.cross_attn_token_to_image
    q = normed(block.norm2, q + attended(to_image, q + query_position, keys + key_position, keys, 128))
    one, two = block.mlp.layers
    assert (one.in_features, one.out_features) == (256, 2048)
    q = normed(block.norm3, q + two(one(q).clamp(min=0)))
    to_token = block.cross_attn_image_to_token
    keys = keys + attended(to_token, keys + key_position, q + query_position, q, 128)
    return q, normed(block.norm4, keys)


def test_the_forward_pass_is_the_pages():
    predictor, levels, nothing = a_predictor(), some_levels(2), nothing_marked()
    with torch.no_grad():
        q, d = by_the_page(predictor, levels, nothing)
        prompts = predictor(levels, nothing)
        mlp = predictor.box_head.mlp
        x, y, w, h = mlp[2](mlp[0](torch.cat([q[:, 0], q[:, 1]], -1)).clamp(min=0)).sigmoid().T
        first, second = predictor.mask_head.layers[0], predictor.mask_head.layers[3]
        mask = second(first(d).clamp(min=0)).clamp(min=0)
        mask = predictor.mask_head.final_conv(mask)
    assert torch.allclose(prompts.boxes_xyxy, torch.stack([x, y, x + w, y + h], -1), atol=1e-5)
    assert torch.allclose(prompts.mask_logits, mask, atol=1e-4)
    assert torch.allclose(prompts.tokens, q[:, 2:], atol=1e-4)


def test_the_first_block_replaces_the_queries_and_knows_nothing_of_their_order():
    predictor, levels, nothing = a_predictor(), some_levels(1), nothing_marked()
    seen = []
    predictor.layers[0].self_attn.register_forward_hook(
        lambda _m, _args, named, _out: seen.append(named), with_kwargs=True
    )
    before = predictor(levels, nothing)
    assert all(torch.equal(seen[0][name], predictor.queries) for name in "qkv")
    # Whatever they are, nothing is left of them once the block's self-attention says nothing.
    with torch.no_grad():
        predictor.layers[0].self_attn.out_proj.weight.zero_()
        mute = predictor(levels, nothing)
        predictor.queries.mul_(3).add_(1)
        assert same(predictor(levels, nothing), mute, atol=0)
    assert not same(before, mute)


def test_later_blocks_add_to_the_queries_and_know_their_order():
    predictor, levels, nothing = a_predictor(), some_levels(1), nothing_marked()
    for block in predictor.layers[1:]:
        seen = []
        handle = block.self_attn.register_forward_hook(
            lambda _m, _args, named, _out, seen=seen: seen.append(named), with_kwargs=True
        )
        predictor(levels, nothing)
        handle.remove()
        difference = seen[0]["q"] - seen[0]["v"]
        assert torch.allclose(difference, token_positions(10, 256).expand_as(difference), atol=1e-5)
        assert torch.equal(seen[0]["q"], seen[0]["k"])
        assert not block.skip_first_layer_pe


# --- positions


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (16, 16), (5, 9)])
@pytest.mark.parametrize("width", [128, 256])
def test_places_are_encoded_as_sam2_does(width, rows, columns):
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    theirs = PositionEmbeddingSine(width)(torch.zeros(1, width, rows, columns))
    assert torch.allclose(grid_positions(width, rows, columns), theirs, atol=1e-6)


@pytest.mark.parametrize("width", [128, 256])
def test_tokens_are_encoded_by_their_number(width):
    table = token_positions(10, width)[0]
    for t in range(10):
        for j in range(width // 2):
            angle = t * 10000 ** (-2 * j / width)
            assert table[t, 2 * j] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[t, 2 * j + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    assert inverse_frequencies(width).shape == (width // 2,)


def test_positions_first_needed_without_gradients_do_not_disturb_training():
    grid_positions.cache_clear()
    token_positions.cache_clear()
    predictor, levels = a_predictor(), some_levels(1)
    with torch.inference_mode():
        predictor(levels, nothing_marked())
    predictor(levels, nothing_marked()).mask_logits.sum().backward()
    assert predictor.queries.grad is not None


# --- heads


def test_a_box_may_reach_beyond_the_image():
    head = BoxHead(256)
    with torch.no_grad():
        head.mlp[2].weight.zero_()
        head.mlp[2].bias.copy_(torch.tensor([20.0, 0.0, 20.0, -20.0]))
    boxes = head(torch.randn(3, 2, 256))
    assert torch.allclose(boxes, torch.tensor([1.0, 0.5, 2.0, 0.5]).expand(3, 4))


def test_the_mask_head_drops_whole_maps_while_it_is_trained():
    torch.manual_seed(0)
    head, dense = MaskHead(32), torch.randn(2, 32, 8, 8)
    assert not torch.equal(head.train()(dense), head(dense))
    assert torch.equal(head.eval()(dense), head(dense))
    assert [layer.p for layer in head.layers if isinstance(layer, torch.nn.Dropout2d)] == [0.1, 0.1]


@pytest.mark.parametrize("off", HEADS)
def test_heads_are_switched_off_one_by_one(off):
    whole, levels, nothing = a_predictor(), some_levels(1), nothing_marked()
    partly = a_predictor(heads=tuple(name for name in HEADS if name != off))
    assert partly.settings.heads == tuple(name for name in HEADS if name != off)
    partly.load_state_dict(whole.state_dict())
    part = {"box": "boxes_xyxy", "mask": "mask_logits", "embedding": "tokens"}[off]
    assert same(partly(levels, nothing), replace(whole(levels, nothing), **{part: None}), atol=0)


def test_the_linear_predictor_looks_at_the_coarsest_features_only():
    predictor, levels, nothing = a_predictor(kind="linear"), some_levels(2), nothing_marked()
    assert len(predictor.layers) == 1
    prompts = predictor(levels, nothing)
    assert prompts.mask_logits.shape == (4, 1, SIDE // 4, SIDE // 4)
    blind = type(levels)(levels.coarse, torch.zeros_like(levels.middle), torch.zeros_like(levels.fine))
    assert same(predictor(blind, nothing), prompts, atol=0)
    assert not same(predictor(some_levels(2, seed=5), nothing), prompts)


# --- images and classes


def test_images_and_classes_come_out_in_turn_as_if_each_were_alone():
    predictor, levels, nothing = a_predictor(classes=3), some_levels(2), nothing_marked()
    together = predictor(levels, nothing)
    for image in range(2):
        alone = predictor(one_of(levels, image), nothing)
        for number in range(3):
            single = predictor(one_of(levels, image), nothing, predictor.queries[None, number : number + 1])
            row = 3 * image + number
            part = PredictedPrompts(*(value[row : row + 1] for value in vars(together).values()))
            assert same(single, part)
            assert same(PredictedPrompts(*(v[number : number + 1] for v in vars(alone).values())), part)


def test_every_image_may_be_asked_for_classes_of_its_own():
    predictor, levels, nothing = a_predictor(classes=5), some_levels(2), nothing_marked()
    wanted = torch.tensor([[4, 0], [2, 2]])
    mixed, every = predictor(levels, nothing, predictor.queries[wanted]), predictor(levels, nothing)
    rows = torch.tensor([4, 0, 5 + 2, 5 + 2])
    assert same(mixed, PredictedPrompts(*(value[rows] for value in vars(every).values())))


def test_features_of_a_real_encoder_are_enough():
    model = tiny_model()
    with torch.no_grad():
        maps = model.module.forward_image(torch.randn(1, 3, 64, 64))["backbone_fpn"]
    predictor = PromptPredictor(PredictorSettings.for_module(model.module, 1))
    prompts = predictor(
        type(some_levels(1))(maps[2], maps[1], maps[0]), model.module.sam_prompt_encoder.no_mask_embed.weight
    )
    assert prompts.mask_logits.shape == (1, 1, 16, 16)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"classes": 0}, "no-class"),
        ({"classes": 1, "tokens": 2}, "bad-token-count"),
        ({"classes": 1, "heads": ()}, "no-head"),
        ({"classes": 1, "kind": "round"}, "unknown-predictor"),
        ({"classes": 1, "width": 250}, "bad-width"),
        ({"classes": 1, "heads": ("box", "boxes")}, "unknown-head"),
    ],
)
def test_settings_that_make_no_predictor_are_refused(changes, code):
    with raises(code, TrainingError):
        PredictorSettings(**changes)


def test_unknown_heads_are_named():
    module = tiny_model().module
    with raises("unknown-head", TrainingError, name="boxes"):
        PredictorSettings.for_module(module, 1, ["boxes"])


def test_a_model_without_fine_features_is_refused():
    module = tiny_model().module
    module.use_high_res_features_in_sam = False
    with raises("no-high-resolution-features", TrainingError):
        PredictorSettings.for_module(module, 1)


def test_settings_are_the_same_after_json():
    import json

    settings = PredictorSettings(3, heads=("mask", "box"))
    told = json.loads(json.dumps(settings.to_dict()))
    assert told == settings.to_dict()
    assert PredictorSettings(**told) == settings
