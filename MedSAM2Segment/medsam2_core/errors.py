"""Every error this package raises on purpose.

A message names what was wrong, the value that was wrong, and what to do about it. Whoever sits at the top
(the command line, the worker, the panel) shows the message as it is; anything that is not a
:class:`MedSAM2Error` is a defect of ours.
"""


class MedSAM2Error(Exception):
    """Root of all errors raised on purpose."""


class VolumeError(MedSAM2Error):
    """A file or folder could not be read as a volume, an image or a label map."""


class GeometryError(VolumeError):
    """Positions that cannot be trusted: singular or non-finite matrices, missing or uneven slices."""


class PromptError(MedSAM2Error):
    """A point, box or mask that does not fit the volume, the slice or the object it names."""


class CatalogueError(MedSAM2Error):
    """A model that the catalogue does not know, or a catalogue file that cannot be read."""


class CheckpointError(MedSAM2Error):
    """Weights that are damaged, unsafe to load, or made for another architecture."""


class DownloadError(CheckpointError):
    """Weights that could not be fetched: no network, gated repository, no disk space, wrong content."""


class DeviceError(MedSAM2Error):
    """A device or precision that this machine does not have, or a card whose memory is full."""


class MissingPackageError(MedSAM2Error):
    """A Python package that what was asked for needs, and that is not installed."""


class ExportError(MedSAM2Error):
    """A result that could not be written."""


class TrainingError(MedSAM2Error):
    """Training data or a training state that cannot be used."""


class EvaluationError(MedSAM2Error):
    """A case that cannot be measured."""


class WorkerError(MedSAM2Error):
    """The worker process could not be started, was lost, or does not answer."""


class ProtocolError(WorkerError):
    """Bytes or messages that are not the worker's protocol, or another version of it."""


class RuntimeInstallError(MedSAM2Error):
    """The worker's Python environment could not be made, mended or removed."""


class Cancelled(MedSAM2Error):
    """The user asked to stop. What was finished until then stays valid."""


class Interrupted(MedSAM2Error):
    """A computation made way for another; nothing is lost, ask for it again."""
