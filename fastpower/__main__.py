"""``python -m fastpower``."""

import sys

from fastpower.cli import main

sys.exit(main())
