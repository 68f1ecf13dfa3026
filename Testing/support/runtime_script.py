"""Installs in a process of its own, for a test to kill: ``python … FOLDER WHEELS LISTS TOOLS HALT``.

Prints a line before each child process it starts, and one before and after each rename; having said HALT, it
does nothing more.
"""

import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "MedSAM2Segment")]

from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions  # noqa: E402

from support.process_runner import SubprocessRunner, done  # noqa: E402


def main(folder: str, wheels: str, lists: str, tools: str, halt: str) -> None:
    """Install once."""

    def say(line: str) -> None:
        print(line, flush=True)
        if line == halt:
            time.sleep(600)

    runner = SubprocessRunner(lambda number, command: print("command", number, flush=True))
    installer = RuntimeInstaller(
        pathlib.Path(folder),
        runner,
        environment={"PATH": tools, "HOME": tools},
        machine=Machine("linux", "x86_64"),
        helper=sys.executable,
        files=pathlib.Path(lists),
    )
    rename = pathlib.Path.rename

    def told(self, target):
        say("before")
        rename(self, target)
        say("after")

    pathlib.Path.rename = told
    error = done(installer.install, runner, InstallOptions(offlineFolder=pathlib.Path(wheels)))
    print("ended", error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
