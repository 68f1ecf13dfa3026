"""Checkpoints are read without running anything, checked to the last byte, and loaded to the last tensor."""

import io
import os
import pickle
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from medsam2_core.engine.architecture import (
    STOCK_CONFIGS,
    build_from,
    build_module,
    guess_config,
    read_config,
)
from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.errors import CheckpointError
from safetensors.torch import save_file
from support.errors import raises
from torch import nn

STORAGES = {"FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64}


def a_small_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "first.weight": torch.randn(4, 3, generator=generator),
        "first.bias": torch.randn(4, generator=generator).bfloat16(),
        "second.weight": torch.randn(2, 4, generator=generator).half(),
        "second.bias": torch.zeros(2),
    }


def a_small_module() -> nn.Module:
    module = nn.Module()
    module.first, module.second = nn.Linear(3, 4), nn.Linear(4, 2)
    return module


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def file_of(folder: Path, content: object) -> Path:
    torch.save(content, folder / "file.pt")
    return folder / "file.pt"


# --- layouts


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    ],
    ids=["plain", "model", "state_dict", "DistributedDataParallel", "Lightning"],
)
def test_every_published_layout_is_understood(tmp_path, wrap):
    assert same(read_state_dict(file_of(tmp_path, wrap(a_small_state()))), a_small_state())


def test_safetensors_is_known_by_its_content_not_its_name(tmp_path):
    save_file(a_small_state(), tmp_path / "file.pth")
    assert same(read_state_dict(tmp_path / "file.pth"), a_small_state())


def test_half_precision_files_become_fp32_in_memory(tmp_path):
    module = a_small_module()
    load_strict(module, read_state_dict(file_of(tmp_path, a_small_state())))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert torch.equal(module.first.bias, a_small_state()["first.bias"].float())


# --- what is refused


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it-ran"
    path = file_of(tmp_path, {"model": a_small_state() | {"x": Bomb(trace)}})
    with raises("unsafe-checkpoint", CheckpointError, refused=f"{os.mkdir.__module__}.mkdir"):
        read_state_dict(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # and it would have:
    assert trace.exists()


def test_a_bare_pickle_is_not_even_opened(tmp_path):
    trace = tmp_path / "it-ran"
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    with raises("not-a-checkpoint", CheckpointError):
        read_state_dict(tmp_path / "file.pkl")
    assert not trace.exists()


def test_the_old_format_of_torch_is_refused_with_the_way_out(tmp_path):
    torch.save(a_small_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with raises("not-a-checkpoint", CheckpointError, kind="pickle"):
        read_state_dict(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"\n<!doctype html><html>", "web-page"),
        (b"some text that is no checkpoint", "unknown"),
    ],
)
def test_files_that_are_not_checkpoints_are_identified(tmp_path, content, kind):
    (tmp_path / "file.pt").write_bytes(content)
    with raises("not-a-checkpoint", CheckpointError, kind=kind):
        read_state_dict(tmp_path / "file.pt")


def test_an_archive_that_is_none_is_damaged(tmp_path):
    (tmp_path / "file.pt").write_bytes(b"PK\x03\x04 and nothing")
    with raises("damaged-checkpoint", CheckpointError):
        read_state_dict(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], {"code": "no-state-dict", "found": "list"}),
        ({}, {"code": "no-state-dict", "found": "dict"}),
        ({"model": {"a": 3}}, {"code": "not-a-tensor", "key": "a", "found": "int"}),
        ({"epoch": 3}, {"code": "not-a-tensor", "key": "epoch", "found": "int"}),
        ({3: torch.zeros(1)}, {"code": "not-a-tensor", "key": "3"}),
        ({"a": torch.zeros(2).to_sparse()}, {"code": "unsupported-tensor", "key": "a"}),
    ],
)
def test_archives_without_a_state_dict_are_refused_with_their_content(tmp_path, content, told):
    with raises(error_type=CheckpointError, **told):
        read_state_dict(file_of(tmp_path, content))


def test_missing_files_folders_and_other_archives_are_named(tmp_path):
    with raises("unreadable-checkpoint", CheckpointError):
        read_state_dict(tmp_path / "none.pt")
    with raises("unreadable-checkpoint", CheckpointError):
        read_state_dict(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with raises("not-a-checkpoint", CheckpointError):
        read_state_dict(tmp_path / "a.zip")


def test_one_wrong_bit_in_a_tensor_is_found(tmp_path):
    path = file_of(tmp_path, {"model": {"weight": torch.ones(1000)}})
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(8).numpy().tobytes()) + 10] ^= 1
    path.write_bytes(content)
    with raises("damaged-checkpoint", CheckpointError):
        read_state_dict(path)


# --- strictness


def test_every_missing_unexpected_and_misshapen_tensor_is_counted():
    state = a_small_state()
    state["second.weight"] = torch.zeros(3, 4)
    state["first.bias"] = torch.zeros(4, dtype=torch.int64)
    state |= {f"extra.{n}": torch.zeros(1) for n in range(9)}
    del state["second.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_strict(a_small_module(), state, "small", "x.pt")
    message = str(caught.value)
    assert "x.pt does not fit the model small" in message
    assert "1 missing: second.bias" in message
    assert "9 unexpected: extra.0, extra.1, extra.2, extra.3 and 5 more" in message
    assert "1 of another shape: second.weight (3, 4) for (2, 4)" in message
    assert "1 not of a floating type: first.bias int64" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_damage(value):
    state = a_small_state()
    state["first.weight"][1, 1] = value
    with raises("not-finite", CheckpointError, key="first.weight"):
        load_strict(a_small_module(), state)


def test_a_refused_state_changes_nothing():
    module = a_small_module()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_strict(module, a_small_state() | {"extra": torch.zeros(1)})
    assert same(before, module.state_dict())


# --- the real ones


def a_checkpoint_like(schema: Path, folder: Path) -> Path:
    """A file with the names, shapes and types of a published one, each tensor a single stored value."""
    content: dict = {}
    for line in schema.read_text().splitlines():
        name, storage, shape = line.split("\t")
        sizes = [int(size) for size in re.findall(r"\d+", shape)]
        tensor = torch.full((1,), 0.5).to(STORAGES[storage])
        nested, _, key = name.rpartition("model.")
        assert nested == ""
        place = content.setdefault("model", {}) if name.startswith("model.") else content
        place[key or name] = tensor.expand(sizes) if sizes else tensor[0]
    torch.save(content, folder / schema.name.removesuffix(".tsv"))
    return folder / schema.name.removesuffix(".tsv")


def module_of(config: str) -> nn.Module:
    """Not kept between tests: the large one alone has 900 MB."""
    return build_from(read_config(config), config, blank=True)


@pytest.mark.parametrize(
    ("file", "config", "count"),
    [
        ("sam2.1_hiera_tiny.pt", "sam2.1_hiera_t", 471),
        ("sam2.1_hiera_small.pt", "sam2.1_hiera_s", 519),
        ("sam2.1_hiera_base_plus.pt", "sam2.1_hiera_b+", 615),
        ("sam2.1_hiera_large.pt", "sam2.1_hiera_l", 903),
        ("MedSAM2_pretrain.pth", "sam2_hiera_t", 468),
    ],
)
def test_published_checkpoints_load_key_for_key(checkpoint_schemas, tmp_path, file, config, count):
    state = read_state_dict(a_checkpoint_like(checkpoint_schemas / f"{file}.tsv", tmp_path))
    assert len(state) == count
    assert guess_config(state) == config
    module = module_of(config)
    load_strict(module, state, config, file)
    for key, value in module.state_dict().items():
        assert value.dtype is torch.float32 and value.shape == state[key].shape
        assert value.flatten()[-1] == 0.5


MOBILE_SAM = "MobileSAM (SAM 1 with a TinyViT encoder)"


def test_mobile_sam_is_refused_by_its_name(checkpoint_schemas, tmp_path):
    state = read_state_dict(a_checkpoint_like(checkpoint_schemas / "mobile_sam.pt.tsv", tmp_path))
    assert len(state) == 439 and guess_config(state) is None
    with raises("checkpoint-mismatch", CheckpointError, architecture=MOBILE_SAM, fits=None):
        load_strict(module_of("sam2.1_hiera_t"), state, "sam2.1_hiera_t")


def test_a_checkpoint_of_another_size_suggests_its_configuration(checkpoint_schemas, tmp_path):
    state = read_state_dict(a_checkpoint_like(checkpoint_schemas / "sam2.1_hiera_small.pt.tsv", tmp_path))
    for config in ("sam2.1_hiera_t", "sam2_hiera_t"):
        with raises("checkpoint-mismatch", CheckpointError, config=config, fits="sam2.1_hiera_s"):
            load_strict(module_of(config), state, config)


@pytest.mark.parametrize(
    ("size", "first", "second"),
    [
        ("t", 38_945_986, 38_962_498),
        ("s", 46_043_842, 46_060_354),
        ("b+", 80_833_666, 80_850_178),
        ("l", 224_430_130, 224_446_642),
    ],
)
def test_the_eight_architectures_have_their_published_sizes(size, first, second):
    keys = []
    for config, parameters in ((f"sam2_hiera_{size}", first), (f"sam2.1_hiera_{size}", second)):
        module = module_of(config)
        assert sum(parameter.numel() for parameter in module.parameters()) == parameters
        assert guess_config(module.state_dict()) == config
        keys.append(module.state_dict().keys())
    assert keys[1] - keys[0] == {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert keys[0] < keys[1]


def test_all_configurations_are_distinguished():
    assert len(STOCK_CONFIGS) == 8
    assert guess_config(build_module("embedded").state_dict()) == "embedded"
    assert guess_config(a_small_state()) is None


# --- damage at random


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with one of the things that happen to files."""
    where = chance.randrange(len(content))
    length = chance.choice([1, 2, 8, 64])
    match chance.randrange(6):
        case 0:
            return content[:where]
        case 1:
            return content[:where] + chance.randbytes(length) + content[where + length :]
        case 2:
            return (
                content[:where] + bytes([content[where] ^ (1 << chance.randrange(8))]) + content[where + 1 :]
            )
        case 3:
            return content[:where] + bytes(length) + content[where + length :]
        case 4:
            return content[:where] + content[where + length :]
        case _:
            return content[:where] + chance.randbytes(length) + content[where:]


def test_damaged_archives_are_an_error_or_read_right(tmp_path, campaign, record_property):
    whole = file_of(tmp_path, {"model": a_small_state()}).read_bytes()
    path = tmp_path / "damaged.pt"
    refused = 0
    record_property("mutated inputs", 150 * campaign)
    for seed in range(150 * campaign):
        path.write_bytes(damaged(whole, random.Random(seed)))
        try:
            assert same(read_state_dict(path), a_small_state()), f"seed {seed} was read wrong"
        except CheckpointError:
            refused += 1
    assert refused > 100 * campaign


def test_damaged_pickles_with_right_checksums_are_an_error_or_a_state(tmp_path, campaign, record_property):
    """Somebody who forges a file also forges its checksums: the restricted unpickler has to cope alone."""
    with zipfile.ZipFile(file_of(tmp_path, {"model": a_small_state()})) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    path = tmp_path / "forged.pt"
    record_property("mutated inputs", 120 * campaign)
    for seed in range(120 * campaign):
        forged = entries | {name: damaged(entries[name], random.Random(seed))}
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in forged.items():
                archive.writestr(entry, content)
        try:
            state = read_state_dict(path)
            load_strict(a_small_module(), state)
        except CheckpointError:
            continue
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in a_small_state().items()
        }, f"seed {seed}"


def test_damaged_safetensors_are_an_error_or_a_state(tmp_path, campaign, record_property):
    """The format has no checksum: values can change unseen, which is what the catalogue's SHA-256 is for."""
    save_file(a_small_state(), tmp_path / "file.safetensors")
    whole = (tmp_path / "file.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    record_property("mutated inputs", 150 * campaign)
    for seed in range(150 * campaign):
        path.write_bytes(damaged(whole, random.Random(seed)))
        module = a_small_module()
        try:
            load_strict(module, read_state_dict(path))
        except CheckpointError:
            continue
        assert all(torch.isfinite(value).all() for value in module.state_dict().values()), f"seed {seed}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    (tmp_path / "script.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "script.pt")
