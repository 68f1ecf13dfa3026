"""Settings come back as what they say they are, whatever a settings file makes of them."""

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from medsam2_core.errors import WorkerError  # noqa: E402
from MedSAM2SegmentLib.Worker.Settings import Settings  # noqa: E402
from support.errors import raises  # noqa: E402

NAMES = ("remoteCommand", "wheelFolder", "defaultModel", "defaultWindow")


@pytest.fixture
def store(tmp_path):
    a_qt.application()
    return qt.QSettings(str(tmp_path / "settings.ini"), qt.QSettings.IniFormat)


def read_again(store, tmp_path):
    """As another Slicer finds them: from the file."""
    store.sync()
    return Settings(qt.QSettings(str(tmp_path / "settings.ini"), qt.QSettings.IniFormat))


def test_without_a_file_there_are_defaults(store):
    settings = Settings(store)
    assert [getattr(settings, name) for name in NAMES] == ["", "", "embedded", "auto"]
    assert settings.remoteWords() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["400,40", "ssh -p 22 host worker", "true", "5", "Größe", "C:\\a b"])
def test_a_text_comes_back_from_the_file(store, tmp_path, name, text):
    setattr(Settings(store), name, text)
    assert getattr(read_again(store, tmp_path), name) == text


@pytest.mark.parametrize("isOn", [True, False])
def test_a_switch_comes_back_from_the_file(store, tmp_path, isOn):
    assert Settings(store).show3D is True
    Settings(store).show3D = isOn
    assert read_again(store, tmp_path).show3D is isOn


def test_nothing_is_learnt_from_corrections_unless_asked_for(store, tmp_path):
    assert Settings(store).learns is False
    Settings(store).learns = True
    assert read_again(store, tmp_path).learns is True


def test_a_list_that_the_file_made_of_a_comma_is_a_text_again(tmp_path):
    path = tmp_path / "settings.ini"
    path.write_text("[MedSAM2Segment]\ndefaultWindow=400, 40\n", encoding="utf-8")
    a_qt.application()
    assert Settings(qt.QSettings(str(path), qt.QSettings.IniFormat)).defaultWindow == "400,40"


def test_what_is_emptied_is_the_default_again(store, tmp_path):
    settings = Settings(store)
    settings.remoteCommand = "  ssh host medsam2 worker "
    assert settings.remoteWords() == ["ssh", "host", "medsam2", "worker"]
    settings.remoteCommand = " "
    settings.defaultModel = ""
    again = read_again(store, tmp_path)
    assert again.remoteCommand == ""
    assert again.defaultModel == "embedded"


def test_a_command_that_cannot_be_read_is_reported_with_where_to_correct_it(store):
    settings = Settings(store)
    settings.remoteCommand = "ssh 'host"
    with raises("remote-command", WorkerError, command="ssh 'host"):
        settings.remoteWords()
