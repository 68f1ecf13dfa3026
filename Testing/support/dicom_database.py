"""Slicer's DICOM database, which its scene alone does not have: where the file of an instance lies."""

from types import SimpleNamespace

import slicer
from medsam2_core.imaging.dicom import find_stack
from medsam2_core.imaging.reading import read_volume

from support.scene import a_volume


class DicomDatabase:
    """As much of `slicer.dicomDatabase` as is asked for."""

    def __init__(self, files=None):
        self.files, self.isOpen, self.asked = dict(files or {}), True, 0

    def fileForInstance(self, uid):
        self.asked += 1
        return self.files.get(uid, "")


def a_dicom_volume(scene, folder, name="CT"):
    """A volume node as Slicer's DICOM module makes it of a series, and the database that knows its files."""
    import pydicom

    volume = read_volume(folder)
    frames, _ = find_stack(folder)
    paths = list(dict.fromkeys(frame.path for frame in frames))
    uids = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths]
    node = a_volume(scene, volume.geometry.ijk_to_ras, volume.voxels_kji, name)
    node.SetAttribute("DICOM.instanceUIDs", " ".join(uids))
    return node, DicomDatabase(dict(zip(uids, map(str, paths), strict=True)))


def in_slicer(monkeypatch, database):
    """Put a database where the module looks for it."""
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    return SimpleNamespace(database=database)
