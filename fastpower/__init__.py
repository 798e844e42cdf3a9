"""fastpower: exact, fast sampling from the power distribution p(x)^alpha of a language model."""

from __future__ import annotations

__version__ = "0.1.0"
