"""Translation of the texts that users read, through ``slicer.i18n``.

Import ``_`` from here: ``from MedSAM2SegmentLib.i18n import _``. Values are filled in after translating,
``_("{count} slices").format(count=3)``, so that the text itself can be looked up. Outside Slicer, where there
are no translations, the text comes back as it is.
"""

from __future__ import annotations

try:
    # Slicer's own function, not a wrapper of it: the file that calls it is the context of the translation.
    from slicer.i18n import tr as _
except ImportError:

    def _(text: str) -> str:
        """Return the text itself."""
        return text


__all__ = ["_"]
