"""One volume or image set, its objects and their prompts: the API of notebooks, command line and worker.

::

    from medsam2_core import Box, Point, Session

    session = Session.open("scan.nrrd", window="abdomen")
    result = session.prompt("liver", Box((40, 60, 12), (110, 130, 12)))  # the mask of that slice, at once
    for result in session.propagate():                                   # then every other slice
        print(result.n, result.confidence)
    session.prompt("liver", Point((80, 70, 15), positive=False))         # correct a slice …
    for result in session.propagate():                                   # … and its neighbours follow
        pass
    session.undo()                                                       # or rather not
    mask_kji = session.mask_kji("liver")                                 # on the volume's own grid

A set of images that have no order is segmented in the same way; ``n`` is then the number of an image::

    session = Session.open(read_images("folder"))
    session.prompt("disc", Box((210, 180, 0), (260, 240, 0)))  # on image 0: columns, rows, image
    for result in session.propagate():                         # the most similar images first
        print(session.images.facts[result.n].name, result.confidence)
    segmentation = session.segmentation(3)                     # of one image

Prompts are given in IJK. A session is not thread-safe; ``should_cancel`` is how another thread ends it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.images import ImageSource
from medsam2_core.engine.memory import MemoryPolicy
from medsam2_core.engine.model import load_model
from medsam2_core.engine.options import Direction, TrackerOptions, memory_policy, zoom_is_on
from medsam2_core.engine.propagation import Propagation
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.sources import SetImages, StackImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import Cancelled, PromptError
from medsam2_core.export.dicom.coding import coded_by_name
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.intensity import Window, parse_window
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour
from medsam2_core.imaging.set_stack import SetStack
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Prompt, PromptSet, SlicePrompts
from medsam2_core.prompts.shapes import kept_slices
from medsam2_core.prompts.slice_prompts import by_slice, resolve, validate
from medsam2_core.session.history import History
from medsam2_core.session.objects import ObjectsSnapshot, SessionObjects
from medsam2_core.session.propagating import PropagationPlan, RecordedPropagation
from medsam2_core.session.provenance import Provenance

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.auto.predictions import AutoPrediction
    from medsam2_core.auto.volumes import VolumeOptions
    from medsam2_core.session.examples import Example, ObjectSearch


_CONFIDENCE = "MedSAM2.confidence"  # tag of a segment
# What the provenance says when every image of a set has a window of its own.
_WINDOW_OF_EACH = Window(127.5, 255, "auto, for each image")


class Session:
    """Segments objects of one volume, or of the images of a set; see the module's example.

    Parameters
    ----------
    stack
        How the volume is cut into slices; axial by default.
    window
        What the model sees of the intensities; chosen from the volume, or from each image, by default.
    memory
        ``"recent"`` (SAM 2), ``"self-sorting"`` (Medical SAM 2), ``"prompted"`` (the prompted slices alone),
        or a policy of your own; ``"auto"`` is ``"recent"`` for a volume and ``"prompted"`` for images without
        an order.
    options
        See :class:`~medsam2_core.engine.options.TrackerOptions`.
    cache
        Feature cache, if several sessions shall share one limit.
    undo_limit
        Steps :meth:`undo` can take back.
    ordered
        Whether the slices of a volume are neighbours; else they are images of a set that have one size.
    """

    def __init__(
        self,
        volume: Volume | ImageSet,
        model: SegmentationModel,
        *,
        stack: SliceStack | None = None,
        window: Window | None = None,
        memory: str | MemoryPolicy = "auto",
        options: TrackerOptions | None = None,
        cache: FeatureCache | None = None,
        undo_limit: int = 50,
        ordered: bool = True,
    ) -> None:
        self.model = model
        self._volume = volume
        source: ImageSource
        self.stack: SliceStack
        if isinstance(volume, ImageSet):
            self.stack, self.window = SetStack(volume), window or _WINDOW_OF_EACH
            source = SetImages(volume, None if window is None else [window] * len(volume))
        else:
            self.stack = stack or SliceStack.along(volume, "axial")
            self.window = window or parse_window("auto", volume)
            source = StackImages(self.stack, self.window, ordered)
        if not source.ordered:
            options = replace(options or TrackerOptions(), locates=True)
        encoder = SliceEncoder(model, source, cache)
        if memory == "auto":
            memory = "recent" if source.ordered else "prompted"
        policy = memory_policy(memory)
        self.tracker = Tracker(model, encoder, policy, options)
        self._provenance = Provenance(encoder, self.tracker.options, self.stack, self.window, policy)
        self._objects = SessionObjects(self.stack, self.tracker, self._provenance)
        self._auto_predictions: dict[str, AutoPrediction] = {}
        self._history: History[ObjectsSnapshot] = History(
            self._objects.snapshot,
            self._objects.restore_snapshot,
            undo_limit,
            compact=ObjectsSnapshot.compact,
        )

    @classmethod
    def open(
        cls,
        source: str | Path | Volume | ImageSet,
        model: str | Path | SegmentationModel = "embedded",
        *,
        axis: str = "axial",
        window: str | Window = "auto",
        memory: str | MemoryPolicy = "auto",
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
            A file or folder :func:`~medsam2_core.imaging.reading.read_volume` opens, a volume, or the images
            of :func:`~medsam2_core.imaging.reading.read_images`.
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
            The volume, the model, the device or a setting cannot be used.
        """
        volume = source if isinstance(source, Volume | ImageSet) else read_volume(source, series)
        stack, chosen = None, window if isinstance(window, Window) else None
        if isinstance(volume, Volume):
            stack = SliceStack.along(volume, axis)
            chosen = chosen or parse_window(str(window), volume)
        elif chosen is None and window != "auto":
            chosen = parse_window(str(window))
        options = TrackerOptions(zoom=zoom_is_on(zoom), keeps_probabilities=probabilities)
        policy = memory if memory == "auto" else memory_policy(memory)
        if not isinstance(model, SegmentationModel):
            model = load_model(model, device, precision, config=config, image_size=image_size)
        return cls(volume, model, stack=stack, window=chosen, memory=policy, options=options, cache=cache)

    @property
    def volume(self) -> Volume:
        """The scan; PromptError ``no-volume`` when the session is of a set of images."""
        if isinstance(self._volume, ImageSet):
            raise PromptError("a set of images has no volume: use images", code="no-volume")
        return self._volume

    @property
    def images(self) -> ImageSet:
        """The set of images; PromptError ``no-image-set`` when the session is of a volume."""
        if not isinstance(self._volume, ImageSet):
            raise PromptError("a volume is no set of images: use volume", code="no-image-set")
        return self._volume

    @property
    def object_names(self) -> tuple[str, ...]:
        """Objects in the order they were added."""
        return self._objects.prompts.names

    @property
    def prompts(self) -> PromptSet:
        """A copy of all prompts."""
        return PromptSet({name: list(prompts) for name, prompts in self._objects.prompts})

    def add_object(self, name: str) -> None:
        """Add an object without prompts.

        Raises
        ------
        PromptError
            The name is empty or taken.
        """
        self._check_new([name])
        with self._history.step(f"add {name}"):
            self._objects.prompts.add_object(name)

    def remove_object(self, name: str) -> None:
        """Remove an object, its prompts and its masks."""
        self._objects.prompts.of(name)
        with self._history.step(f"remove {name}"):
            self._objects.remove(name)

    def prompt(self, name: str, *prompts: Prompt) -> SliceMask:
        """Prompt an object on one slice, and return its mask there.

        A new name makes a new object. Clicks are added to the prompts of their slice; a box replaces the
        slice's box, a mask its mask. On a slice that propagation has segmented, clicks correct the mask.

        Raises
        ------
        PromptError
            When a prompt does not fit, or the prompts lie on several slices (see :meth:`apply`).
        """
        if not prompts:
            message = f"no prompt for {name!r}: give a point, a box or a mask"
            raise PromptError(message, code="no-prompts", object=name)
        slices = resolve(prompts, self.stack)
        if len(slices) != 1:
            raise PromptError(
                f"the prompts lie on slices {', '.join(map(str, slices))}: give them one slice at a time",
                code="prompts-on-several-slices", slices=list(slices),
            )  # fmt: skip
        (n,) = slices
        with self._edit(f"prompt {name}"):
            self._objects.add_prompts(name, n, by_slice(prompts, self.stack)[n])
        return self.tracker.result(name, n)

    def apply(self, prompts: PromptSet) -> list[SliceMask]:
        """Add prompts of several objects on several slices at once; return the masks of all those slices.

        Raises
        ------
        PromptError
            Before anything is changed, naming the object.
        """
        validate(prompts, self.stack)
        prompted = []
        with self._edit("apply prompts"):
            for name, given in prompts:
                self._objects.prompts.add_object(name)
                for n, of_slice in by_slice(given, self.stack).items():
                    self._objects.add_prompts(name, n, of_slice)
                    prompted.append((name, n))
        return [self.tracker.result(name, n) for name, n in prompted]

    def set_prompts(self, name: str, slices: Mapping[int, SlicePrompts]) -> dict[int, SliceMask | None]:
        """Replace all prompts of an object on some slices, as one step: all of it happens, or nothing.

        Prompts that begin with the slice's present ones refine its mask; others are applied afresh, one after
        the other. Without prompts those of the slice are removed. A new name makes a new object.

        The same prompts on a slice give the same mask, bit for bit, in any session of the same volume,
        window, model, device and number of threads: whatever was prompted and removed before, and whatever
        prompts other slices have. That holds as long as

        - tracking has not been on the slice. Where it has, its mask is what the prompts correct, and memories
          of other slices help; so the mask depends on what was tracked when they were set. When all prompts
          are removed, the tracked mask comes back;
        - no predicted box is among the prompts: those refine the mask that came with it;
        - the slice was prompted with this method only. :meth:`prompt` also looks at where the object is on
          neighbouring slices, and takes several prompts at once.

        Returns
        -------
        dict
            The masks of ``slices`` as they are then; None where nothing is left.

        Raises
        ------
        PromptError
            Before anything is changed: prompts that do not fit, or lie on other slices; ``final`` where there
            is no mask.
        """
        for n, given in slices.items():
            self._objects.check(n, given)
        with self._edit(f"prompt {name}"):
            for n, given in slices.items():
                self._objects.set_prompts(name, n, given)
        return {n: self._objects.mask(name, n) for n in slices}

    def prompt_segment(
        self, name: str, mask_kji: NDArray[np.bool_], keep: str = "all"
    ) -> dict[int, SliceMask | None]:
        """Prompt an object with the slices of a segment, as one step: they stay exactly as they are.

        :meth:`propagate` then finds the slices that are not kept; within :meth:`prompted_spans` only those
        between the kept ones.

        Parameters
        ----------
        mask_kji
            (K, J, I), on the volume's grid.
        keep
            Which of its slices: see :func:`~medsam2_core.prompts.shapes.kept_slices`.

        Returns
        -------
        dict
            The masks of the slices kept.

        Raises
        ------
        PromptError
            ``unknown-keep``; ``empty-mask`` for a segment without voxels.
        """
        self.stack.check_grid(mask_kji)
        masks = {n: self.stack.mask_of(mask_kji, n) for n in range(len(self.stack))}
        kept = kept_slices([n for n, mask_hw in masks.items() if mask_hw.any()], keep)
        if not kept:
            raise PromptError(f"the segment for {name!r} is empty", code="empty-mask", object=name)
        known = {n: SliceMask.from_mask(name, n, masks[n]) for n in kept}
        return self.set_prompts(name, {n: SlicePrompts(known=mask) for n, mask in known.items()})

    def prompted_spans(self) -> dict[str, tuple[int, int]]:
        """Return the first and last prompted slice of every prompted object."""
        conditioning = {name: self.tracker.state(name).conditioning for name in self.tracker.prompted_ids}
        return {name: (min(slices), max(slices)) for name, slices in conditioning.items()}

    def restore_object(
        self,
        name: str,
        slices: Mapping[int, SlicePrompts],
        tracked: Mapping[int, SliceMask],
        *,
        propagated: bool = False,
        limits: tuple[int, int] | None = None,
    ) -> dict[int, SliceMask | None]:
        """Replace all prompts and masks of an object, as one step.

        Parameters
        ----------
        slices
            The prompts by slice; with known masks the model is not asked.
        tracked
            What tracking had found, by slice. On slices of both, the prompts of ``slices`` correct this mask,
            and it comes back when they are removed; final ones without prompts are these masks.
        propagated
            Whether these are the masks of a finished propagation: the next one follows later changes only.
        limits
            First and last slice of that propagation; None for all.

        Returns
        -------
        dict
            The masks of ``slices`` as they are then.

        Raises
        ------
        PromptError
            Prompts or masks that do not fit; then nothing has changed.
        """
        for n, given in slices.items():
            self._objects.check(n, given)
        with self._history.step(f"restore {name}"):
            self._objects.restore(name, slices, tracked)
            self._provenance.is_tracked |= propagated or bool(tracked)  # a picture has nothing to track
            if propagated:
                known = {} if limits is None else {name: limits}
                self._objects.changes.mark_synced([name], None, self._objects.changes.copied(), known)
                self._provenance.note_limits({name}, known)
        return {n: self._objects.mask(name, n) for n in slices}

    def unprompt(self, name: str, n: int) -> None:
        """Remove all prompts of an object on slice ``n``, and its mask there."""
        with self._edit(f"remove prompts of {name}"):
            self._objects.remove_prompts(name, n)

    def finalise(self, name: str, n: int, mask_hw: NDArray[np.bool_] | None = None) -> SliceMask:
        """Mark slice ``n`` as final, with the user's own mask or as it is; nothing will change it.

        The user's mask replaces all prompts of the slice.
        """
        with self._edit(f"finalise slice {n} of {name}"):
            if mask_hw is None:
                return self.tracker.finalise(name, n)
            self._objects.set_drawn_mask(name, n, mask_hw)
        return self.tracker.result(name, n)

    def release(self, name: str, n: int) -> None:
        """Allow a final slice to be changed again, by prompts or by the next propagation."""
        if not self.tracker.result(name, n).final:
            message = f"slice {n} of object {name!r} is not final: there is nothing to release"
            raise PromptError(message, code="slice-not-final", object=name, n=n)
        with self._history.step(f"release slice {n} of {name}"):
            self._objects.release(name, n)

    def auto(
        self,
        auto: "AutoModel",
        classes: Sequence[str] | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        options: "VolumeOptions | None" = None,
        flips: bool = False,
        replace: bool = False,
        should_cancel: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "list[AutoPrediction]":
        """Segment every class of an Auto model; each that is found becomes an object of its name.

        The slices the model is surest of get a predicted box, which may be moved; clicks correct the mask
        found with it. One undo takes back all of it. ``classes`` are names (None: all), ``first`` and
        ``last`` are both included, and ``replace`` replaces objects of these names.

        Raises
        ------
        CheckpointError
            The Auto model was trained on another SAM 2, or does not know a class.
        PromptError
            ``no-volume``; ``object-exists``, without `replace`.
        Cancelled
            Stopped; nothing has changed.
        """
        from medsam2_core.session.automatic import AutoRun

        if not self.tracker.source.ordered:
            raise PromptError("Auto models segment volumes, or single images of a set", code="no-volume")
        run = AutoRun(self.stack, self.tracker, auto, classes, options, flips=flips)
        if not replace:
            self._check_new(classes or auto.card.class_names)
        for _ in run.run(first, last, should_cancel):
            progress(run.done, run.total)
        found = run.found()
        # What was there before is not emptied by a class that is nowhere.
        present = {one.name: one for one in found if one.masks or one.name not in self.object_names}
        with self._history.step(f"find {', '.join(present) or 'nothing'}"):
            for name, one in present.items():
                prompts = one.slice_prompts()
                tracked = {n: mask for n, mask in one.masks.items() if n not in prompts}
                self._objects.restore(name, prompts, tracked)
            # What tracking would find is known, or was not wanted: only later changes have to be propagated.
            changes = self._objects.changes
            changes.mark_synced(present, None, changes.copied())
        self._auto_predictions |= present
        self._provenance.is_tracked |= bool(present)
        return found

    def find_like(
        self,
        examples: "Sequence[Example]",
        first: int | None = None,
        last: int | None = None,
        *,
        should_cancel: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Look for the objects of segmented scans in this one; :meth:`propagate` then follows what is found.

        Every object becomes one of this session, with predicted boxes on the slices it was found on most
        surely, which may be moved or corrected by clicks. One undo takes back all of them. ``first`` and
        ``last`` are both looked at.

        Returns
        -------
        list
            Names of the objects that were found nowhere.

        Raises
        ------
        PromptError
            ``object-exists``, or ``empty-examples``.
        Cancelled
            Stopped; nothing has changed.
        """
        from medsam2_core.session.examples import ExampleSearch

        search = ExampleSearch(self.tracker, self.stack, examples, self._slices_between(first, last))
        return self._find(search, "find objects of examples", "like", should_cancel, progress)

    def find_prior(
        self,
        prior: Segmentation,
        first: int | None = None,
        last: int | None = None,
        *,
        should_cancel: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Look for the objects of an earlier segmentation of the same patient near their old places.

        As :meth:`find_like`, by a segmentation on this volume's grid.
        """
        from medsam2_core.session.examples import PriorSearch

        search = PriorSearch(self.tracker, self.stack, prior, self._slices_between(first, last))
        return self._find(search, "find objects of an earlier scan", "prior", should_cancel, progress)

    def _find(
        self,
        search: "ObjectSearch",
        step: str,
        found_by: str,
        should_cancel: Callable[[], bool],
        progress: Callable[[int, int], None],
    ) -> list[str]:
        self._check_new(search.names)
        found, done, total = {}, 0, sum(map(search.count, search.names))
        for name in search.names:
            masks = []
            for look in search.looks(name):
                if should_cancel():
                    raise Cancelled(f"stopped while looking for {name!r}", object=name)
                masks.append(look())
                done += 1
                progress(done, total)
            found[name] = search.chosen(name, masks)
        return self._take_known(found, step, found_by)

    def _slices_between(self, first: int | None, last: int | None) -> range:
        count = len(self.stack)
        return range(first or 0, count if last is None else min(last + 1, count))

    def _check_new(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.object_names:
                message = f"there is an object {name!r} already: remove or replace it, or choose another name"
                raise PromptError(message, code="object-exists", object=name)

    @contextmanager
    def _edit(self, step: str) -> Iterator[None]:
        with self._history.step(step):
            self._provenance.note_edit()
            yield

    def _take_known(
        self, found: Mapping[str, Mapping[int, SlicePrompts]], step: str, found_by: str
    ) -> list[str]:
        """Make objects of what was found, as one step; return the names of what was not."""
        with self._history.step(step):
            self._provenance.note_search(found_by)
            for name, slices in found.items():
                self._objects.prompts.add_object(name)
                for n, given in slices.items():
                    self._objects.set_prompts(name, n, given)
        return [name for name, slices in found.items() if not slices]

    def propagate(
        self,
        names: list[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        *,
        direction: Direction | str = "both",
        stop_after_absent: int | None = 3,
        limits: Mapping[str, tuple[int, int]] | None = None,
        overlap: bool = True,
        outward: bool = False,
        should_cancel: Callable[[], bool] | None = None,
    ) -> Propagation:
        """Segment all slices of the prompted objects, one result at a time.

        After a correction only what it can change is segmented again: the slices up to the next prompted
        ones on either side; of an image set, all images. One undo takes back the whole propagation.
        Images of a set come in order of their similarity to the prompted ones, whatever their number.

        Parameters
        ----------
        names
            Objects, one at least; all that are prompted by default.
        first, last
            Range of slices, inclusive.
        stop_after_absent
            In each direction, stop after so many slices without the object; None goes to the end, as it
            always does in an image set.
        limits
            Ranges of single objects, inclusive, within that of all: :meth:`prompted_spans` fills what lies
            between prompted slices.
        overlap
            Whether objects may share pixels. If not, the one with the higher logit gets a pixel; prompted and
            final slices stay as they are.
        outward
            Begin around the slices that changed, and go on from there to both sides at once: the user is
            looking at them, and may soon change something else.
        should_cancel
            Asked before every slice; :class:`~medsam2_core.errors.Cancelled` is raised while iterating.
        """
        plan = PropagationPlan(
            self.tracker, self._objects, names, first, last, direction, stop_after_absent, limits, outward
        )
        begin = partial(self._provenance.note_propagation, plan.names, plan.limits, first, last, overlap)
        take = self.tracker.step_taker(plan.steps, plan.patience, overlap)
        return RecordedPropagation(plan.steps, take, should_cancel, self._history, begin, plan.finish)

    def mask_kji(self, name: str) -> NDArray[np.bool_]:
        """Return the (K, J, I) mask of an object on the volume's grid; empty when nothing is segmented.

        PromptError ``no-volume`` for an image set: use :meth:`results`, or the segmentation of an image.
        """
        return self.stack.volume_mask({one.n: one.mask_hw for one in self.results(name)})

    def results(self, name: str) -> Iterator[SliceMask]:
        """Return the masks of an object's slices segmented so far, ascending."""
        return self._objects.results(name)

    def segmentation(self, n: int | None = None) -> Segmentation:
        """Return all objects on the volume's grid, with what they were made from.

        Objects whose names have a code carry it.

        Parameters
        ----------
        n
            Of a set of images: which image.
        """
        objects = enumerate(self.object_names)
        if n is None:
            segments = tuple(self._segment(*one) for one in objects)
            return coded_by_name(Segmentation(self.volume.geometry, segments, self.provenance()))
        image = self.images[self.stack.checked(n)]
        facts = self._provenance.to_dict(self._objects.prompts_of_image(n), image.known_spacing)
        others = [m for m in self._objects.prompted_slices() if m != n]
        facts["prompted_images"] = [self.images.facts[m].name for m in others]
        segments = tuple(self._segment_of_image(*one, n) for one in objects)
        return coded_by_name(Segmentation(image.geometry, segments, facts))

    def _segment_of_image(self, number: int, name: str, n: int) -> Segment:
        mask = self._objects.mask(name, n)
        mask_kji = np.zeros((1, *self.stack.shape_of(n)), bool) if mask is None else mask.mask_hw[None]
        confidence = "0" if mask is None else f"{mask.confidence:.3f}"
        return Segment(name, default_colour(number), mask_kji, tags={_CONFIDENCE: confidence})

    def _segment(self, number: int, name: str) -> Segment:
        values = [mask.confidence for mask in self.results(name) if not mask.is_empty]
        tags = {_CONFIDENCE: f"{np.mean(values):.3f}" if values else "0"}
        known, prompts = self._auto_predictions.get(name), self._objects.prompts.of(name)
        if known is None or not known.is_source_of(prompts):
            return Segment(name, default_colour(number), self.mask_kji(name), tags=tags)
        tags |= known.tags(prompts)
        return Segment(name, known.colour_rgb, self.mask_kji(name), known.coded, tags)

    def probabilities(self) -> Probabilities:
        """Return the probability of every voxel of every object, on the volume's grid; 8 bits, packed.

        A user's own masks are certain. PromptError when the session does not keep them.
        """
        if not self.tracker.options.keeps_probabilities:
            message = "no probabilities were kept: open the session with probabilities=True"
            raise PromptError(message, code="no-probabilities")
        names = self.object_names
        maps = {name: {one.n: one.certainty for one in self.results(name)} for name in names}
        facts = self.provenance()
        present = [one.model for name, one in self._auto_predictions.items() if name in names]
        if present:
            facts["auto"] = ", ".join(sorted(set(present)))
        return Probabilities.of_stack(self.stack, maps, facts)

    def provenance(self) -> dict[str, Any]:
        """Return how the masks came about: prompts, model, window, software."""
        spacing = "all" if isinstance(self._volume, ImageSet) else self._volume.known_spacing
        return self._provenance.to_dict(self._objects.prompts, spacing)

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
