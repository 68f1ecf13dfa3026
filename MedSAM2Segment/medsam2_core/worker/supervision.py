"""Earlier names of `client`."""

from medsam2_core.worker.client import WorkerClient as Supervisor
from medsam2_core.worker.client import WorkerState

__all__ = ["Supervisor", "WorkerState"]
