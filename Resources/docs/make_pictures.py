"""Makes the pictures of the tutorial and the first one of the README; run by hand, it takes about a minute.

    python Resources/docs/make_pictures.py [FOLDER]

What they show is real: Slicer's slice views and segmentation, drawn off screen; the effect's controller, with
a worker in a process of its own; the effect's panel, shown by that controller. Mouse and keys are events put
into the views. Only Slicer's window is missing: views and panel are put side by side here, and every picture
says so. It needs what the tests need, and Pillow.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "MedSAM2Segment"), str(ROOT / "Testing")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from support import qt_shim as a_qt  # noqa: E402

qt = a_qt.installed()

import numpy as np  # noqa: E402
from medsam2_core.imaging.reading import read_volume  # noqa: E402
from MedSAM2SegmentLib.Panels.OptionsPanel import OptionsPanel  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from support.active_effect import ActiveEffect, RealWorkerSource  # noqa: E402
from support.panel import WIDTH, shown  # noqa: E402
from support.slice_view import a_slice_view  # noqa: E402

#: What is drawn in the sample, in voxels (i, j, k).
BRAIN_BOX = ((10, 11, 24), (158, 194, 24))
VENTRICLES_BOX, NO_VENTRICLE = ((58, 62, 28), (110, 138, 28)), (84, 71, 28)
MIDDLE = (62, 102, 24)
SHOWN_AFTER = 15  # slices of the propagation

BIG, SMALL = (420, 490), (232, 233)
#: The views of Slicer, with what is written over each, and their colours.
VIEWS = {
    "Red": ("Axial", (243, 74, 51)),
    "Green": ("Coronal", (110, 176, 75)),
    "Yellow": ("Sagittal", (237, 213, 76)),
}
GREEN, ORANGE = (0.42, 0.75, 0.35), (0.96, 0.62, 0.13)
FILL = 0.4
BAR, FOOT, GAP, PAD = 18, 22, 6, 10
PAPER, INK = (239, 239, 239), (80, 80, 80)
VIEWS_ONLY = "Slice views as they appear in Slicer; rendered without Slicer's window."
OPTIONS_ONLY = "Options of the effect, rendered without Slicer."
NOTE = "Slice views and options as they appear in Slicer; rendered without Slicer's window."
LARGEST = 75_000  # bytes of a picture: every version stays in the history
ENOUGH = 128, 96, 64, 48, 32  # colours, until it is small enough


class PictureEffect(ActiveEffect):
    """The sample volume in three views, two segments, and the panel of the effect."""

    def __init__(self, source: RealWorkerSource, volume) -> None:
        self.panel = None
        super().__init__(source, volume, size=BIG, segmentation={"segments": ("A", "B")})
        self.views = {"Red": self.view}
        for name in ("Green", "Yellow"):
            self.views[name] = a_slice_view(name, VIEWS[name][0], SMALL)
        for segmentID, name, colour in (("A", "Brain", GREEN), ("B", "Ventricles", ORANGE)):
            segment = self.segmentation.GetSegmentation().GetSegment(segmentID)
            segment.SetName(name)
            segment.SetColor(*colour)
        # The brain has ventricles in it: "Modify other segments: Allow overlap".
        self.editor.node.SetOverwriteMode(self.editor.node.OverwriteNone)
        self.panel = OptionsPanel(None, self.controller)
        self.panel.show(self.state)

    def onState(self, state) -> None:
        super().onState(state)
        if self.panel is not None:
            self.panel.show(state)

    # What the user does -------------------------------------------------------------------------------------

    def look(self, ijk) -> None:
        """Show this voxel in all views."""
        ras = self.core.geometry.to_ras([ijk])[0]
        for view in self.views.values():
            view.show(self.node)
            view.node.JumpSliceByOffsetting(*ras)

    def pixel(self, ijk) -> tuple[int, int]:
        """Where a voxel is in the axial view."""
        return self.view.pixel_of(self.core.geometry.to_ras([ijk])[0])

    def box(self, first, last) -> None:
        """Choose the tool and drag."""
        self.panel.widget.findChild(qt.QPushButton, "boxButton").click()
        self.view.drag(self.pixel(first), self.pixel(last))
        self.wait()

    def select(self, segmentID: str) -> None:
        """Choose a segment, and see only that."""
        for other in ("A", "B"):
            self.segmentation.GetDisplayNode().SetSegmentVisibility(other, other == segmentID)
        self.editor.logic.SetCurrentSegmentID(segmentID)
        self.controller.update()
        self.wait()

    def propagate_until(self, done: int) -> None:
        """Press Propagate and wait for some slices."""
        self.panel.widget.findChild(qt.QPushButton, "propagateButton").click()
        end = time.monotonic() + 120
        while (self.state.progress or (0, 0))[0] < done or self.state.status is not Status.PROPAGATING:
            if time.monotonic() > end:
                raise SystemExit(f"no propagation: {self.state.text}")
            self.source.client.pump(0.02)
            self.controller.tick()

    def voxels(self) -> int:
        """How many belong to the selected segment, by what is seen in the axial view."""
        return int(np.abs(self._drawn(self.view, 1.0) - self._drawn(self.view, 0.0)).any(axis=2).sum())

    # What the user sees -------------------------------------------------------------------------------------

    def seen(self, name: str = "Red", more: str = "") -> Image.Image:
        """A view with its bar, and more words on it.

        Off screen, a fill that lets the image through is drawn over black instead: so the view is drawn with
        a full fill and with none, and the two are mixed, which comes to the same.
        """
        view = self.views[name]
        mixed = FILL * self._drawn(view, 1.0) + (1 - FILL) * self._drawn(view, 0.0)
        picture = Image.fromarray(np.rint(mixed).astype(np.uint8))
        whole = Image.new("RGB", (picture.width, picture.height + BAR), VIEWS[name][1])
        whole.paste(picture, (0, BAR))
        write(whole, (6, 2), VIEWS[name][0] + more, (20, 20, 20), 11)
        return whole

    def _drawn(self, view, fill: float) -> np.ndarray:
        display = self.segmentation.GetDisplayNode()
        display.SetVisibility2DFill(fill > 0)
        display.SetOpacity2DFill(fill)
        return view.picture().astype(float)

    def options(self) -> Image.Image:
        """The panel as it stands."""
        bits = qt.QBuffer()
        bits.open(qt.QIODevice.WriteOnly)
        shown(self.panel.widget).grab().save(bits, "PNG")
        picture = Image.open(io.BytesIO(bits.data().data())).convert("RGB")
        whole = Image.new("RGB", (WIDTH + 2 * PAD, picture.height + 2 * PAD + BAR), PAPER)
        whole.paste(picture, (PAD, PAD + BAR))
        write(whole, (PAD, 6), "Segment Editor, effect MedSAM2", INK, 11)
        return whole

    def three(self) -> Image.Image:
        """The three views, the axial one large."""
        small = stacked([self.seen("Green"), self.seen("Yellow")], "down")
        return stacked([self.seen(), small], "right")


def stacked(pictures: list[Image.Image], way: str) -> Image.Image:
    """Pictures side by side or one below the other."""
    right = way == "right"
    ends = [sum((one.width if right else one.height) + GAP for one in pictures[:n]) for n in range(9)]
    across = max(one.height if right else one.width for one in pictures)
    along = ends[len(pictures)] - GAP
    whole = Image.new("RGB", (along, across) if right else (across, along), PAPER)
    for place, one in zip(ends, pictures, strict=False):
        whole.paste(one, (place, 0) if right else (0, place))
    return whole


def write(picture: Image.Image, place: tuple[int, int], text: str, colour, size: int) -> None:
    """Put words onto a picture."""
    ImageDraw.Draw(picture).text(place, text, fill=colour, font=ImageFont.load_default(size))


def keep(picture: Image.Image, path: Path, note: str) -> None:
    """Save it with a note below; PNG with as many colours as fit into the size allowed."""
    whole = Image.new("RGB", (picture.width, picture.height + FOOT), PAPER)
    whole.paste(picture, (0, 0))
    write(whole, (PAD, picture.height + 4), note, INK, 11)
    if path.suffix == ".webp":
        whole.save(path, quality=65, method=6)
        print(f"{path.name}: {whole.width} x {whole.height}, {path.stat().st_size / 1000:.0f} kB")
        return
    for colours in ENOUGH:
        few = whole.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            break
    print(
        f"{path.name}: {whole.width} x {whole.height}, {path.stat().st_size / 1000:.0f} kB, {colours} colours"
    )


def with_options(clinic: PictureEffect) -> Image.Image:
    """Panel and views, as in Slicer's window."""
    return stacked([clinic.options(), clinic.three()], "right")


def the_brain(clinic: PictureEffect, folder: Path) -> None:
    """From the sample to the brain in all slices."""
    clinic.look(MIDDLE)
    clinic.panel.widget.findChild(qt.QPushButton, "boxButton").click()
    keep(clinic.options(), folder / "tutorial-1-options.png", OPTIONS_ONLY)
    clinic.box(*BRAIN_BOX)
    keep(with_options(clinic), folder / "tutorial-2-box.webp", NOTE)
    clinic.propagate_until(SHOWN_AFTER)
    keep(with_options(clinic), folder / "tutorial-3-propagating.webp", NOTE)
    clinic.wait(600)
    keep(with_options(clinic), folder / "effect.png", NOTE)


def the_ventricles(clinic: PictureEffect, folder: Path) -> None:
    """Another segment, a correction, and undo."""
    clinic.look((84, 102, 28))
    clinic.select("B")
    clinic.box(*VENTRICLES_BOX)
    before, size = clinic.seen(more=": after the box"), clinic.voxels()
    clinic.panel.widget.findChild(qt.QPushButton, "pointButton").click()
    clinic.view.click(clinic.pixel(NO_VENTRICLE), ctrl=True)
    clinic.wait(120)
    after, smaller = clinic.seen(more=": after Ctrl+click behind it"), clinic.voxels()
    keep(stacked([before, after], "right"), folder / "tutorial-4-correction.webp", VIEWS_ONLY)
    clinic.editor.undo()
    clinic.wait(120)
    undone = clinic.voxels()
    if not smaller < size or abs(undone - size) > 0.02 * size:
        raise SystemExit(f"correction and undo do not show: {size}, {smaller}, {undone} pixels")
    clinic.editor.redo()
    clinic.wait(120)
    for segmentID in ("A", "B"):
        clinic.segmentation.GetDisplayNode().SetSegmentVisibility(segmentID, True)
    clinic.look((76, 102, 28))
    clinic.controller.tick()
    keep(with_options(clinic), folder / "tutorial-5-both.webp", NOTE)


def main() -> int:
    """Make all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "Resources" / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    a_qt.application()
    source = RealWorkerSource()
    try:
        clinic = PictureEffect(source, read_volume(ROOT / "Resources" / "demo" / "mni152_t1.nrrd"))
        the_brain(clinic, folder)
        the_ventricles(clinic, folder)
        clinic.panel.cleanup()
        clinic.close()
    finally:
        source.client.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
