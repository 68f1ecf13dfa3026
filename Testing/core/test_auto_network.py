"""Predicted prompts reach prompt encoder and mask decoder as SAM 2's own do; classes become labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from medsam2_core.auto.network import AutoNetwork, UserPrompts, merged_labels
from medsam2_core.auto.predictor import PredictedPrompts
from medsam2_core.engine.recipe import INSIDE, STOCK, SURE, draw_box, draw_cones, draw_points, drawn_prompt
from support.auto_model import an_auto_model, one_of, some_levels, stock_model
from support.tiny_model import tiny_model


@pytest.fixture(scope="module")
def stock():
    return stock_model()


@pytest.fixture(scope="module")
def auto(stock):
    return an_auto_model(stock)


@pytest.fixture(scope="module")
def drawing():
    """On a model that wants its prompts drawn."""
    return an_auto_model(tiny_model())


class Heard:
    """What the mask decoder is told, and that it goes on as ever."""

    def __init__(self, network: AutoNetwork, monkeypatch) -> None:
        ask = network.decoder.predict_masks

        def predict_masks(**told):
            self.sparse, self.dense = told["sparse_prompt_embeddings"], told["dense_prompt_embeddings"]
            self.told, self.answer = told, ask(**told)
            return self.answer

        monkeypatch.setattr(network.decoder, "predict_masks", predict_masks)


@torch.no_grad()
def test_the_sparse_tokens_are_the_box_then_the_learned_ones_without_padding(auto, monkeypatch):
    heard, levels = Heard(auto.network, monkeypatch), some_levels(2)
    prompts, _ = auto.network(levels)
    assert heard.sparse.shape == (4, 2 + 8, 256)
    encoder = auto.network.prompt_encoder
    pixels = prompts.boxes_xyxy * 64
    assert torch.equal(heard.sparse[:, :2], encoder._embed_boxes(pixels))
    by_sam2, _ = encoder(points=None, boxes=pixels, masks=None)
    assert torch.equal(heard.sparse[:, :2], by_sam2)
    assert torch.equal(heard.sparse[:, 2:], prompts.tokens)


@torch.no_grad()
def test_a_boxs_corners_are_half_a_pixel_further_also_beyond_the_image(auto, monkeypatch):
    """By hand: times S, half a pixel, random Fourier features, the embedding of each corner."""
    heard = Heard(auto.network, monkeypatch)
    boxes = torch.tensor([[0.25, 0.5, 1.75, 1.25]])
    auto.network.decode(some_levels(1), PredictedPrompts(boxes_xyxy=boxes))
    encoder = auto.network.prompt_encoder
    gauss = encoder.pe_layer.positional_encoding_gaussian_matrix
    for corner, embedding in ((0, 2), (1, 3)):
        place = (boxes[0].view(2, 2)[corner] * 64 + 0.5) / 64
        angles = 2 * np.pi * ((2 * place - 1) @ gauss)
        expected = torch.cat([angles.sin(), angles.cos()]) + encoder.point_embeddings[embedding].weight[0]
        assert torch.allclose(heard.sparse[0, corner], expected, atol=1e-4)
    assert heard.sparse.shape[1] == 2


@torch.no_grad()
def test_the_predicted_mask_is_embedded_as_a_mask_prompt(auto, monkeypatch):
    heard = Heard(auto.network, monkeypatch)
    prompts, _ = auto.network(some_levels(1))
    _, by_sam2 = auto.network.prompt_encoder(points=None, boxes=None, masks=prompts.mask_logits)
    assert torch.equal(heard.dense, by_sam2)


@torch.no_grad()
def test_without_a_predicted_mask_the_dense_prompt_is_no_mask(auto, monkeypatch):
    heard, levels = Heard(auto.network, monkeypatch), some_levels(1)
    prompts = replace(auto.network.predict(levels), mask_logits=None)
    auto.network.decode(levels.repeated(2), prompts)
    nothing = auto.network.prompt_encoder.no_mask_embed.weight[0]
    assert torch.equal(heard.dense, nothing[None, :, None, None].expand(2, -1, 4, 4))


@torch.no_grad()
def test_prompts_of_a_user_come_after_those_predicted(auto, monkeypatch):
    heard, levels = Heard(auto.network, monkeypatch), some_levels(1)
    predicted = auto.network.predict(levels)
    before = auto.network.decode(levels.repeated(2), predicted)
    points = torch.tensor([[[0.5, 0.25], [0.125, 1.0]]]).expand(2, -1, -1)
    labels = torch.tensor([[1, 0], [1, 0]], dtype=torch.int32)
    box = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).expand(2, -1)
    mask = torch.randn(2, 1, 16, 16)
    said = UserPrompts(box, points, labels, mask)
    after = auto.network.decode(levels.repeated(2), predicted, said)
    encoder = auto.network.prompt_encoder
    assert heard.sparse.shape == (2, 10 + 2 + 2, 256)
    assert torch.equal(heard.sparse[:, 10:12], encoder._embed_boxes(box * 64))
    # A click at half the side is a click at pixel S/2 - 1/2, to which sam2 adds the half.
    clicked, _ = encoder(points=(points * 64 - 0.5, labels), boxes=torch.zeros(2, 4), masks=None)
    assert torch.allclose(heard.sparse[:, 12:], clicked[:, :2], atol=1e-5)
    assert torch.equal(heard.dense, encoder._embed_masks(mask))
    assert not torch.equal(before.logits, after.logits)


@torch.no_grad()
def test_the_answer_is_the_single_mask_also_when_it_is_unstable(auto, monkeypatch):
    """Stock falls back to the best of three masks then; the predictor was not trained with that."""
    heard, levels = Heard(auto.network, monkeypatch), some_levels(1)
    assert auto.network.decoder.dynamic_multimask_via_stability
    prompts, answer = auto.network(levels)
    masks, iou, tokens, score = heard.answer
    assert masks.shape == (2, 4, 16, 16)
    assert torch.equal(answer.logits, masks[:, :1])
    assert torch.equal(answer.iou, iou[:, :1])
    assert torch.equal(answer.score, score) and torch.equal(answer.pointer, tokens[:, 0])
    monkeypatch.undo()
    told = {name: value for name, value in heard.told.items() if name != "repeat_image"}
    decoder = auto.network.decoder
    decoder.dynamic_multimask_via_stability = False
    stock = decoder(**told, repeat_image=False, multimask_output=False)
    decoder.dynamic_multimask_via_stability = True
    assert torch.equal(stock[0], answer.logits)
    assert prompts.tokens is not None


@torch.no_grad()
@pytest.mark.parametrize(
    "off",
    [("boxes_xyxy",), ("mask_logits",), ("tokens",), ("boxes_xyxy", "tokens"), ("boxes_xyxy", "mask_logits")],
)
def test_the_decoder_answers_whichever_heads_are_on(auto, monkeypatch, off):
    heard, levels = Heard(auto.network, monkeypatch), some_levels(1)
    prompts = replace(auto.network.predict(levels), **dict.fromkeys(off))
    answer = auto.network.decode(levels.repeated(2), prompts)
    assert heard.sparse.shape[1] == 2 * ("boxes_xyxy" not in off) + 8 * ("tokens" not in off)
    assert answer.logits.shape == (2, 1, 16, 16) and torch.isfinite(answer.logits).all()


@torch.no_grad()
def test_images_and_classes_together_are_what_they_are_alone(stock):
    auto = an_auto_model(stock, ("a", "b", "c"))
    levels = some_levels(2)
    prompts, together = auto.network(levels)
    for image in range(2):
        _, alone = auto.network(one_of(levels, image))
        rows = slice(3 * image, 3 * image + 3)
        for name in ("logits", "score", "iou", "pointer"):
            assert torch.allclose(getattr(together, name)[rows], getattr(alone, name), atol=1e-4), name
        for number in range(3):
            row = 3 * image + number
            one = PredictedPrompts(*(value[row : row + 1] for value in vars(prompts).values()))
            single = auto.network.decode(one_of(levels, image), one)
            assert torch.allclose(single.logits, together.logits[row : row + 1], atol=1e-4)
    assert not torch.allclose(together.logits[0], together.logits[1], atol=1e-2), "classes differ"


# --- models that want their prompts drawn


@torch.no_grad()
def test_a_predicted_mask_is_the_canvas_of_a_model_that_draws(drawing, monkeypatch):
    heard, levels = Heard(drawing.network, monkeypatch), some_levels(1, width=128)
    with torch.no_grad():
        drawing.network.predictor.mask_head.final_conv.bias.fill_(30.0)
    prompts, _ = drawing.network(levels)
    canvas = prompts.mask_logits.clamp(-SURE, SURE)
    assert float(canvas.max()) == SURE
    assert torch.equal(heard.dense, drawing.network.prompt_encoder._embed_masks(canvas))
    drawing.network.predictor.mask_head.final_conv.bias.zero_()


@torch.no_grad()
def test_without_a_predicted_mask_the_predicted_box_is_drawn(drawing, monkeypatch):
    heard, levels = Heard(drawing.network, monkeypatch), some_levels(1, width=128)
    prompts = replace(drawing.network.predict(levels), mask_logits=None)
    drawing.network.decode(levels.repeated(2), prompts)
    ellipse = draw_box(prompts.boxes_xyxy, 16)
    assert float(ellipse.max()) == pytest.approx(INSIDE, abs=1.5)
    assert torch.equal(heard.dense, drawing.network.prompt_encoder._embed_masks(ellipse))


@torch.no_grad()
def test_clicks_are_drawn_upon_what_was_predicted(drawing, monkeypatch):
    heard, levels = Heard(drawing.network, monkeypatch), some_levels(1, width=128)
    prompts = drawing.network.predict(levels)
    points, labels = torch.full((2, 1, 2), 0.5), torch.tensor([[1], [0]], dtype=torch.int32)
    drawing.network.decode(levels.repeated(2), prompts, UserPrompts(points_xy=points, labels=labels))
    canvas = drawn_prompt(drawing.network.recipe, 16, None, points, labels, prompts.mask_logits)
    assert float(canvas[0].max()) == SURE and float(canvas[1].min()) == -SURE
    assert torch.equal(heard.dense, drawing.network.prompt_encoder._embed_masks(canvas))


@torch.no_grad()
def test_clicks_alone_are_cones_and_nothing_at_all_is_no_mask(drawing, monkeypatch):
    heard, levels = Heard(drawing.network, monkeypatch), some_levels(2, width=128)
    points, labels = torch.full((2, 1, 2), 0.5), torch.tensor([[1], [1]], dtype=torch.int32)
    drawing.network.decode(levels, PredictedPrompts(), UserPrompts(points_xy=points, labels=labels))
    recipe = drawing.network.recipe
    canvas = draw_cones(points, labels, 16, recipe.cone_radius)
    canvas = draw_points(canvas, points, labels, recipe.disc_radius)
    assert torch.equal(heard.dense, drawing.network.prompt_encoder._embed_masks(canvas))
    drawing.network.decode(levels, PredictedPrompts())
    nothing = drawing.network.prompt_encoder.no_mask_embed.weight[0]
    assert torch.equal(heard.dense, nothing[None, :, None, None].expand(2, -1, 4, 4))
    assert heard.sparse.shape == (2, 0, 128)


def test_a_stock_recipe_draws_nothing(auto):
    assert auto.network.recipe == STOCK and not STOCK.draws_prompts


# --- from classes to labels


def by_hand(logits, score) -> np.ndarray:
    """The page's rule, pixel by pixel."""
    labels = np.zeros((len(logits), *logits.shape[2:]), int)
    for image, row, column in np.ndindex(*labels.shape):
        seen = [
            -1.0 if score[image, k] < 0 else logits[image, k, row, column] for k in range(logits.shape[1])
        ]
        if max(seen) > 0:
            labels[image, row, column] = 1 + int(np.argmax(seen))
    return labels


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_classes_are_merged_by_the_pages_rule(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 2, (3, classes, 6, 7)).astype(np.float32)
    logits[0, :, 0] = 0.0  # exactly undecided is background
    score = rng.normal(0, 1, (3, classes)).astype(np.float32)
    score[1] = -1.0
    score[2, 0] = 0.0  # exactly undecided is present
    labels = merged_labels(torch.from_numpy(logits), torch.from_numpy(score)).numpy()
    assert np.array_equal(labels, by_hand(logits, score))
    assert not labels[1].any() and not labels[0, 0].any()


def test_an_absent_class_leaves_its_pixels_to_others():
    logits = torch.tensor([[[[9.0, 9.0]], [[1.0, -3.0]]]])
    assert merged_labels(logits, torch.tensor([[1.0, 1.0]])).tolist() == [[[1, 1]]]
    assert merged_labels(logits, torch.tensor([[-0.1, 1.0]])).tolist() == [[[2, 0]]]
