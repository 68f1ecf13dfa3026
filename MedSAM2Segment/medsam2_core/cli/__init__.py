"""The command line: `medsam2 …`. Commands only read options, call the rooms below and show what came out."""

from medsam2_core.cli.app import main

__all__ = ["main"]
