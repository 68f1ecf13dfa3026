"""The page about export: its commands run as they stand, and it names no option that is not there."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pydicom
from medsam2_core.export.dicom.source import read_source
from medsam2_core.export.writing import write
from medsam2_core.imaging.segmentation import Segmentation
from support.command_line import CommandLine
from support.project import ROOT
from support.small_files import some_voxels, write_series

PAGE = ROOT / "Resources" / "docs" / "export.md"


def lines() -> list[str]:
    return re.findall(r"^    ((?:medsam2 |\{).+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_commands_of_the_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    liver = np.zeros((6, 20, 24), dtype=bool)
    liver[1:5, 5:14, 5:14] = True
    write_series(Path("SERIES"), np.where(liver, 800, some_voxels(liver.shape) // 400).astype(np.int16))
    drawn = Segmentation.from_masks(read_source("SERIES").geometry, {"liver": liver})
    write(drawn, "result.seg.nrrd")
    medsam2, ran = CommandLine(capsys), []
    # The file the page speaks of comes before the command that wants it.
    for line in sorted(lines(), key=lambda line: not line.startswith("{")):
        if line.startswith("{"):
            requested = {**json.loads(line), "liver": "SCT^10200004^Liver"}
            Path("meta.json").write_text(json.dumps(requested), encoding="utf-8")
            continue
        words = shlex.split(line)[1:]
        answer = medsam2(*words)
        ran.append(words[0])
        if "meta.json" not in words:
            assert answer.code == 0, (line, answer.err)
    assert set(ran) == {"export", "segment", "info", "import"}
    for name in ("result", "likely", "tissue", "measured", "report"):
        assert pydicom.dcmread(f"{name}.dcm").Modality in ("SEG", "SR")
    assert pydicom.dcmread("likely.dcm").SegmentationType == "FRACTIONAL"
    assert Path("back.seg.nrrd").exists()


def test_the_metadata_of_the_page_are_understood(tmp_path):
    from medsam2_core.export.dicom.segment_metadata import read_metadata

    (tmp_path / "meta.json").write_text(next(line for line in lines() if line[0] == "{"), encoding="utf-8")
    requested = read_metadata(tmp_path / "meta.json")
    assert requested.of("Leber").label == "Liver"
    assert requested.of("Raumforderung").terminology.type.value == "4147007"


def test_the_page_names_no_option_that_is_not_there(capsys):
    medsam2 = CommandLine(capsys)
    known = "".join(medsam2(command, "--help").out for command in ("export", "import", "segment"))
    for option in set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8"))):
        assert option in known, option
