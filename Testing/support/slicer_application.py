"""What a running Slicer has and `slicer-core` has not, as its C++ does it: how modules and effects load.

Only what `MedSAM2Segment.py` and the effect see of it: which class is looked for and where, in which order
their methods are called and with what, which events come back while one is being handled. Segments are
edited by the real logic.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from pathlib import Path

from support import qt_shim as a_qt

qt = a_qt.installed()

import slicer  # noqa: E402
import vtk  # noqa: E402

_LOGIC = slicer.vtkSlicerSegmentEditorLogic
_NODE = slicer.vtkMRMLSegmentEditorNode
_EFFECT_METHODS = (
    *("icon", "helpText", "clone", "activate", "deactivate", "setupOptionsFrame", "createCursor"),
    *("processInteractionEvents", "processViewNodeEvents", "setMRMLDefaults", "referenceGeometryChanged"),
    *("sourceVolumeNodeChanged", "masterVolumeNodeChanged", "layoutChanged", "interactionNodeModified"),
    *("updateGUIFromMRML", "updateMRMLFromGUI", "cleanup"),
)


def class_in(module_name: str, class_name: str, path: str) -> type:
    """The class as Slicer looks for it: in the module of that name, else in the file loaded as that."""
    found = getattr(sys.modules.get(module_name), class_name, None)
    if found is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
        found = getattr(sys.modules[module_name], class_name)
    return found


class ScriptedEffect:
    """`qSlicerSegmentEditorScriptedEffect`."""

    NotConfirmed, ConfirmedWithoutDialog, ConfirmedWithDialog = range(3)

    def __init__(self, parent=None) -> None:
        assert parent is None
        self.name, self.title = "UnnamedScriptedEffect", ""
        self.perSegment = self.requireSegments = True
        self.calls, self.views = [], {}
        self.logic = self._node = self._self = None
        self._active = False
        self.frame = qt.QFrame()
        self.frame.setLayout(qt.QFormLayout())

    def setPythonSource(self, path) -> bool:
        path = Path(path)
        assert path.suffix == ".py" and path.is_file()
        class_name = path.stem if path.stem.endswith("Effect") else path.stem + "Effect"
        self._self = class_in(path.parent.name, class_name, str(path))(self)
        setattr(slicer, path.parent.name, self._self)
        return True

    def self(self):
        return self._self

    def call(self, method, *arguments):
        """As C++ calls Python: an error would only be printed, so that here nobody may make one."""
        assert method in _EFFECT_METHODS
        self.calls.append(method)
        python = getattr(self._self, method, None)
        return None if python is None else python(*arguments)

    # What the editor calls ----------------------------------------------------------------------------------

    def activate(self):
        self._active = True
        self.updateGUIFromMRML()  # before Python's own
        self.call("activate")

    def deactivate(self):
        self._active = False
        self.call("deactivate")

    def updateGUIFromMRML(self, *_):
        if self._active:
            self.call("updateGUIFromMRML")

    def processInteractionEvents(self, interactor, event_id, view_widget) -> bool:
        result = self.call("processInteractionEvents", interactor, event_id, view_widget)
        assert isinstance(result, bool), f"Slicer takes {result!r} for False"
        return result

    def setParameterSetNode(self, node):
        self._node = node

    # What the effect calls ----------------------------------------------------------------------------------

    def parameterSetNode(self):
        return self._node

    def parameterDefined(self, name) -> bool:
        return bool(self._node is not None and self._node.GetAttribute(f"{self.name}.{name}"))

    def parameter(self, name) -> str:
        value = self._node.GetAttribute(f"{self.name}.{name}")
        assert value is not None, f"Slicer prints an error: there is no parameter {name}"
        return value

    def setParameter(self, name, value):
        assert self._node is not None and isinstance(value, str)
        name = f"{self.name}.{name}"
        old = self._node.GetAttribute(name)
        if value == (old or ""):
            return
        silent = self._node.GetDisableModifiedEvent()
        self._node.SetDisableModifiedEvent(1)
        self._node.SetAttribute(name, value)
        self._node.SetDisableModifiedEvent(silent)
        self._node.InvokeCustomModifiedEvent(_NODE.EffectParameterModified)

    def setParameterDefault(self, name, value):
        if not self.parameterDefined(name):
            self.setParameter(name, value)

    def saveStateForUndo(self):
        self.logic.SaveStateForUndo()

    def modifySegmentByLabelmap(self, segmentation, segment_id, labelmap, mode):
        self.logic.ModifySegmentByLabelmap(segmentation, segment_id, labelmap, mode, self.perSegment, False)

    def referenceGeometryImage(self):
        return self.logic.GetReferenceGeometryImage() if self.logic.UpdateReferenceGeometryImage() else None

    def confirmCurrentSegmentVisible(self) -> int:
        return self.ConfirmedWithoutDialog if self.logic.IsSelectedSegmentVisible() else self.NotConfirmed

    def addOptionsWidget(self, widget):
        widget.setParent(self.frame)
        self.frame.layout().addRow(widget)

    def addActor2D(self, view_widget, actor):
        self.views.setdefault(view_widget, []).append(actor)

    def removeActor2D(self, view_widget, actor):
        self.views[view_widget].remove(actor)

    def scheduleRender(self, view_widget):
        pass


class EffectFactory:
    """`qSlicerSegmentEditorEffectFactory`."""

    def __init__(self) -> None:
        self._effects = []

    def registerEffect(self, effect) -> bool:
        if effect.name in [one.name for one in self._effects]:
            return False
        self._effects.append(effect)
        return True

    def registeredEffects(self):
        return tuple(self._effects)


class SegmentEditorWidget:
    """`qMRMLSegmentEditorWidget`: what it tells the effects, and when."""

    def __init__(self, factory, scene, undo_states=10) -> None:
        self._factory, self._scene = factory, scene
        self._effects, self._observed = [], []
        self._active = None
        self._node = self._volume = None
        self.logic = _LOGIC()
        self.logic.SetMRMLScene(scene)
        self.logic.SetMaximumNumberOfUndoStates(undo_states)
        self.updateEffectList()

    def updateEffectList(self):
        for registered in self._factory.registeredEffects():
            if registered.name in self.availableEffectNames():
                continue
            effect = registered.call("clone")
            self._effects.append(effect)
            effect.logic = self.logic
            if self._node is not None:
                self._give(effect)
            assert not effect.call("icon").isNull()
            effect.call("setupOptionsFrame")

    def setMRMLSegmentEditorNode(self, node):
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        self._node = node
        self.logic.SetSegmentEditorNode(node)
        if node is None:
            return
        self._observe(vtk.vtkCommand.ModifiedEvent, self.updateWidgetFromMRML)
        with _modifying(node):
            for effect in self._effects:
                self._give(effect)
        self.updateWidgetFromMRML()

    def _give(self, effect):
        effect.setParameterSetNode(self._node)
        effect.call("setMRMLDefaults")
        self._observe(_NODE.EffectParameterModified, effect.updateGUIFromMRML)

    def _observe(self, event, slot):
        self._observed.append((self._node, self._node.AddObserver(event, slot)))

    def updateWidgetFromMRML(self, *_):
        if self._node is None or self._scene.IsClosing():
            return
        with _modifying(self._node):  # what effects change meanwhile is told when this is done
            if self._volume is not self._node.GetSourceVolumeNode():
                self._volume = self._node.GetSourceVolumeNode()
                for effect in self._effects:
                    effect.call("sourceVolumeNodeChanged")
            self._update_effects()

    def _update_effects(self):
        chosen = self.effectByName(self._node.GetActiveEffectName())
        if chosen is self._active:
            return
        if self._active is not None:
            self._active.deactivate()
        if chosen is not None:
            chosen.activate()
            assert chosen.call("helpText")
            chosen.call("createCursor", None)
        self._active = chosen  # only now: whoever updates the widget from activate() activates once more

    def cleanup(self):
        """Its destructor."""
        self.setMRMLSegmentEditorNode(None)
        for effect in self._effects:
            effect.call("cleanup")
            effect.frame.deleteLater()
        self._effects = []

    # What scripts call --------------------------------------------------------------------------------------

    def mrmlSegmentEditorNode(self):
        return self._node

    def availableEffectNames(self):
        return tuple(effect.name for effect in self._effects)

    def effectByName(self, name):
        return next((effect for effect in self._effects if effect.name == name), None)

    def activeEffect(self):
        return self._active

    def setActiveEffectByName(self, name):
        effect = self.effectByName(name)
        self._node.SetActiveEffectName("" if effect is None else effect.name)

    def setSegmentationNode(self, node):
        if self.logic.GetSegmentationNode() is not node:
            self.logic.SetSegmentationNode(node)
            self.setActiveEffectByName("")

    def setSourceVolumeNode(self, node):
        self.logic.SetSourceVolumeNode(node)

    def setCurrentSegmentID(self, segment_id):
        self._node.SetSelectedSegmentID(segment_id)

    def undo(self):
        self.logic.Undo()

    def redo(self):
        self.logic.Redo()


@contextlib.contextmanager
def _modifying(node):
    """`MRMLNodeModifyBlocker`."""
    before = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(before)


class _Module:
    def __init__(self, parent) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        for name in ("categories", "dependencies", "contributors"):
            setattr(parent, name, [])


class _ModuleWidget:
    def __init__(self, parent=None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent, self.layout = parent, parent.layout()

    def setup(self):
        pass


class ModuleWidget(qt.QWidget):
    """`qSlicerScriptedLoadableModuleWidget`."""

    def __init__(self, source) -> None:
        qt.QWidget.__init__(self)
        self.setLayout(qt.QVBoxLayout())
        self.isEntered = False
        self._source, self._self = source, None

    def setPythonSource(self):
        module_name = Path(self._source).stem
        self._self = class_in(module_name, module_name + "Widget", self._source)(self)

    def self(self):
        return self._self

    def enter(self):
        assert not self.isEntered
        self.isEntered = True
        self._self.enter()

    def exit(self):
        assert self.isEntered
        self.isEntered = False
        self._self.exit()

    def reload(self):
        """What the button *Reload* does: `slicer.util.reloadScriptedModule`."""
        module_name = Path(self._source).stem
        spec = importlib.util.spec_from_file_location(module_name, self._source)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
        for child in self.findChildren(qt.QWidget):
            child.hide()
        self._self.cleanup()
        while self.layout().count():
            self.layout().takeAt(0)
        self.setPythonSource()
        self._self.setup()


class RunningSlicer:
    """Everything of a running Slicer that the module touches, put where it looks for it."""

    def __init__(self, monkeypatch, scene) -> None:
        a_qt.application()
        self.scene, self.factory = scene, EffectFactory()
        self.startup, self.samples = [], []
        self._patch = monkeypatch
        self._put("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
        self._put(
            "slicer.ScriptedLoadableModule",
            ScriptedLoadableModule=_Module,
            ScriptedLoadableModuleWidget=_ModuleWidget,
            ScriptedLoadableModuleTest=type("ScriptedLoadableModuleTest", (), {}),
        )
        self._put("SegmentEditorEffects", AbstractScriptedSegmentEditorEffect=self._base())
        self._put(
            "qSlicerSegmentationsEditorEffectsPythonQt", qSlicerSegmentEditorScriptedEffect=ScriptedEffect
        )
        logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **one: self.samples.append(one))
        self._put("SampleData", SampleDataLogic=logic)
        modes = ("ModificationModeSet", "ModificationModeAdd", "ModificationModeRemove")
        effect = types.SimpleNamespace(**{mode: getattr(_LOGIC, mode) for mode in modes})
        monkeypatch.setattr(slicer, "qSlicerSegmentEditorAbstractEffect", effect, raising=False)
        monkeypatch.setattr(slicer, "app", types.SimpleNamespace(connect=self._connect), raising=False)
        monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
        monkeypatch.setattr(slicer, "MedSAM2SegmentLib", None, raising=False)
        for name in ("MedSAM2Segment", "MedSAM2SegmentLib.SegmentEditorEffect"):  # as in a fresh Slicer
            monkeypatch.delitem(sys.modules, name, raising=False)
        import MedSAM2SegmentLib

        MedSAM2SegmentLib.__dict__.pop("SegmentEditorEffect", None)

    def _put(self, name, **content):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        self._patch.setitem(sys.modules, name, module)

    def _base(self):
        factory = self.factory

        class AbstractScriptedSegmentEditorEffect:
            def __init__(self, scriptedEffect) -> None:
                self.scriptedEffect = scriptedEffect

            def register(self):
                factory.registerEffect(self.scriptedEffect)

        return AbstractScriptedSegmentEditorEffect

    def _connect(self, signal, slot):
        assert signal == "startupCompleted()"
        self.startup.append(slot)

    def load(self, source):
        """Load a scripted module; `start` follows when all are loaded."""
        name = Path(source).stem
        parent = types.SimpleNamespace(path=str(source))
        class_in(name, name, str(source))(parent)
        return parent

    def start(self):
        for slot in self.startup:
            slot()

    def an_editor(self, node=None):
        """A Segment Editor; the module's own has its node from the beginning."""
        widget = SegmentEditorWidget(self.factory, self.scene)
        widget.setMRMLSegmentEditorNode(node or self.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        return widget
