"""What the page shows about an export: by codes, with ways out that there are in Slicer."""

import ast
import re

import numpy as np
import pytest
from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom.coding import terminology_of
from medsam2_core.imaging.segmentation import Segment
from MedSAM2SegmentLib.Page.ExportMessages import ERRORS, EXPECTED_NOTES, errorText, resultLine
from MedSAM2SegmentLib.Page.PageState import Level
from support.project import CORE

OPTION = re.compile(r"(?:^|[\s(`])--[a-z]|`medsam2")
# What the page does not offer: files of probabilities.
NOT_ON_PAGE = {"probabilities.py"}


def line_of(*notes):
    return resultLine({"out": "/a.dcm", "notes": [note.to_dict() for note in notes]})


def test_a_message_without_a_text_of_the_page_stays_as_it_is():
    text = "/a.dcm: there is no object to write: no segment has a voxel. Ask (somebody), please."
    assert errorText(ExportError(text, code="no-segments")) == text


def test_a_file_that_exists_can_be_replaced_by_ticking_a_box():
    text = errorText(ExportError("… or pass overwrite=True", code="output-exists", path="/a.dcm"))
    assert text == "/a.dcm exists already: choose another name, or tick 'Replace existing files'"


def test_a_worker_of_another_version_may_lack_fields():
    error = ExportError("/a.dcm exists already", code="output-exists")
    assert errorText(error) == "/a.dcm exists already"


@pytest.mark.parametrize("code", ["assumed-manual", "coded-as-tissue", "placed-on-series-grid"])
def test_what_the_user_chose_or_what_is_always_so_is_not_shown(code):
    line = line_of(Note.info(code, "a sentence"))
    assert (line.text, line.level) == ("/a.dcm is written.", Level.OK)


def test_what_is_good_to_know_is_shown_and_no_warning():
    line = line_of(Note.info("coded-by-name", "'Liver': coded by name"))
    assert (line.text, line.level) == ("/a.dcm is written. Note: 'Liver': coded by name.", Level.OK)


def test_what_may_be_unexpected_is_a_warning():
    line = line_of(
        Note.info("coded-by-name", "'A': coded by name"), Note.warning("volume-moved", "it was moved.")
    )
    assert line.level is Level.WARNING
    assert line.text.endswith("Note: it was moved.")
    assert resultLine({"out": "/a.dcm"}, [Note.warning("x", "it changed")]).level is Level.WARNING


def test_notes_that_are_none_are_left_out():
    line = resultLine({"out": "/a.dcm", "notes": ["text", {"code": 3}, {"code": "a", "message": "b"}, None]})
    assert (line.text, line.level) == ("/a.dcm is written. Note: b.", Level.WARNING)


def option_messages():
    """(file, line, code) of errors and notes whose message names an option of the command line."""
    for path in sorted({*CORE.glob("export/**/*.py"), *CORE.glob("imaging/**/*.py"), CORE / "atomic.py"}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            texts = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant)]
            if not name.endswith("Error") and not name.startswith("Note"):
                continue
            if not any(isinstance(text, str) and OPTION.search(text) for text in texts):
                continue
            codes = [one.value for one in call.keywords if one.arg == "code"] or call.args[:1]
            yield path.name, call.lineno, getattr(codes[0], "value", "")


def test_messages_in_terms_of_the_command_line_have_a_text_of_the_page():
    known = {*ERRORS, *EXPECTED_NOTES}
    found = [one for one in option_messages() if one[0] not in NOT_ON_PAGE and one[2] not in known]
    assert found == []


def test_too_much_that_would_be_lost_ends_in_what_the_page_can_do():
    fields = {"segment": "vessel", "lost": 0.123, "most_lost": 0.05}
    text = errorText(ExportError("… allow more", code="resampling-loss-too-large", **fields))
    assert text.startswith("'vessel': 12.3% of it would be lost")
    assert text.endswith("choose the source volume it was drawn on, or another format")


def test_the_way_out_for_a_segment_without_a_code_is_one_of_slicer():
    segment = Segment("Segment_1", (1, 0, 0), np.ones((1, 1, 1), dtype=bool))
    with pytest.raises(ExportError) as caught:
        terminology_of(segment, None, allow_generic=False)
    assert errorText(caught.value) == (
        "segment 'Segment_1': no code says what it is: double click its colour in the Segment Editor and "
        "choose what it is, or tick 'Tissue for segments without a code'"
    )
