"""CUDA C++ backend: the kernels of ``csrc/cuda``, in a shared library that ``FASTPOWER_CUDA=1`` adds to a build.

It has ``sample_tokens``, ``score_tokens``, ``append_kv``, ``copy_pages`` and ``paged_attention``.
"""

from __future__ import annotations

import torch

from fastpower.kernels.cuda import library


def why_not() -> str | None:
    """None if the backend can run in this process, else the reason and the remedy."""
    try:
        library.load()
    except OSError as error:
        return str(error)
    if not torch.version.cuda:
        return "this torch was built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    return None
