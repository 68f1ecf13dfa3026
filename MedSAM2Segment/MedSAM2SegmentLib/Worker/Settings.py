"""Settings for all volumes, kept in Slicer's own settings file."""

from __future__ import annotations

import qt
from medsam2_core.errors import WorkerError
from medsam2_core.worker.transports import split_command

from MedSAM2SegmentLib.i18n import _

DEFAULT_MODEL = "embedded"
DEFAULT_WINDOW = "auto"
_GROUP = "MedSAM2Segment/"


class Settings:
    """Typed access to the settings of this extension.

    A settings file stores text only, and no empty text; the getters convert.
    """

    def __init__(self, store: qt.QSettings | None = None) -> None:
        self._store = qt.QSettings() if store is None else store

    @property
    def remoteCommand(self) -> str:
        """Command line of a worker on another machine ("ssh host medsam2 worker"); empty: this computer."""
        return self._text("remoteCommand", "")

    @remoteCommand.setter
    def remoteCommand(self, command: str) -> None:
        self._put("remoteCommand", command.strip())

    def remoteWords(self) -> list[str]:
        """Return the remote command as a program and its arguments; empty when the worker runs here.

        Raises
        ------
        WorkerError
            A quotation mark in it is not closed.
        """
        command = self.remoteCommand
        try:
            return split_command(command)
        except ValueError as error:
            raise WorkerError(
                _(
                    "The remote command {command} cannot be read: {problem}. Correct it on the page of the "
                    "MedSAM2Segment module"
                ).format(command=repr(command), problem=error),
                code="remote-command",
                command=command,
            ) from error

    @property
    def wheelFolder(self) -> str:
        """Folder of wheels to install from without a network; empty: the network."""
        return self._text("wheelFolder", "")

    @wheelFolder.setter
    def wheelFolder(self, path: str) -> None:
        self._put("wheelFolder", path.strip())

    @property
    def defaultModel(self) -> str:
        """Catalogue name of the model of new segmentations."""
        return self._text("defaultModel", DEFAULT_MODEL)

    @defaultModel.setter
    def defaultModel(self, name: str) -> None:
        self._put("defaultModel", name)

    @property
    def defaultWindow(self) -> str:
        """Window of new segmentations: "auto", "displayed", a preset, or "width,level"."""
        return self._text("defaultWindow", DEFAULT_WINDOW)

    @defaultWindow.setter
    def defaultWindow(self, window: str) -> None:
        self._put("defaultWindow", window)

    @property
    def show3D(self) -> bool:
        """Whether segmentations are shown in 3D after their first propagation."""
        return self._text("show3D", "1") != "0"

    @show3D.setter
    def show3D(self, isOn: bool) -> None:
        self._put("show3D", "1" if isOn else "0")

    @property
    def learns(self) -> bool:
        """Whether slices that the user corrects are kept on this computer to improve a model with."""
        return self._text("learn", "0") == "1"

    @learns.setter
    def learns(self, isOn: bool) -> None:
        self._put("learn", "1" if isOn else "0")

    def _text(self, name: str, default: str) -> str:
        value = self._store.value(_GROUP + name)
        if isinstance(value, tuple | list):  # "400,40" may come back as a list of two texts
            value = ",".join(str(part).strip() for part in value)
        return str(value) if value else default

    def _put(self, name: str, value: str) -> None:
        if value:
            self._store.setValue(_GROUP + name, value)
        else:
            self._store.remove(_GROUP + name)
