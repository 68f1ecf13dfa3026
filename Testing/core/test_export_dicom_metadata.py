"""What the user writes for --segments is understood, or refused with the place and the value."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medsam2_core.errors import ExportError
from medsam2_core.export.dicom.coding import code_item, term_for
from medsam2_core.export.dicom.segment_metadata import ExportMetadata, read_metadata
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Label, Segment, Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.terminology import Code
from support.dicom_seg import Part, a_seg, two_masks
from support.errors import raises
from support.small_files import write_nifti

LIVER = {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}
KIDNEY = {"CodeValue": "64033007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Kidney"}
LEFT = {"CodeValue": "7771000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Left"}
CYST = {"CodeValue": "367643001", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Cyst"}
STRUCTURE = {"CodeValue": "123037004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
ALTERED = {**STRUCTURE, "CodeValue": "49755003", "CodeMeaning": "Morphologically Altered Structure"}
DCMQI = {
    "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/seg-schema.json#",
    "ContentCreatorName": "Doe^Jane",
    "ClinicalTrialSeriesID": "Session1",
    "SeriesDescription": "Second reading",
    "SeriesNumber": "300",
    "segmentAttributes": [
        [
            {
                "labelID": 1,
                "SegmentLabel": "Liver",
                "SegmentDescription": "by hand",
                "SegmentedPropertyCategoryCodeSequence": STRUCTURE,
                "SegmentedPropertyTypeCodeSequence": LIVER,
                "SegmentAlgorithmType": "SEMIAUTOMATIC",
                "SegmentAlgorithmName": "Editor",
                "recommendedDisplayRGBValue": [255, 0, 51],
                "TrackingIdentifier": "Liver 1",
                "TrackingUniqueIdentifier": "1.2.826.0.1.3680043",
            },
            {
                "labelID": 2,
                "SegmentedPropertyCategoryCodeSequence": ALTERED,
                "SegmentedPropertyTypeCodeSequence": CYST,
                "AnatomicRegionSequence": KIDNEY,
                "AnatomicRegionModifierSequence": LEFT,
                "SegmentAlgorithmType": "MANUAL",
            },
        ]
    ],
}
SHORT = {
    "liver": "SCT^10200004^Liver",
    "left one": "left kidney",
    "thing": {
        "type": "SCT^4147007^Mass",
        "region": LIVER,
        "label": "Mass in the liver",
        "description": "seen by two",
        "colour": [0, 255, 0],
        "algorithm_type": "AUTOMATIC",
        "algorithm_name": "Finder 2",
        "tracking_id": "M1",
        "tracking_uid": "1.2.3",
    },
    "SeriesDescription": "Mine",
    "SeriesNumber": 7,
}


@pytest.fixture
def written(tmp_path):
    def write(content) -> object:
        path = tmp_path / "meta.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def changed(**fields) -> dict:
    """dcmqi's form with one segment, some of whose fields are other ones; None takes one away."""
    entry = {**DCMQI["segmentAttributes"][0][0], **fields}
    return {"segmentAttributes": [[{key: value for key, value in entry.items() if value is not None}]]}


def test_the_form_of_dcmqi_is_read(written):
    requested = read_metadata(written(DCMQI))
    assert (requested.series_description, requested.series_number, requested.creator) == (
        *("Second reading", 300, "Doe^Jane"),
    )
    liver, cyst = requested.segments
    assert (liver.name, liver.number, liver.label, liver.description) == ("Liver", 1, "Liver", "by hand")
    assert liver.terminology == term_for("liver")
    assert liver.colour == (1.0, 0.0, 0.2)
    assert (liver.algorithm_type, liver.algorithm_name) == ("SEMIAUTOMATIC", "Editor")
    assert (liver.tracking_id, liver.tracking_uid) == ("Liver 1", "1.2.826.0.1.3680043")
    assert cyst.terminology == term_for("left kidney cyst")
    assert (cyst.name, cyst.number, cyst.colour) == (None, 2, None)
    (note,) = requested.notes
    assert (note.code, note.fields) == ("metadata-key-ignored", {"key": "ClinicalTrialSeriesID"})


def test_the_short_form_is_read(written):
    requested = read_metadata(written(SHORT))
    assert (requested.series_description, requested.series_number, requested.creator) == ("Mine", 7, None)
    assert requested.of("liver").terminology == term_for("liver")
    assert requested.of("left one").terminology == term_for("kidney left")
    thing = requested.of("thing")
    assert thing.terminology == term_for("liver mass")
    assert (thing.label, thing.description, thing.colour) == ("Mass in the liver", "seen by two", (0, 1, 0))
    assert (thing.algorithm_type, thing.algorithm_name) == ("AUTOMATIC", "Finder 2")
    assert (thing.tracking_id, thing.tracking_uid) == ("M1", "1.2.3")
    assert requested.of("nothing") is None


def test_what_is_read_can_be_written_to_dicom(written):
    for content in (DCMQI, SHORT):
        for entry in read_metadata(written(content)).segments:
            assert code_item(entry.terminology.type).CodingSchemeDesignator == "SCT"


def test_names_are_compared_without_case_and_underscores(written):
    requested = read_metadata(written({"Left_Kidney": "left kidney"}))
    assert requested.of("left kidney") is requested.of("LEFT-KIDNEY") is requested.segments[0]


def test_a_colour_may_be_in_cielab(written):
    fields = {"recommendedDisplayRGBValue": None, "RecommendedDisplayCIELabValue": [65535, 32896, 32896]}
    (entry,) = read_metadata(written(changed(**fields))).segments
    assert entry.colour == pytest.approx((1, 1, 1), abs=0.01)


def segments_called(*names):
    grid = Geometry(np.eye(4), (2, 2, 2))
    return Segmentation.from_masks(grid, dict.fromkeys(names, np.ones((2, 2, 2), bool)))


def test_numbers_count_only_where_no_name_fits(written):
    requested = read_metadata(written(DCMQI))
    assert requested.of("Segment_1", 1).name == "Liver"
    assert requested.of("LIVER", 2).name == "Liver"
    assert requested.of("other", 3) is None


def test_a_list_in_another_order_does_not_call_the_spleen_a_liver(written):
    content = changed()  # label value 1 is the liver
    bound = read_metadata(written(content)).matched_to(segments_called("spleen", "liver"))
    assert bound.of("spleen", 1) is None
    assert bound.of("liver", 2).terminology == term_for("liver")


def test_entries_without_a_fitting_name_go_by_number(written):
    bound = read_metadata(written(DCMQI)).matched_to(segments_called("Segment_1", "Segment_2"))
    assert bound.of("Segment_1").terminology == term_for("liver")
    assert bound.of("Segment_2").terminology == term_for("left kidney cyst")


def test_segments_of_one_label_are_distinguished_by_number(written):
    entry = changed()["segmentAttributes"][0][0]
    content = {"segmentAttributes": [[entry, {**entry, "labelID": 2, "SegmentAlgorithmType": "MANUAL"}]]}
    bound = read_metadata(written(content)).matched_to(segments_called("a", "b"))
    assert [entry.algorithm_type for entry in bound.segments] == ["SEMIAUTOMATIC", "MANUAL"]
    assert [entry.label for entry in bound.segments] == ["Liver", "Liver"]


def test_one_file_may_serve_segmentations_that_have_not_all_it_describes(written):
    bound = read_metadata(written(SHORT)).matched_to(segments_called("liver", "left one"))
    assert [note.code for note in bound.notes] == ["metadata-unmatched"]
    bound = read_metadata(written(DCMQI)).matched_to(segments_called("liver"))
    assert [entry.name for entry in bound.segments] == ["liver"]


def test_a_file_that_describes_nothing_there_is_refused(written):
    with raises("metadata-for-no-segment", ExportError, segments={"a": 1, "b": 2}):
        read_metadata(written(SHORT)).matched_to(segments_called("a", "b"))


def test_a_plain_label_map_gets_names_from_a_list_by_value(written, tmp_path):
    voxels = np.zeros((4, 5, 6), dtype=np.uint8)
    voxels[1, 1, 1], voxels[2, 2, 2], voxels[3, 3, 3] = 2, 7, 9
    read = read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    short = {"2": "spleen", "7": "kidney_right", "9": {"name": "liver", "label": "Leber"}}
    bound = read_metadata(written(short)).matched_to(read)
    assert [bound.of(name).label for name in ("2", "7", "9")] == ["spleen", "kidney_right", "Leber"]
    assert bound.of("7").terminology == term_for("right kidney")


def test_numbers_are_label_values_of_the_file_whatever_their_order(written, tmp_path):
    voxels = np.zeros((4, 5, 6), dtype=np.uint8)
    voxels[1, 1, 1], voxels[2, 2, 2] = 2, 7
    read = read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    first, second = (dict(entry) for entry in DCMQI["segmentAttributes"][0])
    first["labelID"], second["labelID"] = 7, 2
    bound = read_metadata(written({"segmentAttributes": [[first, second]]})).matched_to(read)
    assert bound.of("7").terminology == term_for("liver")
    assert bound.of("2").terminology == term_for("left kidney cyst")
    first["labelID"], second["labelID"] = 1, 3
    with raises("metadata-for-no-segment", ExportError, segments={"2": 2, "7": 7}):
        read_metadata(written({"segmentAttributes": [[first, second]]})).matched_to(read)


def test_numbers_of_a_dicom_segmentation_may_have_gaps(written, tmp_path):
    dataset = a_seg(
        [Part(mask, name) for mask, name in zip(two_masks(), ("a", "b"), strict=True)], "LABELMAP"
    )
    values = np.frombuffer(dataset.PixelData, np.uint8).copy()
    values[values == 2] = 5
    dataset.PixelData = values.tobytes()
    dataset.SegmentSequence[-1].SegmentNumber = 5
    dataset.save_as(tmp_path / "a.dcm")
    requested = read_metadata(written(changed(labelID=5, SegmentLabel=None)))
    assert [entry.name for entry in requested.matched_to(read_segmentation(tmp_path / "a.dcm")).segments] == [
        "b"
    ]


def test_a_value_that_is_on_two_layers_names_nobody(written):
    def with_values(values):
        segments = (
            Segment(name, (1, 0, 0), np.ones((2, 2, 2), bool), label=value and Label(name, value, layer))
            for layer, (name, value) in enumerate(values.items())
        )
        return Segmentation(Geometry(np.eye(4), (2, 2, 2)), tuple(segments))

    requested = read_metadata(written(DCMQI))
    several = {"a": 1, "b": 1, "c": 2}
    with raises("metadata-ambiguous", ExportError, name="Liver", number=1, segments=several):
        requested.matched_to(with_values(several))
    bound = requested.matched_to(with_values({"liver": 1, "b": 1, "c": 2}))
    assert [entry.name for entry in bound.segments] == ["liver", "c"]
    with raises("metadata-duplicate", ExportError, number=2):
        requested.matched_to(with_values({"liver": 2, "b": None}))


def test_segments_from_no_file_are_counted(written):
    masks = {"x": np.ones((2, 3, 4), bool), "y": np.ones((2, 3, 4), bool)}
    made = Segmentation.from_masks(Geometry(np.eye(4), (4, 3, 2)), masks)
    assert [entry.name for entry in read_metadata(written(DCMQI)).matched_to(made).segments] == ["x", "y"]


def test_of_very_many_segments_a_message_names_some(written):
    with raises("metadata-for-no-segment", ExportError) as error:
        read_metadata(written(SHORT)).matched_to(segments_called(*(f"n{number}" for number in range(300))))
    assert str(error.value).endswith("'n29' (30), 270 more")


def test_a_code_known_nowhere_needs_its_category(written):
    told = {"location": "meta.json: segment 'thing'", "problem": "the type '99X^1^Mine' needs a category"}
    with raises("invalid-metadata", ExportError, **told):
        read_metadata(written({"thing": "99X^1^Mine"}))
    both = {"thing": {"type": "99X^1^Mine", "category": "SCT^85756007^Tissue"}}
    assert read_metadata(written(both)).of("thing").terminology.type == Code("99X", "1", "Mine")


def test_keys_dcmqi_does_not_have_are_reported_and_passed_over(written):
    content = {**changed(Extra=1), "More": 2}
    notes = read_metadata(written(content)).notes
    assert [(note.code, note.fields["key"]) for note in notes] == [
        ("metadata-key-unknown", "More"),
        ("metadata-key-unknown", "Extra"),
    ]


INTEGER = "expected a whole number from 0 to 2147483647"
COLOUR = "expected a list of three whole numbers from 0 to 255"
CODE = "expected scheme^value^meaning, or an object of CodingSchemeDesignator, CodeValue, CodeMeaning"
TEXT = "expected text that is not empty"
ENTRY, FIRST = "segment 'liver'", "segment 1 of segmentAttributes"
TYPE_OF_FIRST = f"{FIRST}: SegmentedPropertyTypeCodeSequence"


def liver(**entry):
    return {"liver": {"name": "liver", **entry}}


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        ("", "", "is not JSON"),
        ("{", "", "is not JSON"),
        ("[" * 100_000, "", None),  # depends on Python's limit
        ("[1]", "", "expected an object {…}"),
        ('{"a": ' + "9" * 5000 + "}", "", "is not JSON"),
        ('{"a": "liver", "a": "spleen"}', "", "has a key twice"),
        ({"liver": "hepar"}, ENTRY, "expected a code scheme^value^meaning, or a name that has a code"),
        ({"liver": "SCT^1"}, f"{ENTRY}: type", CODE),
        ({"liver": "SCT^^Liver"}, f"{ENTRY}: type: CodeValue", TEXT),
        ({"liver": 3}, ENTRY, None),
        ({"liver": {"typ": "SCT^1^a"}}, ENTRY, "unknown key 'typ'"),
        (
            {"liver": {"category": "SCT^85756007^Tissue"}},
            ENTRY,
            "has no code for a type, only for other codes",
        ),
        (
            {"liver": {"type": LIVER, "region_modifier": LEFT}},
            *(ENTRY, "has no code for a region, only for its modifier"),
        ),
        (liver(type=LIVER), ENTRY, "has both a name and codes; give one of them"),
        (liver(colour=[1, 2]), f"{ENTRY}: colour", COLOUR),
        (liver(colour=[1, 2, True]), f"{ENTRY}: colour", COLOUR),
        (liver(label="x" * 65), f"{ENTRY}: label", "expected at most 64 characters"),
        (liver(label="a\\b"), f"{ENTRY}: label", "expected text on one line, without backslash"),
        (liver(tracking_uid="1.02"), f"{ENTRY}: tracking_uid", "expected a UID of numbers and dots"),
        ({"liver": "liver", "SeriesNumber": -1}, "SeriesNumber", INTEGER),
        ({"liver": "liver", "SeriesNumber": "12x"}, "SeriesNumber", INTEGER),
        ({"liver": "liver", "SeriesDescription": "\n"}, "SeriesDescription", TEXT),
        ({"segmentAttributes": {}}, "segmentAttributes", "expected a list of lists of segments"),
        ({"segmentAttributes": [[3]]}, FIRST, "expected an object {…}"),
        (
            changed(SegmentAlgorithmType="ROBOT"),
            *(f"{FIRST}: SegmentAlgorithmType", "expected one of MANUAL, SEMIAUTOMATIC, AUTOMATIC"),
        ),
        (
            changed(SegmentedPropertyTypeCodeSequence={**LIVER, "CodeValue": ""}),
            *(f"{TYPE_OF_FIRST}: CodeValue", TEXT),
        ),
        (changed(SegmentedPropertyTypeCodeSequence={"CodeValue": "1"}), TYPE_OF_FIRST, CODE),
        (changed(recommendedDisplayRGBValue=[0, 0, 256]), f"{FIRST}: recommendedDisplayRGBValue", COLOUR),
        (changed(labelID="one"), f"{FIRST}: labelID", INTEGER),
        (
            changed(labelID=None, SegmentLabel=None),
            *(FIRST, "has neither labelID nor SegmentLabel to say which segment it is"),
        ),
    ],
)
def test_bad_values_are_reported_with_their_place(written, content, place, problem):
    location = f"meta.json: {place}" if place else "meta.json"
    told = {"problem": problem} if problem else {}
    with raises("invalid-metadata", ExportError, location=location, **told) as error:
        read_metadata(written(content))
    assert len(str(error.value)) < 400


def test_files_that_are_no_lists_of_segments_are_refused(tmp_path):
    (tmp_path / "volume.nrrd").write_bytes(bytes(range(256)) * 10)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(17 << 20)
    for path, problem in (
        (tmp_path / "none.json", "cannot be read"),
        (tmp_path, "cannot be read"),
        (tmp_path / "volume.nrrd", "is not a text file in UTF-8"),
        (large, "is too large"),
        (Path("a\0b.json"), "is not a text file in UTF-8"),
    ):
        with raises("invalid-metadata", ExportError, location=path.name, problem=problem):
            read_metadata(path)


def test_an_empty_list_asks_for_nothing(written):
    assert read_metadata(written({})) == ExportMetadata()
    assert ExportMetadata().matched_to(segments_called("a")) == ExportMetadata()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(content, path=()):
    """Every place in a JSON value, as the keys that lead there."""
    yield path
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        yield from _places(value, (*path, key))


def _with(content, path, value):
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = _with(content[path[0]], path[1:], value)
    return copy


@given(base=st.sampled_from([DCMQI, SHORT]), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_whatever_is_in_the_file_is_read_or_refused(written, base, data):
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(_places(base))))
        base = _with(base, place, data.draw(ANY_JSON))
    try:
        requested = read_metadata(written(base)).matched_to(segments_called("Liver", "left one", "thing"))
    except ExportError as error:
        assert str(error)
    else:
        for entry in requested.segments:
            if entry.terminology is not None:
                code_item(entry.terminology.type)


def test_damaged_files_are_read_or_refused(written, tmp_path):
    draw = random.Random(5)
    whole = [json.dumps(content).encode() for content in (DCMQI, SHORT)]
    refused = 0
    for _ in range(500):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            data[at : at + draw.randint(0, 9)] = bytes(draw.randrange(256) for _ in range(draw.randint(0, 3)))
        path = tmp_path / "meta.json"
        path.write_bytes(data)
        try:
            read_metadata(path)
        except ExportError:
            refused += 1
    assert refused > 250


def test_a_number_never_means_a_place_in_the_list(tmp_path):
    from medsam2_core.export.dicom.descriptions import describe
    from medsam2_core.export.dicom.segment_metadata import ExportMetadata, SegmentMetadata

    voxels = np.zeros((4, 5, 6), dtype=np.uint8)
    voxels[1, 1, 1], voxels[2, 2, 2] = 2, 7
    read = read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    second = ExportMetadata((SegmentMetadata(number=2, terminology=term_for("liver")),))
    types = [term.type.meaning for term in describe(read, second, generic=True).terminologies]
    assert types == ["Liver", "Tissue"]
