"""The section about export without a scene: segmentations that do as they are told, and its worker."""

from pathlib import Path

import numpy as np
from medsam2_core.errors import ExportError
from MedSAM2SegmentLib.Page.ExportOptions import ExportOptions
from MedSAM2SegmentLib.Page.ExportSection import ExportSection

from support.page import FakeSettings, FakeWorker, FakeWorkers

RESULT = {
    **{"kind": "binary", "frames": 12, "bytes": 34_500, "notes": [], "measurements": [], "report": None},
    "segments": [{"name": "liver", "code": "SCT^10200004^Liver", "millilitres": 1500.0}],
}

GRID = {"ijk_to_ras": np.eye(4).tolist(), "shape_ijk": [20, 14, 9]}


class FakeSegmentations:
    """Segmentations of a scene that is not there: 1 on a DICOM series, 2 on none."""

    def __init__(self, *names, problem=None):
        self.found, self.problem, self.paths, self.refreshed = list(names), problem, [], 0
        self.series, self.notes = {"1"}, ()

    def names(self):
        return tuple((str(number), name) for number, name in enumerate(self.found, 1))

    def dicomProblem(self, nodeID):
        return (
            ""
            if nodeID in self.series
            else "'MR' was not loaded from DICOM: load it from Slicer's DICOM database"
        )

    def dicomFiles(self, nodeID):
        if nodeID not in self.series:
            raise ExportError("'MR' was not loaded from DICOM")
        return ("/dicom/1.dcm", "/dicom/2.dcm")

    def drawnOn(self, nodeID):
        return GRID

    def write(self, nodeID, path, *, isWhole):
        if self.problem is not None:
            raise self.problem
        Path(path).write_text(f"{nodeID} {'whole' if isWhole else 'filled'}")
        self.paths.append(Path(path))
        return self.notes

    def refresh(self):
        self.refreshed += 1


class ExportPage:
    """The section, its worker, and how often it said that something changed."""

    def __init__(self, tmp_path, *names, problem=None, trouble=None, later=None, **settings):
        self.out = tmp_path / "out"
        self.worker, self.changes = FakeWorker(), 0
        self.workers = FakeWorkers(self.worker, trouble)
        self.scene = FakeSegmentations(*(names or ("Liver", "Draft")), problem=problem)
        how = {"later": later} if later is not None else {}
        self.page = ExportSection(FakeSettings(**settings), self.workers, self.scene, self.changed, **how)

    def changed(self):
        self.changes += 1

    @property
    def view(self):
        return self.page.view()

    @property
    def line(self):
        return self.view.line

    def export(self, format="dicom", **wish):
        """Press *Export*; the request, if one was made."""
        wish.setdefault("path", str(self.out))
        before = len(self.worker.asked)
        self.page.export(ExportOptions(format, **wish))
        return self.worker.asked[-1] if len(self.worker.asked) > before else None
