"""Every error this package raises on purpose.

An error is data: a stable ``code``, the values it is about in ``fields``, and a message in the words of the
Python API that names what was wrong, the value, and the way out. Front ends (command line, worker, Slicer)
may word a code in their own terms; tests compare codes and fields. An exception that is not a
:class:`MedSAM2Error` is a bug.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Note:
    """Something the user should know about a result that was produced all the same.

    Attributes
    ----------
    code
        Stable identifier in kebab case, for example ``"coded-by-name"``. Front ends word and tests match it.
    message
        One sentence in the words of the Python API; ``str(note)`` is the message.
    severity
        ``"warning"`` when the result may not be what was wanted, else ``"info"``.
    fields
        The values the message is about, JSON-serialisable, by name.
    """

    code: str
    message: str
    severity: Literal["info", "warning"] = "info"
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the note as JSON-serialisable values."""
        return {
            "code": self.code,
            "message": self.message,
            "severity": self.severity,
            "fields": dict(self.fields),
        }

    @classmethod
    def warning(cls, code: str, message: str, **fields: Any) -> "Note":
        """Return a note that wants to be read."""
        return cls(code, message, "warning", fields)

    @classmethod
    def info(cls, code: str, message: str, **fields: Any) -> "Note":
        """Return a note that is good to know."""
        return cls(code, message, "info", fields)


class MedSAM2Error(Exception):
    """Base class of all errors raised on purpose.

    Parameters
    ----------
    message
        What was wrong, the value, and what to do about it.
    code
        Stable identifier of the problem in kebab case, for example ``"point-outside-volume"``; by default
        that of the class.
    **fields
        The values the message is about, JSON-serialisable, by name.
    """

    default_code = "error"

    def __init__(self, message: str = "", *, code: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        """Return the error as JSON-serialisable values, as :meth:`Note.to_dict` does for notes."""
        return {"code": self.code, "message": str(self), "severity": "error", "fields": dict(self.fields)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep code and fields when the error is pickled, as between processes."""
        return _rebuilt, (type(self), str(self), self.code, self.fields)


def _rebuilt(kind: type[MedSAM2Error], message: str, code: str, fields: dict[str, Any]) -> MedSAM2Error:
    return kind(message, code=code, **fields)


class VolumeError(MedSAM2Error):
    """A file or folder could not be read as a volume, an image or a label map."""

    default_code = "volume"


class GeometryError(VolumeError):
    """Positions that cannot be trusted: singular or non-finite matrices, missing or uneven slices."""

    default_code = "geometry"


class PromptError(MedSAM2Error):
    """A point, box or mask that does not fit the volume, the slice or the object it names."""

    default_code = "prompt"


class CatalogueError(MedSAM2Error):
    """A model that the catalogue does not know, or a catalogue file that cannot be read."""

    default_code = "catalogue"


class CheckpointError(MedSAM2Error):
    """Weights that are damaged, unsafe to load, or made for another architecture."""

    default_code = "checkpoint"


class DownloadError(CheckpointError):
    """Weights that could not be fetched: no network, gated repository, no disk space, wrong content."""

    default_code = "download"


class DeviceError(MedSAM2Error):
    """A device or precision that this machine does not have, or a card whose memory is full."""

    default_code = "device"


class MissingPackageError(MedSAM2Error):
    """A Python package that what was asked for needs, and that is not installed."""

    default_code = "missing-package"


class ExportError(MedSAM2Error):
    """A result that could not be written."""

    default_code = "export"


class TrainingError(MedSAM2Error):
    """Training data or a training state that cannot be used."""

    default_code = "training"


class EvaluationError(MedSAM2Error):
    """A case that cannot be measured."""

    default_code = "evaluation"


class BatchError(MedSAM2Error):
    """A cohort, its journal or one of its cases that cannot be processed."""

    default_code = "batch"


class WorkerError(MedSAM2Error):
    """The worker process could not be started, was lost, or does not answer."""

    default_code = "worker"


class ProtocolError(WorkerError):
    """Bytes or messages that are not the worker's protocol, or another version of it."""

    default_code = "protocol"


class RuntimeInstallError(MedSAM2Error):
    """The worker's Python environment could not be made, mended or removed."""

    default_code = "runtime-install"


class Cancelled(MedSAM2Error):
    """The user asked to stop. What was finished until then stays valid."""

    default_code = "cancelled"


class Interrupted(MedSAM2Error):
    """A computation made way for another; nothing is lost, ask for it again."""

    default_code = "interrupted"
