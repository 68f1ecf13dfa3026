"""What stands behind the page of the module in tests: runtime, settings, worker that do as they are told."""

from medsam2_core.errors import Cancelled, RuntimeInstallError
from medsam2_core.worker.client import WorkerState
from MedSAM2SegmentLib.Page.ExportOptions import FORMATS
from MedSAM2SegmentLib.Page.PageState import (
    ExportView,
    Level,
    ModelRow,
    ModelsView,
    MyModelRow,
    MyModelsView,
    PageState,
    ReviewView,
    RuntimeView,
    StatusLine,
    WorkerView,
)
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallPlan
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState, RuntimeStatus

PLAN = InstallPlan(
    text="""Folder: /data/users/somebody/application-data/MedSAM2Segment/runtime
Download: about 3.2 GB; on disk: about 7.4 GB (88.0 GB free)
PyTorch: 2.8 for CUDA 12.8: the driver is 570
Python: 3.12, downloaded
Tool: 0.9, found in Slicer's environment
Packages from: the public index
Licences: PyTorch BSD-3-Clause; SAM 2 Apache-2.0; CUDA libraries NVIDIA's own
Slicer's own Python is not changed.""",
    downloadMegabytes=3200,
    diskMegabytes=7400,
    freeMegabytes=88000,
)
MODELS = (
    ModelRow("embedded", "Embedded", 24_000_000, "Apache-2.0", True, "/extension/embedded.safetensors"),
    ModelRow("medsam2", "MedSAM2, latest", 156_000_000, "CC BY-NC-SA 4.0", False, "", "40 %"),
    ModelRow("large", "SAM 2.1 Hiera large", 898_000_000, "Apache-2.0"),
)
MY_MODELS = (
    MyModelRow("breast", "Breast lesions", "lesion", "20", "0.78", "/models/auto/breast.medsam2auto"),
    MyModelRow(
        "abdomen",
        "Abdomen of our scanner",
        "liver, spleen, left kidney, right kidney, gallbladder",
        "12",
        path="/models/auto/abdomen.medsam2auto",
    ),
    MyModelRow(
        "nerves of our clinic",
        "nerves of our clinic",
        "nerve, vessel",
        "25",
        "0.87 → 0.88",
        "/models/own/nerves of our clinic.safetensors",
        isPrompted=True,
        about="Fine-tuned from embedded\nLicence: Apache-2.0",
    ),
)
CORRECTIONS = (
    "57 corrected slices, 12 MB, in /data/users/somebody/application-data/MedSAM2Segment/corrections"
)
REVIEW = ReviewView(
    folder="/data/users/somebody/results",
    case="p0417/CT_thorax_abdomen_1.25_mm/1.2.840.113619.2.55.3.2831868886, confidence 0.31 (not calibrated)",
    counts="812 left, 160 accepted, 23 corrected, 5 skipped",
    line=StatusLine("The segments have changed: press Corrected to keep that", Level.WARNING),
    canOpen=True,
    canAccept=True,
    canSkip=True,
)
SOURCES = (("scene", "This scene (12 volumes with segments)"), ("folder", "A folder"))


class FakeInstaller:
    """A runtime whose work ends when the test says so."""

    def __init__(self, state=RuntimeState.NONE):
        self.now, self.done, self.listener, self.refusal = state, [], None, None
        self.options = None

    def status(self):
        isThere = self.now is not RuntimeState.NONE
        text = f"The runtime is {self.now.value}" if isThere else "Nothing is installed yet: press Install"
        return RuntimeStatus(self.now, text, "/runtime/python")

    def plan(self, options=None):
        if self.refusal:
            raise RuntimeInstallError(self.refusal)
        self.options = options
        return PLAN

    def install(self, listener, options=None):
        self._begin("install", listener)

    def remove(self, listener):
        self._begin("remove", listener)

    def useInterpreter(self, path, listener):
        if self.refusal:
            raise RuntimeInstallError(self.refusal)
        self._begin(f"use {path}", listener)

    def cancel(self):
        self.listener.ended(Cancelled("Cancelled: what was downloaded is kept"))

    def _begin(self, what, listener):
        self.done.append(what)
        self.listener = listener


class FakeSettings:
    """Settings without a file."""

    def __init__(self, **values):
        self.remoteCommand = self.wheelFolder = ""
        self.defaultModel, self.defaultWindow = "embedded", "auto"
        self.learns = False
        vars(self).update(values)


class FakeRequest:
    """One question, to be answered by the test."""

    def __init__(self, type, fields, callbacks):
        self.type, self.fields, self.callbacks, self.isCancelled = type, fields, callbacks, False

    def cancel(self):
        self.isCancelled = True

    def answer(self, **result):
        self.callbacks["done"](result)

    def fail(self, error):
        self.callbacks["failed"](error)


class FakeWorker:
    """Worker client and shared worker in one."""

    def __init__(self, state=WorkerState.READY):
        self.state, self.problem, self.report = state, "", "the report"
        self.welcome = {"software": "0.4", "host": "gpu-host", "device": {"title": "A card"}}
        self.listeners, self.owners, self.asked = [], [], []

    def start(self):
        self.become(WorkerState.STARTING)

    def acquire(self, owner):
        self.owners.append(owner)
        return self

    def release(self, owner):
        self.owners.remove(owner)

    def request(self, type, fields, **callbacks):
        self.asked.append(FakeRequest(type, fields, callbacks))
        return self.asked[-1]

    def become(self, state, problem=""):
        self.state, self.problem = state, problem
        for listener in list(self.listeners):
            listener()

    def last(self, type):
        return next(request for request in reversed(self.asked) if request.type == type)


class FakeWorkers:
    """Where the page gets its worker from."""

    def __init__(self, worker=None, problem=None):
        self.worker, self.problem = worker or FakeWorker(), problem

    def acquire(self, owner):
        if self.problem is not None:
            raise self.problem
        return self.worker.acquire(owner)

    def release(self, owner):
        if owner in self.worker.owners:
            self.worker.release(owner)


def export_views():
    """The section about export as it looks in the course of things."""
    names = (("vtkMRMLSegmentationNode1", "Liver and vessels"), ("vtkMRMLSegmentationNode2", "Draft"))
    known = {"segmentations": names, "chosen": names[0][0]}
    path = "/data/projects/radiology/liver-lesions-2026/derivatives/segmentations/one/liver-and-vessels"
    lossy = "Note: 'cyst' was resampled to the series' grid; 0.4 % of its voxels changed."
    return {
        "nothing": ExportView(problem="No segmentation in the scene yet: segment something first."),
        "possible": ExportView(**known, canExport=True),
        "no dicom": ExportView(
            **known,
            formats=FORMATS[1:],
            dicomProblem="DICOM is not possible: 'CT abdomen' was not loaded from DICOM: load it from "
            "Slicer's DICOM database.",
            canExport=True,
        ),
        "exporting": ExportView(
            **known, line=StatusLine("Exporting Liver and vessels…", Level.BUSY), isRunning=True
        ),
        "exported": ExportView(
            **known,
            line=StatusLine(
                f"{path}.dcm is written: 3 segments, 211 frames, 6 MB. liver-and-vessels_measurements.json "
                f"is beside it. {lossy}",
                Level.WARNING,
            ),
            canExport=True,
        ),
        "refused": ExportView(
            **known,
            line=StatusLine(
                "segment 'Segment_1': no code says what it is: double click its colour in the Segment Editor "
                "and choose what it is, or tick 'Tissue for segments without a code'",
                Level.ERROR,
            ),
            canExport=True,
        ),
        "remote": ExportView(
            **known,
            problem="With a remote command, the worker cannot read this computer's files: save with Slicer "
            "instead (Save, or Export to DICOM in the Data module).",
        ),
    }


_CHOSEN = {
    "choices": {"model": (("embedded", "Embedded"),), "window": (("auto", "Automatic"), ("lung", "Lung"))},
    "values": {"model": "embedded", "window": "auto"},
}


def model_states():
    """The page with a runtime and a worker, by what it has of the user's own models."""
    ready = RuntimeView(StatusLine("The runtime is ready: PyTorch 2.8 for CUDA 12.8, 7.4 GB", Level.OK))
    connected = WorkerView(
        StatusLine("Connected: worker 0.4 on gpu-host, answers in 3 ms", Level.OK),
        device="NVIDIA H200, 120.0 GB of 139.0 GB free",
        memory="812 MB in use; image features 200 MB of at most 2.0 GB; 1 volume, 2 sessions",
        report="the report",
        remoteCommand="ssh gpu-host.radiology.example.org medsam2 worker",
    )
    no_model = MyModelsView(
        line=StatusLine("No model of your own yet: train one from 10 labelled images.", Level.INFO),
        canTrain=True,
    )
    training = MyModelsView(
        MY_MODELS,
        StatusLine("Training: Dice 0.71 on what was held back, after 3 of 10 minutes", Level.BUSY),
        SOURCES,
        fraction=0.3,
        canChange=True,
        canCancel=True,
    )
    trained = MyModelsView(
        MY_MODELS,
        StatusLine(
            "Breast lesions is trained on 20 images, Dice 0.78: choose it at Auto in the effect.", Level.OK
        ),
        SOURCES,
        canChange=True,
        canTrain=True,
        corrections=CORRECTIONS,
        canImprove=True,
        canForget=True,
    )
    mine = {"ready": no_model, "training": training, "trained": trained}
    shown = {"models": ModelsView(MODELS), "worker": connected, **_CHOSEN}
    return {name: PageState(ready, mine=view, **shown) for name, view in mine.items()}


def page_states():
    """The page as it looks in the course of things."""
    missing = StatusLine("The runtime is not installed yet: press Install", Level.WARNING)
    lost = "srun: error: Unable to allocate resources: Invalid account or account/partition combination"
    return {
        **{f"export {name}": PageState(export=view) for name, view in export_views().items()},
        **model_states(),
        "reviewing": PageState(review=REVIEW),
        "fresh": PageState(RuntimeView(missing, canInstall=True), **_CHOSEN),
        "asking": PageState(RuntimeView(missing, PLAN.text, "Install now"), **_CHOSEN),
        "installing": PageState(
            RuntimeView(
                StatusLine("Downloading torch", Level.BUSY), fraction=0.4, log="a\nb", canCancel=True
            ),
            **_CHOSEN,
        ),
        "failed": PageState(
            RuntimeView(
                StatusLine(
                    "The disk is full: /data/users/somebody/application-data/MedSAM2Segment/site-packages",
                    Level.ERROR,
                ),
                log="x",
            ),
            ModelsView(
                MODELS, StatusLine("large was not downloaded: no connection to the network", Level.ERROR)
            ),
            worker=WorkerView(StatusLine(lost, Level.ERROR), report="x", remoteCommand="srun medsam2 worker"),
            **_CHOSEN,
        ),
    }
