"""Work on one case, the same in a local process and in a Ray actor: read, segment, measure, write."""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.batch import cases
from medsam2_core.batch.cases import DONE, FAILED, Case, Options, Task
from medsam2_core.batch.inputs import fingerprint, local_copies
from medsam2_core.errors import BatchError, MedSAM2Error, Note

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.export.measurements import Measured
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.session.session import Session


class CaseRunner:
    """Does cases, one model in memory. Called by two threads, the second reads while the first computes."""

    def __init__(self, results: str | Path, options: Options) -> None:
        import torch  # what a process cannot start without

        torch.set_num_threads(options.threads)
        self._results, self._options = Path(results), options
        self._model: SegmentationModel | None = None
        self._auto: tuple[tuple[str, str], AutoModel] | None = None
        self._computing = threading.Lock()
        self._model_error: MedSAM2Error | None = None

    def run(self, task: Task) -> dict[str, Any]:
        """Do a case; its folder of results appears whole or not at all. Never raises.

        Returns
        -------
        dict
            JSON-serialisable: ``state``, ``inputs``, ``seconds``, and ``facts`` or ``error``; ``fatal`` where
            the model could not be loaded, as for every other case.
        """
        started = time.perf_counter()
        inputs: dict[str, Any] = {}
        try:
            inputs = fingerprint(task.case)
            facts = self._segmented(task, inputs)
            outcome: dict[str, Any] = {"state": DONE, "facts": facts}
        except MedSAM2Error as error:
            outcome = {"state": FAILED, "error": error.to_dict(), "fatal": error is self._model_error}
        except MemoryError:
            message = "not enough memory on this machine for a volume of this size"
            outcome = {"state": FAILED, "error": BatchError(message, code="out-of-memory").to_dict()}
        except Exception as error:  # whatever it is, it is one case's
            text, where = f"{type(error).__name__}: {error}", traceback.format_exc()[-4000:]
            outcome = {"state": FAILED, "error": BatchError(text, code="bug", traceback=where).to_dict()}
        return {**outcome, "inputs": inputs, "seconds": round(time.perf_counter() - started, 3)}

    def _segmented(self, task: Task, inputs: dict[str, Any]) -> dict[str, Any]:
        from medsam2_core.imaging.scans import read_scan

        seconds, started = {}, time.perf_counter()
        with local_copies(task.case) as case:
            volume, notes = read_scan(Path(case.image), case.series or None, self._options.irregular)
            seconds["read"] = time.perf_counter() - started
            with self._computing:
                started = time.perf_counter()
                session = self._session(case, volume, notes)
                seconds["compute"] = time.perf_counter() - started
            return self._write(task, case, session, notes, inputs, seconds)

    def _session(self, case: Case, volume: Volume, notes: list[Note]) -> Session:
        """Return the session of a case with all masks; add what should be known of them to ``notes``."""
        from medsam2_core.engine.devices import choose_device
        from medsam2_core.session.session import Session
        from medsam2_core.worker.system import check_memory

        options, auto = self._options, self._auto_model(case)
        model = auto.model if auto is not None else self._loaded()
        if auto is None:
            size = volume.voxels_kji.nbytes
            check_memory(options.model, choose_device(options.device), size, options.image_size)
        axis, window = options.axis or "axial", options.window or "auto"
        if auto is not None:
            axis = options.axis or ("axial" if auto.card.is_for_pictures else auto.card.axis)
            window = options.window or auto.card.window
        if len(volume.voxels_kji) == 1:
            axis = "k"  # a picture has one slice, whatever the plane
        session = Session.open(
            volume, model, axis=axis, window=window, memory=options.memory, zoom=options.zoom
        )
        if auto is not None:
            session.auto(auto, _names(case.classes))
        limits = self._prompted(session, case)
        if case.like:
            notes += self._found_like(session, case, window)
        if session.tracker.prompted_ids and (case.given or case.prompts or case.like):
            for _ in session.propagate(limits=limits, overlap=not options.no_overlap):
                pass
        return session

    def _prompted(self, session: Session, case: Case) -> dict[str, tuple[int, int]]:
        """Give a session the prompts of its case; return the limits of objects with a 3-D box."""
        from medsam2_core.imaging.geometry import Space
        from medsam2_core.prompts import text
        from medsam2_core.prompts.slice_prompts import validate
        from medsam2_core.session.earlier import prompts_in
        from medsam2_core.session.object_facts import axis_stack

        if not case.given and not case.prompts:
            return {}
        space = text.PromptSpace(axis_stack(session), Space.named(self._options.space))
        stored = prompts_in(Path(case.prompts), session.stack.volume.geometry) if case.prompts else None
        names = () if stored is None else stored.names
        prompts = text.collect_prompts(case.given, stored, space, session.object_names)
        validate(prompts, session.stack)
        limits = text.limits_of(case.given, names, space)
        text.check_in_range(prompts, (None, None), space.stack, limits)
        session.apply(prompts)
        return limits

    def _found_like(self, session: Session, case: Case, window: str) -> list[Note]:
        from medsam2_core.session.earlier import read_examples

        pairs = [(Path(scan), Path(labels)) for scan, labels in case.like]
        missing = session.find_like(read_examples(pairs, window))
        return [
            Note.warning("object-not-found", f"{name!r} was not found in this scan", object=name)
            for name in missing
        ]

    def _loaded(self) -> SegmentationModel:
        if self._model is None:
            self._model = self._load(self._options.image_size)
        return self._model

    def _load(self, image_size: int | None) -> SegmentationModel:
        from medsam2_core.engine.model import load_model

        one = self._options
        try:
            return load_model(one.model, one.device, one.precision, config=one.config, image_size=image_size)
        except MedSAM2Error as error:
            self._model_error = error
            raise

    def _auto_model(self, case: Case) -> AutoModel | None:
        """Return the case's Auto model; the one before is given up for another."""
        if not case.auto:
            return None
        from medsam2_core.auto.library import find
        from medsam2_core.auto.model import load_auto

        path, card = find(case.auto)
        key = str(path), str(path.stat().st_mtime_ns)
        if self._auto is None or self._auto[0] != key:
            self._auto = None
            base = None if self._options.model == "embedded" else self._load(card.image_size)
            self._auto = key, load_auto(path, base, self._options.device, self._options.precision)
        return self._auto[1]

    def _write(
        self,
        task: Task,
        case: Case,
        session: Session,
        notes: list[Note],
        inputs: dict[str, Any],
        seconds: dict[str, float],
    ) -> dict[str, Any]:
        """Write all files of a case into a folder that takes its place at the end."""
        from medsam2_core import export
        from medsam2_core.export.measurement_files import in_mm, write_measurements
        from medsam2_core.export.measurements import measure
        from medsam2_core.worker.system import peak_memory_mb

        started = time.perf_counter()
        segmentation = session.segmentation()
        with atomic.new_folder(cases.case_folder(self._results, task.case)) as folder:
            notes += export.write(segmentation, folder / cases.SEGMENTATION).notes
            notes += self._dicom_seg(case, segmentation, folder / cases.DICOM_SEG)
            measured = measure(segmentation)
            write_measurements(measured, segmentation, folder / cases.MEASUREMENTS)
            with atomic.new_file(folder / cases.THUMBNAIL, overwrite=False) as stream:
                stream.write(_thumbnail(session, segmentation))
            seconds["write"] = time.perf_counter() - started
            facts = {
                "objects": [
                    _object_facts(one, segmentation, session) for one in in_mm(measured, segmentation)
                ],
                "notes": [note.to_dict() for note in notes],
                "dicom_seg": (folder / cases.DICOM_SEG).exists(),
                "model": session.model.name,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "peak_memory_mb": peak_memory_mb(),
            }
            of_scan = session.stack.volume.metadata if case is task.case else {}  # not of a copy
            known = {
                "case": task.case.to_dict(), "signature": task.signature, "inputs": inputs, "facts": facts,
                "prompts": session.prompts.to_json(), "slice_files": of_scan.get("slice_files", []),
            }  # fmt: skip
            with atomic.new_file(folder / cases.FACTS, overwrite=False) as stream:
                stream.write(json.dumps(known, indent=1, default=str).encode())
        return facts

    def _dicom_seg(self, case: Case, segmentation: Segmentation, path: Path) -> list[Note]:
        """Write a DICOM SEG where that is wanted; a case without one is still done."""
        if not self._options.dicom_seg:
            return []
        from medsam2_core.export.dicom.seg import SegOptions, write_seg
        from medsam2_core.export.dicom.source import read_source

        try:
            source = read_source(case.image, case.series or None)
            return list(
                write_seg(segmentation, source, path, SegOptions(generic=self._options.generic)).notes
            )
        except MedSAM2Error as error:
            message = f"no DICOM SEG was written: {error}"
            return [Note.warning("dicom-seg-not-written", message, error=error.to_dict())]


def _object_facts(measured: Measured, segmentation: Segmentation, session: Session) -> dict[str, Any]:
    from medsam2_core.session.object_facts import object_facts

    return {
        **object_facts(segmentation, measured.name, session),
        "colour_rgb": [float(one) for one in segmentation[measured.name].colour_rgb],
        "volume_ml": None if measured.volume_ml is None else round(measured.volume_ml, 4),
        **{
            f"{which}_diameter_mm": None if line is None else round(line.length_mm, 3)
            for which, line in (("longest", measured.longest), ("perpendicular", measured.perpendicular))
        },
    }


def _thumbnail(session: Session, segmentation: Segmentation) -> bytes:
    """Return the slice that shows most of the objects, with their outlines, as a JPEG; the middle slice where
    nothing was found."""
    import numpy as np

    from medsam2_core.export.contact_sheet import thumbnail
    from medsam2_core.imaging.intensity import to_display

    stack, areas = session.stack, Counter[int]()
    for name in session.object_names:
        areas.update({mask.n: int(mask.mask_hw.sum()) for mask in session.results(name)})
    n = max(sorted(areas), key=areas.__getitem__) if any(areas.values()) else len(stack) // 2
    outlines = [
        (stack.mask_of(segment.part_kji, n, segment.offset_ijk), segment.colour_rgb)
        for segment in segmentation
        if not segment.is_empty
    ]
    corner, right, below = stack.to_ijk([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    matrix = stack.volume.geometry.ijk_to_ras[:3, :3]
    width, height = (np.linalg.norm(matrix @ (one - corner)) for one in (right, below))  # of a pixel, in mm
    aspect = float(np.clip(height / width, 0.1, 10))
    return thumbnail(to_display(stack.image_hw(n), session.window), outlines, aspect)


def _names(classes: str) -> list[str] | None:
    return [name.strip() for name in classes.split(",")] if classes.strip() else None
