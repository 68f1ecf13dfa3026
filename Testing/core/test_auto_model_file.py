"""An Auto model's file gives back what was saved, belongs to one SAM 2, and is never trusted."""

import json
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from medsam2_core.auto.model import AutoModel, check_base, load_auto, untrained_model
from medsam2_core.auto.model_file import AutoCard, AutoClass, _sealed, read_card, read_tensors
from medsam2_core.engine.model import load_model
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import CatalogueError, CheckpointError, ExportError, MedSAM2Error
from safetensors.torch import load_file, save, save_file
from support.auto_model import an_auto_model, classes_named, some_levels
from support.errors import raises
from support.project import run_python
from support.tiny_model import tiny_model
from test_engine_checkpoint import damaged


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def auto(model):
    return full(an_auto_model(model, decoder="lora", encoder="adapters+texture"))


@pytest.fixture(scope="module")
def path(auto, tmp_path_factory):
    path = tmp_path_factory.mktemp("auto") / "nerve.medsam2auto"
    auto.save(path)
    return path


@torch.no_grad()
def full(auto: AutoModel) -> AutoModel:
    """Without a tensor that is still as it began."""
    for part in (auto.network.predictor, auto.network.decoder, auto.adapters, auto.texture):
        if part is not None:
            for name, parameter in part.named_parameters():
                if parameter.requires_grad or ".w_" in name:
                    parameter.add_(0.01 * torch.randn_like(parameter))
    return auto


def parts_of(auto: AutoModel) -> dict[str, torch.Tensor]:
    """Every tensor that answers depend on, besides the base's."""
    parts = {f"p.{k}": v for k, v in auto.network.predictor.state_dict().items()}
    parts |= {f"d.{k}": v for k, v in auto.network.decoder.state_dict().items()}
    for part in (auto.adapters, auto.texture):
        parts |= (
            {f"{type(part).__name__}.{k}": v for k, v in part.state_dict().items()}
            if part is not None
            else {}
        )
    return parts


def rewritten(path: Path, folder: Path, card=None, **tensors) -> Path:
    """A copy with another card (a function of the old one), and tensors replaced, added or (None) left out.

    Whoever forges a file also forges its checksum.
    """
    told = json.loads(_metadata(path)["medsam2_auto"])
    told = card(told) if card else told
    text = told if isinstance(told, str) else json.dumps(told | {"sha256": "0" * 64})
    kept = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    target = folder / "changed.medsam2auto"
    target.write_bytes(_sealed(save(kept, metadata={"medsam2_auto": text})))
    return target


def _metadata(path: Path) -> dict:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length])["__metadata__"]


# --- round trip


@pytest.mark.parametrize("decoder", ["frozen", "lora"])
@pytest.mark.parametrize("encoder", ["frozen", "adapters", "texture", "adapters+texture"])
@pytest.mark.parametrize(
    ("heads", "kind"), [(("box", "mask", "embedding"), "hierarchical"), (("mask",), "linear")]
)
def test_what_is_saved_comes_back_to_the_last_bit(model, tmp_path, decoder, encoder, heads, kind):
    auto = full(an_auto_model(model, ("one", "two", "three"), decoder, encoder, heads, kind))
    auto.save(tmp_path / "x.medsam2auto")
    again = load_auto(tmp_path / "x.medsam2auto", model)
    assert again.card == auto.card
    mine, theirs = parts_of(auto), parts_of(again)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = (each.network(each.levels(image))[1] for each in (auto, again))
    assert torch.equal(one.logits, other.logits) and torch.equal(one.score, other.score)
    assert not again.network.training


def test_a_card_comes_back_as_it_was():
    classes = (
        AutoClass("nerve", 7, (0.1, 0.2, 1.0), "Segmentation category~SCT^1^Tissue"),
        AutoClass("vein, großer „Ast“", 300, (1.0, 0.0, 0.5)),
    )
    card = AutoCard(
        "ultrasound µ", classes, "embedded", "0" * 64, 256, "40,400", "axial", "US",
        {"tokens": 10, "heads": ["box"]}, "lora", "adapters", {"dice": {"nerve": {"mean": None}}},
    )  # fmt: skip
    assert AutoCard.from_json(card.to_json(), "x") == card
    assert card.class_names == ("nerve", "vein, großer „Ast“")
    assert not card.is_for_pictures and replace(card, axis="picture").is_for_pictures
    assert card.can_track and not replace(card, training={"tracks": False}).can_track


def test_two_files_of_one_model_are_equal(auto, path, tmp_path):
    auto.save(tmp_path / "again.medsam2auto")
    assert (tmp_path / "again.medsam2auto").read_bytes() == path.read_bytes()


def test_a_file_is_not_overwritten_unasked(auto, path, tmp_path):
    target = tmp_path / "x.medsam2auto"
    target.write_bytes(b"precious")
    with raises("output-exists", ExportError):
        auto.save(target)
    assert target.read_bytes() == b"precious"
    auto.save(target, overwrite=True)
    assert target.read_bytes() == path.read_bytes()
    with raises("output-folder-missing", ExportError):
        auto.save(tmp_path / "nowhere" / "x.medsam2auto")
    assert list(tmp_path.iterdir()) == [target]


# --- the card


def test_a_card_is_read_without_torch_or_safetensors(path):
    done = run_python(
        "import sys\n"
        "sys.modules.update(torch=None, safetensors=None)\n"  # importing them raises
        "from medsam2_core.auto.model_file import read_card\n"
        f"card = read_card({str(path)!r})\n"
        "print(card.name, card.base, card.class_names, card.image_size)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a test tiny ('left', 'right') 64\n"


def test_a_card_is_read_from_the_first_kilobytes(path, tmp_path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert length < 32_000
    (tmp_path / "x").write_bytes(content[: 8 + length])
    assert read_card(tmp_path / "x") == read_card(path)


def test_nothing_of_the_images_is_in_a_card(path):
    told = json.loads(_metadata(path)["medsam2_auto"])
    assert set(told) == {
        *("version", "name", "classes", "base", "base_key", "image_size", "window", "axis", "modality"),
        *("predictor", "decoder", "encoder", "training", "sha256"),
    }
    assert set(told["classes"][0]) == {"name", "value", "colour_rgb", "terminology", "least_piece"}
    assert set(_metadata(path)) == {"medsam2_auto"}
    assert b"patient" not in path.read_bytes()[:64_000].lower()


def test_classes_are_chosen_by_name_in_the_models_order():
    card = AutoCard("m", classes_named("a", "b", "c"), "x", "y", 64)
    assert card.chosen(None) == (0, 1, 2)
    assert card.chosen(["c", " a "]) == (0, 2)
    with raises("unknown-class", CheckpointError, name="d", known=["a", "b", "c"]):
        card.chosen(["a", "d"])


def test_files_are_recognised(path, tmp_path):
    (tmp_path / "text").write_text("hello, this is no model at all")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert read_card(path).class_names
    for other in (tmp_path / "text", tmp_path / "other.safetensors", tmp_path / "none", tmp_path):
        with pytest.raises(MedSAM2Error):
            read_card(other)


# --- the SAM 2 below it


def test_another_sam2_is_refused_by_its_name(path, model):
    module = tiny_model(seed=5).module
    other = SegmentationModel.of(module, "other")
    with raises("trained-for-other-model", CheckpointError, base="tiny", image_size=64, model="other"):
        load_auto(path, other)
    namesake = SegmentationModel.of(module, "tiny")
    with raises("trained-for-other-weights", CheckpointError, base="tiny"):
        load_auto(path, namesake)
    larger = replace(model, image_size=128)
    with raises("trained-for-other-model", CheckpointError, base="tiny", image_size=64, model="tiny"):
        load_auto(path, larger)


def test_later_weights_with_the_same_encoder_will_do(path, model):
    later = replace(SegmentationModel.of(tiny_model(seed=5).module, "tiny"), succeeds=(model.weights_key,))
    card = load_auto(path, model).card
    check_base(replace(card, decoder="frozen"), later, "it")
    # Updates of a decoder belong to that decoder.
    with raises("trained-for-other-weights", CheckpointError, base="tiny"):
        check_base(replace(card, decoder="lora"), later, "it")
    assert later.has_encoder_of(later.weights_key) and not later.has_encoder_of("another")


def test_its_own_sam2_is_loaded_by_the_cards_name(tmp_path):
    embedded = load_model("embedded", "cpu")
    auto = an_auto_model(embedded)
    auto.save(tmp_path / "x.medsam2auto")
    again = load_auto(tmp_path / "x.medsam2auto", device="cpu")
    assert again.model is embedded, "shared with everybody who holds it"
    assert torch.equal(again.network.predictor.queries, auto.network.predictor.queries)


def test_a_sam2_that_is_not_there_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM2_MODELS", str(tmp_path / "empty"))
    monkeypatch.delenv("MEDSAM2_OFFLINE_MODELS", raising=False)
    with raises("base-not-found", CatalogueError, path=str(path), base="tiny") as error:
        load_auto(path)
    assert error.value.__cause__.code == "unknown-model"
    stranger = rewritten(path, tmp_path, lambda card: card | {"base": "sam2.1-large"})
    with raises("base-not-found", CatalogueError, base="sam2.1-large") as error:
        load_auto(stranger)
    assert error.value.__cause__.code == "model-not-here"


def test_a_base_beside_a_model_is_found_and_nothing_elsewhere(path, tmp_path):
    for base in ("../x.safetensors", "/x.safetensors", "x.safetensors", ".safetensors", "", "a\0b.pt"):
        stranger = rewritten(path, tmp_path, lambda card, base=base: card | {"base": base})
        with raises("base-not-found", CatalogueError):
            load_auto(stranger)


# --- what is refused


def of_class(**changes):
    """The change of a card to one class."""
    return {"classes": [{"name": "a", "value": 1, "colour_rgb": [0, 0, 0], **changes}]}


def test_another_version_is_refused(path, tmp_path):
    stranger = rewritten(path, tmp_path, lambda card: card | {"version": 2})
    with raises("auto-model-version", CheckpointError, version=2, readable=1):
        read_card(stranger)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": []}, "0 classes"),
        ({"classes": None}, None),
        ({"classes": "ab"}, None),
        ({"classes": of_class()["classes"] * 2}, "two classes have one name"),
        (of_class(name=" "), "a class has no name"),
        (of_class(colour_rgb=[0, 0, 7]), "class 'a' has the colour (0.0, 0.0, 7.0)"),
        (of_class(colour_rgb=[0, 0, 10**400]), None),
        (of_class(value=float("inf")), None),
        (of_class(value=float("nan")), None),
        ({"classes": [["name", "value"]]}, None),
        ({"image_size": "64"}, "image size '64'"),
        ({"image_size": 10**9}, "image size 1000000000"),
        ({"image_size": True}, "image size True"),
        ({"decoder": "thawed"}, "decoder 'thawed', encoder 'adapters+texture'"),
        ({"encoder": 3}, "names must be texts"),
        ({"encoder": ""}, "decoder 'lora', encoder ''"),
        ({"encoder": "adapters+wings"}, "decoder 'lora', encoder 'adapters+wings'"),
        ({"predictor": [1]}, "predictor and training must be objects"),
        ({"training": "long"}, "predictor and training must be objects"),
        ({"name": ""}, "names must be texts"),
        ({"base_key": 5}, "names must be texts"),
        ({"more": 1}, None),
    ],
)
def test_cards_that_nothing_here_has_written_are_refused(path, tmp_path, change, reason):
    stranger = rewritten(path, tmp_path, lambda card: card | change)
    with raises("auto-model-damaged", CheckpointError, **({"reason": reason} if reason else {})):
        read_card(stranger)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"version": 1}'])
def test_cards_that_are_no_cards_are_refused(path, tmp_path, text):
    with pytest.raises(CheckpointError):
        read_card(rewritten(path, tmp_path, lambda _: text))


@pytest.mark.parametrize(
    "change",
    [
        *({"tokens": tokens} for tokens in ("ten", 10**9, 2)),
        {"width": 256},
        *({"fine_widths": widths} for widths in ([64, 32], 5)),
        *({"heads": heads} for heads in ([], ["hat"], None)),
    ],
)
def test_predictors_that_cannot_be_built_are_refused(path, model, tmp_path, change):
    stranger = rewritten(path, tmp_path, lambda card: card | {"predictor": card["predictor"] | change})
    with raises("auto-model-damaged", CheckpointError):
        load_auto(stranger, model)


@pytest.mark.parametrize("change", [{"tokens": 12}, {"kind": "linear"}])
def test_predictors_the_tensors_do_not_fit_are_refused(path, model, tmp_path, change):
    stranger = rewritten(path, tmp_path, lambda card: card | {"predictor": card["predictor"] | change})
    with raises("checkpoint-mismatch", CheckpointError):
        load_auto(stranger, model)


BIAS, TOKENS = "predictor.box_head.mlp.0.bias", "decoder.mask_tokens.weight"


@pytest.mark.parametrize(
    ("tensors", "code", "told"),
    [
        ({"predictor.queries": None}, "checkpoint-mismatch", {"missing": ["queries"]}),
        ({"predictor.more": torch.zeros(2)}, "checkpoint-mismatch", {"unexpected": ["more"]}),
        (
            {"predictor.queries": torch.zeros(2, 10, 64)},
            *("checkpoint-mismatch", {"of_another_shape": ["queries (2, 10, 64) for (2, 10, 128)"]}),
        ),
        ({TOKENS: None}, "auto-model-damaged", {"reason": "mask_tokens.weight is missing"}),
        (
            {"decoder.iou_token.weight": torch.zeros(1, 128)},
            *("auto-model-damaged", {"reason": "iou_token.weight is not known"}),
        ),
        ({"encoder.0.adapters.0.bias": None}, "checkpoint-mismatch", {"missing": ["0.adapters.0.bias"]}),
        ({"texture.out.0.bias": None}, "checkpoint-mismatch", {"missing": ["out.0.bias"]}),
        ({"backdoor.weight": torch.zeros(1)}, "auto-model-damaged", {"reason": "backdoor.weight"}),
        ({BIAS: torch.full((128,), float("nan"))}, "auto-model-damaged", {"reason": BIAS}),
        ({TOKENS: torch.full((4, 128), float("inf"))}, "auto-model-damaged", {"reason": TOKENS}),
        ({BIAS: torch.zeros(128, dtype=torch.int32)}, "auto-model-damaged", {"reason": BIAS}),
    ],
)
def test_tensors_more_or_less_or_of_no_number_are_refused(path, model, tmp_path, tensors, code, told):
    with raises(code, CheckpointError, **told):
        load_auto(rewritten(path, tmp_path, **tensors), model)


@pytest.mark.parametrize(
    ("decoder", "encoder"), [("frozen", "adapters+texture"), ("lora", "texture"), ("lora", "adapters")]
)
def test_tensors_of_a_part_that_is_frozen_are_refused(path, model, tmp_path, decoder, encoder):
    stranger = rewritten(path, tmp_path, lambda card: card | {"decoder": decoder, "encoder": encoder})
    with raises("auto-model-damaged", CheckpointError) as error:
        load_auto(stranger, model)
    assert (
        "decoder is frozen" in error.value.fields["reason"] or "not mention" in error.value.fields["reason"]
    )


def test_files_that_lie_where_another_should_are_refused(model, path, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "empty").touch()
    (tmp_path / "huge").write_bytes(b"\xff" * 64)
    (tmp_path / "text").write_text("hello " * 9)
    for code, names in {
        "not-an-auto-model": ("other.safetensors", "other.pt", "empty", "huge", "text"),
        "auto-model-unreadable": ("none", ""),
    }.items():
        for name in names:
            with raises(code, CheckpointError, path=str(tmp_path / name)):
                load_auto(tmp_path / name, model)
    three = full(an_auto_model(model, ("a", "b", "c"), "lora", "adapters+texture"))
    swapped = rewritten(path, tmp_path, lambda _: json.loads(three.card.to_json()))
    with raises("checkpoint-mismatch", CheckpointError):
        load_auto(swapped, model)


# --- damage at random


def test_cut_files_are_always_refused(path, model, tmp_path, campaign, record_property):
    whole, chance = path.read_bytes(), random.Random(1)
    target = tmp_path / "cut.medsam2auto"
    places = [*range(0, 64, 7), *(chance.randrange(len(whole)) for _ in range(20 * campaign)), len(whole) - 1]
    record_property("mutated inputs", len(places))
    for place in places:
        target.write_bytes(whole[:place])
        with pytest.raises(CheckpointError):
            load_auto(target, model)


def test_every_wrong_bit_is_found(model, path, tmp_path, campaign, record_property):
    whole, chance = path.read_bytes(), random.Random(2)
    target = tmp_path / "flipped.medsam2auto"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    record_property("mutated inputs", 25 * campaign)
    for _ in range(25 * campaign):
        place = chance.choice([chance.randrange(header), chance.randrange(len(whole))])
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        target.write_bytes(flipped)
        with pytest.raises(CheckpointError) as refusal:
            load_auto(target, model)
        assert "\n" not in str(refusal.value)


def test_tensors_that_have_changed_places_are_found(model, path, tmp_path):
    """Of one shape, they would fit; only the checksum tells."""
    content = path.read_bytes()
    one, other = b"w_a.weight", b"w_b.weight"
    swapped = content.replace(one, b"#").replace(other, one).replace(b"#", other)
    (tmp_path / "x").write_bytes(swapped)
    with raises("auto-model-damaged", CheckpointError):
        load_auto(tmp_path / "x", model)


def test_forged_files_are_an_error_or_a_model_of_numbers(auto, model, tmp_path, campaign, record_property):
    """Somebody who damages a file on purpose also mends its checksum. Half of the damage is done to the
    header, where most of what is believed stands."""
    small = full(untrained_model(replace(auto.card, decoder="frozen", encoder="frozen"), model))
    small.save(tmp_path / "small.medsam2auto")
    whole, path = (tmp_path / "small.medsam2auto").read_bytes(), tmp_path / "damaged.medsam2auto"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    seal = json.loads(_metadata(tmp_path / "small.medsam2auto")["medsam2_auto"])["sha256"].encode()
    whole, refused = whole.replace(seal, b"0" * 64, 1), 0
    record_property("mutated inputs", 40 * campaign)
    for seed in range(40 * campaign):
        chance = random.Random(seed)
        split = header if seed % 2 else len(whole)
        path.write_bytes(_sealed(damaged(whole[:split], chance) + whole[split:]))
        try:
            found = load_auto(path, model)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert all(torch.isfinite(value).all() for value in parts_of(found).values()), f"seed {seed}"
        with torch.no_grad():
            found.network(some_levels(1, width=128))
    assert 10 * campaign < refused < 40 * campaign


def test_damaged_headers_never_surprise_who_only_lists_models(path, tmp_path, campaign, record_property):
    content = path.read_bytes()
    header = content[: 8 + struct.unpack("<Q", content[:8])[0]]
    target = tmp_path / "damaged.medsam2auto"
    record_property("mutated inputs", 200 * campaign)
    for seed in range(200 * campaign):
        target.write_bytes(damaged(header, random.Random(seed)))
        try:
            card = read_card(target)
        except CheckpointError:
            continue
        assert card.class_names and card.image_size >= 32


def test_tensors_are_read_from_whole_files_only(tmp_path):
    (tmp_path / "x").write_bytes(b"\0" * 100)
    with raises("auto-model-damaged", CheckpointError):
        read_tensors(tmp_path / "x")
