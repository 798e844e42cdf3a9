"""Rows of logits and draws for tests and benches of ``sample_tokens`` and ``score_tokens``."""

from typing import NamedTuple

import torch

VOCABS = (2, 7, 127, 4096, 4097, 49152, 151936)
KINDS = ("model", "normal", "masked_blocks", "one_finite", "huge", "constant", "dominant")


class Case(NamedTuple):
    logits: torch.Tensor
    alpha: torch.Tensor
    exponents: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    exclude: torch.Tensor | None = None


def make_logits(kind, rows, vocab, seed=0):
    """(rows, vocab) float32. ``model`` has the long tail of a language model's logits."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, vocab, generator=g)
    if kind == "model":
        z = 3.0 * z + 12.0 * (torch.rand(rows, vocab, generator=g) < 4.0 / vocab) - 5.0
    elif kind == "masked_blocks":
        z[torch.rand(rows, vocab, generator=g) < 0.3] = -torch.inf
        for start in range(0, vocab, 3 * 4096):
            if start + 4096 < vocab:
                z[:, start : start + 4096] = -torch.inf
        z[:, -1] = 0.5  # never fully masked
    elif kind == "one_finite":
        z.fill_(-torch.inf)
        z[torch.arange(rows), torch.randint(vocab, (rows,), generator=g)] = torch.randn(rows, generator=g)
    elif kind == "huge":
        z = 1e4 * (2.0 * torch.rand(rows, vocab, generator=g) - 1.0)
    elif kind == "constant":
        z = torch.full((rows, vocab), 3.25)
    elif kind == "dominant":
        z[:, vocab // 2] = 40.0
    return z


def make_case(
    kind="model", rows=3, vocab=4097, draws=None, alpha=1.0, exponents=(1.0, 4.0), dtype=torch.float32, seed=0
):
    """A case with ``draws`` draws (default: one per row, in order), all keyed differently."""
    g = torch.Generator().manual_seed(seed + 1)
    row = torch.arange(rows) if draws is None else torch.randint(rows, (draws,), generator=g)
    return Case(
        make_logits(kind, rows, vocab, seed).to(dtype),
        torch.full((rows,), alpha),
        torch.tensor(exponents, dtype=torch.float32),
        row,
        torch.randint(-(2**63), 2**63 - 1, row.shape, generator=g),
        torch.randint(0, 2**20, row.shape, generator=g),
    )
