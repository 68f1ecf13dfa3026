"""What the command says about an export, in words of the page: nobody there can type an option."""

import ast
import re

import numpy as np
import pytest
from medsam2_core.errors import ExportError
from medsam2_core.export.dicom.coding import terminology_of
from medsam2_core.export.resampling import onto_grid
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation
from MedSAM2SegmentLib.Panels.ExportWords import inWords, lineOf
from MedSAM2SegmentLib.Panels.ModulePageState import Kind
from support.project import CORE

SPOKEN = ["export/**/*.py", "atomic.py", "imaging/**/*.py", "cli/export.py", "cli/app.py", "errors.py"]
OPTION = re.compile(r"(?:^|[\s(`])--[a-z]|`medsam2")


def said_by(path):
    """Texts of a file, each as it is put together, with something in place of every value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [one.value if isinstance(one, ast.Constant) else "'Liver 2'" for one in node.values]
            yield "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.value


def what_the_command_says():
    files = {path for pattern in SPOKEN for path in CORE.glob(pattern)}
    texts = {text for path in files for text in said_by(path) if " " in text and "\n" not in text}
    return sorted(text for text in texts if OPTION.search(text))


@pytest.mark.parametrize("text", what_the_command_says())
def test_no_line_of_the_page_has_an_option_of_the_command_line(text):
    for words in (inWords(text), lineOf({"out": "/a.dcm", "notes": [text]}).text):
        assert not OPTION.search(words)
        assert "( " not in words
        assert not re.search(r"[,;:]\s*[,;:.]|\(\)|\s[,;.](\s|$)|[.:], ", words), words


def test_there_is_something_to_be_translated():
    assert len(what_the_command_says()) > 5


def test_what_a_user_has_named_like_an_option_stays():
    assert inWords("'a--b': it has no voxels") == "'a--b': it has no voxels"
    assert inWords("segment '--generic': it has no voxels") == "segment '--generic': it has no voxels"


def test_a_message_without_advice_for_the_command_line_stays_as_it_is():
    text = "/a.dcm: there is no object to write: no segment has a voxel. Ask (somebody), please."
    assert inWords(text) == text


def test_too_much_that_would_be_lost_ends_in_what_the_page_can_do():
    mask_kji = np.zeros((6, 60, 60), dtype=bool)
    mask_kji[2:4, 10:13, 10:50] = True
    fine = Geometry(np.diag([1 / 3, 1 / 3, 1, 1]), (60, 60, 6))
    with pytest.raises(ExportError) as told:
        onto_grid(
            Segmentation.from_masks(fine, {"vessel": mask_kji}),
            Geometry(np.diag([2.0, 2, 2, 1]), (10, 10, 3)),
        )
    words = inWords(str(told.value))
    assert words.startswith("'vessel': ")
    assert words.endswith("choose the source volume it was drawn on, or another format")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "/a.dcm exists already: choose another name, or add --overwrite",
            "/a.dcm exists already: choose another name, or tick 'Replace existing files'",
        ),
        (
            "the series: holds 2 series, choose one by number or UID:",
            "the series: holds 2 series, take the volume as Slicer's DICOM database loads it: import the "
            "series again",
        ),
        ("the volume was turned: undo that, or write .seg.nrrd",
         "the volume was turned: undo that, or choose another format"),
        ("--dicom the series is a single image, and the segmentation has several slices",
         "the series is a single image, and the segmentation has several slices"),
        ("--dicom '/a b': there is no such folder or file", "'/a b': there is no such folder or file"),
        ("it cannot be. Write .seg.nrrd or .nii.gz instead", "it cannot be. Choose another format"),
        ("2 frames take 5 GB: choose --compression rle, or another kind",
         "2 frames take 5 GB: choose the compression RLE, or another kind"),
    ],
)  # fmt: skip
def test_advice_becomes_that_of_the_page(said, words):
    assert inWords(said) == words


def test_the_way_out_for_a_segment_without_a_code_is_one_of_slicer():
    with pytest.raises(ExportError) as told:
        terminology_of(
            Segment("Segment_1", (1, 0, 0), np.ones((1, 1, 1), dtype=bool)), None, allow_generic=False
        )
    assert inWords(str(told.value)) == (
        "segment 'Segment_1': no code says what it is: double click its colour in the Segment Editor and "
        "choose what it is, or tick 'Tissue for segments without a code'"
    )


@pytest.mark.parametrize(
    ("note", "isTold"),
    [
        ("'Liver': nothing says how they were made: written as MANUAL (algorithm_type in --segments says "
         "otherwise)", False),
        ("'A', 'B': coded as Tissue, which says nothing about them", False),
        ("the segmentation's 2 x 3 x 4 voxels were put into their places among the series' 5 x 6 x 7", False),
        ("'Liver': coded by name", True),
        ("'C' has no voxel and is left out", True),
        ("'C' has no voxel: it has no diameters", True),
    ],
)  # fmt: skip
def test_an_ordinary_export_is_no_warning(note, isTold):
    line = lineOf({"out": "/a.dcm", "notes": [note]})
    assert line.kind is Kind.GOOD
    assert ("Note" in line.text) == isTold


def test_what_is_other_than_one_may_think_is_one():
    for note in ("the volume was moved by 20.0 mm", "'A': 'x' is no algorithm type: written as MANUAL"):
        assert lineOf({"out": "/a.dcm", "notes": [note]}).kind is Kind.WARNING
    line = lineOf({"out": "/a.dcm"}, ["'sheet': 1.3% of it changed"])
    assert (line.text, line.kind) == ("/a.dcm is written. Note: 'sheet': 1.3% of it changed.", Kind.WARNING)
