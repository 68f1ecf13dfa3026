"""Earlier names of `session_client`."""

from medsam2_core.worker.session_client import SessionClient as RemoteSession
from medsam2_core.worker.session_client import SessionInfo

__all__ = ["RemoteSession", "SessionInfo"]
