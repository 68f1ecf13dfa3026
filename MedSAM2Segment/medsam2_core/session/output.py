"""What a session gives out: segmentations, probabilities, and how they came about."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import PromptError
from medsam2_core.export.dicom.coding import coded_by_name
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.session.objects import SessionObjects

if TYPE_CHECKING:
    from medsam2_core.auto.predictions import AutoPrediction

_CONFIDENCE = "MedSAM2.confidence"


class SessionOutput:
    """The objects of a session on the grid of its volume or images; see the methods of the session."""

    def __init__(
        self, volume: Volume | ImageSet, stack: SliceStack, tracker: Tracker, objects: SessionObjects
    ) -> None:
        self._volume, self._stack, self._tracker, self._objects = volume, stack, tracker, objects
        self.auto_predictions: dict[str, AutoPrediction] = {}

    def mask_kji(self, name: str) -> NDArray[np.bool_]:
        """Return the (K, J, I) mask of an object."""
        results = self._objects.results(name)
        return self._stack.volume_mask({one.n: one.mask_hw for one in results})

    def provenance(self) -> dict[str, Any]:
        """Return how the masks came about."""
        spacing = "all" if isinstance(self._volume, ImageSet) else self._volume.known_spacing
        return self._objects.provenance.to_dict(self._objects.prompts, spacing)

    def probabilities(self) -> Probabilities:
        """Return the probability of every voxel of every object."""
        if not self._tracker.options.keeps_probabilities:
            message = "no probabilities were kept: open the session with probabilities=True"
            raise PromptError(message, code="no-probabilities")
        names = self._objects.prompts.names
        maps = {name: {one.n: one.certainty for one in self._objects.results(name)} for name in names}
        facts = self.provenance()
        present = [one.model for name, one in self.auto_predictions.items() if name in names]
        if present:
            facts["auto"] = ", ".join(sorted(set(present)))
        return Probabilities.of_stack(self._stack, maps, facts)

    def segmentation(self, geometry: Geometry) -> Segmentation:
        """Return all objects on the volume's grid."""
        segments = tuple(self._segment(*one) for one in enumerate(self._objects.prompts.names))
        return coded_by_name(Segmentation(geometry, segments, self.provenance()))

    def segmentation_of_image(self, images: ImageSet, n: int) -> Segmentation:
        """Return all objects on an image of a set."""
        image = images[self._stack.checked(n)]
        facts = self._objects.provenance.to_dict(self._objects.prompts_of_image(n), image.known_spacing)
        others = [m for m in self._objects.prompted_slices() if m != n]
        facts["prompted_images"] = [images.facts[m].name for m in others]
        segments = tuple(self._segment_of_image(*one, n) for one in enumerate(self._objects.prompts.names))
        return coded_by_name(Segmentation(image.geometry, segments, facts))

    def _segment_of_image(self, number: int, name: str, n: int) -> Segment:
        mask = self._objects.mask(name, n)
        mask_kji = np.zeros((1, *self._stack.shape_of(n)), bool) if mask is None else mask.mask_hw[None]
        confidence = "0" if mask is None else f"{mask.confidence:.3f}"
        return Segment(name, default_colour(number), mask_kji, tags={_CONFIDENCE: confidence})

    def _segment(self, number: int, name: str) -> Segment:
        values = [mask.confidence for mask in self._objects.results(name) if not mask.is_empty]
        tags = {_CONFIDENCE: f"{np.mean(values):.3f}" if values else "0"}
        known, prompts = self.auto_predictions.get(name), self._objects.prompts.of(name)
        if known is None or not known.is_source_of(prompts):
            return Segment(name, default_colour(number), self.mask_kji(name), tags=tags)
        tags |= known.tags(prompts)
        return Segment(name, known.colour_rgb, self.mask_kji(name), known.coded, tags)
