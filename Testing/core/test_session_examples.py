"""Objects of other scans found again: by examples, and of the same patient at their old places."""

import csv

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, GeometryError, PromptError
from medsam2_core.export import write
from medsam2_core.export.changes import changes, write_changes
from medsam2_core.export.measurements import measure
from medsam2_core.export.resampling import on_grid_of
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.transforms import read_transform
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box
from medsam2_core.session import Session, examples
from medsam2_core.session.examples import Example
from support.command_line import CommandLine, ball_kji, write_scan, write_untrained_model
from support.errors import raises
from support.tiny_model import tiny_model

SHAPE_KJI = (24, 48, 40)
GEOMETRY = Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), SHAPE_KJI[::-1])
SMALL_KJI = np.zeros(SHAPE_KJI, bool)
SMALL_KJI[4:7, 8:14, 5:12] = True


@pytest.fixture(autouse=True)
def few_slices(monkeypatch):
    """Enough to look at in a small scan."""
    monkeypatch.setattr(examples, "_MOST_LOOKED_AT", 3)
    monkeypatch.setattr(examples, "_MOST_SHOWN", 1)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return write_untrained_model(tmp_path_factory.mktemp("models"))


def a_scan(seed=3, shift=0):
    noise = np.random.default_rng(seed).normal(100, 10, SHAPE_KJI)
    voxels = noise + np.roll(300 * ball_kji() + 200 * SMALL_KJI, shift, axis=2)
    return Volume(voxels.astype(np.int16), GEOMETRY, modality="MR", name=f"scan {seed}")


def a_segmentation(**masks):
    return Segmentation(GEOMETRY, tuple(Segment(name, (1, 0, 0), mask) for name, mask in masks.items()))


@pytest.fixture
def example():
    return Example(a_scan(), a_segmentation(ball=ball_kji(), small=SMALL_KJI))


@pytest.fixture
def session(model):
    return Session.open(a_scan(4, shift=3), model)


class TestLikeThatOne:
    def test_every_object_of_the_example_gets_predicted_boxes_and_is_followed(self, session, example):
        missing = session.find_like([example])
        assert session.object_names == ("ball", "small")
        for name in set(session.object_names) - set(missing):
            prompts = session.prompts.of(name)
            assert prompts and all(isinstance(one, Box) and one.predicted for one in prompts)
            assert 1 <= len(prompts) <= 3
        for _ in session.propagate(first=10, last=14):
            pass
        assert session.mask_kji("ball").any()

    def test_only_the_slices_asked_for_are_looked_at(self, session, example):
        session.find_like([example], 10, 12)
        named = [name for name in session.object_names if session.prompts.of(name)]
        assert named
        assert all(10 <= mask.n <= 12 for name in named for mask in session.results(name))

    def test_one_undo_takes_back_all_of_it(self, session, example):
        session.find_like([example])
        assert session.undo() == "find objects of examples" and session.object_names == ()

    def test_several_examples_may_show_different_objects(self, session, example):
        other = Example(a_scan(5), a_segmentation(small=SMALL_KJI, third=ball_kji()))
        session.find_like([example, other])
        assert session.object_names == ("ball", "small", "third")

    def test_it_can_be_cancelled_and_then_nothing_has_changed(self, session, example):
        told = []
        with pytest.raises(Cancelled):
            session.find_like(
                [example], should_cancel=lambda: len(told) > 1, progress=lambda *done: told.append(done)
            )
        assert session.object_names == () and session.undo_steps == []
        assert told == [(n, 6) for n in range(1, 3)]

    def test_what_cannot_be_used_is_refused(self, session, example):
        with raises("empty-examples", PromptError):
            session.find_like([Example(a_scan(), a_segmentation(ball=np.zeros(SHAPE_KJI, bool)))])
        with raises("example-on-another-grid", PromptError):
            Example(Volume(np.zeros((2, 3, 4)), Geometry(np.eye(4), (4, 3, 2))), example.segmentation)
        session.add_object("small")
        with raises("object-exists", PromptError, object="small"):
            session.find_like([example])


class TestFollowUp:
    def test_objects_are_looked_for_at_their_old_places(self, session):
        missing = session.find_prior(a_segmentation(ball=ball_kji(), small=SMALL_KJI))
        for name, old in (("ball", ball_kji()), ("small", SMALL_KJI)):
            if name in missing:
                continue
            (box,) = session.prompts.of(name)
            assert box.predicted
            k = round(box.first_ijk[2])
            assert old[k].any()
        assert session.undo() == "find objects of an earlier scan" and session.object_names == ()

    def test_another_grid_is_refused(self, session):
        grid = Geometry(np.eye(4), (5, 5, 5))
        prior = Segmentation(grid, (Segment("ball", (1, 0, 0), np.ones((5, 5, 5), bool)),))
        with raises("prior-on-another-grid", PromptError):
            session.find_prior(prior)

    def test_segments_outside_the_new_scan_are_left_out(self):
        moved = Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]) @ np.eye(4), SHAPE_KJI[::-1])
        far = moved.ijk_to_ras.copy()
        far[:3, 3] = 1000
        prior = Segmentation(Geometry(far, SHAPE_KJI[::-1]), a_segmentation(ball=ball_kji()).segments)
        assert on_grid_of(prior, GEOMETRY).names == ()
        assert on_grid_of(a_segmentation(ball=ball_kji()), GEOMETRY).names == ("ball",)

    def test_a_table_of_then_and_now(self, tmp_path):
        def cube(side, at=10):
            mask = np.zeros(SHAPE_KJI, bool)
            mask[8 : 8 + side, at : at + side, at : at + side] = True
            return mask

        then = a_segmentation(a=cube(4), b=cube(3), empty=np.zeros(SHAPE_KJI, bool))
        now = a_segmentation(a=cube(8), b=np.zeros(SHAPE_KJI, bool), c=cube(2))
        found = changes(measure(then), measure(now))
        assert [(one.name, one.state) for one in found] == [("a", "present"), ("b", "vanished"), ("c", "new")]
        a, b, c = found
        assert a.then["volume_ml"] == pytest.approx(4**3 * 2 / 1000) and a.percent("volume_ml") == 700
        assert b.percent("volume_ml") == -100 and b.now["longest_diameter_mm"] == 0
        assert c.percent("volume_ml") is None
        write_changes(found, tmp_path / "changes.csv")
        with (tmp_path / "changes.csv").open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert [line["state"] for line in lines] == ["present", "vanished", "new"]
        assert float(lines[0]["volume_ml_change_percent"]) == 700
        assert lines[2]["longest_diameter_mm_change_percent"] == ""


class TestTransforms:
    def test_sixteen_numbers(self, tmp_path):
        path = tmp_path / "move.txt"
        path.write_text("1 0 0 5\n0 1 0 -2\n0, 0, 1, 7\n0 0 0 1\n")
        assert read_transform(path)[:3, 3].tolist() == [5, -2, 7]

    def test_a_transform_as_slicer_saves_it(self, tmp_path):
        """Slicer writes, in LPS, where points of the parent are in the moved node: the inverse."""
        path = tmp_path / "move.tfm"
        path.write_text(
            "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
            "Parameters: 0 1 0 -1 0 0 0 0 1 5 -2 7\nFixedParameters: 1 2 3\n"
        )
        centre, turn = np.array([1, 2, 3]), np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        new_lps = np.array([10.0, 20.0, 30.0])
        old_lps = turn @ (new_lps - centre) + (5, -2, 7) + centre
        flip = np.array([-1, -1, 1])
        moved = read_transform(path) @ [*(old_lps * flip), 1]
        assert np.allclose(moved[:3], new_lps * flip)

    @pytest.mark.parametrize("text", ["", "1 2 3", "0 " * 16, "Parameters: 1 2\nFixedParameters: 0 0", "a b"])
    def test_what_is_no_transform_is_refused(self, tmp_path, text):
        path = tmp_path / "move.txt"
        path.write_text(text)
        with raises("transform-unreadable", GeometryError):
            read_transform(path)


class TestCommandLine:
    @pytest.fixture
    def medsam2(self, capsys, tmp_path, untrained):
        line = CommandLine(capsys)
        write_scan(tmp_path / "new.nrrd")
        write_scan(tmp_path / "old.nrrd")
        geometry = read_volume(tmp_path / "old.nrrd").geometry
        old = Segmentation(geometry, (Segment("ball", (1, 0, 0), ball_kji()),))
        write(old, tmp_path / "old.seg.nrrd")
        return lambda *words: line(
            *("segment", tmp_path / "new.nrrd", "--model", untrained, "--image-size", 64),
            *("--range", "8:15", "--out", tmp_path / "out.seg.nrrd", *words),
        )

    def test_a_segmented_scan_serves_as_example(self, medsam2, tmp_path):
        answer = medsam2("--like", tmp_path / "old.nrrd", tmp_path / "old.seg.nrrd", "--json")
        assert answer.code == 0, answer.err
        assert [one["name"] for one in answer.facts["objects"]] == ["ball"]
        assert read_segmentation(tmp_path / "out.seg.nrrd").names == ("ball",)
        assert read_segmentation(tmp_path / "out.seg.nrrd").provenance["found_by"] in (["like"], '["like"]')

    def test_a_scan_in_place_of_a_segmentation_is_refused(self, medsam2, tmp_path):
        for words in (
            ("--like", tmp_path / "old.seg.nrrd", tmp_path / "old.nrrd"),
            ("--prior", tmp_path / "old.nrrd"),
        ):
            answer = medsam2(*words)
            assert answer.error.code == "not-a-segmentation", answer.err
            assert answer.error.fields["labels"] > 100

    def test_a_follow_up_with_its_table(self, medsam2, tmp_path):
        (tmp_path / "move.txt").write_text("1 0 0 1  0 1 0 0  0 0 1 0  0 0 0 1")
        answer = medsam2(
            *("--prior", tmp_path / "old.seg.nrrd", "--transform", tmp_path / "move.txt"),
            *("--changes", tmp_path / "changes.csv", "--json"),
        )
        assert answer.code == 0, answer.err
        (change,) = answer.facts["changes"]
        assert change["object"] == "ball" and change["then"]["volume_ml"] > 0
        assert (tmp_path / "changes.csv").read_text().startswith("object,state,volume_ml_then")

    def test_a_table_of_changes_needs_an_earlier_scan(self, medsam2, tmp_path):
        answer = medsam2("--box", "13,19,27,33@12", "--changes", tmp_path / "changes.csv")
        assert answer.error.code == "needs-prior"

    def test_the_other_scans_are_never_written_over(self, medsam2, tmp_path):
        answer = medsam2(
            *("--prior", tmp_path / "old.seg.nrrd", "--changes", tmp_path / "old.seg.nrrd", "--overwrite")
        )
        assert answer.error.code == "output-is-input"
