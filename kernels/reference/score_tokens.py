"""The statistics of ``sample_tokens`` for given tokens, float64 inside: the specification of ``score_tokens``."""

from __future__ import annotations

from .sample_tokens import row_statistics


def score_tokens(logits, tokens, exponents):
    """(logp (B,), logz (B, E), entropy (B,), status (B,) int32), float32; the façade's docstring is the contract."""
    logp, logz, entropy, status = row_statistics(logits, exponents)
    return logp.gather(1, tokens[:, None])[:, 0].float(), logz.float(), entropy.float(), status
