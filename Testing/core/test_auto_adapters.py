"""Training changes what it says it does and nothing else; additions start as if they were not there."""

import math
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from medsam2_core.auto.adapters import (
    BOTTLENECK,
    RANK,
    AttachedAdapters,
    EncoderAdapter,
    LowRank,
    adapted_decoder,
    encoder_adapters,
    load_parts,
    trainable_parts,
)
from medsam2_core.auto.fewshot.fit import Fit, FitSettings
from medsam2_core.auto.fewshot.objective import PromptMix
from medsam2_core.auto.model import AutoModel
from support.auto_model import a_full_bank, an_auto_model, changes, labelled_discs, some_levels, stock_model
from support.tiny_model import tiny_model

PARTS = (
    *("mask_tokens", "obj_score_token", "output_upscaling", "output_hypernetworks_mlps"),
    "pred_obj_score_head",
)


@pytest.fixture(scope="module")
def stock():
    return stock_model()


@pytest.fixture(scope="module")
def thin():
    return tiny_model()


# --- low-rank updates


def test_a_low_rank_update_is_added_to_what_is_frozen():
    torch.manual_seed(0)
    proj = torch.nn.Linear(12, 6)
    layer, x = LowRank(proj, 3), torch.randn(5, 12)
    assert torch.equal(layer(x), proj(x)), "it starts as the layer was"
    torch.nn.init.normal_(layer.w_b.weight)
    update = x @ layer.w_a.weight.T @ layer.w_b.weight.T
    assert torch.allclose(layer(x), proj(x) + update, atol=1e-6)
    assert torch.allclose(layer(x), x @ (proj.weight + layer.w_b.weight @ layer.w_a.weight).T + proj.bias)
    # Kaiming's uniform distribution for so many inputs.
    assert float(layer.w_a.weight.detach().abs().max()) <= 1 / math.sqrt(12)


def test_an_adapted_decoder_has_the_published_number_of_trainable_parameters(stock):
    decoder = adapted_decoder(stock.module)
    assert sum(p.numel() for p in decoder.parameters() if p.requires_grad) == 813_409
    assert sum(value.numel() for value in trainable_parts(decoder).values()) == 813_409


def test_updates_lie_on_the_queries_and_values_of_all_seven_attentions(stock):
    decoder = adapted_decoder(stock.module)
    updated = [name for name, part in decoder.named_modules() if isinstance(part, LowRank)]
    assert len(updated) == 14
    assert {name.rpartition(".")[2] for name in updated} == {"q_proj", "v_proj"}
    attentions = {name.rpartition(".")[0] for name in updated}
    assert len(attentions) == 7 and "transformer.final_attn_token_to_image" in attentions
    assert all(part.w_a.out_features == RANK == 8 for _, part in decoder.named_modules() if _ in updated)
    rest = {name.split(".", maxsplit=1)[0] for name in trainable_parts(decoder)} - {"transformer"}
    assert rest == set(PARTS)


@torch.no_grad()
def test_an_adapted_decoder_starts_as_the_models_own_which_stays_as_it_is(stock):
    with changes(stock.module) as changed:
        frozen, adapted = an_auto_model(stock), an_auto_model(stock, decoder="lora")
        adapted.network.predictor.load_state_dict(frozen.network.predictor.state_dict())
        levels = some_levels(2)
        assert torch.equal(frozen.network(levels)[1].logits, adapted.network(levels)[1].logits)
        for value in trainable_parts(adapted.network.decoder).values():
            value.add_(0.1)
        assert not torch.equal(frozen.network(levels)[1].logits, adapted.network(levels)[1].logits)
    assert not changed
    assert frozen.network.decoder is stock.module.sam_mask_decoder


def test_parts_are_put_back_only_where_all_of_them_fit(stock):
    one, other = adapted_decoder(stock.module), adapted_decoder(stock.module)
    parts = {name: torch.randn_like(value) for name, value in trainable_parts(one).items()}
    assert load_parts(other, parts) == []
    assert all(torch.equal(value, parts[name]) for name, value in trainable_parts(other).items())
    lost = parts.popitem()[0]
    parts |= {"more": torch.zeros(1), "mask_tokens.weight": torch.zeros(3, 3)}
    problems = load_parts(other, parts)
    assert problems == [
        f"{lost} is missing",
        "more is not known",
        "mask_tokens.weight is (3, 3), not (4, 256)",
    ]


# --- adapters of the encoder


def test_an_adapter_is_the_pages_formula_on_tokens_and_on_maps():
    torch.manual_seed(0)
    for last, x in ((True, torch.randn(2, 5, 7, 12)), (False, torch.randn(2, 12, 5, 7))):
        adapter = EncoderAdapter(12, channels_last=last)
        assert torch.equal(adapter(x), x), "it starts as if it were not there"
        one, two = adapter.adapters[0], adapter.adapters[2]
        assert (one.out_features, two.in_features) == (BOTTLENECK, 64) == (64, 64)
        torch.nn.init.normal_(two.weight)
        tokens = x if last else x.permute(0, 2, 3, 1)
        gelu = torch.nn.functional.gelu
        expected = tokens + gelu(gelu(tokens @ one.weight.T + one.bias) @ two.weight.T + two.bias)
        assert torch.allclose(adapter(x), expected if last else expected.permute(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("which", ["stock", "thin"])
def test_every_block_of_a_trunk_has_an_adapter_of_its_width(request, which):
    model = request.getfixturevalue(which)
    adapters = encoder_adapters(model.module)
    trunk = model.module.image_encoder.trunk
    blocks = list(trunk.blocks) if which == "stock" else [b for s in trunk.stages for b in s]
    widths = [adapter.adapters[0].in_features for adapter in adapters]
    if which == "stock":
        assert widths == [block.dim_out for block in blocks] and len(widths) == 12
    else:
        assert widths == [8, 16, 24, 32]


@torch.no_grad()
@pytest.mark.parametrize("which", ["stock", "thin"])
def test_adapters_count_only_while_they_are_attached(request, which):
    model = request.getfixturevalue(which)
    module, adapters = model.module, encoder_adapters(model.module)
    image = torch.randn(1, 3, 64, 64)

    def features() -> Sequence[torch.Tensor]:
        return module.forward_image(image)["backbone_fpn"]

    before = features()
    with AttachedAdapters(module, adapters):
        assert all(torch.equal(a, b) for a, b in zip(features(), before, strict=True))
        for adapter in adapters:
            torch.nn.init.normal_(adapter.adapters[2].weight, std=0.1)
        assert not any(torch.equal(a, b) for a, b in zip(features(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features(), before, strict=True))
    with pytest.raises(KeyError), AttachedAdapters(module, adapters):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(features(), before, strict=True))


@torch.no_grad()
def test_a_model_with_adapters_sees_through_them_and_others_do_not(thin):
    plain, adapted = an_auto_model(thin), an_auto_model(thin, encoder="adapters")
    image = torch.randn(1, 3, 64, 64)
    for adapter in adapted.adapters:
        torch.nn.init.normal_(adapter.adapters[2].weight, std=0.1)
    assert not torch.equal(plain.levels(image).coarse, adapted.levels(image).coarse)
    assert torch.equal(plain.levels(image).coarse, an_auto_model(thin).levels(image).coarse)


@torch.no_grad()
@pytest.mark.parametrize("which", ["stock", "thin"])
def test_a_texture_adapter_adds_to_every_level_and_at_first_nothing(request, which):
    model = request.getfixturevalue(which)
    plain, textured = an_auto_model(model), an_auto_model(model, encoder="texture")
    image = torch.randn(2, 3, 64, 64)
    assert same_levels(plain.levels(image), textured.levels(image)) == [True] * 3
    for layer in textured.texture.out:
        torch.nn.init.normal_(layer.weight, std=0.1)
    before, after = plain.levels(image), textured.levels(image)
    assert same_levels(before, after) == [False] * 3
    assert same_levels(before, textured.encode(image)) == [True] * 3, "the encoder itself is as it was"
    alone = textured.levels(image[1:])
    assert torch.allclose(alone.fine[0], after.fine[1], atol=1e-4), "images are looked at one by one"
    louder, plainly = textured.texture(3 * image), textured.texture(image)
    for name in ("coarse", "middle", "fine", "pixels"):
        one, other = getattr(louder, name), getattr(plainly, name)
        assert torch.allclose(one, other, atol=0.02), "an image's own contrast counts for nothing"


def same_levels(one, other) -> list[bool]:
    return [torch.equal(getattr(one, name), getattr(other, name)) for name in ("coarse", "middle", "fine")]


# --- training


def trained(auto: AutoModel, folder, steps=6, mix=PromptMix()) -> Fit:  # noqa: B008
    images = labelled_discs(3)
    bank = a_full_bank(folder, auto, images)
    settings = FitSettings(batch=2, learning_rate=1e-3, warm_up=1, mix=mix)
    fit = Fit(auto, bank, images, [0, 1, 2], [], settings, seed=1)
    assert fit.run(steps)
    assert fit.progress.step == steps and fit.progress.skipped == 0
    return fit


@pytest.mark.parametrize("which", ["stock", "thin"])
def test_training_the_predictor_changes_not_a_bit_of_sam2(request, tmp_path, which):
    model = request.getfixturevalue(which)
    auto = an_auto_model(model)
    with changes(model.module) as of_sam2, changes(auto.network.predictor) as of_predictor:
        trained(auto, tmp_path)
    assert of_sam2 == []
    assert set(of_predictor) == set(auto.network.predictor.state_dict())
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize("which", ["stock", "thin"])
def test_training_low_rank_updates_changes_the_listed_parts_only(request, tmp_path, which):
    model = request.getfixturevalue(which)
    auto = an_auto_model(model, decoder="lora")
    decoder = auto.network.decoder
    with changes(model.module) as of_sam2, changes(decoder) as of_decoder:
        trained(auto, tmp_path)
    assert of_sam2 == []
    assert set(of_decoder) <= set(trainable_parts(decoder))
    touched = {name.split(".", maxsplit=1)[0] for name in of_decoder}
    assert touched == {"transformer", *PARTS}
    assert {name.rsplit(".", 2)[1] for name in of_decoder if name.startswith("transformer")} == {"w_a", "w_b"}


def test_training_with_a_texture_adapter_changes_that_and_the_predictor(thin, tmp_path):
    auto = an_auto_model(thin, encoder="adapters+texture")
    watched = (thin.module, auto.adapters, auto.texture, auto.network.predictor)
    with ExitStack() as stack:
        of_sam2, of_adapters, of_texture, of_predictor = (stack.enter_context(changes(x)) for x in watched)
        trained(auto, tmp_path)
    assert of_sam2 == of_adapters == []
    assert set(of_texture) == set(auto.texture.state_dict())
    assert set(of_predictor) == set(auto.network.predictor.state_dict())


@pytest.mark.parametrize("only", ["box", "mask", "embedding"])
def test_each_head_alone_can_be_trained(thin, tmp_path, only):
    auto = an_auto_model(thin, heads=(only,))
    with changes(thin.module) as of_sam2, changes(auto.network.predictor) as of_predictor:
        trained(auto, tmp_path)
    assert of_sam2 == []
    assert any(name.startswith("layers.0") for name in of_predictor) and "queries" in of_predictor
    for head, prefix in (("box", "box_head."), ("mask", "mask_head.")):
        assert any(name.startswith(prefix) for name in of_predictor) == (head == only)


def test_the_linear_predictor_can_be_trained(thin, tmp_path):
    auto = an_auto_model(thin, kind="linear")
    with changes(auto.network.predictor) as changed:
        trained(auto, tmp_path)
    assert "queries" in changed and "mask_head.final_conv.weight" in changed


@pytest.mark.parametrize("share", ["with_box", "only_box", "box_and_mask"])
def test_batches_with_a_users_prompts_train_too(thin, tmp_path, share):
    mix = PromptMix(**{"with_box": 0.0, "only_box": 0.0, "box_and_mask": 0.0, share: 1.0})
    auto = an_auto_model(thin)
    with changes(auto.network.predictor) as changed:
        trained(auto, tmp_path, mix=mix)
    assert "queries" in changed, "its own losses go on"


def test_training_finds_two_discs(thin, tmp_path):
    """On random features, hundreds of steps: the loss falls by much."""
    auto = an_auto_model(thin)
    images = labelled_discs(2)
    bank = a_full_bank(tmp_path, auto, images, variants=2)
    settings = FitSettings(batch=2, learning_rate=2e-3, warm_up=5, averaging=0.5)
    fit = Fit(auto, bank, images, [0, 1], [0, 1], settings, seed=1)
    fit.run(40)
    totals = [sum(v for k, v in line.items() if k not in ("step", "dice")) for line in fit.progress.history]
    assert totals[-1] < 0.7 * totals[0]
