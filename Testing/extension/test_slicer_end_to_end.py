"""From an injected click in a real slice view to voxels of a segment, by the worker's own process."""

import os
from pathlib import Path

import numpy as np
import pytest
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

slicer = pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
pytest.importorskip("torch")

from medsam2_core.evaluation.metrics import dice  # noqa: E402
from medsam2_core.imaging.reading import read_segmentation, read_volume  # noqa: E402
from medsam2_core.prompts import Point  # noqa: E402
from medsam2_core.session import Session  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support.active_effect import ActiveEffect, by_plain_matrices  # noqa: E402
from support.scene import a_linear_transform, reference_of  # noqa: E402
from support.slice_view import the_app  # noqa: E402

DEMO = Path(__file__).resolve().parents[2] / "Resources" / "demo"


@pytest.fixture
def effect_on(source):
    clinics = []

    def open_it(volume, **how):
        clinics.append(ActiveEffect(source, volume, **how))
        return clinics[-1]

    yield open_it
    for one in clinics:
        one.close()


def fullest_slice(labels_kji):
    """(k, j, i) of the middle of the slice with most voxels: a voxel that belongs to it."""
    k = int(labels_kji.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(labels_kji[k])
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return k, int(rows[middle]), int(columns[middle])


def click_and_compare(one, ras, same=0.98):
    """Click a place; the segment shows what a session in this process finds, where matrices say."""
    one.view.show(one.node, ras)
    pixel = one.view.pixel_of(ras)
    one.view.click(pixel)
    seconds = one.wait()
    adapter = VolumeAdapter(one.node)
    stack = adapter.cut(adapter.stackOfView(one.view.node))
    clicked = adapter.geometry.to_ijk(one.view.ras_of(pixel))[0]
    session = Session(adapter.volume, model_of(one), stack=stack)
    result = session.prompt("A", Point(tuple(clicked)))
    expected = by_plain_matrices(one.segmentation, np.eye(4), stack, {result.n: result.mask_hw})
    shown = voxels_of_fast(one.segmentation)
    assert expected.any()
    assert dice(shown, expected) >= same
    return shown, seconds


_models = {}


def model_of(_one):
    """The embedded model, in this process."""
    from medsam2_core.engine.model import load_model

    if not _models:
        _models["embedded"] = load_model("embedded", "cpu", "auto")
    return _models["embedded"]


def voxels_of_fast(node, segmentID="A"):
    """As `a_scene.voxels_of`, for volumes of millions of voxels."""
    _, shape_kji = reference_of(node)
    mask_kji = np.zeros(shape_kji, dtype=bool)
    segment = node.GetSegmentation().GetSegment(segmentID)
    image = segment.GetRepresentation("Binary labelmap")
    i0, i1, j0, j1, k0, k1 = image.GetExtent()
    if i0 <= i1 and j0 <= j1 and k0 <= k1:
        values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k1 - k0 + 1, j1 - j0 + 1, -1)
        mask_kji[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = values == segment.GetLabelValue()
    return mask_kji


def test_a_click_on_the_tumour_of_a_brain(effect_on, shared_data):
    volume = read_volume(shared_data / "mr" / "brain1_image.nrrd")
    truth = labels_of(shared_data / "mr" / "brain1_label.nrrd", volume)
    one = effect_on(volume)
    k, j, i = fullest_slice(truth)
    shown, _ = click_and_compare(one, volume.geometry.to_ras([[i, j, k]])[0])
    assert one.state.status is Status.PROMPTED
    on_slice = dice(shown[k], truth[k])
    print(f"Dice on the clicked slice {on_slice:.3f}")
    one.view.type("Return")
    assert one.state.status is Status.PROPAGATING
    one.wait(120)
    after = voxels_of_fast(one.segmentation)
    print(f"Dice of the volume {dice(after, truth):.3f}, slices {np.flatnonzero(after.any(axis=(1, 2)))}")
    assert np.array_equal(after[k], shown[k])
    one.editor.undo()
    one.controller.tick()
    assert np.array_equal(voxels_of_fast(one.segmentation), shown)


def labels_of(path, volume):
    """(K, J, I) what belongs to anything in a label map of the volume."""
    labels = read_segmentation(path)
    assert labels.geometry.same_grid(volume.geometry)
    return labels.labels_kji() > 0


def test_an_oblique_scan_is_segmented_in_the_plane_that_is_shown(effect_on, shared_data):
    volume = read_volume(shared_data / "orient" / "oblique_FLAIR.nrrd")
    one = effect_on(volume)
    centre = volume.geometry.to_ras([(np.array(volume.geometry.shape_ijk) - 1) / 2])[0]
    click_and_compare(one, centre)


def test_a_gantry_tilted_scan(effect_on, shared_data):
    volume = read_volume(shared_data / "dicom" / "ct_gantry_tilt_14")
    assert volume.geometry.is_sheared
    one = effect_on(volume)
    i, j, k = (np.array(volume.geometry.shape_ijk) - 1) / 2
    click_and_compare(one, volume.geometry.to_ras([[i, j, round(k)]])[0])


def test_a_transformed_scan_and_a_segmentation_that_is_not(effect_on, shared_data):
    volume = read_volume(shared_data / "mr" / "brain1_image.nrrd")
    truth = labels_of(shared_data / "mr" / "brain1_label.nrrd", volume)
    transform = a_linear_transform(the_app().scene)
    one = effect_on(volume, transform=transform)
    k, j, i = fullest_slice(truth)
    adapter = VolumeAdapter(one.node)
    assert not adapter.geometry.same_grid(volume.geometry)
    click_and_compare(one, adapter.geometry.to_ras([[i, j, k]])[0])


def test_a_worker_that_is_killed_while_it_propagates(effect_on):
    volume = read_volume(DEMO / "mni152_t1.nrrd")
    one = effect_on(volume)
    place = volume.geometry.to_ras([[84, 60, 24]])[0]
    one.view.show(one.node, place)
    one.view.click(one.view.pixel_of(place))
    one.wait()
    one.controller.propagate()
    while one.state.status is Status.PROPAGATING and one.controller.state.progress[0] < 2:
        one.source.client.pump(0.02)
        one.controller.tick()
    os.kill(one.source.client.welcome["pid"], 9)
    one.wait()
    assert Status.WORKER_LOST in [state.status for state in one.states]
    kept = voxels_of_fast(one.segmentation)
    assert kept[24].any()
    other = volume.geometry.to_ras([[60, 90, 26]])[0]
    one.view.show(one.node, other)
    one.view.click(one.view.pixel_of(other))
    one.wait()
    after = voxels_of_fast(one.segmentation)
    assert after[26].any()
    assert np.array_equal(after[24], kept[24])


def test_a_loaded_scene_is_segmented_as_if_it_had_never_been_saved(effect_on, tmp_path):
    volume = read_volume(DEMO / "mni152_t1.nrrd")
    one = effect_on(volume)
    one.controller.setValue("range", "21..27")

    def click(who, ijk, **keys):
        place = volume.geometry.to_ras([ijk])[0]
        who.view.show(who.node, place)
        who.view.click(who.view.pixel_of(place), **keys)
        who.wait()

    def goes_on(who):
        who.controller.propagate()
        who.wait(120)
        click(who, (60, 60, 24), ctrl=True)  # what does not belong, on a slice that was prompted
        who.controller.propagate()
        who.wait(120)
        return voxels_of_fast(who.segmentation)

    click(one, (84, 60, 24))
    one.controller.propagate()
    one.wait(120)
    saved, strip = voxels_of_fast(one.segmentation), one.state.confidences
    one.controller.deactivate()  # as when the module is left: what is known goes into the scene
    path = str(tmp_path / "scene.mrb")
    assert one.scene.WriteToMRB(path)
    one.controller.activate()
    expected = goes_on(one)
    one.close()
    assert the_app().scene.ReadFromMRB(path, False)
    later = effect_on(None)
    later.controller.setValue("range", "21..27")
    later.wait()
    assert np.array_equal(voxels_of_fast(later.segmentation), saved)
    assert later.state.confidences == strip
    shown = goes_on(later)
    assert (saved & ~expected).any()  # something that was ours was taken away
    assert np.array_equal(shown, expected)


def test_a_picture_for_the_readme(effect_on, tmp_path):
    volume = read_volume(DEMO / "mni152_t1.nrrd")
    truth = labels_of(DEMO / "mni152_brain.nrrd", volume)
    one = effect_on(volume, size=(760, 620))
    one.segmentation.GetSegmentation().GetSegment("A").SetColor(0.35, 0.85, 0.45)
    one.segmentation.GetDisplayNode().SetVisibility2DFill(
        False
    )  # off screen, a fill hides the image under it

    def pixel(i, j, k=24):
        return one.view.pixel_of(volume.geometry.to_ras([[i, j, k]])[0])

    one.view.show(one.node, volume.geometry.to_ras([[84, 102, 24]])[0])
    one.controller.setTool("box")
    one.view.drag(pixel(10, 11), pixel(158, 194))
    one.wait()
    one.controller.setTool("point")
    one.view.click(pixel(50, 60))
    one.wait()
    assert dice(voxels_of_fast(one.segmentation)[24], truth[24]) > 0.9
    picture = one.view.picture()
    assert picture.std() > 20
    save(picture, Path(os.environ.get("MEDSAM2_SCREENSHOTS", tmp_path)) / "slice-view.png")


def save(picture, path):
    """A picture (H, W, 3) as PNG."""
    image = vtk.vtkImageData()
    image.SetDimensions(picture.shape[1], picture.shape[0], 1)
    flat = np.ascontiguousarray(picture[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()
