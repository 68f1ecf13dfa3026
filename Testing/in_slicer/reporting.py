"""What the click-through stands on: steps with outcome, figures and pictures; waiting while Slicer lives."""

import json
import os
import sys
import time
import traceback

import qt
import slicer


class Failed(Exception):
    """A step did not give what it should."""


def expect(condition, what):
    """Failed, saying what, unless the condition holds."""
    if not condition:
        raise Failed(what)


class Report:
    """Steps with their outcome, figures and pictures; written after every step, so that a crash leaves it."""

    def __init__(self, folder):
        self.folder = folder
        self.steps = []
        os.makedirs(folder, exist_ok=True)
        app = slicer.app
        self.about = {
            "slicer": f"{app.applicationVersion} r{app.repositoryRevision}",
            "platform": f"{app.os} {app.arch}",
            "python": sys.version.split()[0],
        }

    def run(self, name, step):
        """Run a step; whatever it raises is its failure, and the next one is tried."""
        entry = {"name": name, "passed": False, "figures": {}, "picture": "", "problem": ""}
        self.steps.append(entry)
        start = time.monotonic()
        try:
            entry["figures"] = step() or {}
            entry["passed"] = True
        except Failed as failure:
            entry["problem"] = str(failure)
        except Exception:  # any defect at all belongs into the report
            entry["problem"] = traceback.format_exc()
        entry["seconds"] = round(time.monotonic() - start, 2)
        entry["picture"] = self._screenshot(len(self.steps), name)
        print(f"{'passed' if entry['passed'] else 'FAILED'}: {name} {entry['figures']} {entry['problem']}")
        self.write()

    @property
    def passed(self):
        return bool(self.steps) and all(step["passed"] for step in self.steps)

    def write(self):
        with open(os.path.join(self.folder, "report.json"), "w", encoding="utf-8") as file:
            json.dump({"about": self.about, "passed": self.passed, "steps": self.steps}, file, indent=1)
        lines = ["# MedSAM2Segment in Slicer", ""]
        lines += [f"- {key}: {value}" for key, value in self.about.items()]
        for number, step in enumerate(self.steps, 1):
            lines += ["", f"## {number}. {step['name']}: {'passed' if step['passed'] else 'FAILED'}", ""]
            lines += [f"- {key}: {value}" for key, value in step["figures"].items()]
            lines.append(f"- {step['seconds']} s")
            if step["problem"]:
                lines += ["", "```", step["problem"].rstrip(), "```"]
            if step["picture"]:
                lines += ["", f"![{step['name']}]({step['picture']})"]
        with open(os.path.join(self.folder, "report.md"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _screenshot(self, number, name):
        window = slicer.util.mainWindow()
        if window is None:
            return ""
        slicer.app.processEvents()
        words = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())[:50]
        file = f"{number:02d}-{words}.png"
        return file if window.grab().save(os.path.join(self.folder, file)) else ""


class Heart:
    """Beats every 20 ms while the event loop runs: the longest pause is how long the window was frozen."""

    def __init__(self):
        self._timer = qt.QTimer()
        self._timer.interval = 20
        self._last, self.longest = None, 0.0

    def _beat(self):
        now = time.monotonic()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now

    def start(self):
        self.stop()
        self._last, self.longest = None, 0.0
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def stop(self):
        if self._timer.active:
            self._timer.stop()
            self._timer.timeout.disconnect(self._beat)  # connected at the end, it would crash Slicer
        return round(self.longest, 3)


def live(seconds):
    """Let Slicer live for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        slicer.app.processEvents()
        time.sleep(0.005)


def waitFor(condition, seconds, what):
    """Let Slicer live until the condition holds; seconds it took. Failed when it does not in time."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise Failed(f"waited {seconds} s in vain: {what()}")
        slicer.app.processEvents()
        time.sleep(0.005)
    return round(time.monotonic() - start, 3)
