"""Frames of a sequence, and pictures of a folder, as one volume; a slice may be an image of its own."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import VolumeError  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Segments import ImageStacks  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import LABELMAP, nodesOf  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from PIL import Image  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import a_matrix, a_picture, a_sequence_proxy, a_volume, direction_of  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402

PICTURES = a_noise((7, 24, 28))


def values_of(node):
    return VolumeAdapter(node).volume.voxels_kji


@pytest.fixture
def user(scene):
    user = SlicerUser(scene, volume=a_sequence_proxy(scene, pictures=PICTURES))
    yield user
    user.controller.cleanup()


@pytest.fixture
def images(scene):
    """One whose slices are images of their own."""
    user = SlicerUser(scene, volume=a_volume(scene, voxels=PICTURES))
    user.controller.setValue("stack", "images")
    yield user
    user.controller.cleanup()


def open_frames(user):
    user.controller.resolve()
    user.volume = user.editor.parameterSetNode().GetSourceVolumeNode()
    user.segmentation = user.editor.segmentationNode()
    user.wait()


# Sequences --------------------------------------------------------------------------------------------------


def test_frames_of_a_cine_are_opened_by_the_button(user):
    assert user.state.status is Status.VOLUME_REFUSED
    assert user.state.action == "Open all frames"
    open_frames(user)
    assert user.state.status is Status.READY and user.state.action == ""
    assert np.array_equal(values_of(user.volume), PICTURES)
    assert user.volume.GetName() == "Cine frames"
    assert user.worker.sessions[0].settings.ordered, "neighbouring frames are alike"


def test_frames_are_prompted_and_propagated_as_slices(user):
    open_frames(user)
    user.click((8, 9, 3))
    user.wait()
    user.controller.propagate()
    user.wait()
    assert user.slices() == list(range(7))
    assert [one.n for one in user.state.confidences] == list(range(7))


def test_a_segmentation_that_has_voxels_is_left_as_it_is(user):
    user.paint(slice(5, 9), slice(5, 9), slice(0, 1))
    before = user.segmentation
    open_frames(user)
    assert user.segmentation is not before
    assert user.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert before.GetSegmentation().GetNumberOfSegments() == 2


def test_a_segmentation_of_surfaces_is_left_as_it_is(user):
    user.paint(slice(5, 9), slice(5, 9), slice(0, 1))
    before = user.segmentation
    before.CreateClosedSurfaceRepresentation()
    before.GetSegmentation().SetSourceRepresentationName("Closed surface")
    before.GetSegmentation().RemoveRepresentation(LABELMAP)
    open_frames(user)
    assert user.segmentation is not before


def test_of_a_sequence_of_volumes_one_frame_is_copied(scene):
    user = SlicerUser(scene, volume=a_sequence_proxy(scene))
    assert user.state.action == "Copy this frame"
    open_frames(user)
    assert user.state.status is Status.READY
    assert np.array_equal(values_of(user.volume), a_picture())
    user.controller.cleanup()


def test_frames_lie_where_the_first_one_lies(scene):
    proxy = a_sequence_proxy(scene, pictures=PICTURES)
    matrix = a_matrix(direction_of("LIP"), (0.5, 0.5, 2.0), (3, 4, 5))
    for n in range(7):
        frame = ImageStacks.sequenceOf(proxy).GetNthDataNode(n)
        frame.SetIJKToRASMatrix(ImageStacks.arrayToMatrix(matrix))
    stacked = ImageStacks.openFrames(proxy)
    assert np.allclose(VolumeAdapter(stacked).geometry.ijk_to_ras, matrix)


def test_a_sequence_without_frames_shows_none_of_them(scene):
    proxy = a_sequence_proxy(scene, pictures=PICTURES[:2])
    (browser,) = nodesOf(scene, "vtkMRMLSequenceBrowserNode")
    empty = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    other = a_volume(scene, voxels=PICTURES)
    browser.AddSynchronizedSequenceNode(empty)
    browser.AddProxyNode(other, empty, False)
    assert ImageStacks.sequenceOf(other) is None
    assert ImageStacks.sequenceOf(proxy) is not None
    assert np.array_equal(values_of(other), PICTURES)


def test_pictures_and_volumes_do_not_mix(scene):
    proxy = a_sequence_proxy(scene, pictures=PICTURES[:2])
    ImageStacks.sequenceOf(proxy).SetDataNodeAtValue(a_volume(scene), "9")
    with raises("mixed-frames", VolumeError):
        ImageStacks.openFrames(proxy)


# Folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Of grey pictures of two sizes, one that cannot be read, and a text."""
    for n, size in ((10, (20, 16)), (2, (28, 24)), (1, (28, 24))):
        Image.fromarray(np.full(size[::-1], 10 * n, np.uint8)).save(tmp_path / f"image {n}.png")
    (tmp_path / "image 3.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    return tmp_path


def test_a_folder_is_opened_as_images_of_their_own(images, folder):
    images.controller.openImages(str(folder))
    images.volume = images.editor.parameterSetNode().GetSourceVolumeNode()
    images.wait()
    voxels = values_of(images.volume)
    assert voxels.shape == (3, 24, 28) and voxels[:, 0, 0].tolist() == [10, 20, 100]
    assert voxels[2, 16:].max() == 0 == voxels[2, :, 20:].max()
    assert "image 3.png" in images.state.text and "1 files" in images.state.text
    assert images.controller.parameters.text("stack") == "images"


def test_rows_run_down_and_colour_is_kept(scene, tmp_path):
    pixels = np.zeros((6, 5, 3), np.uint8)
    pixels[0, 1] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5)).save(tmp_path / "b.bmp")
    volume, bad = ImageStacks.openFolder(scene, tmp_path)
    assert not bad
    assert values_of(volume)[0, 0, 1].tolist() == [200, 100, 50]
    assert values_of(volume)[1, 0, 1].tolist() == [1, 1, 1]


def test_another_volume_is_not_taken_for_images(user, folder):
    controller, node = user.controller, user.editor.parameterSetNode()
    controller.openImages(str(folder))
    opened = node.GetSourceVolumeNode()
    for volume, stack in ((a_volume(user.scene, voxels=PICTURES), "auto"), (opened, "images")):
        node.SetAndObserveSourceVolumeNode(volume)
        user.wait()
        assert controller.parameters.text("stack") == stack
        assert user.worker.sessions[-1].settings.ordered == (stack == "auto")
    controller.setValue("stack", "sagittal")  # the user's own choice stays
    node.SetAndObserveSourceVolumeNode(a_volume(user.scene, voxels=PICTURES + 1))
    user.wait()
    assert controller.parameters.text("stack") == "sagittal"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, "rgb"])
def test_a_tiff_file_is_as_another_picture(scene, tmp_path, kind):
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5)
    pixels = np.stack([pixels, pixels + 9, 2 * pixels], -1) if kind == "rgb" else pixels.astype(kind)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    volume, bad = ImageStacks.openFolder(scene, tmp_path)
    assert not bad
    assert np.array_equal(values_of(volume)[0], pixels)


def test_pictures_of_several_pages_and_damaged_ones_are_left_out(scene, tmp_path):
    page = Image.fromarray(np.full((6, 5), 7, np.uint8))
    page.save(tmp_path / "a.tif")
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 3)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "strip.tif").write_bytes(whole.replace(b"\x07" * 30, b""))
    volume, bad = ImageStacks.openFolder(scene, tmp_path)
    assert values_of(volume).shape == (1, 6, 5)
    assert set(bad) == {"pages.tif", "strip.tif"} and "several pages" in bad["pages.tif"]


def test_pictures_that_fill_the_memory_are_refused(scene, tmp_path, monkeypatch):
    for n, side in enumerate((10, 20, 10)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / f"{n}.png")
    monkeypatch.setattr(ImageStacks, "LARGEST", 3 * 400)
    ImageStacks.openFolder(scene, tmp_path)
    before = scene.GetNumberOfNodes()
    for largest in (3 * 400 - 1, 550):  # of the volume, of the files
        monkeypatch.setattr(ImageStacks, "LARGEST", largest)
        with raises("pictures-too-large", VolumeError):
            ImageStacks.openFolder(scene, tmp_path)
    assert scene.GetNumberOfNodes() == before


def test_a_folder_without_pictures_is_refused(images, tmp_path):
    with raises("no-images", VolumeError):
        ImageStacks.openFolder(images.scene, tmp_path)
    images.controller.openImages(str(tmp_path / "none"))
    assert "no picture" in images.state.text


# Images of their own ----------------------------------------------------------------------------------------


def test_the_session_is_told_that_slices_have_no_order(images):
    images.wait()
    session = images.worker.sessions[0]
    assert not session.settings.ordered
    assert session.stack.array_axis == 2
    images.controller.setValue("stack", "auto")
    images.wait()
    assert images.worker.sessions[0].settings.ordered


def test_a_prompted_image_is_an_example_for_the_others_and_corrected_on_any(images):
    images.click((8, 9, 3))
    images.wait()
    images.controller.propagate()
    images.wait()
    found = images.slices()
    assert found == list(range(7))
    images.click((20, 15, 5))
    images.wait()
    assert images.mask()[5, 15, 20]
    images.undo()
    assert not images.mask()[5, 15, 20]


def test_a_view_across_the_images_is_refused(images):
    images.wait()
    images.view.SetOrientationToCoronal()
    images.click((8, 9, 3))
    images.wait()
    assert "images of their own" in images.state.text
    assert images.prompt_nodes() == []


def test_the_methods_text_says_what_was_followed(images):
    def text_of_click():
        images.click((8, 9, 0))
        images.wait()
        return images.controller.methodsText()

    assert "each image of a set" in text_of_click()
    images.controller.setValue("stack", "auto")
    images.wait()
    assert "axial slices, and followed" in text_of_click()


def test_in_a_picture_nothing_was_followed(scene):
    user = SlicerUser(scene, volume=a_volume(scene, voxels=PICTURES[:1]))
    user.click((8, 9, 0))
    user.wait()
    text = user.controller.methodsText()
    assert "on a single image" in text and "memory" not in text
    user.controller.cleanup()
