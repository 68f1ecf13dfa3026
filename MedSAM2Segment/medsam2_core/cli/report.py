"""What commands print on stdout, and what they say about the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Left-aligned columns two spaces apart; plain text, so that it can be piped and searched."""
    lines = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def peak_memory_mb() -> float | None:
    """Most memory (resident) this process has held, in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def size(count: int | None) -> str:
    """Bytes for people."""
    return "size unknown" if count is None else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"
