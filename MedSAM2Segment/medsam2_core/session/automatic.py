"""Segmentation without prompts in a session: an Auto model's findings as objects with predicted prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.auto.model_file import AutoClass
from medsam2_core.auto.segmenting import AutoSegmenter
from medsam2_core.auto.volumes import AutoVolume, ClassInVolume, VolumeOptions
from medsam2_core.engine.sources import StackImages
from medsam2_core.engine.states import Found
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import PromptError
from medsam2_core.prompts import Box, Point, Prompt
from medsam2_core.session.answers import Words

if TYPE_CHECKING:
    from medsam2_core.auto.loading import AutoModel
    from medsam2_core.imaging.intensity import Window
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.imaging.terminology import Terminology
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session.changes import Changes, SessionState
    from medsam2_core.session.history import History


@dataclass(frozen=True)
class AutoFound:
    """What an Auto model found of one class.

    Attributes
    ----------
    name, colour_rgb, terminology
        Of the class, as its model says.
    confidence
        0 to 1; 0 when it was not found.
    model
        The Auto model's name.
    prompts
        By slice, what was predicted there: a box, or a point where no box was.
    slices
        By slice, what is on it.
    """

    name: str
    colour_rgb: tuple[float, float, float]
    terminology: str
    confidence: float
    model: str = ""
    prompts: Mapping[int, tuple[Prompt, ...]] = field(default_factory=dict)
    slices: Mapping[int, Found] = field(default_factory=dict)

    @property
    def coded(self) -> Terminology | None:
        """The terminology's codes; None where there are none."""
        return AutoClass(self.name, 0, self.colour_rgb, self.terminology).coded

    @property
    def predicted(self) -> list[Prompt]:
        """All predicted prompts."""
        return [prompt for of_slice in self.prompts.values() for prompt in of_slice]

    def is_behind(self, prompts: Sequence[Prompt]) -> bool:
        """Whether an object with these prompts is what was found: of an undone one, none is left."""
        return any(prompt in self.predicted for prompt in prompts) or not prompts


class AutoRun:
    """An Auto model going through a session's slices; the session itself stays as it is.

    Parameters
    ----------
    session
        Its volume, slices, window, SAM 2, features and memory policy are used.
    auto
        An Auto model of the session's SAM 2.
    classes
        Names of the classes wanted; None all.
    options
        How a volume is gone through.
    flips
        Average with mirror images.
    window
        What the Auto model sees of the intensities; None: what the session sees. Tracking sees that anyway.

    Raises
    ------
    CheckpointError
        Another SAM 2, or an unknown class.
    """

    def __init__(
        self,
        session: Automatic,
        auto: AutoModel,
        classes: Sequence[str] | None = None,
        options: VolumeOptions | None = None,
        *,
        flips: bool = False,
        window: Window | None = None,
    ) -> None:
        from medsam2_core.auto.loading import check_base

        check_base(auto.card, session.tracker.model, f"the Auto model {auto.card.name!r}")
        wanted = auto.card.chosen(None if classes is None else list(classes))
        self.card, self._stack = auto.card, session.stack
        source = session.tracker.source if window is None else StackImages(session.stack, window)
        options_of_tracker = session.tracker.options
        keeps = options_of_tracker.keeps_probabilities
        self._segmenter = AutoSegmenter(auto, source, wanted, flips=flips, keeps_probabilities=keeps)
        tracker = Tracker(session.tracker.model, session.tracker.encoder, None, options_of_tracker)
        self._volume = AutoVolume(self._segmenter, tracker, options or VolumeOptions())

    @property
    def done(self) -> int:
        """Slices gone through."""
        return self._volume.done

    @property
    def total(self) -> int:
        """Slices to go through, as far as is known."""
        return self._volume.total

    def run(
        self,
        first: int | None = None,
        last: int | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[str, int, Found]]:
        """(class, slice, what is there) as it becomes known; see :meth:`AutoVolume.run`."""
        names = self.card.class_names
        changes = self._volume.run(first, last, should_cancel)
        # Not a generator: one would be over after an interruption.
        return map(lambda change: (names[change[0]], *change[1:]), changes)

    def found(self) -> list[AutoFound]:
        """Every wanted class, once the run is over; also those that are nowhere."""
        return [self._of(one) for one in self._volume.found.values()]

    def _of(self, one: ClassInVolume) -> AutoFound:
        known = self.card.classes[one.number]
        slices = {n: found for n, found in one.slices.items() if found.mask_hw.any() or n in one.boxes}
        prompts = {
            n: (predicted_prompt(box, one.slices[n], n, self._stack),)
            for n, box in one.boxes.items()
            if one.slices[n].mask_hw.any()
        }
        return AutoFound(
            known.name, known.colour_rgb, known.terminology, one.confidence, self.card.name, prompts, slices
        )


class Automatic:
    """The part of a :class:`~medsam2_core.session.Session` that needs no prompts."""

    if TYPE_CHECKING:
        stack: SliceStack
        tracker: Tracker
        _prompts: PromptSet
        _history: History[SessionState]
        _changes: Changes
        _found_by_auto: dict[str, AutoFound]

        def _put_in_place(
            self, name: str, slices: Mapping[int, Words], tracked: Mapping[int, Found]
        ) -> None: ...

    def auto(
        self,
        auto: AutoModel,
        classes: Sequence[str] | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        options: VolumeOptions | None = None,
        flips: bool = False,
        replace: bool = False,
        should_cancel: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[AutoFound]:
        """Segment every class of an Auto model; each that is found becomes an object of its name.

        Slices it is surest of are known with a predicted box, which may be moved; clicks correct the mask
        found with it. One undo takes back all of it.

        Parameters
        ----------
        classes
            Names; None all.
        first, last
            Slices, inclusive.
        replace
            Take the place of objects of these names.

        Raises
        ------
        CheckpointError
            The Auto model was trained on another SAM 2, or does not know a class.
        PromptError
            There is an object of such a name, and it shall not be replaced.
        Cancelled
            Stopped; nothing has changed.
        """
        run = AutoRun(self, auto, classes, options, flips=flips)
        taken = [name for name in (classes or auto.card.class_names) if name in self._prompts.names]
        if taken and not replace:
            raise PromptError(f"there is an object {taken[0]!r} already: replace it, or leave this class out")
        for _ in run.run(first, last, should_cancel):
            progress(run.done, run.total)
        found = run.found()
        # What was there before is not emptied by a class that is nowhere.
        there = [one for one in found if one.slices or one.name not in self._prompts.names]
        with self._history.step(f"find {', '.join(one.name for one in there) or 'nothing'}"):
            for one in there:
                words = {n: Words(prompts, one.slices[n]) for n, prompts in one.prompts.items()}
                tracked = {n: mask for n, mask in one.slices.items() if n not in words}
                self._put_in_place(one.name, words, tracked)
                self._found_by_auto[one.name] = one
            # What the tracker would say of them is known, or was not wanted: only what is said from now on
            # has to be followed.
            self._changes.settle([one.name for one in there], None, self._changes.copied())
        return found

    def _auto_models(self) -> dict[str, str]:
        """The Auto models that found objects which are still there, for what is stored of all objects."""
        known = self._found_by_auto.items()
        models = {one.model for name, one in known if name in self._prompts.names}
        return {"auto": ", ".join(sorted(models))} if models else {}

    def _auto_tags(self, name: str) -> dict[str, str]:
        """What is to be stored with an object of an Auto model: by which, and whether the user had a say."""
        known = self._found_by_auto[name]
        is_alone = all(prompt in known.predicted for prompt in self._prompts.of(name))
        kind = "AUTOMATIC" if is_alone else "SEMIAUTOMATIC"
        return {"DICOM.SegmentAlgorithmType": kind, "MedSAM2.auto": known.model}


def predicted_prompt(
    box: tuple[float, float, float, float] | None, found: Found, n: int, stack: SliceStack
) -> Prompt:
    """The box that was predicted on a slice, or where there is none the tight box of its mask, in IJK.

    A mask of a single row or column becomes a point in it.
    """
    if box is None:
        rows, columns = np.flatnonzero(found.mask_hw.any(1)), np.flatnonzero(found.mask_hw.any(0))
        box = (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)
    left, top, right, bottom = box
    corners = stack.to_ijk([[left, top, n], [right, bottom, n]])
    try:
        return Box.between(corners[0], corners[1], predicted=True)
    except PromptError:
        middle = stack.to_ijk([[(left + right) / 2, (top + bottom) / 2, n]])[0]
        return Point((float(middle[0]), float(middle[1]), float(middle[2])))
