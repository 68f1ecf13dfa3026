"""The sample volume that comes with the extension, for Slicer's Sample Data module. Needs no network."""

from __future__ import annotations

from pathlib import Path

CATEGORY = "MedSAM2Segment"
SAMPLE_NAME = "MedSAM2SegmentMNI152"
NODE_NAME = "MNI152T1"
FILE_NAME = "mni152_t1.nrrd"
CHECKSUM = "SHA256:974a7f84bb142cc2353f33d6f602afa1018c047bc685b2aeef6721ab436d032c"
_MODULE = Path(__file__).resolve().parents[1]
THUMBNAIL = _MODULE / "Resources" / "Icons" / f"{SAMPLE_NAME}.png"


def sampleFile() -> Path:
    """The volume: installed beside the module, or in the source tree where the demonstration has it."""
    installed = _MODULE / "Resources" / "SampleData" / FILE_NAME
    return installed if installed.exists() else _MODULE.parent / "Resources" / "demo" / FILE_NAME


def registerSampleData() -> None:
    """Tell Slicer's Sample Data module about the volume; call it once Slicer has started."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(THUMBNAIL),
        # It is on this computer already: "downloading" copies it into Slicer's cache.
        uris=sampleFile().as_uri(),
        fileNames=FILE_NAME,
        nodeNames=NODE_NAME,
        checksums=CHECKSUM,
    )
