"""Objects read each in its own box: the same voxels as by layers, in a fraction of the memory."""

import gzip
import itertools
import tracemalloc

import nrrd
import numpy as np
import pytest
from medsam2_core import export
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.nrrd import read_layers
from medsam2_core.imaging.segmentation import Segmentation, SegmentBuilder
from medsam2_core.imaging.segmentation_files import (
    StoredSegments,
    read_labels,
    read_segmentation,
    read_stored_segments,
    stack_layers,
)
from support.dicom_seg import Part as Described
from support.dicom_seg import write
from support.errors import raises
from support.objects import a_geometry, a_segmentation, random_blobs, random_geometry
from support.small_files import some_voxels, write_nifti

LAYERS = {"kinds": ["list", "domain", "domain", "domain"], "space": "left-posterior-superior"}
LAYERS["space directions"] = np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def whole(stored, shape_kji):
    mask_kji, (i, j, k) = stored
    mask = np.zeros(shape_kji, dtype=bool)
    depth, rows, columns = mask_kji.shape
    mask[k : k + depth, j : j + rows, i : i + columns] = mask_kji
    return mask


def peak_of(work):
    work()  # what is imported on the way is not counted
    tracemalloc.start()
    result = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


def test_objects_are_put_together_from_slices_in_any_order_and_in_pieces(campaign):
    rng = np.random.default_rng(4)
    for _ in range(40 * campaign):
        shape = (int(rng.integers(1, 6)), 6, 7)
        masks = {
            int(n): rng.random(shape) < rng.choice([0.0, 0.05, 0.4])
            for n in rng.choice(70_000, 5, replace=False)
        }
        pieces = list(itertools.product(masks, range(shape[0]), (0, 3)))
        rng.shuffle(pieces)
        builder = SegmentBuilder()
        for number, k, row in pieces:
            some = np.zeros(shape[1:], dtype=bool)
            some[row : row + 3] = masks[int(number)][k, row : row + 3]
            builder.add(int(number), int(k), some)
        assert set(builder.numbers) == {n for n, mask in masks.items() if mask.any()}
        for number, mask in masks.items():
            assert np.array_equal(whole(builder.take(number), shape), mask)
        assert builder.numbers == ()


def test_overlapping_segments_are_stacked_on_layers(campaign, tmp_path):
    rng = np.random.default_rng(11)
    for _ in range(60 * campaign):
        shape = (int(rng.integers(1, 6)), 6, 7)
        highest = 65535 if rng.random() < 0.2 else 200
        numbers = rng.choice(highest, int(rng.integers(1, 7)), replace=False) + 1
        masks = {int(number): rng.random(shape) < rng.choice([0.02, 0.1, 0.4]) for number in numbers}
        builder = SegmentBuilder()
        pieces = list(itertools.product(masks, range(shape[0])))
        rng.shuffle(pieces)
        for number, k in pieces:
            builder.add(int(number), int(k), masks[number][k])
        layers_lkji, layer_of = stack_layers(tmp_path, builder, shape)
        for number, mask in masks.items():
            assert np.array_equal(layers_lkji[layer_of.get(number, 0)] == number, mask)
        assert len(layers_lkji) <= len(masks)


def test_segments_of_a_label_map_are_in_boxes(tmp_path):
    labels = read_labels(write_nifti(tmp_path / "l.nii", some_voxels(dtype=np.uint8) % 5))
    for read in (StoredSegments.of(labels), read_stored_segments(tmp_path / "l.nii")):
        assert read.labels == labels.labels
        for label, stored in zip(read.labels, read.masks, strict=True):
            assert np.array_equal(whole(stored, labels.voxels_kji.shape), labels.mask_kji(label.value))


def test_layers_read_slice_by_slice_give_the_same_as_all_at_once(tmp_path, campaign):
    rng = np.random.default_rng(9)
    for n in range(10 * campaign):
        masks = random_blobs(rng, int(rng.integers(2, 7)))
        path = export.write(a_segmentation(random_geometry(rng), masks), tmp_path / f"{n}.seg.nrrd").path
        read, labels = read_segmentation(path), read_labels(path)
        for again in (read, StoredSegments.of(labels).to_segmentation()):
            assert again.names == tuple(masks)
            assert again.geometry.same_grid(labels.geometry, 1e-9)
            for segment in again:
                assert np.array_equal(segment.mask_kji, masks[segment.name])
        assert labels.layers_lkji.flags.c_contiguous


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.uint32, np.float32])
def test_layers_are_read_however_they_are_encoded_and_wherever_their_axis_is(tmp_path, encoding, dtype):
    layers = np.zeros((4, 5, 6, 3), dtype=dtype)
    layers[1, 1:4, 1:5, 0], layers[1:3, 2:4, 1:3, 1], layers[3, 2, 2, 2] = 1, 4, 1
    fields = {}
    for n, value in enumerate((1, 4, 1)):
        fields |= {f"Segment{n}_ID": f"S{n}", f"Segment{n}_Name": "abc"[n], f"Segment{n}_Layer": str(n)}
        fields |= {f"Segment{n}_LabelValue": str(value)}
    path, other = tmp_path / "a.seg.nrrd", tmp_path / "b.seg.nrrd"
    nrrd.write(str(path), layers, {**LAYERS, **fields, "encoding": encoding}, index_order="C")
    turned = {"space": LAYERS["space"], "space directions": LAYERS["space directions"][[1, 2, 3, 0]]}
    slowest = np.moveaxis(layers, -1, 0)
    nrrd.write(str(other), slowest, {**turned, **fields, "encoding": encoding}, index_order="C")
    for file in (path, other):
        read = read_segmentation(file)
        assert [segment.value for segment in read] == [1, 4, 1]
        for n, segment in enumerate(read):
            assert np.array_equal(segment.mask_kji, layers[..., n] > 0)
            assert np.array_equal(read_labels(file).mask_kji(segment.name), layers[..., n] > 0)
    streamed = encoding != "ascii" and np.dtype(dtype).kind != "f"
    assert (read_layers(path) is not None) == streamed
    assert read_layers(other) is None


def test_layers_that_end_too_early_are_refused(tmp_path):
    path = export.write(a_segmentation(), tmp_path / "a.seg.nrrd").path
    head, _, data = path.read_bytes().partition(b"\n\n")
    voxels = gzip.decompress(data)
    path.write_bytes(head + b"\n\n" + gzip.compress(voxels[:-1]))
    told = f"truncated: voxels need {len(voxels)} bytes, only {len(voxels) - 1} are there"
    for read in (read_segmentation, read_labels):
        with pytest.raises(VolumeError, match=told):
            read(path)
    path.write_bytes(head + b"\n\n" + data[: len(data) // 2])
    with pytest.raises(VolumeError, match=r"truncated|damaged"):
        read_segmentation(path)


def test_layers_nobody_names_are_refused(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5, 2), np.uint8), dict(LAYERS), index_order="C")
    for read in (read_segmentation, read_labels):
        with raises("unnamed-layers", VolumeError, layers=2):
            read(tmp_path / "a.nrrd")


def forty_overlapping(shape_kji):
    masks = {}
    for n in range(40):
        mask = np.zeros(shape_kji, dtype=bool)
        mask[n // 4 : n // 4 + 8, 4 : 60 + n, 4:60] = True
        masks[f"object {n}"] = mask
    return masks


def test_forty_overlapping_objects_take_the_memory_of_their_boxes(tmp_path):
    shape = (20, 160, 200)
    masks = forty_overlapping(shape)
    boxes = sum(8 * (56 + n) * 56 for n in range(40))
    layer = int(np.prod(shape))
    written = Segmentation.from_masks(Geometry(a_geometry().ijk_to_ras, shape[::-1]), masks)
    path = export.write(written, tmp_path / "a.seg.nrrd").path
    assert max(written.layers()) > 25
    read, peak = peak_of(lambda: read_segmentation(path))
    assert peak < 2.5 * boxes + 4e6 < 15 * layer
    labels, peak = peak_of(lambda: read_labels(path))
    assert peak < 1.5 * len(labels.layers_lkji) * layer
    seg = write(tmp_path / "a.dcm", [Described(mask, name) for name, mask in masks.items()])
    from_seg, peak = peak_of(lambda: read_segmentation(seg))
    headers = 320 * 14_000  # bytes pydicom takes to describe 320 frames
    assert peak < 2.5 * boxes + headers < 20 * layer
    for name, mask in masks.items():
        assert np.array_equal(read[name].mask_kji, mask)
        k = int(np.flatnonzero(np.any(list(masks.values()), axis=(0, 2, 3)))[-1]) + 1
        assert np.array_equal(from_seg[name].mask_kji, mask[:k])
