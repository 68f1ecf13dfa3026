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
from medsam2_core.imaging.segment_builder import SegmentBuilder
from medsam2_core.imaging.segmentation import Label, Segmentation, bounding_box
from medsam2_core.imaging.segmentation_files import read_segmentation
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
            builder.add((0, int(number)), int(k), some)
        assert set(builder.keys) == {(0, n) for n, mask in masks.items() if mask.any()}
        for number, mask in masks.items():
            assert np.array_equal(whole(builder.take((0, number)), shape), mask)
        assert builder.keys == ()


def test_overlapping_segments_are_whole_and_have_layers(campaign):
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
            builder.add((0, int(number)), int(k), masks[number][k])
        built = builder.build([Label("", number) for number in masks], Geometry(np.eye(4), shape[::-1]))
        layers = built.layers()
        for layer in range(max(layers) + 1):
            on_it = [n for n, on in enumerate(layers) if on == layer]
            for segment in (built.segments[n] for n in on_it):
                assert np.array_equal(segment.mask_kji, masks[segment.value])
            for k in range(shape[0]):
                expected = sum(masks[built.segments[n].value][k] * (n + 1) for n in on_it)
                assert np.array_equal(built.label_slice(k, on_it), expected)
        assert len(set(layers)) <= len(masks)


def test_segments_of_a_label_map_are_in_boxes(tmp_path):
    voxels = some_voxels(dtype=np.uint8) % 5
    read = read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    assert [label.value for label in read.labels] == [1, 2, 3, 4]
    for segment in read:
        assert np.array_equal(segment.mask_kji, voxels == segment.value)
        assert bounding_box(segment.part_kji) == ((0, 0, 0), segment.part_kji.shape)
    assert np.array_equal(read.labels_kji(), voxels)


def test_layers_come_back_slice_by_slice(tmp_path, campaign):
    rng = np.random.default_rng(9)
    for n in range(10 * campaign):
        masks, geometry = random_blobs(rng, int(rng.integers(2, 7))), random_geometry(rng)
        read = read_segmentation(
            export.write(a_segmentation(geometry, masks), tmp_path / f"{n}.seg.nrrd").path
        )
        assert read.names == tuple(masks)
        assert read.geometry.same_grid(geometry, 1e-9)
        for segment in read:
            assert np.array_equal(segment.mask_kji, masks[segment.name])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_a_segment_is_stored_in_another_order_of_the_axes(order, flips):
    rng = np.random.default_rng(3)
    own = a_geometry("sheared")
    # Index there to index here: axis n there is axis order[n] here.
    mapping = np.zeros((4, 4))
    mapping[3, 3] = 1
    for there, (here, sign) in enumerate(zip(order, flips, strict=True)):
        mapping[here, there] = sign
        mapping[here, 3] = 0 if sign > 0 else own.shape_ijk[here] - 1
    other = Geometry(own.ijk_to_ras @ mapping, tuple(own.shape_ijk[n] for n in order))
    masks = random_blobs(rng, 3) | {"nothing": np.zeros(own.shape_ijk[::-1], dtype=bool)}
    moved = Segmentation.from_masks(own, masks).on_grid(other)
    assert moved.geometry is other
    assert other.same_positions(own, 0.05) and own.same_positions(other, 0.05)
    for name, mask_kji in masks.items():
        ijk = np.argwhere(mask_kji)[:, ::-1]
        expected = np.zeros(other.shape_ijk[::-1], dtype=bool)
        i, j, k = np.rint(other.to_ijk(own.to_ras(ijk))).astype(int).T
        expected[k, j, i] = True
        assert np.array_equal(moved[name].mask_kji, expected)


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
    streamed = encoding != "ascii" and np.dtype(dtype).kind != "f"
    assert (read_layers(path) is not None) == streamed
    assert read_layers(other) is None


def test_layers_that_end_too_early_are_refused(tmp_path):
    path = export.write(a_segmentation(), tmp_path / "a.seg.nrrd").path
    head, _, data = path.read_bytes().partition(b"\n\n")
    voxels = gzip.decompress(data)
    path.write_bytes(head + b"\n\n" + gzip.compress(voxels[:-1]))
    with raises("truncated", VolumeError, bytes=len(voxels), stored_bytes=len(voxels) - 1):
        read_segmentation(path)
    path.write_bytes(head + b"\n\n" + data[: len(data) // 2])
    with raises("truncated", VolumeError):
        read_segmentation(path)


def test_layers_nobody_names_are_refused(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5, 2), np.uint8), dict(LAYERS), index_order="C")
    with raises("unnamed-layers", VolumeError, layers=2):
        read_segmentation(tmp_path / "a.nrrd")


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
    seg = write(tmp_path / "a.dcm", [Described(mask, name) for name, mask in masks.items()])
    from_seg, peak = peak_of(lambda: read_segmentation(seg))
    headers = 320 * 14_000  # bytes pydicom takes to describe 320 frames
    assert peak < 2.5 * boxes + headers < 20 * layer
    for name, mask in masks.items():
        assert np.array_equal(read[name].mask_kji, mask)
        k = int(np.flatnonzero(np.any(list(masks.values()), axis=(0, 2, 3)))[-1]) + 1
        assert np.array_equal(from_seg[name].mask_kji, mask[:k])
