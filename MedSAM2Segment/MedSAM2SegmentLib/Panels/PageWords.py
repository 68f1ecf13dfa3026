"""What a worker tells, in words and rows for the page of the module. No Qt."""

from __future__ import annotations

from medsam2_core.worker.supervision import Supervisor, WorkerState

from MedSAM2SegmentLib.Panels.ModulePageState import Kind, Line, ModelRow, WorkerView, sizeWords


def rowOf(entry: dict) -> ModelRow:
    """A model the worker told of."""
    return ModelRow(
        name=str(entry.get("name", "")),
        title=str(entry.get("title") or entry.get("name", "")),
        size=entry.get("bytes"),
        licence=str(entry.get("licence") or ""),
        isInstalled=bool(entry.get("installed")),
        path=str(entry.get("path") or ""),
    )


def greeting(welcome: dict, latency: float | None) -> str:
    """That a worker has answered, and which."""
    words = f"Connected: worker {welcome.get('software', '')} on {welcome.get('host', 'this computer')}"
    return words + (f", answers in {latency * 1000:.0f} ms" if latency is not None else "")


def workerView(
    supervisor: Supervisor | None, status: dict, line: Line, latency: float | None, remoteCommand: str
) -> WorkerView:
    """The section about the worker; ``line`` is said while none has answered."""
    isReady = supervisor is not None and supervisor.state is WorkerState.READY
    welcome = supervisor.welcome if isReady else {}
    return WorkerView(
        line=Line(greeting(welcome, latency), Kind.GOOD) if isReady else line,
        device=deviceWords(status.get("device") or welcome.get("device", "")),
        memory=memoryWords(status),
        log=str(status.get("log", "")),
        details=supervisor.report if supervisor is not None else "",
        remoteCommand=remoteCommand,
        canTest=supervisor is None or supervisor.state is not WorkerState.STARTING,
    )


def amount(done: int, total: int | None) -> str:
    """How many bytes are done."""
    return f"{sizeWords(done)} of {sizeWords(total)}" if total else sizeWords(done)


def deviceWords(device) -> str:
    """What is computed on."""
    if not isinstance(device, dict):
        return str(device or "")
    words = str(device.get("title") or device.get("name") or "")
    free, total = device.get("free_bytes"), device.get("total_bytes")
    return words + (f", {sizeWords(free)} of {sizeWords(total)} free" if free and total else "")


def memoryWords(status: dict) -> str:
    """What a worker uses."""
    if not status:
        return ""
    words = f"{sizeWords(status.get('rss_bytes', 0))} in use"
    cache, limit = status.get("cache_bytes"), status.get("cache_limit")
    if cache is not None and limit:
        words += f"; image features {sizeWords(cache)} of at most {sizeWords(limit)}"
    sessions, volumes = status.get("sessions"), status.get("volumes")
    if isinstance(sessions, int) and isinstance(volumes, int):
        words += f"; {volumes} volume{'s' * (volumes != 1)}, {sessions} session{'s' * (sessions != 1)}"
    return words
