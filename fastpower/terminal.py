"""Whether anybody looks at a terminal."""

from __future__ import annotations

import sys


def on_terminal() -> bool:
    """Whether stderr is a terminal, and so whether a bar may be drawn there; everything that draws one asks here."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())
