"""The campaign: which files it runs, what it keeps, where it continues."""

import json
import subprocess
import sys

from support.project import ROOT

RUNNER = [sys.executable, str(ROOT / "Testing" / "campaign.py")]


def run(out, *words):
    command = [*RUNNER, "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_it_runs_once_what_passes_and_reports_what_was_done(tmp_path):
    done = run(tmp_path, "--only", "test_prompts_files", "--times", "1", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "results.json").read_text())
    (result,) = kept["results"]
    assert (result["outcome"], result["counts"], result["failures"]) == (
        "passed",
        {"mutated inputs": 400},
        [],
    )
    assert "- mutated inputs: 400" in (tmp_path / "report.md").read_text()
    again = run(tmp_path, "--only", "test_prompts_files", "--times", "1")
    assert again.returncode == 0 and "passed" not in again.stdout, "what passed is not run again"


def test_a_campaign_without_time_is_not_called_passed(tmp_path):
    done = run(tmp_path, "--only", "test_prompts_files", "--minutes", "0")
    assert done.returncode == 1
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["outcome"] == "not finished"


def test_no_such_file_is_said(tmp_path):
    assert run(tmp_path, "--only", "no-such-test").returncode == 2
