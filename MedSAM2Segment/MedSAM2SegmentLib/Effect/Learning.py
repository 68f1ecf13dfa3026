"""Keeps the slices that the user has corrected, if the user wants that."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.intensity import Window, to_display
from medsam2_core.prompts.slice_prompts import resolve

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import SlicePrompts

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession

_AT_ONCE = 4  # slices written before the window is drawn again: each takes about 20 ms


class Learning:
    """Finds slices that were corrected or marked as final, and has them kept.

    A slice counts as corrected when it has several prompts, or when it was prompted after a propagation had
    found a mask there. It is kept as the segment shows it, with what the user painted.

    Parameters
    ----------
    corrections
        Where they are kept (Corrections), and whether the user wants that; None keeps nothing.
    """

    def __init__(self, edited: EditedSegmentation, session: WorkerSession, corrections: Any = None) -> None:
        self._edited, self._session, self._corrections = edited, session, corrections
        # By volume, stack, segment and slice: hash of the mask that was kept.
        self._kept: dict[tuple[str, ...], bytes] = {}
        self._waiting: list[tuple[str, int]] = []  # segments and slices
        self._place: tuple[str, str] | None = None  # volume and stack of these

    @property
    def isOn(self) -> bool:
        """Whether the user wants corrections to be kept."""
        return self._corrections is not None and self._corrections.isOn

    @isOn.setter
    def isOn(self, isOn: bool) -> None:
        if self._corrections is not None:
            self._corrections.isOn = isOn

    def keep(self) -> None:
        """Keep what has been corrected since the last time: some at once, the others in :meth:`tick`.

        Raises
        ------
        ExportError
            A file cannot be written.
        """
        self._waiting, self._place = [], self._currentPlace()
        if self.isOn and self._place is not None:
            for segmentID, prompts in self._edited.applied.items():
                found = self._session.session.snapshot(segmentID).propagated
                corrected = (n for n, one in prompts.items() if _isCorrected(one, n in found))
                self._waiting += [(segmentID, n) for n in corrected]
        self.tick()

    def tick(self) -> None:
        """Keep some of what is waiting, unless the volume is another one now. Raises as :meth:`keep`."""
        if self._waiting and self._currentPlace() != self._place:
            self._waiting = []
        chosen, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        for segmentID, n in chosen:
            prompts = self._edited.applied.get(segmentID, {}).get(n)
            if prompts is not None and self._edited.segment(segmentID) is not None:
                self._keepSlice(segmentID, n, prompts)

    def _currentPlace(self) -> tuple[str, str] | None:
        """Return volume and stack of the session; None while there is none."""
        session, adapter, stack = self._session.session, self._edited.adapter, self._session.stack
        if session is None or session.info is None or adapter is None or stack is None:
            return None
        return adapter.key, stack.key

    def _keepSlice(self, segmentID: str, n: int, prompts: SlicePrompts) -> None:
        stack, adapter = self._session.stack, self._edited.adapter
        mask_hw = self._edited.writer.segmentMasks(segmentID, stack, [n])[n]
        key = adapter.key, stack.key, segmentID, str(n)
        state = hashlib.sha256(np.packbits(mask_hw).tobytes()).digest()
        if not mask_hw.any() or self._kept.get(key) == state:
            return
        shown = self._session.session.info.window
        window = Window(float(shown["level"]), float(shown["width"]))
        self._corrections.keep(
            adapter.volume.voxels_kji,
            (stack.key, n, segmentID),
            to_display(stack.image_hw(n), window),
            mask_hw,
            (stack.pixel_mm[1], stack.pixel_mm[0], stack.slice_mm),
            _inPixels(n, prompts, stack),
        )
        self._kept[key] = state


def _isCorrected(prompts: SlicePrompts, wasPropagated: bool) -> bool:
    return prompts.final or len(prompts.prompts) > (0 if wasPropagated else 1)


def _inPixels(n: int, prompts: SlicePrompts, stack: SliceStack) -> dict[str, Any]:
    """Return points and box of a slice in pixels, for JSON; mask prompts are in the mask that is kept."""
    try:
        pixels = resolve(prompts.prompts, stack).get(n)
    except PromptError:  # a point between two slices that now lies on the other
        pixels = None
    if pixels is None:
        return {"points": [], "box": None}
    labelled = zip(pixels.points_xy.tolist(), pixels.labels.tolist(), strict=True)
    box = pixels.box_xyxy
    return {
        "points": [[x, y, label] for (x, y), label in labelled],
        "box": None if box is None else box.tolist(),
    }
