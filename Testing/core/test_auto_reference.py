"""A reference checkpoint becomes an Auto model that answers the same, or is refused by name."""

import os
import random
from pathlib import Path

import pytest
import torch
from medsam2_core.auto.adapters import trainable_parts
from medsam2_core.auto.model import encode_levels, load_auto
from medsam2_core.auto.sam2rad_import import import_reference
from medsam2_core.engine.architecture import build_module
from medsam2_core.engine.catalogue import Catalogue
from medsam2_core.engine.model import load_model
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import CatalogueError, CheckpointError, ExportError
from support.auto_model import stock_model
from support.errors import raises
from support.model import stir
from support.reference_checkpoint import LEARNER, a_trained_model, lightning_file, reference_state
from test_engine_checkpoint import Bomb, damaged

SIDE = 64


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    """The smallest there is a configuration for."""
    torch.manual_seed(0)
    module = build_module("embedded", SIDE)
    stir(module, 5.0)
    return SegmentationModel.of(module, "small", PromptRecipe(**Catalogue.load().recipe_of("embedded")))


@pytest.fixture(scope="module")
def auto(model):
    return a_trained_model(model, 2, "lora", "adapters")


@pytest.fixture(scope="module")
def state(auto):
    return reference_state(auto)


def imported(folder: Path, state, config="embedded", **more):
    path = lightning_file(folder / "hip.ckpt", state)
    return import_reference(path, folder / "out.medsam2auto", config, image_size=SIDE, **more)


@pytest.fixture
def attempted(tmp_path, monkeypatch):
    """Imports a state dict as if it had been read from a file, which takes longer than all the rest."""

    def attempt(state, config="embedded", **more):
        monkeypatch.setattr("medsam2_core.auto.sam2rad_import.read_state_dict", lambda _: dict(state))
        try:
            return import_reference("hip.ckpt", tmp_path / "x.medsam2auto", config, image_size=SIDE, **more)
        except CheckpointError:
            assert not list(tmp_path.iterdir()), "nothing was written"
            raise

    return attempt


@torch.no_grad()
def answers(auto, image) -> tuple[torch.Tensor, ...]:
    prompts, answer = auto.network(auto.levels(image))
    return prompts.boxes_xyxy, prompts.mask_logits, prompts.tokens, answer.logits, answer.score


def same_answers(one, other) -> bool:
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return all(torch.equal(a, b) for a, b in zip(answers(one, image), answers(other, image), strict=True))


# --- what fits


@pytest.mark.parametrize(
    ("decoder", "encoder", "numbered"),
    [
        ("frozen", "frozen", False),
        ("frozen", "adapters", True),
        ("lora", "frozen", True),
        ("lora", "adapters", False),
    ],
)
def test_an_imported_model_answers_as_the_one_in_the_checkpoint(model, tmp_path, decoder, encoder, numbered):
    trained = a_trained_model(model, 2, decoder, encoder)
    found = imported(tmp_path, reference_state(trained, numbered=numbered))
    again = load_auto(found.path, device="cpu", precision="fp32")
    assert same_answers(trained, again)
    assert (found.card.decoder, found.card.encoder) == (decoder, encoder)


def test_a_model_of_sam2s_own_architecture_is_imported(tmp_path):
    trained = a_trained_model(stock_model("sam2_hiera_t"), 3, "lora", "adapters")
    found = imported(tmp_path, reference_state(trained), "sam2_hiera_t")
    again = load_auto(found.path, device="cpu", precision="fp32")
    assert same_answers(trained, again)
    assert found.card.can_track


def test_the_card_describes_it_and_the_sam2_lies_beside_it(auto, state, tmp_path):
    found = imported(tmp_path, state)
    card = found.card
    assert (card.name, card.class_names) == ("hip", ("hip 1", "hip 2"))
    assert (card.base, card.image_size, card.axis) == ("out.sam2.safetensors", SIDE, "picture")
    assert card.training["data_set"] == "hip" and card.is_for_pictures and card.can_track
    assert found.base_path == tmp_path / "out.sam2.safetensors"
    below = load_model(found.base_path, "cpu", "fp32", image_size=SIDE)
    assert below.weights_key == card.base_key
    ours, theirs = auto.model.module.state_dict(), below.module.state_dict()
    trained = {
        f"sam_mask_decoder.{name}": value for name, value in trainable_parts(auto.network.decoder).items()
    }
    for name, value in theirs.items():
        assert torch.equal(value, trained.get(name, ours[name])), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hip.ckpt", "out.medsam2auto", "out.sam2.safetensors",
    ]  # fmt: skip


def test_both_files_may_be_moved_together(state, tmp_path):
    found = imported(tmp_path, state)
    (tmp_path / "elsewhere").mkdir()
    for path in (found.path, found.base_path):
        path.rename(tmp_path / "elsewhere" / path.name)
    assert load_auto(tmp_path / "elsewhere" / "out.medsam2auto", device="cpu").card == found.card
    (tmp_path / "elsewhere" / "out.sam2.safetensors").unlink()
    with raises("base-not-found", CatalogueError, base="out.sam2.safetensors"):
        load_auto(tmp_path / "elsewhere" / "out.medsam2auto", device="cpu")


def test_names_are_given_or_made_of_the_data_sets(state, model, tmp_path):
    found = imported(tmp_path, state, class_names=["ilium", "femur"])
    assert (found.card.name, found.card.class_names) == ("hip", ("ilium", "femur"))
    assert [one.value for one in found.card.classes] == [1, 2]
    single = reference_state(a_trained_model(model, 1), dataset="wrist")
    found = imported(tmp_path, single, overwrite=True)
    assert found.card.class_names == ("wrist",)


def test_one_of_several_data_sets_is_chosen(state, tmp_path):
    state = state | {"learnable_prompts.3-D shoulder.v2": torch.randn(5, 10, 128)}
    with raises("data-set-ambiguous", CheckpointError, known=["hip", "3-D shoulder.v2"]):
        imported(tmp_path, state)
    with raises("unknown-data-set", CheckpointError, name="knee"):
        imported(tmp_path, state, dataset="knee")
    found = imported(tmp_path, state, dataset="3-D shoulder.v2")
    assert len(found.card.classes) == 5
    queries = load_auto(found.path, device="cpu").network.predictor.queries
    assert torch.equal(queries, state["learnable_prompts.3-D shoulder.v2"])


def test_a_state_dict_alone_and_half_precision_are_read_too(state, auto, tmp_path):
    halved = {name: value.half() for name, value in state.items()}
    torch.save(halved, tmp_path / "plain.pt")
    found = import_reference(tmp_path / "plain.pt", tmp_path / "x.medsam2auto", "embedded", image_size=SIDE)
    again = load_auto(found.path, device="cpu", precision="fp32")
    assert again.network.predictor.queries.dtype is torch.float32
    assert torch.equal(again.network.predictor.queries, auto.network.predictor.queries.half().float())


# --- the memory


def test_without_a_memory_the_model_is_for_images_only(auto, tmp_path):
    found = imported(tmp_path, reference_state(auto, memory=False))
    assert not found.card.can_track and found.card.training["tracks"] is False
    again = load_auto(found.path, device="cpu", precision="fp32")
    assert same_answers(auto, again)
    other = imported(tmp_path, reference_state(auto, memory=False), overwrite=True)
    assert other.card.base_key == found.card.base_key, "what was made up is made up alike"


def test_volumes_are_then_segmented_slice_by_slice(auto, tmp_path):
    from medsam2_core.auto.slices import AutoSegmenter
    from medsam2_core.auto.volumes import AutoVolume, VolumeOptions
    from medsam2_core.engine.encoder import SliceEncoder
    from medsam2_core.engine.sources import ArrayImages
    from medsam2_core.engine.tracker import Tracker
    from support.model import some_slices

    found = imported(tmp_path, reference_state(auto, memory=False))
    again = load_auto(found.path, device="cpu", precision="fp32")
    images = ArrayImages(some_slices(3, (40, 50)))
    tracker = Tracker(again.model, SliceEncoder(again.model, images))
    volume = AutoVolume(AutoSegmenter(again, images), tracker, VolumeOptions())
    first, second = again.card.class_names
    told = [(mask.object, mask.n) for mask in volume.run()]
    assert told == [(first, 0), (second, 0), (first, 1), (second, 1), (first, 2), (second, 2)]
    assert volume.total == volume.done == 3


def test_a_memory_in_parts_is_refused(state, attempted):
    cut = {key: value for key, value in state.items() if "memory_attention.norm" not in key}
    with raises("sam2rad-checkpoint-damaged", CheckpointError, tensor="memory_attention.norm.weight"):
        attempted(cut)


def test_what_only_masks_as_prompts_need_may_be_missing_alone(state, attempted):
    cut = {key: value for key, value in state.items() if not key.startswith("model.mask_downsample.")}
    found = attempted(cut)
    assert not found.card.can_track


def test_what_images_do_not_need_may_also_be_something_else(auto, attempted):
    state = reference_state(auto, memory=False)
    strange = {"model.memory_bank": torch.zeros(3), "no_such_thing": torch.zeros(1)}
    assert attempted(state | strange).card.class_names


def test_the_embedding_of_no_memory_is_needed_by_images_too(auto, attempted):
    state = reference_state(auto, memory=False)
    del state["model.no_mem_embed"]
    with raises("checkpoint-mismatch", CheckpointError, missing=["no_mem_embed"]):
        attempted(state)


# --- what is refused, by its name


def changed(state, name, change):
    """The state with one tensor changed by a function; None takes it out."""
    value = change(state[name].clone())
    return {key: tensor for key, tensor in (state | {name: value}).items() if tensor is not None}


NO_MASK = "model.prompt_sampler.prompt_encoder.no_mask_embed.weight"
AGAIN = f"{LEARNER}prompt_encoder.no_mask_embed.weight"
QUERY = "model.sam_mask_decoder.net.transformer.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "extra",
    [
        "model.surprise.weight",
        "criterion.weight",
        "model.image_encoder.extra.weight",
        "model.image_encoder.adapters.0.adapters.1.weight",
        "model.sam_mask_decoder.surprise",
        f"{LEARNER}surprise",
        f"{LEARNER}layers.3.norm1.weight",
        f"{LEARNER}layers.3.mlp.0.weight",
        f"{LEARNER}layers.0.mlp.4.weight",
        f"{LEARNER}channel_adapters.0.weight",
        f"{LEARNER}box_regression_head.mlp.layers.7.bias",
        f"{LEARNER}mask_classifier.layers.9.weight",
        f"{LEARNER}mask_classifier.surprise",
        "learnable_prompts.",
    ],
)
def test_a_tensor_no_reference_checkpoint_has_is_named(state, attempted, extra):
    with raises("unsupported-sam2rad-checkpoint", CheckpointError, tensor=extra):
        attempted(state | {extra: torch.zeros(3)})


ATTENTION = "sam_mask_decoder.transformer.layers.0.self_attn."


@pytest.mark.parametrize(
    ("extra", "unexpected"),
    [
        ("model.image_encoder.net.surprise", "image_encoder.surprise"),
        ("model.sam_mask_decoder.net.surprise", "sam_mask_decoder.surprise"),
        (f"{LEARNER}layers.0.surprise", "layers.0.surprise"),
        (f"{QUERY}.w_c.weight", f"{ATTENTION}q_proj.w_c.weight"),
        (f"{QUERY[:-6]}k_proj.w_a.weight", f"{ATTENTION}k_proj.w_a.weight"),
    ],
)
def test_a_tensor_too_many_is_named(state, attempted, extra, unexpected):
    with raises("checkpoint-mismatch", CheckpointError, unexpected=[unexpected]):
        attempted(state | {extra: torch.zeros(3)})


@pytest.mark.parametrize("extra", [f"{QUERY}.weight", "memory_attention.norm.weight"])
def test_two_tensors_for_one_place_are_refused(state, attempted, extra):
    with raises("sam2rad-checkpoint-damaged", CheckpointError):
        attempted(state | {extra: torch.zeros(3)})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("model.image_encoder.net.neck.convs.0.conv.weight", "image_encoder.neck.convs.0.conv.weight"),
        (f"{LEARNER}layers.1.norm4.bias", "layers.1.norm4.bias"),
        (f"{LEARNER}layers.2.mlp.layers.1.bias", "layers.2.mlp.layers.1.bias"),
        (f"{LEARNER}channel_adapters.2.weight", "channel_adapters.2.weight"),
        (f"{LEARNER}mask_classifier.final_conv.bias", "mask_head.final_conv.bias"),
        ("model.image_encoder.adapters.3.adapters.2.bias", "3.adapters.2.bias"),
    ],
)
def test_a_tensor_too_few_is_named(state, attempted, name, missing):
    with raises("checkpoint-mismatch", CheckpointError, missing=[missing]):
        attempted(changed(state, name, lambda _: None))


FREQUENCIES = f"{LEARNER}pos_encoding1d.inv_freq"
HIP = "learnable_prompts.hip"
NOT_ONE, DAMAGED = "not-a-sam2rad-checkpoint", "sam2rad-checkpoint-damaged"
UNSUPPORTED = "unsupported-sam2rad-checkpoint"


@pytest.mark.parametrize(
    ("name", "change", "code", "tensor"),
    [
        (FREQUENCIES, None, NOT_ONE, FREQUENCIES),
        (FREQUENCIES, lambda v: v * 1.01, UNSUPPORTED, FREQUENCIES),
        (FREQUENCIES, lambda v: v[:5], UNSUPPORTED, FREQUENCIES),
        (HIP, None, NOT_ONE, "learnable_prompts."),
        (HIP, lambda v: v[0], DAMAGED, HIP),
        (HIP, lambda v: v[:0], DAMAGED, HIP),
        (HIP, lambda v: v[:, :2], UNSUPPORTED, "learnable_prompts."),
        (f"{QUERY}.w_a.weight", None, DAMAGED, f"{QUERY}.w_a.weight"),
        (f"{QUERY}.w_a.weight", lambda v: v[:4], UNSUPPORTED, f"{QUERY}.w_a.weight"),
        (f"{QUERY}.w_a.weight", lambda v: v[:, :9], DAMAGED, f"{QUERY}.w_a.weight"),
        (f"{QUERY}.w_b.weight", lambda v: v.fill_(float("inf")), DAMAGED, f"{QUERY}.w_b.weight"),
        (f"{QUERY}.w_b.weight", lambda v: v.long(), DAMAGED, f"{QUERY}.w_b.weight"),
        (NO_MASK, lambda v: v + 1e-6, DAMAGED, NO_MASK),
        (NO_MASK, lambda v: v.half(), DAMAGED, NO_MASK),
        (NO_MASK, None, DAMAGED, NO_MASK),
        (AGAIN, None, DAMAGED, NO_MASK),
    ],
)
def test_a_tensor_that_is_not_as_it_should_be_is_named(state, attempted, name, change, code, tensor):
    with raises(code, CheckpointError, tensor=tensor):
        attempted(changed(state, name, change or (lambda _: None)))


def test_queries_of_no_number_are_refused(state, attempted):
    with raises("not-finite", CheckpointError, key="queries"):
        attempted(changed(state, HIP, lambda v: v * float("nan")))


def test_a_projection_without_its_update_is_named(state, attempted):
    lone = {key: value for key, value in state.items() if not key.startswith(f"{QUERY}.w_")}
    with raises("sam2rad-checkpoint-damaged", CheckpointError, tensor=QUERY):
        attempted(lone)
    lone = {key: value for key, value in state.items() if ".w_a." not in key and ".w_b." not in key}
    with raises("sam2rad-checkpoint-damaged", CheckpointError):
        attempted(lone)


def test_another_configuration_is_refused(auto, state, attempted):
    with raises("checkpoint-mismatch", CheckpointError, config="sam2_hiera_t"):
        attempted(reference_state(auto, memory=False), "sam2_hiera_t")
    lost = "memory_attention.layers.2.self_attn.q_proj.weight"
    with raises("sam2rad-checkpoint-damaged", CheckpointError, tensor=lost):
        attempted(state, "sam2_hiera_t")
    with raises("unknown-config", CatalogueError, name="sam3"):
        attempted(state, "sam3")


def test_other_checkpoints_are_refused(tmp_path, model):
    path = tmp_path / "sam2.pt"
    torch.save({"model": model.module.state_dict()}, path)
    with raises("unsupported-sam2rad-checkpoint", CheckpointError):
        import_reference(path, tmp_path / "x.medsam2auto", "embedded")
    with raises("unreadable-checkpoint", CheckpointError, path=str(tmp_path / "none.ckpt")):
        import_reference(tmp_path / "none.ckpt", tmp_path / "x.medsam2auto")


def test_class_names_that_do_not_fit_are_refused(state, attempted):
    for names in (["one"], ["one", "one"], ["one", " "], ["1", "2", "3"]):
        with raises("bad-class-names", CheckpointError, classes=2):
            attempted(state, class_names=names)


# --- nothing is run, nothing is half written


class Settings:
    """What a careless author leaves among the hyperparameters."""


def test_a_checkpoint_that_holds_more_than_tensors_is_refused_and_not_run(tmp_path):
    trace, state = tmp_path / "it-ran", {"learnable_prompts.hip": torch.zeros(1, 10, 128)}
    path = lightning_file(tmp_path / "x.ckpt", state, callbacks={"x": Bomb(trace)})
    with raises("unsafe-checkpoint", CheckpointError, refused=f"{os.mkdir.__module__}.mkdir"):
        import_reference(path, tmp_path / "x.medsam2auto", "embedded", image_size=SIDE)
    assert not trace.exists() and not (tmp_path / "x.medsam2auto").exists()
    path = lightning_file(tmp_path / "x.ckpt", state, hyper_parameters={"x": Settings()})
    with raises("unsafe-checkpoint", CheckpointError, refused=f"{Settings.__module__}.Settings"):
        import_reference(path, tmp_path / "x.medsam2auto", "embedded", image_size=SIDE)


def test_existing_files_stay_unless_asked_otherwise(state, tmp_path):
    (tmp_path / "out.sam2.safetensors").write_bytes(b"precious")
    with raises("output-exists", ExportError, path=str(tmp_path / "out.sam2.safetensors")):
        imported(tmp_path, state)
    assert (tmp_path / "out.sam2.safetensors").read_bytes() == b"precious"
    assert imported(tmp_path, state, overwrite=True).card.name == "hip"
    path = tmp_path / "hip.ckpt"
    for name, code in (("x.pt", "not-an-auto-model-name"), ("no/x.medsam2auto", "output-folder-missing")):
        with raises(code, ExportError):
            import_reference(path, tmp_path / name, "embedded", image_size=SIDE)


def test_a_disk_that_refuses_the_second_file_leaves_no_first(state, tmp_path, monkeypatch):
    from medsam2_core.auto import model as auto_model_module

    def refuses(*_args, **_named):
        raise ExportError("the disk is full", code="full")

    monkeypatch.setattr(auto_model_module, "write_file", refuses)
    with raises("full", ExportError):
        imported(tmp_path, state)
    assert os.listdir(tmp_path) == ["hip.ckpt"]


def test_damaged_checkpoints_are_refused(state, tmp_path, campaign, record_property):
    whole = lightning_file(tmp_path / "whole.ckpt", state).read_bytes()
    record_property("mutated inputs", 4 * campaign)
    for seed in range(4 * campaign):
        (tmp_path / "x.ckpt").write_bytes(damaged(whole, random.Random(seed)))
        try:
            import_reference(
                tmp_path / "x.ckpt", tmp_path / "x.medsam2auto", "embedded", image_size=SIDE, overwrite=True
            )
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_states_that_were_changed_are_refused(state, attempted, campaign, record_property):
    record_property("mutated inputs", 12 * campaign)
    for seed in range(12 * campaign):
        chance = random.Random(seed)
        forged, names = dict(state), sorted(state)
        for name in chance.sample(names, 2):
            match chance.randrange(4):
                case 0:
                    forged[name] = forged[name].flatten()[:1]
                case 1:
                    forged[name + chance.choice(["x", ".0", ".weight"])] = forged.pop(name)
                case 2:
                    forged[name] = torch.full_like(forged[name], float("nan"))
                case _:
                    del forged[name]
        with pytest.raises(CheckpointError):
            attempted(forged)


def test_the_levels_of_an_imported_model_have_no_mem_embed_added(state, auto, tmp_path):
    found = imported(tmp_path, state)
    again = load_auto(found.path, device="cpu", precision="fp32")
    image = torch.zeros(1, 3, SIDE, SIDE)
    with torch.no_grad():
        maps = again.model.module.forward_image(image)["backbone_fpn"]
        coarse = encode_levels(again.model, image).coarse - maps[2]
    assert torch.allclose(coarse[0, :, 0, 0], state["model.no_mem_embed"].flatten(), atol=1e-5)
    assert auto.model.module.directly_add_no_mem_embed
