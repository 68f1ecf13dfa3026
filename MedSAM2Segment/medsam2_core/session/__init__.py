"""One volume or image set, its objects, prompts and masks, with undo."""

from medsam2_core.session.session import Session

__all__ = ["Session"]
