"""One volume, its objects, and what the user says about them: the API of notebooks, command line and worker.

::

    from medsam2_core.prompts import Box, Point
    from medsam2_core.session import Session

    session = Session.open("scan.nrrd", window="abdomen")
    result = session.prompt("liver", Box((40, 60, 12), (110, 130, 12)))  # the mask of that slice, at once
    for result in session.propagate():                                   # then every other slice
        print(result.n, result.confidence)
    session.prompt("liver", Point((80, 70, 15), positive=False))         # correct a slice …
    for result in session.propagate():                                   # … and its neighbours follow
        pass
    session.undo()                                                       # or rather not
    mask_kji = session.mask_kji("liver")                                 # on the volume's own grid

Prompts are given in IJK. A session is not thread-safe; ``should_cancel`` is how another thread ends it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.memory import MemoryPolicy
from medsam2_core.engine.model import SegmentationModel, load_model
from medsam2_core.engine.options import Direction, TrackerOptions, memory_name, memory_policy, zoom_is_on
from medsam2_core.engine.propagating import Propagation
from medsam2_core.engine.sources import StackImages
from medsam2_core.engine.states import SliceResult
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import PromptError
from medsam2_core.imaging.intensity import Window, parse_window
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import (
    Point,
    Prompt,
    PromptSet,
    by_slice,
    mask_on_slice,
    resolve,
    slices_of,
    validate,
)
from medsam2_core.session.answers import Answers
from medsam2_core.session.automatic import Automatic
from medsam2_core.session.changes import Changes, SessionState
from medsam2_core.session.following import followed
from medsam2_core.session.history import History
from medsam2_core.version import __version__


class Session(Answers, Automatic):
    """Segments objects of one volume; see the module's example.

    Parameters
    ----------
    volume
        The scan.
    model
        A loaded model.
    stack
        How the volume is cut into slices; axial by default.
    window
        What the model sees of the intensities; chosen from the volume by default.
    memory
        ``"recent"`` (SAM 2) or ``"self-sorting"`` (Medical SAM 2), or a policy of your own.
    options
        See :class:`~medsam2_core.engine.options.TrackerOptions`.
    cache
        Feature cache, if several sessions shall share one limit.
    undo_limit
        Steps :meth:`undo` can take back.
    """

    def __init__(
        self,
        volume: Volume,
        model: SegmentationModel,
        *,
        stack: SliceStack | None = None,
        window: Window | None = None,
        memory: str | MemoryPolicy = "recent",
        options: TrackerOptions | None = None,
        cache: FeatureCache | None = None,
        undo_limit: int = 50,
    ) -> None:
        self.volume = volume
        self.model = model
        self.stack = stack or SliceStack.along(volume, "axial")
        self.window = window or parse_window("auto", volume)
        self._prompts = PromptSet()
        encoder = SliceEncoder(model, StackImages(self.stack, self.window), cache)
        self._memory = memory_policy(memory)
        self.tracker = Tracker(model, encoder, self._memory, options)
        self._changes = Changes()
        self._found_by_auto = {}
        self._history = History(self._state, self._go_back, undo_limit, fade=SessionState.faded)

    @classmethod
    def open(
        cls,
        source: str | Path | Volume,
        model: str | Path | SegmentationModel = "embedded",
        *,
        axis: str = "axial",
        window: str | Window = "auto",
        memory: str | MemoryPolicy = "recent",
        zoom: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        config: str | Path | None = None,
        image_size: int | None = None,
        series: str | None = None,
        cache: FeatureCache | None = None,
        probabilities: bool = False,
    ) -> "Session":
        """Read a volume, load a model, and be ready for prompts.

        Parameters
        ----------
        source
            A file or folder :func:`~medsam2_core.imaging.reading.read_volume` opens, or a volume.
        model
            A name from the catalogue, a checkpoint's path, or a loaded model.
        axis
            ``axial``, ``sagittal``, ``coronal``, ``i``, ``j`` or ``k``.
        window
            ``auto``, a preset, ``"WIDTH,LEVEL"`` or a :class:`Window`.
        zoom
            ``auto``: the model looks at a region around the object; ``off``: at whole slices, as stock SAM 2.
        device, precision, config, image_size
            As in :func:`~medsam2_core.engine.model.load_model`; a loaded model has its own.
        series
            Which series of a DICOM folder.
        probabilities
            Keep what :meth:`probabilities` gives.

        Raises
        ------
        MedSAM2Error
            Of the kind that says what is wrong: the volume, the model, the device, or a setting.
        """
        volume = source if isinstance(source, Volume) else read_volume(source, series)
        stack = SliceStack.along(volume, axis)
        chosen = window if isinstance(window, Window) else parse_window(window, volume)
        options = TrackerOptions(zoom=zoom_is_on(zoom), keeps_probabilities=probabilities)
        policy = memory_policy(memory)
        if not isinstance(model, SegmentationModel):
            model = load_model(model, device, precision, config=config, image_size=image_size)
        return cls(volume, model, stack=stack, window=chosen, memory=policy, options=options, cache=cache)

    @property
    def object_names(self) -> tuple[str, ...]:
        """Objects in the order they were added."""
        return self._prompts.names

    @property
    def prompts(self) -> PromptSet:
        """A copy of everything the user said."""
        return PromptSet({name: list(prompts) for name, prompts in self._prompts})

    def add_object(self, name: str) -> None:
        """Add an object without prompts. PromptError when the name is empty or taken."""
        if name in self._prompts.names:
            raise PromptError(f"there is an object {name!r} already: prompt it, or choose another name")
        with self._history.step(f"add {name}"):
            self._prompts.add_object(name)

    def remove_object(self, name: str) -> None:
        """Forget an object, its prompts and its masks."""
        self._prompts.of(name)
        with self._history.step(f"remove {name}"):
            self._prompts.remove_object(name)
            self._changes.forget(name)
            if name in self.tracker.object_ids:
                self.tracker.remove_object(name)

    def prompt(self, name: str, *prompts: Prompt) -> SliceResult:
        """Say something about an object, on one slice, and get its mask there.

        A new name makes a new object. Clicks add to what was said about their slice; a box replaces the
        slice's box, a mask its mask. On a slice that propagation has segmented, clicks correct the mask.

        Raises
        ------
        PromptError
            When a prompt does not fit, or the prompts lie on several slices (see :meth:`apply`).
        """
        if not prompts:
            raise PromptError(f"nothing was said about {name!r}: give a point, a box or a mask")
        slices = resolve(prompts, self.stack)
        if len(slices) != 1:
            raise PromptError(
                f"the prompts lie on slices {', '.join(map(str, slices))}: give them one slice at a time"
            )
        (n,) = slices
        with self._history.step(f"prompt {name}"):
            self._take(name, n, by_slice(prompts, self.stack)[n])
        return self.tracker.result(name, n)

    def apply(self, prompts: PromptSet) -> list[SliceResult]:
        """Take prompts of several objects on several slices at once; the masks of all those slices.

        Raises
        ------
        PromptError
            Before anything is changed, naming the object.
        """
        validate(prompts, self.stack)
        touched = []
        with self._history.step("apply prompts"):
            for name, given in prompts:
                self._prompts.add_object(name)
                for n, of_slice in by_slice(given, self.stack).items():
                    self._take(name, n, of_slice)
                    touched.append((name, n))
        return [self.tracker.result(name, n) for name, n in touched]

    def unprompt(self, name: str, n: int) -> None:
        """Take back everything said about an object on slice ``n``, and its mask there."""
        kept = self._said_elsewhere(name, n)
        with self._history.step(f"take back prompts of {name}"):
            self.tracker.unprompt(name, n)
            self._prompts.objects[name] = kept
            self._changes.add(name, n)

    def finalise(self, name: str, n: int, mask_hw: NDArray[np.bool_] | None = None) -> SliceResult:
        """Mark slice ``n`` as final, with the user's own mask or as it stands; nothing will change it.

        The user's mask replaces all that was said about the slice.
        """
        with self._history.step(f"finalise slice {n} of {name}"):
            if mask_hw is None:
                return self.tracker.finalise(name, n)
            drawn = mask_on_slice(mask_hw, n, self.stack)
            self._prompts.add_object(name)
            result = self.tracker.finalise(name, n, mask_hw)
            said = self._said_elsewhere(name, n)
            self._prompts.objects[name] = said + ([] if drawn is None else [drawn])
            self._changes.add(name, n)
        return result

    def release(self, name: str, n: int) -> None:
        """Allow a final slice to be changed again, by prompts or by the next propagation."""
        if not self.tracker.result(name, n).final:
            raise PromptError(f"slice {n} of object {name!r} is not final: there is nothing to release")
        with self._history.step(f"release slice {n} of {name}"):
            self.tracker.release(name, n)
            if n not in self.tracker.state(name).conditioning:
                self._changes.add(name, n)

    def propagate(
        self,
        names: list[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        *,
        direction: Direction | str = "both",
        stop_after_absent: int | None = 3,
        should_cancel: Callable[[], bool] | None = None,
    ) -> Propagation:
        """Segment all slices of the prompted objects, one result at a time.

        After a correction only what it can change is segmented again: the slices up to the next prompted
        ones on either side. One undo takes back the whole propagation.

        Parameters
        ----------
        names
            Objects, one at least; all that are prompted by default.
        first, last
            Range of slices, inclusive.
        stop_after_absent
            In each direction, stop after so many slices without the object; None goes to the end.
        should_cancel
            Asked before every slice; :class:`~medsam2_core.errors.Cancelled` is raised while iterating.
        """
        known = list(self.tracker.prompted_ids if names is None else names)
        if not known:
            way_out = "prompt an object first" if names is None else "name an object, or leave names out"
            raise PromptError(f"nothing to propagate: {way_out}")
        states = [self.tracker.state(name) for name in known]  # refuses what was never prompted
        towards = _direction(direction)
        whole = first is None and last is None
        ranges = {(first, last): known}
        if whole:
            ranges = self._changes.ranges(states, len(self.stack), stop_after_absent)
        parts = [
            self.tracker.propagate(
                together, low, high, direction=towards,
                stop_after_absent=stop_after_absent, should_cancel=should_cancel,
            )
            for (low, high), together in ranges.items()
        ]  # fmt: skip
        settles = whole and towards is Direction.BOTH
        settled = [name for together in ranges.values() for name in together] if settles else []
        # What is said from now on is not in this plan, even if it is said before the first result.
        since = self._changes.copied()
        settle = partial(Changes.settle, names=settled, patience=stop_after_absent, since=since)
        return followed(parts, self._history, lambda: settle(self._changes))

    def mask_kji(self, name: str) -> NDArray[np.bool_]:
        """(K, J, I) mask of an object on the volume's grid; empty when nothing was segmented yet."""
        self._prompts.of(name)
        if name not in self.tracker.object_ids:
            return np.zeros(self.volume.voxels_kji.shape[:3], dtype=bool)
        return self.stack.volume_mask({r.n: r.mask_hw for r in self.tracker.results(name)})

    def results(self, name: str) -> Iterator[SliceResult]:
        """The slices of an object segmented so far, ascending."""
        self._prompts.of(name)
        return self.tracker.results(name) if name in self.tracker.object_ids else iter(())

    def segmentation(self) -> Segmentation:
        """All objects on the volume's grid, with what they were made from."""
        segments = (self._as_segment(number, name) for number, name in enumerate(self.object_names))
        return Segmentation(self.volume.geometry, tuple(segments), self.provenance())

    def probabilities(self) -> Probabilities:
        """How sure the model is of every voxel of every object, on the volume's grid; 8 bits, packed.

        A user's own masks are certain. PromptError when the session does not keep them.
        """
        if not self.tracker.options.keeps_probabilities:
            raise PromptError("no probabilities were kept: open the session with probabilities=True")
        maps = {name: {r.n: r.certainty for r in self.results(name)} for name in self.object_names}
        return Probabilities.of_stack(self.stack, maps, {**self.provenance(), **self._auto_models()})

    def provenance(self) -> dict[str, Any]:
        """How the masks came about: prompts, model, window, software."""
        return {
            "prompts": self._prompts.to_json(),
            **self.model.provenance(),
            "window": self.window.to_dict(),
            "slices": self.stack.key,
            "zoom": "auto" if self.tracker.options.zoom else "off",
            "memory": memory_name(self._memory),
            "software": f"MedSAM2Segment {__version__}",
        }

    @property
    def undo_steps(self) -> list[str]:
        """What :meth:`undo` would take back, the next first."""
        return self._history.steps

    def undo(self) -> str:
        """Take back the last step; returns what it was. PromptError when there is none.

        Masks and prompts come back exactly. Beyond the last four steps, a click on a slice that was only
        tracked is then answered from its mask, no longer from the logits and memories behind it.
        """
        return self._history.undo()

    def _take(self, name: str, n: int, prompts: list[Prompt]) -> None:
        """Add prompts of one slice and ask the model."""
        self._prompts.add_object(name)
        replaced = {type(p) for p in prompts} - {Point}
        here = [
            p for p in self._prompts.of(name) if n in slices_of(p, self.stack) and type(p) not in replaced
        ]
        together = here + prompts
        self.tracker.prompt(name, n, resolve(together, self.stack)[n])
        self._prompts.objects[name] = self._said_elsewhere(name, n) + together
        self._changes.add(name, n)

    def _said_elsewhere(self, name: str, n: int) -> list[Prompt]:
        """What was said about an object on other slices than ``n``."""
        return [p for p in self._prompts.of(name) if n not in slices_of(p, self.stack)]

    def _as_segment(self, number: int, name: str) -> Segment:
        values = [result.confidence for result in self.results(name) if result.mask_hw.any()]
        tags = {"MedSAM2.confidence": f"{np.mean(values):.3f}" if values else "0"}
        known = self._found_by_auto.get(name)
        if known is None or not known.is_behind(self._prompts.of(name)):
            return Segment(name, default_colour(number), self.mask_kji(name), tags=tags)
        tags |= self._auto_tags(name)
        return Segment(name, known.colour_rgb, self.mask_kji(name), known.coded, tags)

    def _state(self) -> SessionState:
        return SessionState(self.prompts.objects, self.tracker.snapshot(), self._changes.copied())

    def _go_back(self, state: SessionState) -> None:
        self._prompts = PromptSet({name: list(prompts) for name, prompts in state.prompts.items()})
        self.tracker.restore(state.masks)
        self._changes = state.changes.copied()


def _direction(direction: Direction | str) -> Direction:
    try:
        return Direction(direction)
    except ValueError as error:
        choices = ", ".join(one.value for one in Direction)
        raise PromptError(f"unknown direction {direction!r}: use one of {choices}") from error
