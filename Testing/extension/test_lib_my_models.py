"""My models on the page of the module: listed, removed, trained from a folder, the scene, or corrections."""

from pathlib import Path

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, TrainingError, WorkerError
from MedSAM2SegmentLib.Page.ModelsSection import ModelsSection
from MedSAM2SegmentLib.Page.MyModelsSection import AUTO, FINE_TUNED, MyModelsSection
from MedSAM2SegmentLib.Page.PageController import PageController
from MedSAM2SegmentLib.Page.PageState import Level, StatusLine
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from MedSAM2SegmentLib.Worker.Corrections import Corrections
from support.auto_predictions import a_model
from support.page import FakeInstaller, FakeSettings, FakeWorker, FakeWorkers

OWN = {
    "name": "nerves",
    "title": "nerves, fine-tuned from embedded",
    "path": "/models/own/nerves.safetensors",
    "licence": "Apache-2.0",
    "installed": True,
    "bytes": 24_000_000,
    "card": {
        "base": "embedded",
        "classes": ["nerve", "vessel"],
        "training": {"cases": 25},
        "figures": {"before": {"mean": {"one box": 0.869}}, "after": {"mean": {"one box": 0.931}}},
    },
}
LIVER = a_model("liver", classes=("liver",), name="liver", training={"images": 12, "dice": {"liver": 0.913}})
FOLDER_WISH = {"data": "/data/livers", "name": "liver", "minutes": 10.0}


class SomeCases:
    """Labelled volumes of a scene that is not there."""

    def __init__(self, *names, problem=None):
        self.found, self.problem, self.places = names, problem, []

    def names(self):
        return self.found

    def write(self, folder):
        self.places.append(Path(folder))
        (Path(folder) / "case001.nrrd").write_text("a volume")
        if self.problem is not None:
            raise self.problem
        return {f"case{number:03}": name for number, name in enumerate(self.found, 1)}


class MyModelsPage:
    """The part of the page, its worker, and how often it said that something changed."""

    def __init__(self, *entries, cases=None, damaged=(), problem=None, corrections=None, **settings):
        self.worker, self.changes = FakeWorker(), 0
        self.workers = FakeWorkers(self.worker)
        self.models, self.settings = ModelsSection(self.changed), FakeSettings(**settings)
        self.page = MyModelsSection(
            self.settings, self.workers, cases, self.changed, self.models, corrections
        )
        self.models.setClient(self.worker)
        self.page.setClient(self.worker)
        self.tell(*entries, damaged=damaged)
        self.workers.problem = problem

    def changed(self):
        self.changes += 1

    def tell(self, *entries, damaged=()):
        self.worker.last("auto_models").answer(models=list(entries), damaged=list(damaged))

    @property
    def view(self):
        return self.page.view()

    def train(
        self,
        source="folder",
        folder="/data/livers",
        name="liver",
        minutes=10,
        classes="",
        kind=AUTO,
        **more,
    ):
        self.page.train(kind, source, folder, name, minutes, classes, **more)
        return self.asked(f"train_{kind}")

    def fine_tune(self, *arguments, **more):
        return self.train(*arguments, kind=FINE_TUNED, **more)

    def asked(self, type):
        asked = [request for request in self.worker.asked if request.type == type]
        return asked[-1] if asked else None


# The list


def test_what_there_is_is_listed():
    page = MyModelsPage(LIVER)
    row = page.view.rows[0]
    assert (row.file, row.name, row.classes, row.images, row.dice) == (
        "liver",
        "liver",
        "liver",
        "12",
        "0.91",
    )
    assert page.view.line.text == ""
    assert page.changes > 0


def test_without_a_model_the_first_step_is_shown():
    page = MyModelsPage()
    assert page.view.line.text == "No model of your own yet: train one from 10 labelled images."
    page.page.setClient(None)
    assert page.view.line.text == ""
    assert not page.view.canTrain


def test_a_damaged_file_is_reported():
    reason = "b.medsam2auto is damaged: train it again, or remove it"
    page = MyModelsPage(LIVER, damaged=[{"path": "/models/auto/b.medsam2auto", "reason": reason}])
    assert (page.view.line.text, page.view.line.level) == (reason, Level.WARNING)
    assert len(page.view.rows) == 1


def test_nonsense_from_a_worker_is_an_error_and_not_the_end():
    page = MyModelsPage({"name": "no path"})
    assert page.view.line.level is Level.ERROR
    assert page.view.rows == ()


def test_a_worker_that_knows_no_such_models_is_left_alone():
    page = MyModelsPage(LIVER)
    page.page.setClient(page.worker)
    page.worker.last("auto_models").fail(WorkerError("unknown request"))
    assert page.view.line.text == ""


def test_a_model_is_removed_and_the_list_asked_again():
    page = MyModelsPage(LIVER)
    page.page.remove("liver")
    assert not page.view.canChange
    page.page.remove("liver")
    removals = [request for request in page.worker.asked if request.type == "remove_auto_model"]
    assert [request.fields for request in removals] == [{"model": "liver"}]
    removals[0].answer(bytes=9_000_000)
    page.tell()
    assert page.view.line.text == "liver is removed; 9 MB are free again."
    assert page.view.rows == ()


def test_without_a_worker_nothing_is_removed_and_the_page_shows_it():
    page = MyModelsPage(LIVER)
    page.page.setClient(None)
    page.page.remove("liver")
    assert page.view.line.level is Level.WARNING
    assert not any(request.type == "remove_auto_model" for request in page.worker.asked)


def test_what_could_not_be_removed_is_reported_with_the_reason():
    page = MyModelsPage(LIVER)
    page.page.remove("liver")
    page.worker.last("remove_auto_model").fail(WorkerError("it is in use: close it"))
    assert (page.view.line.text, page.view.line.level) == ("it is in use: close it", Level.ERROR)
    assert page.view.canChange


def test_late_answers_of_a_worker_that_is_gone_concern_nobody():
    page = MyModelsPage(LIVER)
    page.page.remove("liver")
    removal = page.worker.last("remove_auto_model")
    page.page.setClient(None)
    before = page.changes
    removal.answer(bytes=1)
    removal.fail(WorkerError("too late"))
    page.worker.last("auto_models").answer(models=[], damaged=[])
    assert page.changes == before


# Fine-tuned models


def with_figures(before, after):
    figures = {"before": {"mean": {"one box": before}}, "after": {"mean": {"one box": after}}}
    return {**OWN, "card": {**OWN["card"], "figures": figures}}


def test_fine_tuned_models_are_listed_with_their_figures_and_only_here():
    page = MyModelsPage(LIVER)
    embedded = {"name": "embedded", "title": "Embedded", "installed": True, "card": None}
    page.worker.last("models").answer(models=[embedded, OWN])
    row = page.view.rows[1]
    assert (row.file, row.classes, row.images, row.dice) == ("nerves", "nerve, vessel", "25", "0.87 → 0.93")
    assert row.isPrompted and "Fine-tuned from embedded" in row.about and "Apache-2.0" in row.about
    assert [one.name for one in page.models.view(StatusLine(), None).rows] == ["embedded"]
    assert page.models.installed() == (("embedded", "Embedded"), ("nerves", OWN["title"]))


@pytest.mark.parametrize(
    "card", [{}, {"training": 3, "figures": [], "classes": None}, {"figures": {"after": 1}}]
)
def test_a_card_that_lacks_facts_is_shown_without_them(card):
    page = MyModelsPage()
    page.worker.last("models").answer(models=[{**OWN, "card": card}])
    (row,) = page.view.rows
    assert (row.name, row.images, row.dice) == ("nerves", "", "")


def test_a_model_is_fine_tuned_on_a_folder_and_compared_with_the_one_before():
    page = MyModelsPage(defaultModel="medsam2")
    request = page.fine_tune(name="nerves")
    assert request.fields == {**FOLDER_WISH, "name": "nerves", "base": "medsam2"}
    request.callbacks["note"]("training, Dice 0.90, about 4 min left")
    assert page.view.line.text == "Training: training, Dice 0.90, about 4 min left"
    request.answer(model=OWN)
    assert page.view.line.text == (
        "nerves is fine-tuned on 25 images or volumes: choose it under Model in the effect. "
        "One box: Dice 0.87 → 0.93."
    )
    assert page.view.line.level is Level.OK
    page.worker.last("models").answer(models=[OWN])
    assert [row.name for row in page.view.rows] == ["nerves"]
    assert page.worker.owners == []


def test_a_model_that_got_worse_is_a_warning():
    page = MyModelsPage()
    page.fine_tune().answer(model=with_figures(0.87, 0.85))
    assert page.view.line.level is Level.WARNING
    assert page.view.line.text.endswith("It is not better: keep the earlier model, or give more cases.")
    page.fine_tune().answer(model={**OWN, "card": {**OWN["card"], "figures": {}}})
    assert page.view.line.level is Level.OK
    assert "Nothing was held aside" in page.view.line.text


def test_a_full_memory_names_what_the_page_can_do():
    page = MyModelsPage()
    page.fine_tune().fail(TrainingError("train with --clip 4", code="training-memory", option="--clip"))
    assert (
        page.view.line.text == "The memory is full: choose a smaller default model, or close other programs"
    )


def test_a_stopped_fine_tuning_goes_on_and_never_as_the_other_kind():
    page = MyModelsPage()
    page.fine_tune().fail(Cancelled("stopped"))
    auto = page.train()
    assert "resume" not in auto.fields
    auto.fail(TrainingError("no image has a label"))
    page.fine_tune().fail(Cancelled("stopped"))
    assert page.fine_tune().fields == {**FOLDER_WISH, "resume": True}


def test_a_fine_tuned_model_is_removed_and_is_no_default_any_more():
    page = MyModelsPage(defaultModel="nerves")
    page.worker.last("models").answer(models=[OWN])
    page.page.remove("nerves", True)
    request = page.asked("remove_model")
    assert request.fields == {"name": "nerves"}
    request.answer(bytes=24_000_000)
    assert page.settings.defaultModel == "embedded"
    page.worker.last("models").answer(models=[])
    assert page.view.rows == ()


# Corrections


@pytest.fixture
def corrections(tmp_path):
    return Corrections(tmp_path / "corrections")


def keep(corrections, n):
    voxels = np.arange(4 * 8 * 8).reshape(4, 8, 8)
    image, mask = np.full((8, 8), 10 * n, np.uint8), np.eye(8, dtype=bool)
    corrections.keep(voxels, ("axial", n), image, mask, (1, 1, 2), {})


def test_a_model_is_improved_on_the_corrections_that_are_kept(corrections):
    page = MyModelsPage(corrections=corrections)
    assert page.view.corrections == (
        "No corrections are kept. The effect keeps them with Learn from corrections."
    )
    keep(corrections, 1)
    assert page.view.corrections.startswith("1 corrected slice, 0 MB, in ")
    assert (page.view.canImprove, page.view.canForget) == (False, True)
    keep(corrections, 2)
    assert page.view.canImprove
    page.page.improve(5)
    request = page.asked("train_finetune")
    assert request.fields == {
        "data": str(corrections.folder), "name": "embedded improved", "minutes": 5.0, "base": "embedded",
        "train": "lora",
    }  # fmt: skip
    assert not page.view.canImprove and not page.view.canForget
    request.answer(model={**OWN, "name": "embedded improved"})
    # The next one starts from the improved one, if that was chosen, and the old ones stay.
    page.settings.defaultModel = "embedded improved 2"
    page.page.improve(5)
    fields = page.asked("train_finetune").fields
    assert (fields["base"], fields["name"]) == ("embedded improved 2", "embedded improved")


def test_a_stopped_improvement_continues_only_on_the_same_corrections(corrections):
    page = MyModelsPage(corrections=corrections)
    keep(corrections, 1)
    keep(corrections, 2)

    def isResumed():
        page.page.improve(5)
        request = page.asked("train_finetune")
        request.fail(Cancelled("stopped"))
        return "resume" in request.fields

    assert [isResumed(), isResumed()] == [False, True]
    keep(corrections, 3)
    assert [isResumed(), isResumed()] == [False, True]


def test_corrections_are_deleted_on_request(corrections):
    page = MyModelsPage(corrections=corrections)
    keep(corrections, 1)
    page.page.forget()
    assert corrections.size() == (0, 0)
    assert page.view.line.text == "The corrections are deleted; models trained on them stay."


def test_a_remote_worker_is_not_given_corrections(corrections):
    keep(corrections, 1)
    keep(corrections, 2)
    page = MyModelsPage(corrections=corrections, remoteCommand="ssh host medsam2 worker")
    assert not page.view.canImprove


# Training from a folder


def test_a_folder_is_trained_on_and_the_result_is_in_the_list():
    page = MyModelsPage()
    request = page.train(classes=" liver, spleen ,")
    assert request.fields == {**FOLDER_WISH, "classes": ["liver", "spleen"]}
    assert page.view.line.text == "Training liver…"
    assert (page.view.canTrain, page.view.canCancel, page.view.fraction) == (False, True, -1.0)
    assert page.worker.owners == [page.page]
    request.callbacks["progress"]("training", 30, 120)
    request.callbacks["note"]("Dice 0.71 after 3 minutes")
    assert page.view.fraction == 0.25
    assert page.view.line.text == "Training: Dice 0.71 after 3 minutes"
    request.answer(model=LIVER)
    page.tell(LIVER)
    assert page.view.line.text == (
        "liver is trained on 12 images, Dice 0.91: choose it at Auto in the effect."
    )
    assert page.view.line.level is Level.OK
    assert page.view.fraction is None
    assert [row.name for row in page.view.rows] == ["liver"]
    assert page.worker.owners == []


def test_a_small_number_of_images_is_reported():
    page = MyModelsPage()
    page.train().answer(model={**LIVER, "training": {"images": 3}})
    assert page.view.line.text == (
        "liver is trained on 3 images: choose it at Auto in the effect. More than 3 would make it better."
    )


def test_without_a_name_the_folder_gives_it_and_another_base_is_passed_on():
    page = MyModelsPage(defaultModel="medsam2")
    request = page.train(name=" ", folder=" /data/kidneys ")
    assert request.fields == {
        "data": "/data/kidneys",
        "name": "kidneys",
        "minutes": 10.0,
        "base": "medsam2",
    }


def test_without_a_folder_nothing_is_begun():
    page = MyModelsPage()
    assert page.train(folder="  ") is None
    assert page.view.line.text == "Choose a folder of images and labels first"
    assert page.worker.owners == []


def test_images_with_problems_can_be_left_out():
    page = MyModelsPage()
    problems = [{"code": "no-label", "message": "a.png has no label", "severity": "error"}]
    problems[0]["fields"] = {"image": "a.png"}
    page.train().fail(TrainingError("… with --skip-bad", code="bad-images", problems=problems))
    assert page.view.line.text == (
        "1 problem with the data: a.png has no label. Correct the images, or tick 'Leave out images with "
        "problems'"
    )
    assert page.train(skipBad=True).fields == {**FOLDER_WISH, "skip_bad": True}


def test_only_one_training_at_a_time():
    page = MyModelsPage()
    first = page.train()
    assert page.train(name="another") is first


def test_a_stopped_training_goes_on_when_the_same_is_asked_for():
    page = MyModelsPage()
    request = page.train()
    page.page.cancel()
    assert request.isCancelled
    assert page.view.line.text == "The training is being stopped…"
    request.fail(Cancelled("the training was stopped; to continue it, start it again with the same data"))
    assert page.view.line.text.startswith("The training was stopped; started again")
    assert page.view.line.level is Level.INFO
    again = page.train()
    assert again.fields == {**FOLDER_WISH, "resume": True}
    again.fail(Cancelled("the training was stopped"))
    assert page.train().fields == {**FOLDER_WISH, "resume": True}


def test_another_training_does_not_go_on_with_the_stopped_one():
    page = MyModelsPage()
    page.train().fail(Cancelled("stopped"))
    request = page.train(minutes=20)
    assert "resume" not in request.fields
    request.fail(TrainingError("the data cannot be read"))
    assert "resume" not in page.train().fields


def test_a_training_that_fails_reports_why_and_lets_go():
    page = MyModelsPage()
    page.train().fail(TrainingError("a.png has no label: put a_label.png beside it"))
    assert page.view.line.text == "a.png has no label: put a_label.png beside it"
    page.train().fail(TrainingError("no image has a label"))
    assert page.view.line.text == "No image has a label"
    assert page.view.line.level is Level.ERROR
    assert page.view.canTrain
    assert page.worker.owners == []


def test_without_a_worker_there_is_no_training():
    page = MyModelsPage(problem=WorkerError("the runtime is not installed: press Install"))
    assert page.train() is None
    assert page.view.line.level is Level.ERROR
    assert page.view.canTrain


# Training from the scene


def test_it_is_shown_how_much_the_scene_has():
    assert MyModelsPage(cases=SomeCases("CT")).view.sources[0] == (
        "scene",
        "This scene (1 volume with segments)",
    )
    nothing = MyModelsPage(cases=SomeCases()).view.sources
    assert [value for value, _ in nothing] == ["folder", "scene"], "what can be done comes first"
    assert nothing[1][1] == "This scene (0 volumes with segments)"
    assert [value for value, _ in MyModelsPage().view.sources] == ["folder"]


def test_a_remote_worker_cannot_read_what_is_written_here():
    page = MyModelsPage(cases=SomeCases("CT"), remoteCommand="ssh host medsam2 worker")
    assert [value for value, _ in page.view.sources] == ["folder"]


def test_the_volumes_of_the_scene_are_written_listed_by_name_and_gone_afterwards():
    cases = SomeCases("CT of Anna", "MR")
    page = MyModelsPage(cases=cases)
    request = page.train("scene", folder="/ignored", name="")
    place = cases.places[0]
    assert request.fields == {"data": str(place), "name": "scene", "minutes": 10.0}
    assert (place / "case001.nrrd").exists()
    request.callbacks["note"]("reading case001")
    assert page.view.line.text == "Training: reading 'CT of Anna'"
    request.fail(TrainingError("case002 has no segment: draw one"))
    assert page.view.line.text == "'MR' has no segment: draw one"
    assert not place.exists()


def test_a_scene_without_labels_is_reported_and_leaves_nothing_behind():
    problem = TrainingError("no volume of the scene has a segmentation")
    cases = SomeCases(problem=problem)
    page = MyModelsPage(cases=cases)
    assert page.train("scene") is None
    assert (page.view.line.text, page.view.line.level) == (str(problem), Level.ERROR)
    assert not cases.places[0].exists()
    assert page.worker.owners == []


def test_a_stopped_training_on_the_scene_begins_anew():
    page = MyModelsPage(cases=SomeCases("CT"))
    page.train("scene").fail(
        Cancelled("the training was stopped; to continue it, start it again with the same data")
    )
    assert (page.view.line.text, page.view.line.level) == ("The training was stopped.", Level.INFO)
    assert "resume" not in page.train("scene").fields


def test_a_full_disk_is_reported():
    cases = SomeCases("CT", problem=OSError(28, "No space left on device"))
    page = MyModelsPage(cases=cases)
    assert page.train("scene") is None
    assert "No space left" in page.view.line.text
    assert not cases.places[0].exists()


# With the whole page


def a_controller(cases=None, **settings):
    worker = FakeWorker()
    settings, workers = FakeSettings(**settings), FakeWorkers(worker)
    installer = FakeInstaller(RuntimeState.READY)
    return PageController(installer, settings, workers, cases=cases), worker, installer


def test_a_training_goes_on_when_the_page_is_left():
    controller, worker, _ = a_controller()
    controller.enter()
    controller.mine.train(AUTO, "folder", "/data/livers", "liver", 10, "")
    request = worker.last("train_auto")
    controller.exit()
    assert worker.owners == [controller.mine]
    assert not request.isCancelled
    request.callbacks["progress"]("training", 1, 2)
    controller.enter()
    assert controller.state.mine.fraction == 0.5
    request.answer(model=LIVER)
    assert worker.owners == [controller.worker]
    assert controller.state.mine.line.level is Level.OK


def test_it_ends_when_nobody_looks_and_lets_the_worker_go():
    controller, worker, _ = a_controller()
    controller.enter()
    controller.mine.train(AUTO, "folder", "/data/livers", "liver", 10, "")
    controller.exit()
    worker.last("train_auto").answer(model=LIVER)
    assert worker.owners == []


@pytest.mark.parametrize("ask", ["askRepair", "askRemove"])
def test_changing_the_runtime_stops_a_training(ask):
    cases = SomeCases("CT")
    controller, worker, installer = a_controller(cases)
    controller.enter()
    controller.mine.train(AUTO, "scene", "", "liver", 10, "")
    getattr(controller.runtime, ask)()
    controller.runtime.confirm()
    assert worker.last("train_auto").isCancelled
    assert worker.owners == []
    assert not cases.places[0].exists()
    assert controller.state.mine.line.text == "The training was stopped."
    assert len(installer.done) == 1


def test_slicer_closing_stops_a_training():
    controller, worker, _ = a_controller()
    controller.enter()
    controller.mine.train(AUTO, "folder", "/data/livers", "liver", 10, "")
    controller.cleanup()
    assert worker.last("train_auto").isCancelled
    assert worker.owners == []


def test_the_page_cancels_and_removes_through_its_controller():
    controller, worker, _ = a_controller()
    controller.enter()
    worker.last("auto_models").answer(models=[LIVER], damaged=[])
    controller.mine.train(AUTO, "folder", "/data/livers", "liver", 10, "")
    controller.mine.cancel()
    assert worker.last("train_auto").isCancelled
    controller.mine.remove("liver")
    assert worker.last("remove_auto_model").fields == {"model": "liver"}
