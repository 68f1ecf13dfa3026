"""Run the randomised tests at full count, report what they did, and continue where a stopped run was.

    python Testing/campaign.py                         # ten times as long, two hours at most
    python Testing/campaign.py --times 2 --minutes 20 --only kills

Each file is one process of pytest. Files that passed on the same commit are not run again; a file whose time
runs out is reported as not finished. Exit code 1 unless all passed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class FileResult:
    """How the campaign's tests of one file ended.

    Attributes
    ----------
    outcome
        ``passed``, ``failed``, or ``not finished``.
    counts
        What was done, as the tests recorded it: mutated inputs, kills, random steps …
    failures
        Names of the tests that failed.
    """

    file: str
    outcome: str
    seconds: float
    tests: int = 0
    skipped: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


class Campaign:
    """Runs files side by side within a limit of time, and keeps their results in a folder."""

    def __init__(self, out: Path, times: int, minutes: float) -> None:
        self._out, self._times = out, times
        self._end = time.monotonic() + 60 * minutes
        self._journal = out / "results.json"
        self._processes: set[subprocess.Popen] = set()
        self.commit = _commit()
        self.results: dict[str, FileResult] = {}
        out.mkdir(parents=True, exist_ok=True)
        self._continue()

    def run(self, files: list[str], jobs: int) -> None:
        """Run those that have not passed yet, the ones that took longest before first."""
        known = {file: one.seconds for file, one in self.results.items()}
        waiting = [
            file for file in files if file not in self.results or self.results[file].outcome != "passed"
        ]
        waiting.sort(key=lambda file: -known.get(file, 1e9))
        with ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(self._run, file) for file in waiting]
            try:
                for one in as_completed(running):
                    result = one.result()
                    self.results[result.file] = result
                    self._save()
                    print(f"{result.outcome:13}{result.seconds:7.0f} s  {result.file}", flush=True)
            except BaseException:  # Ctrl-C: what has ended is kept, what runs is ended
                self._end = 0.0
                for process in list(self._processes):
                    _kill(process)
                raise

    def report(self, files: list[str]) -> str:
        """Return the results as a page of Markdown."""
        rows = [self.results[file] for file in files if file in self.results]
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(row.counts)
        outcomes = Counter(row.outcome for row in rows)
        lines = [
            f"# Campaign at {self._times} times the usual length, commit {self.commit[:10]}",
            "",
            ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            + f" of {len(files)} files, {sum(row.seconds for row in rows) / 60:.0f} minutes of processes.",
            "",
            *(f"- {what}: {count:,}" for what, count in sorted(counts.items())),
            "",
            "| file | outcome | tests | skipped | minutes | done | failed |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            done = ", ".join(f"{count:,} {what}" for what, count in sorted(row.counts.items()))
            cells = (row.file, row.outcome, row.tests, row.skipped, f"{row.seconds / 60:.1f}", done)
            lines.append("| " + " | ".join(map(str, cells)) + f" | {' '.join(row.failures)} |")
        return "\n".join(lines) + "\n"

    def _run(self, file: str) -> FileResult:
        left = self._end - time.monotonic()
        if left <= 0:
            return FileResult(file, "not finished", 0.0)
        junit = self._out / f"{Path(file).stem}.xml"
        junit.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "pytest", file, "-m", "campaign", "-q", "-p", "no:cacheprovider",
            "-o", "timeout=0", "--timeout=0", "-o", "junit_family=xunit1", f"--junitxml={junit}",
        ]  # fmt: skip
        started = time.monotonic()
        with (self._out / f"{Path(file).stem}.log").open("w") as log:
            environment = {**os.environ, "MEDSAM2_CAMPAIGN": str(self._times)}
            # A session of its own: what the tests started ends with them.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            self._processes.add(process)
            try:
                code = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                _kill(process)
                return FileResult(file, "not finished", time.monotonic() - started)
            finally:
                self._processes.discard(process)
        seconds = time.monotonic() - started
        if not junit.exists():
            return FileResult(file, "failed", seconds, failures=(f"exit code {code}",))
        return _read(file, junit, code, seconds)

    def _continue(self) -> None:
        try:
            kept = json.loads(self._journal.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if (kept.get("commit"), kept.get("times")) == (self.commit, self._times):
            self.results = {one["file"]: FileResult(**one) for one in kept["results"]}

    def _save(self) -> None:
        kept = {
            "commit": self.commit,
            "times": self._times,
            "results": [asdict(one) for one in self.results.values()],
        }
        part = self._journal.with_suffix(".part")
        part.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        part.replace(self._journal)


def _read(file: str, junit: Path, code: int, seconds: float) -> FileResult:
    cases = list(ElementTree.parse(junit).iter("testcase"))
    counts: Counter[str] = Counter()
    for one in cases:
        for noted in one.iter("property"):
            counts[noted.get("name", "")] += int(noted.get("value", "0"))
    failures = tuple(
        one.get("name", "") for one in cases if {"failure", "error"} & {child.tag for child in one}
    )
    skipped = sum(one.find("skipped") is not None for one in cases)
    outcome = "passed" if code == 0 else "failed"
    return FileResult(file, outcome, round(seconds, 1), len(cases), skipped, dict(counts), failures)


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _commit() -> str:
    """Return the commit, with a hash of what differs from it in files that git knows."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False).stdout

    commit = git("rev-parse", "HEAD").decode().strip() or "unknown"
    changes = git("diff", "HEAD")
    return f"{commit}-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def _files(only: str) -> list[str]:
    """Return the test files with a test whose length depends on the campaign (see conftest.py)."""
    found = []
    for path in sorted((ROOT / "Testing").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        if only in name and re.search(r"^def test_\w+\([^)]*\bcampaign\b", text, re.MULTILINE):
            found.append(name)
    return found


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how many times as long as in `make test`")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their name")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "campaign")
    options = parser.parse_args()
    files = _files(options.only)
    if not files:
        parser.error(f"--only {options.only}: no file with such a name has a test of the campaign")
    campaign = Campaign(options.out.absolute(), options.times, options.minutes)
    campaign.run(files, options.jobs)
    report = options.out / "report.md"
    report.write_text(campaign.report(files), encoding="utf-8")
    print(f"{report}: {len(files)} files")
    return 0 if all(campaign.results[file].outcome == "passed" for file in files) else 1


if __name__ == "__main__":
    sys.exit(main())
