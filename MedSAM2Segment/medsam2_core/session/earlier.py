"""Earlier work as input: a result with its prompts, settings and masks; segmented scans."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Note, PromptError, VolumeError
from medsam2_core.imaging.geometry import PLANE_NORMAL, Geometry
from medsam2_core.imaging.intensity import parse_window
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.transforms import read_transform
from medsam2_core.prompts import PromptSet, SlicePrompts
from medsam2_core.prompts.slice_prompts import by_slice

if TYPE_CHECKING:
    from medsam2_core.session.examples import Example
    from medsam2_core.session.session import Session


def prompts_in(path: Path, geometry: Geometry) -> PromptSet:
    """Read prompts from a JSON file, or from the tags of a ``.seg.nrrd``.

    Raises
    ------
    PromptError
        ``prompts-unreadable``; ``no-stored-prompts`` for a segmentation without any; or what is wrong with
        them.
    """
    if path.name.lower().endswith(".seg.nrrd"):
        return EarlierResult.read(path, geometry).prompts
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        return PromptSet.from_json(path.read_bytes(), geometry)
    except PromptError as error:
        problem = f"{path}: {error}"
        raise PromptError(problem, code=error.code, **{"path": str(path), **error.fields}) from error
    except OSError as error:
        message = f"the prompts file {path} cannot be read: {error.strerror}"
        raise PromptError(message, code="prompts-unreadable", path=str(path)) from error


@dataclass(frozen=True)
class EarlierResult:
    """A ``.seg.nrrd`` of `medsam2 segment`: masks, the prompts they came from, and the settings."""

    path: Path
    segmentation: Segmentation
    prompts: PromptSet

    @classmethod
    def read(cls, path: Path, geometry: Geometry) -> EarlierResult:
        """Read a result of the volume with this grid.

        Raises
        ------
        VolumeError, GeometryError
            ``not-a-result`` for another kind of file; ``result-on-another-grid``.
        PromptError
            ``no-stored-prompts``.
        """
        if not path.name.lower().endswith(".seg.nrrd"):
            message = f"{path}: only a .seg.nrrd of `medsam2 segment` has the prompts it came from"
            raise VolumeError(message, code="not-a-result", path=str(path))
        segmentation = read_segmentation(path)
        if not segmentation.geometry.same_grid(geometry, 0.05):
            message = f"{path} has another grid than the volume: it is the result of another one"
            raise VolumeError(message, code="result-on-another-grid", path=str(path))
        stored = segmentation.provenance.get("prompts")
        if not isinstance(stored, str):
            stored = None if stored is None else json.dumps(stored)
        if stored is None:
            message = f"{path} has no prompts in its tags: use it with --mask instead"
            raise PromptError(message, code="no-stored-prompts", path=str(path))
        try:
            return cls(path, segmentation, PromptSet.from_json(stored, geometry))
        except PromptError as error:
            problem = f"{path}: {error}"
            raise PromptError(problem, code=error.code, **{"path": str(path), **error.fields}) from error

    @property
    def settings(self) -> dict[str, Any]:
        """The options of `medsam2 segment` it was made with, by name, as far as they are stored."""
        known = self.segmentation.provenance
        found: dict[str, Any] = {name: str(known[name]) for name in _SAME if known.get(name)}
        window = known.get("window")
        if isinstance(window, Mapping) and {"width", "level"} <= window.keys():
            found["window"] = f"{window['width']},{window['level']}"
        plane = str(known.get("slices", "")).partition(":")[0]
        if plane in PLANE_NORMAL:
            found["axis"] = plane
        if known.get("image_size"):
            found["image_size"] = int(known["image_size"])
        return found

    @property
    def slices(self) -> tuple[int | None, int | None]:
        """First and last slice that were to be segmented."""
        stored = self.segmentation.provenance.get("propagated") or [None, None]
        known = [n for n in stored if n is None or type(n) is int] if isinstance(stored, list) else []
        if len(known) != 2 or len(stored) != 2:
            raise self._damaged("propagated", stored)
        return known[0], known[1]

    @property
    def overlap(self) -> bool:
        """Whether objects may share voxels."""
        return self.segmentation.provenance.get("overlap") != "no"

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """First and last slice of objects that had a range of their own."""
        stored = self.segmentation.provenance.get("limits") or {}
        if not isinstance(stored, dict) or not all(map(_is_limit, stored.values())):
            raise self._damaged("limits", stored)
        return {name: (first, last) for name, (first, last) in stored.items()}

    def _damaged(self, tag: str, stored: object) -> VolumeError:
        message = (
            f"{self.path}: {tag} is {str(stored)[:80]}, two slices are needed: use it with --mask instead"
        )
        return VolumeError(message, code="stored-range", path=str(self.path), tag=tag)

    def weights_note(self, session: Session) -> Note | None:
        """Return what to know when the session's model is not the one it was made with."""
        known, ours = self.segmentation.provenance.get("weights_sha256"), session.model.weights_sha256
        if not known or not ours or known == ours:
            return None
        return Note.warning(
            "other-weights",
            f"{self.path.name} was made with other weights ({str(known)[:12]}…) than these ({ours[:12]}…)",
            stored=str(known), given=ours,
        )  # fmt: skip

    def new_object_notes(self, prompts: PromptSet) -> list[Note]:
        """Return which objects of these prompts are not among those of the result: the name may be a slip."""
        known = tuple(dict.fromkeys([*self.segmentation.names, *self.prompts.names]))
        return [
            Note.warning(
                "new-object",
                f"{name!r} is a new object: {self.path.name} has {', '.join(known)}",
                object=name, known=list(known),
            )
            for name in prompts.names if name not in known
        ]  # fmt: skip

    def restore_in(self, session: Session, limits: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Put masks and prompts into a session, as they were: only what changes later is propagated.

        Of objects with new limits, what tracking had found beyond these is left out. Where it had not been,
        the user drew the mask: that stays.
        """
        first, last = self.slices
        of_all = (first or 0, len(session.stack) - 1 if last is None else last)
        for segment in self.segmentation:
            if segment.name not in self.prompts.names:
                continue
            earlier, wanted = self.limits.get(segment.name), (limits or {}).get(segment.name)
            confidence = float(segment.tags.get("MedSAM2.confidence", 1.0))
            given = by_slice(self.prompts.of(segment.name), session.stack)
            masks = {}
            for n in range(len(session.stack)):
                mask_hw = session.stack.mask_of(segment.part_kji, n, segment.offset_ijk)
                if mask_hw.any() or n in given:
                    masks[n] = SliceMask.from_mask(segment.name, n, mask_hw, predicted_iou=confidence)
            slices = {n: SlicePrompts(tuple(of_slice), known=masks[n]) for n, of_slice in given.items()}
            tracked = {
                n: mask
                for n, mask in masks.items()
                if n not in slices
                and (_is_within(n, wanted) or not (_is_within(n, earlier) and _is_within(n, of_all)))
            }
            reached = _shared(earlier, wanted)
            session.restore_object(segment.name, slices, tracked, propagated=True, limits=reached)

    def described(self, made: Segmentation) -> Segmentation:
        """Return a corrected segmentation with what this one says of its segments, and with those that had no
        prompts."""
        earlier = {segment.name: segment for segment in self.segmentation}
        segments = []
        for segment in made:
            known = earlier.pop(segment.name, None)
            described = segment
            if known is not None:
                described = Segment.from_part(
                    segment.name, known.colour_rgb, segment.part_kji, segment.offset_ijk, segment.shape_ijk,
                    known.terminology, {**known.tags, **segment.tags},
                )  # fmt: skip
            segments.append(described)
        return replace(made, segments=(*segments, *earlier.values()))


def read_examples(pairs: Sequence[tuple[Path, Path]], window: str) -> list[Example]:
    """Read scans with their segmentations."""
    from medsam2_core.session.examples import Example  # with all of Auto, which prompts alone do not need

    examples = []
    for scan, segmentation in pairs:
        volume = read_volume(scan)
        segments = read_segmentation(segmentation)
        examples.append(Example(volume, segments, parse_window(window, volume)))
    return examples


def read_prior(path: Path, transform: Path | None) -> Segmentation:
    """Read an earlier segmentation, moved to where it is in the new scan."""
    prior = read_segmentation(path)
    if transform is None:
        return prior
    moved = Geometry(read_transform(transform) @ prior.geometry.ijk_to_ras, prior.geometry.shape_ijk)
    return Segmentation(moved, prior.segments, prior.provenance)


def _is_limit(stored: object) -> bool:
    return (
        isinstance(stored, list) and [type(n) for n in stored] == [int, int] and 0 <= stored[0] <= stored[1]
    )


def _is_within(n: int, limits: tuple[int, int] | None) -> bool:
    return limits is None or limits[0] <= n <= limits[1]


def _shared(limits: tuple[int, int] | None, others: tuple[int, int] | None) -> tuple[int, int] | None:
    if limits is None or others is None:
        return limits or others
    return max(limits[0], others[0]), min(limits[1], others[1])


#: Settings that are stored under the name of their option.
_SAME = ("model", "memory", "zoom", "precision")
