"""The kernels' façade: one public function per operator, every backend behind it.

    from fastpower.kernels import sample_tokens

Contracts are in the docstrings and in ``docs/design.md``. Kernels know nothing of samplers, caches or decoders, and
can be used without them.
"""

from __future__ import annotations

from pathlib import Path

# From a checkout the device code lives in <root>/kernels, which must not be a package of its own (Hugging Face's
# `kernels` has that name); installed, it sits below this package and the path is left alone.
_checkout = Path(__file__).resolve().parents[2] / "kernels"
if not (Path(__file__).parent / "reference").exists() and (_checkout / "reference").is_dir():
    __path__.append(str(_checkout))

from fastpower.kernels.dispatch import BACKENDS, Status, backends  # noqa: E402
from fastpower.kernels.linear import linear, pack_linear  # noqa: E402
from fastpower.kernels.outputs import paged_attention_workspace, sample_tokens_workspace  # noqa: E402
from fastpower.kernels.packed_linear import PackedLinear  # noqa: E402
from fastpower.kernels.paging import append_kv, copy_pages, paged_attention  # noqa: E402
from fastpower.kernels.pooling import PooledRows, PooledSamples, pool_rows, sample_pooled  # noqa: E402
from fastpower.kernels.quantised import QuantisedBlocks, quantise  # noqa: E402
from fastpower.kernels.resampling import Ancestors, resample  # noqa: E402
from fastpower.kernels.sampling import TokenSamples, TokenScores, sample_tokens, score_tokens  # noqa: E402

__all__ = [
    "BACKENDS",
    "Ancestors",
    "PackedLinear",
    "PooledRows",
    "PooledSamples",
    "QuantisedBlocks",
    "Status",
    "TokenSamples",
    "TokenScores",
    "append_kv",
    "backends",
    "copy_pages",
    "linear",
    "pack_linear",
    "paged_attention",
    "paged_attention_workspace",
    "pool_rows",
    "quantise",
    "resample",
    "sample_pooled",
    "sample_tokens",
    "sample_tokens_workspace",
    "score_tokens",
]
