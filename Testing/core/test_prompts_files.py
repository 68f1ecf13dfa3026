"""Prompts as JSON: what is written comes back, and what is wrong is named with its place."""

import json

import numpy as np
import pytest
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet
from medsam2_core.prompts.slice_prompts import validate
from support.errors import raises
from support.small_files import OBLIQUE_RAS, a_volume, some_voxels

GEOMETRY = Geometry(OBLIQUE_RAS, (30, 20, 10))


def some_prompts() -> PromptSet:
    prompts = PromptSet()
    prompts.add("liver", Point((3, 4.25, 5)))
    prompts.add("liver", Point((6, 7, 5), positive=False))
    prompts.add("liver", Box((2, 3, 5), (9.5, 12, 5)))
    prompts.add("Milz, groß", MaskPrompt(some_voxels((2, 3, 4), bool), (5, 6, 7)))
    prompts.add_object("nothing yet")
    return prompts


@pytest.mark.parametrize("space", ["ijk", "ras", "lps"])
def test_prompts_come_back_from_every_space(space):
    prompts = some_prompts()
    back = PromptSet.from_json(prompts.to_json(space, GEOMETRY), GEOMETRY)
    assert back.names == prompts.names
    assert back.of("Milz, groß") == prompts.of("Milz, groß")
    for one, other in zip(prompts.of("liver"), back.of("liver"), strict=True):
        if isinstance(one, Box):
            assert np.allclose((one.first_ijk, one.last_ijk), (other.first_ijk, other.last_ijk), atol=1e-5)
        else:
            assert np.allclose(one.ijk, other.ijk, atol=1e-5)
            assert one.positive == other.positive


def test_ijk_is_exact_and_needs_no_volume():
    prompts = some_prompts()
    assert PromptSet.from_json(prompts.to_json()) == prompts


def test_the_file_is_what_its_documentation_shows():
    written = json.loads(some_prompts().to_json())
    assert written["version"] == 1
    assert written["space"] == "ijk"
    assert written["objects"][0]["prompts"][0] == {"type": "point", "at": [3.0, 4.25, 5.0], "positive": True}
    mask = written["objects"][1]["prompts"][0]
    assert mask["offset"] == [5, 6, 7]
    assert mask["shape"] == [4, 3, 2]
    assert sum(mask["runs"]) == 24


@pytest.mark.parametrize("fill", ["all", "first", "last", "none"])
def test_runs_describe_any_mask(fill):
    mask = np.zeros((1, 3, 4), bool)
    mask.flat[{"all": slice(None), "first": 0, "last": -1, "none": slice(0)}[fill]] = True
    prompts = PromptSet()
    prompts.add("a", MaskPrompt(mask))
    assert PromptSet.from_json(prompts.to_json()) == prompts


def a_file(**changes) -> str:
    point = {"type": "point", "at": [1, 2, 3]}
    data = {"version": 1, "space": "ijk", "objects": [{"name": "liver", "prompts": [point]}]}
    data.update({key: value for key, value in changes.items() if key in data})
    if "prompt" in changes:
        data["objects"][0]["prompts"] = [changes["prompt"]]
    return json.dumps(data)


def a_mask(offset, shape, runs):
    return a_file(prompt={"type": "mask", "offset": offset, "shape": shape, "runs": runs})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "not-json"),
        (b"\xff\xfe\x00", "not-json"),
        ("[" * 100_000, "not-json"),
        ("[]", "bad-prompt-file"),
        (a_file(version=2), "prompt-file-version"),
        (a_file(version=True), "prompt-file-version"),
        (a_file(space="mni"), "unknown-space"),
        (a_file(space=5), "unknown-space"),
        (a_file(objects={}), "bad-prompt-file"),
        (a_file(objects=["liver"]), "bad-prompt-file"),
        (a_file(objects=[{"prompts": []}]), "missing-part"),
        (a_file(objects=[{"name": "", "prompts": []}]), "object-name"),
        (a_file(objects=[{"name": "a", "prompts": []}] * 2), "duplicate-object"),
        (a_file(prompt={"at": [1, 2, 3]}), "missing-part"),
        (a_file(prompt={"type": "circle"}), "bad-prompt-file"),
        (a_file(prompt={"type": "point", "at": [1, 2]}), "bad-prompt-file"),
        (a_file(prompt={"type": "point", "at": [1, 2, True]}), "bad-prompt-file"),
        (a_file(prompt={"type": "point", "at": [1, 2, float("nan")]}), "not-finite"),
        (a_file(prompt={"type": "point", "at": [1, 2, 10**400]}), "not-finite"),
        (a_file(prompt={"type": "point", "at": [1, 2, 3], "positive": 1}), "bad-prompt-file"),
        (a_file(prompt={"type": "box", "first": [1, 2, 3]}), "missing-part"),
        (a_file(prompt={"type": "box", "first": [5, 2, 3], "last": [1, 6, 3]}), "inverted-box"),
        (a_mask([0, 0, 0], [2, 2, 1], [3]), "bad-prompt-file"),
        (a_mask([0, 0, 0], [2, 2, 1], [5, -1]), "bad-prompt-file"),
        (a_mask([-1, 0, 0], [2, 2, 1], [4]), "outside-volume"),
        (a_mask([0, 0], [2, 2, 1], [4]), "bad-prompt-file"),
        (a_mask([0, 0, 0], [2, 0, 1], []), "bad-prompt-file"),
        (a_mask([0, 0, 0], [10**6] * 3, [10**18]), "mask-too-large"),
    ],
)
def test_what_is_wrong_is_reported(text, code):
    with raises(code, PromptError):
        PromptSet.from_json(text)


def test_millimetres_need_the_volume_they_belong_to():
    with raises("needs-geometry", PromptError, space="ras"):
        PromptSet.from_json(a_file(space="ras"))
    with raises("needs-geometry", PromptError, space="lps"):
        some_prompts().to_json("lps")


def test_a_mask_must_fit_the_volume():
    mask = {"type": "mask", "offset": [29, 0, 0], "shape": [2, 1, 1], "runs": [0, 2]}
    PromptSet.from_json(a_file(prompt=mask))
    with raises("outside-volume", PromptError, offset=[29, 0, 0]):
        PromptSet.from_json(a_file(prompt=mask), GEOMETRY)


def test_corners_in_millimetres_may_come_in_any_order():
    corners = GEOMETRY.to_ras([[2, 12, 5], [9, 3, 5]]).tolist()
    box = {"type": "box", "first": corners[0], "last": corners[1]}
    (read,) = PromptSet.from_json(a_file(space="ras", prompt=box), GEOMETRY).of("liver")
    assert np.allclose((read.first_ijk, read.last_ijk), ((2, 3, 5), (9, 12, 5)))


def test_damaged_prompt_files_end_in_one_clear_line(campaign, record_property):
    """Mutated text and mutated values: read and checked against a volume, or refused."""
    rng = np.random.default_rng(7)
    stack = SliceStack.along(a_volume((10, 20, 30), OBLIQUE_RAS), "axial")
    files = [some_prompts().to_json(space, GEOMETRY).encode() for space in ("ijk", "ras", "lps")]
    refused = 0
    record_property("mutated inputs", 400 * campaign)
    for case in range(400 * campaign):
        text = files[case % 3]
        text = mutated_values(text, rng) if case % 2 else mutated_bytes(text, rng)
        try:
            validate(PromptSet.from_json(text, GEOMETRY), stack)
        except MedSAM2Error as error:
            assert isinstance(error, PromptError)
            assert 0 < len(str(error)) < 1000
            refused += 1
    assert refused > 100 * campaign


def mutated_bytes(text: bytes, rng) -> bytes:
    data = bytearray(text)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data)))
        match rng.integers(4):
            case 0:
                data[place] = rng.integers(256)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + int(rng.integers(1, 20))]
            case 3:
                data[place:place] = rng.choice(
                    [b"NaN", b"1e999", b"null", b"-", b"[", b"}", b"9" * 30, b"\x00"]
                )
        if not data:
            break
    return bytes(data)


STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    -1e30,
    10**40,
    float("nan"),
    "",
    "ras",
    [],
    {},
    [1, 2, 3],
    [[0]],
    "x" * 5000,
]


def mutated_values(text: bytes, rng) -> str:
    data = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        node = data
        while True:  # walk down to some value and replace, double or remove it
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(node[key], dict | list) and rng.random() < 0.85:
                node = node[key]
                continue
            match rng.integers(3):
                case 0:
                    del node[key]
                case 1 if isinstance(node, list):
                    node.append(node[key])
                case _:
                    node[key] = STRANGE[rng.integers(len(STRANGE))]
            break
    return json.dumps(data)
