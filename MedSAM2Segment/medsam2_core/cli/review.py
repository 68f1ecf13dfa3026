"""`medsam2 review`: the queue of a cohort's cases to look at in 3D Slicer, the worst first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam2_core.cli.console import report
from medsam2_core.cli.options import AsJson

_SHOWN = 5


@dataclass(frozen=True)
class Review:
    """Write the queue of cases to look at, the worst first, and say how far it has got.

    3D Slicer opens it under *Review queue* on the module's page. What was decided before is kept.

    Options
    -------
    results: Folder of results of `medsam2 batch`.
    skipped: Put skipped cases back into the queue.
    """

    results: Path
    skipped: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Write the queue, and report."""
        from medsam2_core.batch.review import ACCEPTED_TABLE, QUEUE, ReviewQueue

        queue = ReviewQueue(self.results)
        if self.skipped:
            queue.reset_skipped()
        queue.save()
        waiting = [one for one in queue.cases if not one.decision]
        facts: dict[str, Any] = {
            "queue": str(self.results / QUEUE),
            "table": str(self.results / ACCEPTED_TABLE),
            **queue.counts(),
            "next": [{"case": one.case, "confidence": one.confidence} for one in waiting],
            "seconds": round(sum(one.seconds for one in queue.cases), 1),
            "clicks": sum(one.clicks for one in queue.cases),
        }
        report(facts, [], _print, as_json=self.as_json)


def _print(facts: dict[str, Any]) -> None:
    counts = ", ".join(f"{facts[name]} {name}" for name in ("waiting", "accepted", "corrected", "skipped"))
    print(f"{facts['queue']}: {counts}")
    for one in facts["next"][:_SHOWN]:
        print(f"  {one['case']}: confidence {one['confidence']:.2f}")
    if facts["accepted"] or facts["corrected"]:
        print(f"{facts['table']}: for `medsam2 train auto` and `medsam2 train finetune`")
