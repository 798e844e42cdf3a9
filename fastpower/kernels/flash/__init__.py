"""flash-attn backend: ``paged_attention`` only. The other operators have no flash-attn counterpart."""

from __future__ import annotations

import importlib.util

import torch


def why_not() -> str | None:
    """None if the backend can run in this process, else the reason and the remedy."""
    if importlib.util.find_spec("flash_attn") is None:
        return (
            "flash-attn is not installed; `pip install '.[flash]' --no-build-isolation` in fastpower's checkout "
            "compiles it (needs nvcc)"
        )
    if not torch.version.cuda or not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"flash-attn needs compute capability 8.0 or newer, this GPU has {torch.cuda.get_device_capability()}"
    return None
