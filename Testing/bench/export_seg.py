"""Seconds, memory and bytes of a DICOM SEG of a long series, beside highdicom called plainly with all pixels.

    python Testing/bench/export_seg.py                      # 512 x 512 x 300, 1 and 30 segments
    python Testing/bench/export_seg.py --slices 60 --segments 1,5
    python Testing/bench/export_seg.py --slices 60 --segments 10 --overlapping  # a mask of each

Every way runs in a process of its own, on the same files, one after the other; a table is printed.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 512
WAYS = (
    ("plain", "binary", "none"),
    ("ours", "binary", "none"),
    ("plain", "labelmap", "none"),
    ("ours", "labelmap", "none"),
    ("plain", "labelmap", "rle"),
    ("ours", "labelmap", "rle"),
    ("ours", "labelmap", "jpeg-ls"),
    ("ours", "fractional", "none"),
    ("ours", "fractional", "rle"),
    ("ours", "fractional", "jpeg-ls"),
)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--segments", default="1,30")
    parser.add_argument("--overlapping", action="store_true", help="give highdicom a mask of each segment")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(**json.loads(options.one))))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = write_series(Path(place) / "series", options.slices)
        for count in map(int, options.segments.split(",")):
            print(f"{count} segments, {SIDE} x {SIDE} x {options.slices}")
            for who, kind, compression in WAYS:
                if options.overlapping and kind != "binary":
                    continue
                asked = {"who": who, "kind": kind, "compression": compression}
                asked["overlapping"] = options.overlapping
                words = json.dumps({**asked, "folder": str(folder), "count": count, "out": f"{place}/x.dcm"})
                done = subprocess.run(
                    [sys.executable, __file__, "--one", words], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(f"  {who:6} {kind:10} {compression:8} {done.stderr.strip().splitlines()[-1][:90]}")
                    continue
                got = json.loads(done.stdout)
                print(
                    f"  {who:6} {kind:10} {compression:8} {got['seconds']:6.1f} s  "
                    f"peak {got['peak_mb']:5.0f} MB ({got['over_mb']:+6.0f} over the objects)  "
                    f"file {got['bytes'] / 1e6:7.2f} MB  {got['frames']} frames"
                )


def write_series(folder: Path, slices: int) -> Path:
    """A CT series without anything in its pixels."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from support.small_files import write_series as write

    return write(folder, np.zeros((slices, SIDE, SIDE), dtype=np.int16))


def some_organs(count: int, slices: int) -> np.ndarray:
    """(K, J, I) uint8 label map of ellipsoids that do not touch, numbered from 1."""
    across = int(np.ceil(np.sqrt(count)))
    step = SIDE // across
    labels = np.zeros((slices, SIDE, SIDE), dtype=np.uint8)
    radius = min(step * 0.45, 120.0)
    half = max(2.0, min(slices * 0.35, radius))
    k, j, i = np.ogrid[:slices, :SIDE, :SIDE]
    for n in range(count):
        y, x = (n // across + 0.5) * step, (n % across + 0.5) * step
        z = slices * (0.4 + 0.2 * (n % 3) / 2)
        low, high = int(max(0, z - half)), int(min(slices, z + half + 1))
        near = ((i - x) / radius) ** 2 + ((j - y) / radius) ** 2 + ((k[low:high] - z) / half) ** 2
        labels[low:high][near <= 1] = n + 1
    return labels


def one(
    who: str, kind: str, compression: str, folder: str, count: int, out: str, overlapping: bool = False
) -> dict:
    """One way: seconds and peak memory of writing, the objects being there already."""
    from medsam2_core.export.dicom.source import read_source
    from medsam2_core.imaging.segmentation import Segmentation

    source = read_source(folder)
    labels = some_organs(count, source.geometry.shape_ijk[2])
    segmentation = None
    if who == "ours":
        masks = {f"object {n + 1}": labels == n + 1 for n in range(count)} if count == 1 else None
        segmentation = (
            Segmentation.from_masks(source.geometry, masks)
            if masks
            else segmentation_of(labels, count, source.geometry)
        )
        del labels
        labels = None
    import highdicom  # noqa: F401 - not part of what is measured

    before = reset_peak()
    began = time.perf_counter()
    if who == "ours":
        frames = write_ours(segmentation, source, kind, compression, out)
    else:
        frames = write_plain(labels, count, source, kind, compression, out, overlapping=overlapping)
    seconds = time.perf_counter() - began
    size = Path(out).stat().st_size
    Path(out).unlink()
    return {
        "seconds": seconds,
        "peak_mb": status("VmHWM"),
        "over_mb": status("VmHWM") - before,
        "bytes": size,
        "frames": frames,
    }


def segmentation_of(labels: np.ndarray, count: int, geometry):
    """The objects of a label map, one mask at a time."""
    from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour

    segments = (Segment(f"object {n + 1}", default_colour(n), labels == n + 1) for n in range(count))
    return Segmentation(geometry, tuple(segments))


def write_ours(segmentation, source, kind: str, compression: str, out: str) -> int:
    """`write_seg`; probabilities of a fractional one are a blurred mask."""
    from medsam2_core.export.dicom.options import Compression, Kind
    from medsam2_core.export.dicom.seg import SegOptions, write_seg

    probabilities = blurred(segmentation) if kind == "fractional" else None
    options = SegOptions(kind=Kind(kind), compression=Compression(compression), generic=True)
    return write_seg(segmentation, source, out, options, probabilities=probabilities, overwrite=True).frames


def blurred(segmentation):
    """Probabilities that fall off around the objects."""
    from medsam2_core.imaging.probabilities import Probabilities
    from medsam2_core.imaging.slice_mask import PackedValues, agreeing
    from scipy import ndimage

    slices = {}
    for segment in segmentation:
        own = slices[segment.name] = {}
        for k in range(segmentation.geometry.shape_ijk[2]):
            mask = np.zeros(segmentation.geometry.shape_ijk[1::-1], dtype=bool)
            touched = segment.on_slice(mask, k)
            if touched is not None:
                touched[0][...] = touched[1]
                soft = ndimage.uniform_filter(mask.astype(np.float32), 9)
                own[k] = PackedValues.of(agreeing(np.rint(soft * 255).astype(np.uint8), mask))
    return Probabilities(segmentation.geometry, slices)


def write_plain(
    labels: np.ndarray, count: int, source, kind: str, compression: str, out: str, *, overlapping: bool
) -> int:
    """What a user of highdicom writes: all pixels in, the object out."""
    import highdicom
    from highdicom import UID
    from medsam2_core.export.dicom.descriptions import describe
    from medsam2_core.export.dicom.frames import TRANSFER_SYNTAXES
    from medsam2_core.export.dicom.options import Compression

    described = describe(segmentation_of(labels, count, source.geometry), generic=True)
    if overlapping:  # a label map cannot hold them: (K, J, I, segments)
        labels = np.stack([labels == n + 1 for n in range(count)], axis=-1)
    seg = highdicom.seg.Segmentation(
        source_images=list(source.datasets),
        pixel_array=labels,
        segmentation_type=kind.upper(),
        segment_descriptions=described.items,
        series_instance_uid=UID(),
        series_number=1,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="plain",
        manufacturer_model_name="plain",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=TRANSFER_SYNTAXES[Compression(compression)],
    )
    seg.save_as(out)
    return int(seg.NumberOfFrames)


def reset_peak() -> float:
    """Reset the peak of memory; return what is held now, in MB. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(what: str) -> float:
    """Return a value of this process from the kernel, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


if __name__ == "__main__":
    main()
