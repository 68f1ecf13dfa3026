"""sam2's own video predictor beside our tracker: the same weights, the same slices, in turns."""

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.evaluation.timings import Phantom, Timings
from medsam2_core.imaging.intensity import Window, to_display
from medsam2_core.prompts.types import PixelPrompts

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor


class StockVideo:
    """sam2's video predictor with the weights of a model.

    Parameters
    ----------
    folder
        The slices as JPEG files, which is what it reads.
    compiled
        As sam2's ``vos_optimized``: all parts through ``torch.compile``. The first run takes minutes.
    """

    def __init__(
        self, model: SegmentationModel, folder: Path, box_xyxy: NDArray[np.float32], compiled: bool = False
    ) -> None:
        self._model, self._folder, self._box = model, folder, box_xyxy
        self._predictor = predictor_of(model, compiled)
        self._state: dict[str, Any] = {}
        self.masks: list[NDArray[np.bool_]] = []

    def start(self) -> None:
        """Load all frames, which is not timed here."""
        with self._quiet():
            self._state = self._predictor.init_state(str(self._folder))
        self._state["cached_features"].clear()  # it has encoded the first

    def cold(self) -> None:
        """A box, and all slices."""
        with self._quiet():
            self._predictor.add_new_points_or_box(self._state, 0, obj_id=1, box=self._box)
        self.warm()

    def warm(self) -> None:
        """All slices; it encodes every one again."""
        with self._quiet():
            found = self._predictor.propagate_in_video(self._state)
            self.masks = [(masks[0, 0] > 0).cpu().numpy() for _, _, masks in found]

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        with self._model.computing(), _without_progress_bars():
            yield


class OurVideo:
    """Our tracker with the options that repeat sam2's video predictor, on the same frames."""

    def __init__(
        self, model: SegmentationModel, frames: list[NDArray[np.uint8]], box_xyxy: NDArray[np.float32]
    ) -> None:
        self._model, self._frames = model, frames
        self._prompt = PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), box_xyxy)
        self.masks: list[NDArray[np.bool_]] = []

    def start(self) -> None:
        """Begin with nothing encoded."""
        encoder = SliceEncoder(self._model, ArrayImages(self._frames), FeatureCache(2**32))
        self._tracker = Tracker.stock(self._model, encoder)

    def cold(self) -> None:
        """A box, and all slices."""
        self._tracker.prompt("1", 0, self._prompt)
        self.warm()

    def warm(self) -> None:
        """All slices."""
        self.masks = [mask.mask_hw for mask in self._tracker.propagate()]


def predictor_of(model: SegmentationModel, compiled: bool = False) -> "SAM2VideoPredictor":
    """Return sam2's video predictor with a model's own modules; compiled with copies of them."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

    # A predictor is a SAM2Base with five more settings: building one anew would only draw weights to discard.
    predictor = copy.deepcopy(model.module) if compiled else copy.copy(model.module)
    predictor.__class__ = SAM2VideoPredictorVOS if compiled else SAM2VideoPredictor
    predictor.fill_hole_area = 0
    predictor.non_overlap_masks = predictor.clear_non_cond_mem_around_input = False
    predictor.add_all_frames_to_correct_as_cond = True
    if compiled:
        with contextlib.redirect_stdout(None):
            predictor._compile_all_components()
        encoder = predictor.image_encoder
        encoder.forward = torch.compile(encoder.forward, mode="max-autotune", fullgraph=True, dynamic=False)
    return predictor


def beside_stock(
    model: SegmentationModel,
    slices: int,
    side: int,
    turns: int,
    update: Callable[[int, str], None],
    compiled: bool = False,
) -> tuple[Timings, float | None]:
    """Time sam2's video predictor and our tracker in turns.

    Returns
    -------
    Timings
        ``"sam2, cold"``, ``"ours, cold"``, ``"sam2, warm"``, ``"ours, warm"``: seconds a slice. Warm is a
        repeated propagation, for which ours has the features still.
    float or None
        Smallest IoU of their masks of one slice; None for a model that also gets what sam2 does not give,
        such as the mask of the slice before.
    """
    from PIL import Image

    phantom, timings, least = Phantom.of(slices, side, 1), Timings(model.device), 1.0
    window = Window(60, 300)
    box = np.array(phantom.boxes[0], np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n, values in enumerate(phantom.volume.voxels_kji):
            Image.fromarray(to_display(values, window)).save(folder / f"{n:05d}.jpg", quality=95)
        frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))]
        pair: dict[str, StockVideo | OurVideo] = {
            "sam2": StockVideo(model, folder, box, compiled),
            "ours": OurVideo(model, frames, box),
        }
        if compiled:
            update(0, "compiling")
        for one in pair.values():  # warm-up, not timed
            one.start()
            one.cold()
        for turn in range(turns):
            for phase in ("cold", "warm"):
                update(turn, f"beside sam2, {phase}")
                for who in sorted(pair, reverse=turn % 2 == 0):
                    one = pair[who]
                    if phase == "cold":
                        one.start()
                    timings.run(f"{who}, {phase}", getattr(one, phase), slices)
                least = min([least, *map(_iou, pair["sam2"].masks, pair["ours"].masks)])
        update(turns, "")
    return timings, least if model.recipe == STOCK else None


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return 1.0 if union == 0 else int((one & other).sum()) / union


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep sam2's progress bars off stderr."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
