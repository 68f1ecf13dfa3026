"""From a name or a file to a network that is the one stock sam2 would have built."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from medsam2_core.engine import architecture
from medsam2_core.engine.architecture import build_module, config_path, read_config
from medsam2_core.engine.catalogue import Catalogue, ModelEntry
from medsam2_core.engine.devices import Precision
from medsam2_core.engine.model import load_model
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.store import Store
from medsam2_core.engine.trunk import ConvTrunk
from medsam2_core.errors import CatalogueError, CheckpointError, DeviceError, MissingPackageError
from support.errors import raises


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    """A checkpoint of random weights, stored in bfloat16 as some published ones are."""
    torch.manual_seed(3)
    state = {key: value.bfloat16() for key, value in build_module("sam2.1_hiera_t").state_dict().items()}
    path = tmp_path_factory.mktemp("models") / "mine.pt"
    torch.save({"model": state}, path)
    return path


def stock_predictor(apply_postprocessing: bool):
    from sam2.build_sam import build_sam2_video_predictor

    config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    return build_sam2_video_predictor(config, device="cpu", apply_postprocessing=apply_postprocessing)


@pytest.mark.parametrize("apply_postprocessing", [False, True])
def test_a_built_module_is_stocks_in_every_tensor_and_flag(apply_postprocessing):
    torch.manual_seed(0)
    stock = stock_predictor(apply_postprocessing)
    torch.manual_seed(0)
    ours = build_module("sam2.1_hiera_t", apply_postprocessing=apply_postprocessing)
    expected = stock.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    assert not ours.training
    # fill_hole_area and the other flags of the predictor itself are no part of the network.
    for room in ("", "sam_mask_decoder", "sam_prompt_encoder", "memory_attention", "image_encoder"):
        mine, theirs = vars(ours.get_submodule(room)), vars(stock.get_submodule(room))
        for name in (name for name in mine if isinstance(mine[name], (bool, int, float, str))):
            assert mine[name] == theirs[name], f"{room}.{name}"
    assert ours.sam_mask_decoder.dynamic_multimask_via_stability is apply_postprocessing
    assert ours.binarize_mask_from_pts_for_mem_enc is apply_postprocessing


def test_the_512_variant_is_the_stock_configuration_at_another_size():
    module = build_module("sam2.1_hiera_t", image_size=512)
    with torch.inference_mode():
        features = module.forward_image(torch.zeros(1, 3, 512, 512))["backbone_fpn"]
    assert [tuple(feature.shape) for feature in features] == [
        (1, 32, 128, 128),
        (1, 64, 64, 64),
        (1, 256, 32, 32),
    ]


def test_the_embedded_configuration_builds_and_declares_its_recipe():
    module = build_module("embedded")
    assert module.image_size == 256
    assert not module.binarize_mask_from_pts_for_mem_enc
    with torch.inference_mode():
        features = module.forward_image(torch.zeros(1, 3, 256, 256))["backbone_fpn"]
    assert [feature.shape[-1] for feature in features] == [64, 32, 16]


def test_building_imports_no_torchvision_and_no_hydra_search_path():
    script = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from medsam2_core.engine.model import build_module\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "import sam2; GlobalHydra.instance().clear()\n"  # what importing sam2 sets up is not needed
        "print(build_module('embedded').image_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "256"


def test_loading_does_not_import_the_compiler_of_torch():
    # It takes 1.3 s of processor time, as much as torch itself.
    script = (
        "import sys\n"
        "from medsam2_core.engine.model import load_model\n"
        "print(load_model('embedded', 'cpu').image_size, 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256", "False"]


@pytest.mark.parametrize("size", [0, -32, 500, 512.0, True])
def test_impossible_image_sizes_are_refused(size):
    with raises("image-size", CatalogueError):
        build_module("sam2_hiera_t", image_size=size)


@pytest.mark.parametrize("missing", [None, ValueError])
def test_without_sam2_the_way_to_get_it_is_given(monkeypatch, missing):
    def found(name):
        if missing is not None:
            raise missing(f"{name}.__spec__ is None")

    monkeypatch.setattr(architecture, "find_spec", found)
    with raises("missing-package", MissingPackageError, package="sam2") as error:
        build_module("embedded")
    assert "SAM2_BUILD_CUDA=0 pip install --no-deps" in str(error.value)


def test_configurations_are_found_by_every_usual_spelling(tmp_path):
    expected = config_path("sam2.1_hiera_b+")
    assert expected.is_file()
    assert config_path("configs/sam2.1/sam2.1_hiera_b+.yaml") == expected
    (tmp_path / "mine.yaml").write_text(expected.read_text())
    assert read_config(tmp_path / "mine.yaml")["image_size"] == 1024
    with raises("unknown-configuration", CatalogueError, config="sam3"):
        config_path("sam3")


MEMORY, WIDTH = "sam2.modeling.memory_attention.MemoryAttention\n", "embed_dim: 96"
TORCH_LOAD = "sam2.modeling.sam2_base.torch.load"


@pytest.mark.parametrize(
    ("old", "new", "code", "fields"),
    [
        (MEMORY, "os.system\n", "untrusted-configuration", {"target": "'os.system'"}),
        (MEMORY, f"{TORCH_LOAD}\n", "untrusted-configuration", {"target": repr(TORCH_LOAD)}),
        (MEMORY, "sam2.modeling.nothing.Here\n", "unknown-class", {"target": "sam2.modeling.nothing.Here"}),
        ("sam2.modeling.sam2_base.SAM2Base", f"{ConvTrunk.__module__}.ConvTrunk", "not-a-configuration", {}),
        (WIDTH, f"{WIDTH}\n      weights_path: /x.pkl", "untrusted-configuration", {"key": "weights_path"}),
        (WIDTH, f"{WIDTH}\n      _args_: [1]", "untrusted-configuration", {"key": "_args_"}),
        (WIDTH, "embed_dims: 96", "inconsistent-configuration", {}),
        ("model:", "network:", "not-a-configuration", {}),
        ("model:", "model: [", "unreadable-configuration", {}),
        ("image_size: 1024", "image_size: ${nothing}", "unreadable-configuration", {}),
    ],
)
def test_a_configuration_file_cannot_call_anything_else(tmp_path, old, new, code, fields):
    path = tmp_path / "mine.yaml"
    text = config_path("sam2.1_hiera_t").read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with raises(code, CatalogueError, **fields):
        build_module(path)


def test_a_local_checkpoint_loads_with_its_configuration_guessed(tiny_file):
    model = load_model(tiny_file, device="cpu")
    assert (model.name, model.image_size, model.recipe) == ("mine", 1024, STOCK)
    assert (model.device, model.precision) == (torch.device("cpu"), Precision.FP32)
    parameters = list(model.module.parameters())
    assert {value.dtype for value in parameters} == {torch.float32}
    assert not any(value.requires_grad for value in parameters) and not model.module.training
    stored = torch.load(tiny_file, weights_only=True)["model"]
    assert all(torch.equal(value, stored[key].float()) for key, value in model.module.state_dict().items())
    assert model.module.binarize_mask_from_pts_for_mem_enc


def test_a_model_is_built_once_and_forgotten_when_nobody_holds_it(tiny_file):
    model = load_model(tiny_file, device="cpu")
    assert load_model(str(tiny_file), device="cpu") is model
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_key_distinguishes_weights_sizes_and_configurations(tmp_path):
    state = {"model": build_module("embedded").state_dict()}
    torch.save(state, tmp_path / "one.pt")
    state["model"]["no_mem_embed"] += 1
    torch.save(state, tmp_path / "other.pt")
    (tmp_path / "copy.pt").write_bytes((tmp_path / "one.pt").read_bytes())
    one = load_model(tmp_path / "one.pt", device="cpu").weights_key
    assert load_model(tmp_path / "copy.pt", device="cpu").weights_key == one
    assert load_model(tmp_path / "other.pt", device="cpu").weights_key != one
    assert load_model(tmp_path / "one.pt", device="cpu", image_size=128).weights_key != one


def test_the_wrong_configuration_is_refused_with_the_right_one(tiny_file):
    with raises("checkpoint-mismatch", CheckpointError, config="sam2_hiera_s", fits="sam2.1_hiera_t"):
        load_model(tiny_file, device="cpu", config="sam2_hiera_s")


def test_a_catalogue_model_is_checked_against_its_hash_every_time(tiny_file):
    entry = ModelEntry(
        "m", "t", "sam2.1_hiera_t", 512, repo="o/r", file=tiny_file.name, sha256="0" * 64, attribution="a"
    )
    store = Store(tiny_file.parent)
    with raises("wrong-hash", CheckpointError):
        load_model("m", device="cpu", catalogue=Catalogue({"m": entry}), store=store)
    with raises("configuration-given", CatalogueError):
        load_model("m", device="cpu", config="sam2_hiera_t", catalogue=Catalogue({"m": entry}), store=store)


def test_a_checkpoint_of_the_embedded_kind_gets_the_embedded_recipe(tmp_path):
    from safetensors.torch import save_file

    save_file(build_module("embedded").half().state_dict(), tmp_path / "best.safetensors")
    model = load_model(tmp_path / "best.safetensors", device="cpu")
    assert model.image_size == 256
    assert model.recipe.draws_prompts == Catalogue.load().find("embedded").recipe["draws_prompts"]


def test_an_unknown_architecture_is_reported_as_one(tmp_path):
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "x.pt")
    with raises("unknown-architecture", CheckpointError):
        load_model(tmp_path / "x.pt", device="cpu")
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(3)}, tmp_path / "y.pt")
    told = "MobileSAM (SAM 1 with a TinyViT encoder)"
    with raises("unknown-architecture", CheckpointError, architecture=told):
        load_model(tmp_path / "y.pt", device="cpu")


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tiny_file):
    with pytest.raises(DeviceError):
        load_model(tiny_file, device="nonsense")


def test_computing_is_without_gradients_and_in_the_chosen_precision():
    model = SegmentationModel.of(build_module("embedded"), "random", precision="bf16")
    with model.computing():
        features = model.module.forward_image(torch.zeros(1, 3, 256, 256))
    assert features["backbone_fpn"][0].dtype is torch.bfloat16
    assert not features["vision_features"].requires_grad
    assert len(model.weights_key) == 64
    again = SegmentationModel.of(model.module, "again", precision="bf16")
    assert again.weights_key == model.weights_key
