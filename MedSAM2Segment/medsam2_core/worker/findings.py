"""Earlier names of `job_messages`."""

from medsam2_core.worker.job_messages import AutoModelInfo as AutoEntry
from medsam2_core.worker.job_messages import AutoPrediction as ClassFinding
from medsam2_core.worker.job_messages import AutoRequest as AutoWish
from medsam2_core.worker.job_messages import auto_models_from_json as entries_in

__all__ = ["AutoEntry", "AutoWish", "ClassFinding", "entries_in"]
