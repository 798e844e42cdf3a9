"""The kernels' façade."""

from __future__ import annotations

from pathlib import Path

# From a checkout the device code lives in <root>/kernels, which must not be a package of its own (Hugging Face's
# `kernels` has that name); installed, it sits below this package and the path is left alone.
_checkout = Path(__file__).resolve().parents[2] / "kernels"
if not (Path(__file__).parent / "reference").exists() and (_checkout / "reference").is_dir():
    __path__.append(str(_checkout))
