"""Probabilities as a file: what was written is read, by us and by others; what is damaged is told apart."""

import gzip
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from medsam2_core.errors import ExportError, VolumeError
from medsam2_core.export.probabilities import check, read_probabilities, write_probabilities
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation import Segment
from medsam2_core.imaging.slice_mask import PackedValues
from support.errors import raises
from support.objects import GEOMETRIES, SHAPE_IJK, a_geometry, probabilities_of, random_geometry

NAMES = ("liver", "tumour", "nowhere")
AWKWARD = (
    *("Leber links", "Gehirn: Tumor ä", "肝臓", "100 %", "%41", " edges  ", "a:=b", "a\\nb"),
    *("two\nlines", "#1", "tab\there", "quote\"'", "\ud800 half a letter", "e\u0301", "🫀"),
)
KNOWN = {"model": "embedded", "weights_sha256": "0123456789abcdef" * 4, "slices": "axial:+i+j+k"}


def some_values(names=NAMES, shape_kji=SHAPE_IJK[::-1], seed=0) -> dict[str, np.ndarray]:
    """Soft boxes that overlap and reach the last corner; the last object is nowhere."""
    rng = np.random.default_rng(seed)
    values = {name: np.zeros(shape_kji, np.uint8) for name in names}
    for name in list(names)[: max(1, len(names) - 1)]:
        start = rng.integers(0, np.array(shape_kji) - 2)
        part = values[name][tuple(slice(a, None) for a in start)]
        part[...] = rng.integers(0, 256, part.shape)
        part[..., -1, -1] = 255
    return values


def some_probabilities(names=NAMES, geometry=None, **provenance) -> Probabilities:
    geometry = a_geometry() if geometry is None else geometry
    values = some_values(names, geometry.shape_ijk[::-1])
    return probabilities_of(geometry, values, KNOWN | provenance)


def assert_same(one: Probabilities, other: Probabilities) -> None:
    assert one.names == other.names
    assert one.geometry.same_grid(other.geometry, 1e-6)
    for name in one.names:
        assert np.array_equal(one.values_kji(name), other.values_kji(name)), name


def written(folder: Path, *given, name="p.nrrd", **provenance) -> Path:
    return write_probabilities(some_probabilities(*given, **provenance), folder / name)


# There and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("names", [("liver",), NAMES, tuple(map(str, range(300)))], ids=len)
def test_what_was_written_is_read(tmp_path, names, geometry):
    ours = some_probabilities(names, a_geometry(geometry))
    read = read_probabilities(write_probabilities(ours, tmp_path / "p.nrrd"))
    assert_same(ours, read)
    assert dict(read.provenance) == KNOWN


@pytest.mark.parametrize("seed", range(20))
def test_wherever_the_voxels_are(tmp_path, seed):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng, tuple(rng.integers(1, 12, 3)))
    values = {name: rng.integers(0, 256, geometry.shape_ijk[::-1]).astype(np.uint8) for name in "ab"}
    ours = probabilities_of(geometry, values)
    assert_same(ours, read_probabilities(write_probabilities(ours, tmp_path / "p.nrrd")))


def test_names_of_all_languages_come_back_and_the_header_stays_ascii(tmp_path):
    path = written(tmp_path, AWKWARD, model="Modell „ä\\ö“", notes=["a", 1.5])
    assert read_probabilities(path).names == AWKWARD
    assert read_probabilities(path).provenance["model"] == "Modell „ä\\ö“"
    header = path.read_bytes().split(b"\n\n")[0]
    assert header.isascii()
    assert b"Probability0_Name:=Leber links\n" in header


@pytest.mark.parametrize("names", [("liver",), NAMES], ids=len)
def test_others_read_the_same_values_in_the_same_place(tmp_path, names):
    import nrrd
    import SimpleITK

    ours = some_probabilities(names)
    path = write_probabilities(ours, tmp_path / "p.nrrd")
    voxels, header = nrrd.read(str(path))
    assert voxels.dtype == np.uint8
    assert (header["Probabilities_Maximum"], header["Probability0_Name"]) == ("255", "liver")
    image = SimpleITK.ReadImage(str(path))
    assert image.GetNumberOfComponentsPerPixel() == len(names)
    found = SimpleITK.GetArrayFromImage(image).reshape(*SHAPE_IJK[::-1], len(names))
    for n, name in enumerate(names):
        assert np.array_equal(voxels.reshape(*SHAPE_IJK, len(names))[..., n].T, ours.values_kji(name))
        assert np.array_equal(found[..., n], ours.values_kji(name))
    corner = image.TransformContinuousIndexToPhysicalPoint([float(size - 1) for size in SHAPE_IJK])
    wanted = (ours.geometry.ijk_to_lps @ [*(size - 1 for size in SHAPE_IJK), 1])[:3]
    assert corner == pytest.approx(wanted, abs=1e-3)
    assert read_volume(path, "1" if len(names) > 1 else None).geometry.same_grid(ours.geometry, 1e-6)


def test_no_path_and_no_prompt_is_in_the_file(tmp_path):
    home = str(Path.home() / "patients" / "mine.safetensors")
    path = written(tmp_path, NAMES, model=home, prompts={"objects": ["said"]}, nested={"file": home})
    assert str(Path.home()).encode() not in path.read_bytes()
    read = read_probabilities(path).provenance
    assert read["model"] == "mine.safetensors"
    assert "prompts" not in read
    assert str(tmp_path).encode() not in path.read_bytes()


def test_equal_results_are_equal_files(tmp_path):
    one, two = written(tmp_path, name="one.nrrd"), written(tmp_path, name="another.nrrd")
    assert one.read_bytes() == two.read_bytes()


# Whole or not at all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.seg.nrrd", "p.nii.gz", "p", ".nrrd", "p.png"])
def test_another_ending_is_refused(tmp_path, name):
    with raises("unknown-format", ExportError):
        write_probabilities(some_probabilities(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_everything_that_can_be_known_before_is_reported_before_the_work(tmp_path):
    check(tmp_path / "P.NRRD")
    (tmp_path / "old.nrrd").write_text("precious")
    check(tmp_path / "old.nrrd", overwrite=True)
    for name in ("old.nrrd", "missing/p.nrrd", "p.txt"):
        with pytest.raises(ExportError):
            check(tmp_path / name)
    with raises("output-exists", ExportError):
        written(tmp_path, name="old.nrrd")
    with raises("no-segments", ExportError):
        write_probabilities(Probabilities(a_geometry(), {}), tmp_path / "p.nrrd")
    assert (tmp_path / "old.nrrd").read_text() == "precious"
    assert os.listdir(tmp_path) == ["old.nrrd"]
    write_probabilities(some_probabilities(), tmp_path / "old.nrrd", overwrite=True)
    assert_same(read_probabilities(tmp_path / "old.nrrd"), some_probabilities())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_an_error_on_the_way_leaves_nothing_behind(tmp_path, monkeypatch, error):
    usual = Probabilities.slice_ji

    def interrupted(self, name, k):
        if k == 5:
            raise error
        return usual(self, name, k)

    monkeypatch.setattr(Probabilities, "slice_ji", interrupted)
    with pytest.raises(ExportError if isinstance(error, OSError) else error):
        written(tmp_path)
    assert not list(tmp_path.iterdir())


# Damaged and of another kind --------------------------------------------------------------------------------


def changed(path: Path, *pairs: tuple[bytes, bytes]) -> Path:
    data = path.read_bytes()
    for old, new in pairs:
        assert old in data, old
        data = data.replace(old, new, 1)
    path.write_bytes(data)
    return path


BY_OTHERS = "probabilities-changed-by-others"
WRONG = {
    "another type": ([(b"type: unsigned char", b"type: short")], "unsupported-encoding"),
    "another encoding": ([(b"encoding: gzip", b"encoding: raw")], "unsupported-encoding"),
    "elsewhere": ([(b"encoding: gzip", b"encoding: gzip\ndata file: other.gz")], "unsupported-encoding"),
    "another version": ([(b"Version:=1", b"Version:=2")], "unknown-probabilities-version"),
    "another maximum": ([(b"Maximum:=255", b"Maximum:=100")], "unknown-probabilities-version"),
    "no version": ([(b"Probabilities_Version", b"Something_Else")], "not-probabilities"),
    "a name missing": ([(b"Probability1_Name", b"Probability7_Name")], BY_OTHERS, {"unnamed": [1]}),
    "a name empty": ([(b"Probability1_Name:=tumour", b"Probability1_Name:=")], BY_OTHERS, {"unnamed": [1]}),
    "names twice": ([(b"Name:=tumour", b"Name:=liver")], "duplicate-name"),
    "a name too many": ([(b"MedSAM2.model", b"Probability3_Name")], BY_OTHERS, {"unnamed": []}),
    "a name that is no text": ([(b"Name:=tumour", b"Name:=%FF%FE")], "unreadable-file"),
    "an object more": ([(b"16 9 3", b"16 9 4")], BY_OTHERS, {"unnamed": [3]}),
    "a slice more": ([(b"20 16 9", b"20 16 10")], "truncated", {"name": "nowhere", "k": 7}),
    "a slice less": ([(b"20 16 9", b"20 16 8")], BY_OTHERS),
    "a million slices": ([(b"20 16 9", b"20 16 99999999")], "volume-too-large"),
    "no slices": ([(b"20 16 9", b"20 16 0")], "size-not-positive"),
    "negative": ([(b"20 16 9", b"-20 -16 9")], "size-not-positive"),
    "another space": ([(b"left-posterior-superior", b"right-anterior-superior")], "unsupported-space"),
    "no place": ([(b"space directions", b"#space directions")], "unreadable-file"),
    "no origin": ([(b"space origin", b"#space origin")], "unreadable-file"),
    "no sizes": ([(b"sizes:", b"#sizes:")], "unsupported-axes"),
    "other kinds": ([(b"domain list", b"domain vector")], "unsupported-axes"),
    "an axis too many": ([(b") none", b") none (1,0,0)")], "space-directions-mismatch"),
    "an axis too few": ([(b") none", b")")], "space-directions-mismatch"),
    "no direction": ([(b"directions: (", b"directions: none #(")], "unreadable-file"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_changed_file_is_one_clear_error(tmp_path, mistake):
    pairs, code, *fields = WRONG[mistake]
    path = changed(written(tmp_path), *pairs)
    with raises(code, VolumeError, **(fields[0] if fields else {})) as error:
        read_probabilities(path)
    assert "\n" not in str(error.value)
    assert error.value.fields.get("path") == str(path) or code == "size-not-positive"


def test_other_files_are_refused(tmp_path):
    import nrrd

    nrrd.write(str(tmp_path / "scan.nrrd"), np.zeros((4, 5, 6), np.uint8))
    with raises("not-probabilities", VolumeError):
        read_probabilities(tmp_path / "scan.nrrd")
    with raises("no-such-file", VolumeError):
        read_probabilities(tmp_path / "none.nrrd")
    for content in (b"", b"NRRD", b"NRRD0004\n", b"something else", gzip.compress(b"NRRD0004\n")):
        (tmp_path / "junk.nrrd").write_bytes(content)
        with pytest.raises(VolumeError) as error:
            read_probabilities(tmp_path / "junk.nrrd")
        assert error.value.fields["path"] == str(tmp_path / "junk.nrrd")
    with pytest.raises(VolumeError):
        read_probabilities(tmp_path)


def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path):
    whole = written(tmp_path).read_bytes()
    path = tmp_path / "cut.nrrd"
    for length in (*range(0, len(whole), 97), *range(len(whole) - 12, len(whole))):
        path.write_bytes(whole[:length])
        with pytest.raises(VolumeError):
            read_probabilities(path)


def test_a_flipped_bit_is_found_or_does_no_harm(tmp_path, campaign, record_property):
    ours = some_probabilities()
    whole = write_probabilities(ours, tmp_path / "p.nrrd").read_bytes()
    rng = np.random.default_rng(11)
    record_property("mutated inputs", 300 * campaign)
    for _ in range(300 * campaign):
        data = bytearray(whole)
        data[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        (tmp_path / "p.nrrd").write_bytes(data)
        try:
            read = read_probabilities(tmp_path / "p.nrrd")
        except VolumeError as error:
            assert "\n" not in str(error)
            continue
        for mine, theirs in zip(ours.names, read.names, strict=True):  # a name may have changed
            assert np.array_equal(ours.values_kji(mine), read.values_kji(theirs))


# In memory --------------------------------------------------------------------------------------------------


def test_slices_are_packed_and_come_back(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(50):
        shape = tuple(rng.integers(1, 20, 2))
        values = rng.integers(0, 256, shape).astype(np.uint8) * (rng.random(shape) < rng.random())
        packed = PackedValues.of(values.astype(np.uint8))
        assert np.array_equal(packed.values_hw(), values)
        assert packed.is_empty == (not values.any())
        mask = rng.random(shape) < 0.5
        assert np.array_equal(packed.agreeing(mask).values_hw() >= 128, mask)
        kept = packed.agreeing(packed.values_hw() >= 128)
        assert np.array_equal(kept.values_hw(), values), "what agrees stays as it is"


def test_masks_that_do_not_belong_to_them_are_counted():
    ours = some_probabilities()
    mask = ours.values_kji("liver") >= 128
    assert ours.count_differing(Segment("liver", (1, 0, 0), mask)) == 0
    other = mask.copy()
    other[2, 3, 4] ^= True
    other[8, 15, 19] ^= True
    assert ours.count_differing(Segment("liver", (1, 0, 0), other)) == 2
    assert ours.count_differing(Segment("liver", (1, 0, 0), np.zeros_like(mask))) == mask.sum()
    with raises(
        "no-probabilities-of-segment", VolumeError, segment="spleen", known=["liver", "tumour", "nowhere"]
    ):
        ours.count_differing(Segment("spleen", (1, 0, 0), mask))
    with raises("probabilities-on-another-grid", VolumeError):
        ours.count_differing(Segment("liver", (1, 0, 0), mask[1:]))


def test_what_is_not_there_is_refused():
    ours = some_probabilities()
    for k in (-1, 9):
        with raises("no-such-slice", VolumeError, slices=9):
            ours.slice_ji("liver", k)
    with raises("probabilities-on-another-grid", VolumeError, k=9):
        Probabilities(a_geometry(), {"a": {9: PackedValues.of(np.ones((16, 20), np.uint8))}})
    with raises("probabilities-on-another-grid", VolumeError, k=0):
        Probabilities(a_geometry(), {"a": {0: PackedValues.of(np.ones((2, 2), np.uint8))}})


def test_memory_stays_flat_while_a_deep_scan_is_written_and_read(tmp_path):
    shape = (300, 256, 256)
    k, j, i = np.ogrid[:300, :256, :256]
    distance = np.sqrt(((k - 150) / 1.5) ** 2 + (j - 128) ** 2 + (i - 120) ** 2)
    values = (255 / (1 + np.exp((distance - 70) / 2))).round().astype(np.uint8)
    ours = probabilities_of(Geometry(np.eye(4), shape[::-1]), {"ball": values, "again": values})
    del distance
    assert ours.nbytes < 4e6, "two objects of 20 MB each"
    tracemalloc.start()
    path = write_probabilities(ours, tmp_path / "deep.nrrd")
    read = read_probabilities(path)
    assert np.array_equal(read.slice_ji("again", 150), values[150])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.1f} MB for 40 MB of probabilities"
