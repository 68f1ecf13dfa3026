"""Segments get the right code, by given, by what they carry or by their name, or none at all."""

import json
import re
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medsam2_core.errors import ExportError
from medsam2_core.export.dicom import coding
from medsam2_core.export.dicom.coding import (
    GENERIC,
    SIDES,
    code_item,
    format_terminology,
    is_specific,
    known_terms,
    shorten,
    term_for,
    terminology_of,
    usual_meaning,
)
from medsam2_core.imaging.segmentation import Segment
from medsam2_core.imaging.terminology import NO_CODE, TISSUE, Code, Terminology
from support.errors import raises

# In use for years, and read in other lists of the same terminology; pydicom's dictionary, which holds what
# DICOM's own context groups name, does not have them.
NOT_IN_DICOM = {
    *("48535007", "78247007", "25888004", "25523003", "15339008", "59558009", "24915002", "5953002"),
    *("22565002", "77644006", "58830002", "43993008"),  # ribs
    *("65985001", "3572006", "360499006"),  # S1, vertebral body, disc
    *("206007", "78333006", "75297007", "68455001", "244849004"),  # gluteal muscles, iliopsoas, back
    *("79368004", "52927003", "85002005", "88938001", "52410001", "18252004"),  # muscles of head and neck
    *("74281007", "110765007", "63190004", "29627003", "74386004"),  # myocardium, veins, neck of femur, nose
    *("64163001", "73239005", "50403003", "102297006", "18911002", "52737000", "34381000"),
    *("67923007", "49557009", "36582005", "7173007", "80169004", "88481005", "46105003"),
    *("52940008", "8600008", "77578007", "90228003", "67769002", "91381003", "113276009"),
}
_ORGANS = (
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
    "adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right "
    "lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum "
    "colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 heart aorta "
    "pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
    "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left "
    "brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava "
    "portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right "
    "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left "
    "femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right "
    "gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left "
    "autochthon_right iliopsoas_left iliopsoas_right brain skull sternum costal_cartilages "
    "heart_myocardium heart_atrium_left heart_atrium_right heart_ventricle_left heart_ventricle_right "
    "pulmonary_artery face lung_left lung_right vertebrae intervertebral_discs"
)
TOTALSEGMENTATOR = _ORGANS.split()
TOTALSEGMENTATOR += [
    f"vertebrae_{v}{n}" for v, most in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, most + 1)
]
TOTALSEGMENTATOR += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
# The Medical Segmentation Decathlon, BTCV, AMOS, FLARE, KiTS, ACDC, FreeSurfer, and classes of our test data.
_OTHERS = (
    "edema; non-enhancing tumor; enhancing tumour; left atrium; liver; cancer; liver tumour; PZ; TZ; lung "
    "cancer; pancreas; hepatic vessel; colon cancer primaries; kidney; kidney tumor; kidney cyst; left "
    "adrenal gland; right kidney; gall bladder; esophagus; postcava; bladder; portal vein and splenic "
    "vein; inferior vena cava; LV cavity; RV cavity; myocardium; Left-Hippocampus; Right-Inf-Lat-Vent; "
    "3rd-Ventricle; Left-Caudate; Brain-Stem; Left-Cerebellum-Cortex; Right-Accumbens-area; anterior "
    "hippocampus; hippocampus posterior; nerve; vessel; lesion; spleen; hippocampus; optic disc; cervix; "
    "femur; spinal cord; breast mass; CSF"
)
OTHERS = _OTHERS.split("; ")


def words_of(text: str) -> set[str]:
    """Of a meaning, without what says no more than that it is a concept of anatomy."""
    return set(re.findall(r"[a-z0-9]+", text.lower())) - {
        "of",
        "the",
        "structure",
        "body",
        "and",
        "or",
        "part",
    }


def a_segment(name: str, terminology: Terminology | None = None) -> Segment:
    return Segment(name, (1, 0, 0), np.ones((2, 2, 2), bool), terminology)


def codes_of_the_table() -> list[Code]:
    terms = [term.terminology for term in known_terms()]
    return [code for t in terms for code in (t.category, t.type, t.type_modifier, t.region) if code.value]


def test_every_code_is_the_one_dicom_has_for_that_meaning():
    from pydicom.sr._concepts_dict import concepts

    known: dict[str, list[str]] = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            known.setdefault(value, []).append(meaning)
    wrong = []
    for code in {*codes_of_the_table(), *SIDES.values()}:
        meanings = known.get(code.value)
        if meanings is None:
            if code.value not in NOT_IN_DICOM:
                wrong.append(f"{code}: not known")
        elif not any(_alike(code.meaning, meaning) for meaning in meanings):
            wrong.append(f"{code}: is {meanings}")
    assert not wrong, "\n".join(wrong)


def _alike(ours: str, theirs: str) -> bool:
    """Same words, but for spelling (PS3.16 writes grey and gray, and once Peritioneum) and older names."""
    spelt = [text.replace("Grey", "Gray").replace("Peritioneum", "Peritoneum") for text in (ours, theirs)]
    return words_of(spelt[0]) <= words_of(spelt[1]) or (ours, theirs) in {
        ("Morphologically Altered Structure", "Morphologically Abnormal Structure"),
        ("Right and left", "Bilateral"),
        ("Anatomical Structure", "Body structure (body structure)"),
        ("Thorax", "Thoracic structure (body structure)"),
        ("Abdomen", "Abdominal structure (body structure)"),
        ("Pelvis", "Pelvic structure (body structure)"),
    }


def test_every_name_means_one_thing():
    meant: dict[tuple, set[str]] = {}
    for term in known_terms():
        for key in coding._keys(term):
            meant.setdefault(key, set()).add(term.name)
    assert not {key: names for key, names in meant.items() if len(names) > 1}
    names = Counter(term.name for term in known_terms())
    assert max(names.values()) == 1


def test_adjectives_are_not_names_of_other_places():
    for term in known_terms():
        for word in term.adjectives:
            assert term_for(word) is None, word


def test_the_table_has_no_key_nobody_reads():
    lines = json.loads(files(coding.__package__).joinpath("terms.json").read_text(encoding="utf-8"))["terms"]
    assert {key for line in lines for key in line} == {
        *("name", "also", "category", "type", "modifier", "region"),
        *("sides", "within", "numbered", "adjectives"),
    }


def test_each_term_is_found_by_all_its_names():
    for term in known_terms():
        for name in (term.name, *term.synonyms):
            found = term_for(name)
            assert found is not None, name
            assert found.type == term.terminology.type, name


@pytest.mark.parametrize("name", TOTALSEGMENTATOR)
def test_the_classes_of_totalsegmentator_have_codes(name):
    found = term_for(name)
    assert found is not None
    for side in ("left", "right"):
        if side in name.split("_"):
            # on the left: said by a modifier, or by what it is
            said = (found.type_modifier, found.region_modifier)
            assert SIDES[side] in said or side in found.type.meaning.lower()


@pytest.mark.parametrize("name", OTHERS)
def test_the_classes_of_other_data_sets_have_codes(name):
    assert term_for(name) is not None


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["Left kidney", "kidney_L", "kidneys, left", "LeftKidney", "LT KIDNEY"],
            "Kidney, Left (SCT 64033007)",
        ),
        (["oesophagus", "Esophagus", "OESOPHAGUS"], "Esophagus (SCT 32849002)"),
        (["both lungs", "bilateral lungs"], "Lung, Right and left (SCT 39607008)"),
        (["vertebra L1", "L1 vertebra", "vertebrae_L1"], "L1 vertebra (SCT 66794005)"),
        (["rib_left_1", "Rib01_L", "left first rib"], "First rib, Left (SCT 48535007)"),
        (["left upper lobe of lung", "lung_upper_lobe_left"], "Upper lobe of lung, Left (SCT 45653009)"),
        (["haematomas", "Hematoma 3"], "Hematoma (SCT 35566002)"),
        (["left ventricle", "heart_ventricle_left"], "Left Ventricle (SCT 87878005)"),
        (["lateral ventricle left", "Left-Lateral-Ventricle"], "Lateral ventricle, Left (SCT 66720007)"),
        (["anterior hippocampus"], "Hippocampus, Anterior (SCT 5366008)"),
        (["lung nodule 2", "nodules in the lung"], "Nodule in Lung (SCT 27925004)"),
        (["left renal cyst", "kidney_cyst_left"], "Cyst in Kidney, Left (SCT 367643001)"),
        (["right middle lobe mass"], "Mass in Middle lobe of right lung (SCT 4147007)"),
        (["primary liver tumour"], "Neoplasm, Primary in Liver (SCT 372087000)"),
        (["left pleural effusion"], "Effusion in Pleural cavity, Left (SCT 41699000)"),
    ],
)
def test_spelling_does_not_matter(names, told):
    for name in names:
        found = term_for(name)
        assert found is not None and format_terminology(found) == told, name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "  ",
            "1",
            "segment 1",
            "label_3",
            "my liver",
            "liver?x",
            "thing",
            "tissue",
            "L1",
            "T2",
            "\ud800",
        ),
        *("left liver", "left right kidney", "left and right kidney", "left anterior hippocampus", "liver 2"),
        *("ventricle", "kidney lung", "tumour tumour", "liver liver", "left spleen lesion", "caudate", "²"),
        "9" * 5000,
    ],
)
def test_what_is_not_in_the_table_is_not_guessed(name):
    assert term_for(name) is None


@given(st.text(max_size=40))
def test_any_text_may_be_asked_for(text):
    found = term_for(text)
    assert found is None or is_specific(found)


def test_tissue_somewhere_is_not_specific():
    skin = Code("SCT", "39937001", "Skin")
    assert not is_specific(GENERIC)
    assert not is_specific(Terminology(TISSUE.category, Code("SRT", "T-D0050", "Tissue")))
    assert not is_specific(Terminology(TISSUE.category, NO_CODE))
    assert is_specific(Terminology(TISSUE.category, TISSUE.type, region=Code("SCT", "10200004", "Liver")))
    assert is_specific(Terminology(TISSUE.category, skin))


def test_the_users_word_comes_before_the_segments_and_that_before_its_name():
    mass = Terminology(
        Code("SCT", "49755003", "Morphologically Altered Structure"), Code("SCT", "4147007", "Mass")
    )
    spleen = term_for("spleen")
    carries, bare = a_segment("liver", spleen), a_segment("liver")
    assert terminology_of(carries, mass, allow_generic=False) == (mass, None)
    assert terminology_of(carries, None, allow_generic=False) == (spleen, None)
    found, note = terminology_of(bare, None, allow_generic=False)
    assert found == term_for("liver")
    assert note is not None and (note.code, note.fields) == ("coded-by-name", {"segments": ["liver"]})
    assert terminology_of(bare, allow_generic=True)[0] == term_for("liver")


def test_without_a_code_the_ways_out_are_given():
    segment = a_segment("thing")
    with raises("no-segment-code", ExportError, segments=["thing"]) as told:
        terminology_of(segment, None, allow_generic=False)
    for way_out in ("a name that has a code", "metadata", "generic code"):
        assert way_out in str(told.value)
    found, note = terminology_of(segment, None, allow_generic=True)
    assert found == GENERIC
    assert note is not None and (note.code, note.fields) == ("coded-as-tissue", {"segments": ["thing"]})


def test_a_code_becomes_an_item_of_dicom():
    item = code_item(Code("SCT", "10200004", "Liver"))
    assert (item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) == ("10200004", "SCT", "Liver")
    long = code_item(Code("99LOCAL", "a-value-of-more-than-16", "Thing"))
    assert long.LongCodeValue == "a-value-of-more-than-16" and "CodeValue" not in long
    assert code_item(Code("99LOCAL", "urn:oid:1.2.3.4.5.6", "Thing")).URNCodeValue == "urn:oid:1.2.3.4.5.6"


def test_every_code_of_the_table_can_be_written():
    for code in codes_of_the_table():
        item = code_item(code)
        assert (item.CodeValue, item.CodeMeaning) == (code.value, code.meaning)


def test_codes_of_snomed_rt_become_those_of_snomed_ct():
    item = code_item(Code("SRT", "T-62000", "Liver"))
    assert (item.CodeValue, item.CodingSchemeDesignator) == ("10200004", "SCT")
    kept = code_item(Code("SRT", "T-99999", "Nobody knows"))
    assert (kept.CodeValue, kept.CodingSchemeDesignator) == ("T-99999", "SRT")


def test_a_meaning_too_long_for_dicom_is_cut_between_words():
    meaning = "Structure of something that has a very long name " * 2
    item = code_item(Code("SCT", "1", meaning))
    assert len(item.CodeMeaning) <= 64
    assert item.CodeMeaning == "Structure of something that has a very long name Structure..."
    assert code_item(Code("SCT", "1", "a\\b")).CodeMeaning == "a/b"
    assert shorten("x" * 100, 64) == "x" * 61 + "..."
    assert shorten("short  text", 64) == "short text"


@pytest.mark.parametrize(
    "code",
    [
        *(Code(), Code("SCT", "1", " "), Code("SCT", "", "Liver"), Code("", "1", "Liver")),
        *(Code("a" * 17, "1", "Liver"), Code("SCT", "1\\2", "Liver")),
    ],
    ids=str,
)
def test_codes_dicom_cannot_hold_are_refused(code):
    with raises("invalid-segment-code", ExportError):
        code_item(code)


def test_a_code_that_means_something_else_is_noticed():
    assert usual_meaning(Code("SCT", "10200004", "Spleen")) == "Liver"
    assert usual_meaning(Code("SCT", "10200004", "liver")) is None
    assert usual_meaning(Code("SCT", "64033007", "Kidneys")) is None
    assert usual_meaning(Code("99MINE", "1", "Anything")) is None
