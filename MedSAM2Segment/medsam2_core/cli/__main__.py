"""`python -m medsam2_core.cli` is the same as `medsam2`."""

import sys

from medsam2_core.cli.app import main

sys.exit(main())
