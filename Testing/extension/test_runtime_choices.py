"""What the runtime's children are told: cleaned variables, index, proxy, the build of PyTorch that fits."""

import os
import sys
from pathlib import Path

import pytest
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import cleanedEnvironment, toolEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeFolder import defaultFolder
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine, detectMachine
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions, torchSources
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from support.index import anIndex
from support.runtime import LINUX, Runtime, baseEnvironment

# The environment of children


def test_what_belongs_to_slicers_python_is_left_out():
    slicers = {
        "PYTHONHOME": "/slicer/lib/Python",
        "PYTHONPATH": "/slicer/bin/Python",
        "LD_LIBRARY_PATH": "/slicer/lib",
        "DYLD_LIBRARY_PATH": "/slicer/lib",
        "DYLD_FRAMEWORK_PATH": "/slicer/lib",
        "VIRTUAL_ENV": "/somewhere",
    }
    mine = {
        "HOME": "/me",
        "HTTPS_PROXY": "http://proxy:8080",
        "NO_PROXY": "localhost",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert cleanedEnvironment({**slicers, **mine}) == mine


def test_slicers_folders_are_taken_off_the_path():
    path = os.pathsep.join(["/slicer/bin", "/slicer/lib/Python/bin", "/usr/bin", "/slicer-tools"])
    cleaned = cleanedEnvironment({"SLICER_HOME": "/slicer", "PATH": path})
    assert cleaned["PATH"] == os.pathsep.join(["/usr/bin", "/slicer-tools"])
    assert cleanedEnvironment({"PATH": path})["PATH"] == path


def test_the_worker_gets_the_place_of_the_core_and_nothing_of_slicers_python(tmp_path):
    environment = {
        "PYTHONPATH": "/slicer",
        "PYTHONHOME": "/slicer",
        "LD_LIBRARY_PATH": "/slicer",
        "HOME": "/me",
    }
    installer = RuntimeInstaller(tmp_path / "r", None, environment=environment, extension=tmp_path / "ext")
    told = installer.environment()
    assert told["PYTHONPATH"] == str(tmp_path / "ext")
    assert told["PYTHONNOUSERSITE"] == "1"
    assert told["HOME"] == "/me"
    assert not {"PYTHONHOME", "LD_LIBRARY_PATH"} & told.keys()


def test_settings_of_pip_are_passed_to_uv_too():
    told = toolEnvironment(
        {
            "PIP_INDEX_URL": "https://mirror/simple",
            "PIP_EXTRA_INDEX_URL": "https://one/simple https://two/simple",
            "PIP_FIND_LINKS": "/wheels /more",
            "PIP_PROXY": "http://proxy:3128",
            "PIP_CERT": __file__,
        },
        offline=False,
    )
    assert told["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert told["UV_INDEX"].split() == ["https://one/simple", "https://two/simple"]
    assert told["UV_FIND_LINKS"] == "/wheels,/more"
    assert told["HTTPS_PROXY"] == "http://proxy:3128"
    assert told["SSL_CERT_FILE"] == __file__


def test_settings_of_uv_win_and_are_passed_to_pip_too():
    base = {
        "UV_DEFAULT_INDEX": "https://mine/simple",
        "PIP_INDEX_URL": "https://other/simple",
        "SSL_CERT_FILE": "c",
    }
    assert toolEnvironment(base, offline=False)["UV_DEFAULT_INDEX"] == "https://mine/simple"
    assert toolEnvironment(base, offline=False)["SSL_CERT_FILE"] == "c"
    only = {"UV_DEFAULT_INDEX": "https://mine/simple", "UV_FIND_LINKS": "/a,/b"}
    assert toolEnvironment(only, offline=False)["PIP_INDEX_URL"] == "https://mine/simple"
    assert toolEnvironment(only, offline=False)["PIP_FIND_LINKS"] == "/a /b"


def test_without_a_network_no_index_is_passed():
    base = {
        "UV_DEFAULT_INDEX": "https://mine/simple",
        "PIP_FIND_LINKS": "/a",
        "PIP_EXTRA_INDEX_URL": "https://b",
    }
    for told in (toolEnvironment(base, offline=True), toolEnvironment(base, offline=True)):
        assert not {name for name in told if "INDEX" in name or "LINKS" in name}


# Where it is put


def test_the_folder_is_the_users_application_data(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    end = Path("MedSAM2Segment") / "runtime"
    assert defaultFolder({}, "linux") == tmp_path / ".local" / "share" / end
    assert defaultFolder({"XDG_DATA_HOME": "/data"}, "linux") == Path("/data") / end
    assert defaultFolder({"XDG_DATA_HOME": "relative"}, "linux") == tmp_path / ".local" / "share" / end
    assert defaultFolder({}, "darwin") == tmp_path / "Library" / "Application Support" / end
    assert defaultFolder({"LOCALAPPDATA": "/u/Local"}, "win32") == Path("/u/Local") / end
    assert defaultFolder({"MEDSAM2_RUNTIME_FOLDER": "/mine"}, "darwin") == Path("/mine")


# The machine and the build of PyTorch

QUIET = {"run": lambda command: "", "driverFiles": ()}


def test_an_arm_mac_is_known_although_slicer_is_translated():
    asked = []

    def run(command):
        asked.append(command[-1])
        return {"hw.optional.arm64": "1", "kern.osproductversion": "15.1"}[command[-1]]

    machine = detectMachine({}, platformName="darwin", architecture="x86_64", run=run)
    assert machine == Machine("macos", "arm64", isTranslated=True, release="15.1")
    assert asked == ["hw.optional.arm64", "kern.osproductversion"]
    assert detectMachine({}, platformName="darwin", architecture="x86_64", **QUIET).architecture == "x86_64"
    assert not detectMachine({}, platformName="darwin", architecture="arm64", **QUIET).isTranslated


def test_the_driver_is_read_where_it_is_named(tmp_path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC 12.2\n"
    )
    machine = detectMachine({}, platformName="linux", architecture="AMD64", driverFiles=[str(file)])
    assert machine == Machine("linux", "x86_64", "570.124.06")
    assert machine.hasCuda
    assert detectMachine({"UV_CUDA_DRIVER_VERSION": "560.1"}, platformName="linux", **QUIET).driver == "560.1"
    assert not detectMachine({"PATH": ""}, platformName="linux", **QUIET).driver


def test_the_driver_is_asked_of_its_own_tool(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 535.183.01\necho 535.183.01\n")
    tool.chmod(0o755)
    machine = detectMachine(
        {"PATH": str(tmp_path)}, platformName="linux", architecture="x86_64", driverFiles=()
    )
    assert machine.driver == "535.183.01"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML'; exit 9\n")
    assert not detectMachine({"PATH": str(tmp_path)}, platformName="linux", driverFiles=()).driver


@pytest.mark.parametrize(
    "driver, system, hasCuda",
    [
        ("525.60.13", "linux", True),
        ("470.256.02", "linux", False),
        ("528.33", "windows", True),
        ("", "linux", False),
    ],
)
def test_old_drivers_get_the_build_without_cuda(driver, system, hasCuda):
    assert Machine(system, "x86_64", driver).hasCuda is hasCuda


def words(machine, base=None, **options) -> list[str]:
    return [" ".join(one.arguments) for one in torchSources(machine, base or {}, InstallOptions(**options))]


def test_each_machine_gets_its_build():
    cuda = Machine("linux", "x86_64", "570.124.06")
    assert words(cuda) == ["torch==2.13.0 --torch-backend auto"]
    source = torchSources(cuda, {}, InstallOptions())[0]
    assert source.variables == {"UV_CUDA_DRIVER_VERSION": "570.124.06"}
    assert words(LINUX) == ["torch==2.13.0 --torch-backend cpu"]
    assert words(Machine("windows", "x86_64", "576.2")) == ["torch==2.13.0 --torch-backend auto"]
    for pinned in (Machine("windows", "x86_64"), Machine("macos", "arm64", isTranslated=True)):
        assert "--require-hashes" in words(pinned)[0]
        assert "torch.lock" in words(pinned)[0]


def test_the_user_may_choose_the_build():
    assert words(LINUX, torchBackend="cu128") == ["torch==2.13.0 --torch-backend cu128"]
    assert words(LINUX, {"UV_TORCH_BACKEND": "xpu"}) == ["torch==2.13.0 --torch-backend xpu"]
    assert words(LINUX, offlineFolder=Path("/wheels")) == ["torch==2.13.0"]


def test_where_the_user_has_an_index_it_is_the_second_choice():
    assert words(LINUX, {"PIP_INDEX_URL": "https://mirror/simple"})[1:] == ["torch==2.13.0"]


# The plan


def installer(tmp_path, machine=LINUX, **environment) -> RuntimeInstaller:
    base = {"PATH": "", **environment}
    return RuntimeInstaller(tmp_path / "r", None, environment=base, machine=machine, helper=sys.executable)


def test_the_plan_shows_size_place_and_licences_and_changes_nothing(tmp_path):
    plan = installer(tmp_path).plan()
    assert 200 < plan.downloadMegabytes < 600
    assert 800 < plan.diskMegabytes < 2000
    text = plan.text
    for word in (
        str(tmp_path / "r"),
        "MB",
        "GB",
        "PyTorch BSD-3-Clause",
        "SAM 2 Apache-2.0",
        "CPU build",
        "not changed",
    ):
        assert word in text
    assert not (tmp_path / "r").exists()


def test_the_plan_for_a_card_is_larger_and_names_nvidias_licence(tmp_path):
    plan = installer(tmp_path, Machine("linux", "x86_64", "570.124.06")).plan()
    assert plan.downloadMegabytes > 2500
    assert "NVIDIA" in plan.text
    assert "driver 570.124.06" in plan.text


def test_the_plan_for_a_card_of_amd_is_as_large_and_names_no_licence_of_nvidia(tmp_path):
    options = InstallOptions(torchBackend="rocm7.1")
    plan = installer(tmp_path, Machine("linux", "x86_64")).plan(options)
    assert plan.downloadMegabytes > 2500
    assert "rocm7.1" in plan.text
    assert "NVIDIA" not in plan.text


@pytest.mark.parametrize(
    "machine, code",
    [
        (Machine("macos", "x86_64"), "machine-unsupported"),
        (Machine("macos", "arm64", release="13.6.1"), "system-too-old"),
        (Machine("linux", "riscv64"), "machine-unsupported"),
    ],
)
def test_machines_without_a_build_are_reported_before(tmp_path, machine, code):
    plan = installer(tmp_path, machine).plan()
    assert plan.problems[0].code == code
    assert "remote" in str(plan.problems[0])
    ends = []
    from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener

    installer(tmp_path, machine).install(InstallListener(ended=ends.append))
    assert ends[0].code == code


def test_the_plan_shows_where_packages_come_from_but_no_password(tmp_path):
    base = {"PIP_INDEX_URL": "https://me:secret@mirror/simple", "HTTPS_PROXY": "http://me:hidden@proxy"}
    text = installer(tmp_path, **base).plan().text
    assert "PIP_INDEX_URL" in text
    assert "HTTPS_PROXY" in text
    assert "secret" not in text
    assert "hidden" not in text


def test_a_missing_folder_or_python_is_reported_before(tmp_path):
    options = InstallOptions(offlineFolder=tmp_path / "none", python=str(tmp_path / "python"))
    problems = [(one.code, one.fields["path"]) for one in installer(tmp_path).plan(options).problems]
    assert problems == [
        ("offline-folder-missing", str(tmp_path / "none")),
        ("python-missing", str(tmp_path / "python")),
    ]


# An index of one's own, and a proxy


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_packages_come_from_the_index_the_usual_variables_name(tmp_path, wheels, variable):
    with anIndex(wheels.folder) as (address, asked):
        environment = baseEnvironment(tmp_path)
        del environment["UV_DEFAULT_INDEX"]
        environment[variable] = f"{address}/simple"
        options = InstallOptions()
        # There the build without CUDA is on the common index: everything comes from the one that was named.
        runtime = Runtime(
            tmp_path, wheels, environment=environment, options=options, machine=Machine("windows", "x86_64")
        )
        assert runtime.install() is None, runtime.runner.words()
    assert runtime.installer.status().state is RuntimeState.READY
    for name in ("setuptools", "numpy", "torch", "sam2"):
        assert f"/simple/{name}/" in asked


def test_packages_come_through_the_proxy(tmp_path, wheels):
    with anIndex(wheels.folder) as (address, asked):
        environment = baseEnvironment(
            tmp_path, HTTP_PROXY=address, UV_DEFAULT_INDEX="http://index.invalid/simple"
        )
        runtime = Runtime(
            tmp_path,
            wheels,
            environment=environment,
            options=InstallOptions(),
            machine=Machine("windows", "x86_64"),
        )
        assert runtime.install() is None, runtime.runner.words()
    assert "http://index.invalid/simple/numpy/" in asked


# A Mac with Apple's processor and a Slicer that runs translated

TRANSLATED = Machine("macos", "arm64", isTranslated=True)


def test_uv_is_fetched_for_the_macs_own_processor(tmp_path, wheels):
    runtime = Runtime(tmp_path, wheels, machine=TRANSLATED)
    assert "uv could not be downloaded" in str(runtime.install())
    fetching = next(words for words in runtime.runner.words() if "pip download" in words)
    assert "--platform macosx_11_0_arm64" in fetching
    assert "--only-binary :all:" in fetching


@pytest.mark.skipif(os.name == "nt", reason="stands shell scripts before the real programs")
def test_what_is_installed_runs_untranslated(tmp_path, wheels, monkeypatch):
    arch = tmp_path / "arch"
    arch.write_text('#!/bin/sh\n[ "$1" = -arm64 ] || exit 9\nshift\nexec "$@"\n')
    arch.chmod(0o755)
    monkeypatch.setattr(Machine, "native", (str(arch), "-arm64"))
    environment = baseEnvironment(tmp_path)
    tool = tmp_path / "tools" / "uv"
    real = tool.resolve()
    tool.unlink()
    says = "uv 0.13.8 (aarch64-apple-darwin)"
    tool.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit 0\nexec "{real}" "$@"\n')
    tool.chmod(0o755)
    options = InstallOptions(offlineFolder=wheels.folder, python=sys.executable)
    runtime = Runtime(
        tmp_path, wheels, environment=environment, options=options, machine=TRANSLATED
    ).installed()
    assert runtime.installer.command()[:2] == [str(arch), "-arm64"]
    assert any(words.startswith("-arm64") and "probe.py" in words for words in runtime.runner.words())


def test_without_a_python_of_its_own_kind_one_is_fetched(tmp_path, wheels):
    environment = baseEnvironment(tmp_path, UV_PYTHON_INSTALL_MIRROR="http://127.0.0.1:9")
    (tmp_path / "tools" / "python3").unlink()
    runtime = Runtime(tmp_path, wheels, environment=environment, options=InstallOptions())
    assert "Python could not be downloaded" in str(runtime.install())
    assert any(words.startswith("python install 3.12 --no-bin") for words in runtime.runner.words())
