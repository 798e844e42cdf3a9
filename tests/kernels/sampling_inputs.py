"""Rows of logits and draws for tests and benches of ``sample_tokens`` and ``score_tokens``."""

from typing import NamedTuple

import torch

VOCABS = (2, 7, 127, 4096, 4097, 49152, 151936)
EXTREMES = ("rising", "lowest")  # what a reference known from the first logits alone could get wrong
KINDS = ("model", "normal", "masked_blocks", "one_finite", "huge", "constant", "dominant")


class Case(NamedTuple):
    """The arguments of ``sample_tokens``, in order."""

    logits: torch.Tensor
    alpha: torch.Tensor
    exponents: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    exclude: torch.Tensor | None = None

    def to(self, device):
        return Case(*(None if x is None else x.to(device) for x in self))


def make_logits(kind, rows, vocab, seed=0):
    """(rows, vocab) float32. ``model`` has a few high entries over a long tail, like a language model's."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, vocab, generator=g)
    if kind == "model":
        z = 3.0 * z + 12.0 * (torch.rand(rows, vocab, generator=g) < 4.0 / vocab) - 5.0
    elif kind == "masked_blocks":
        z[torch.rand(rows, vocab, generator=g) < 0.3] = -torch.inf
        for start in range(0, vocab - 4096, 3 * 4096):
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
    elif kind == "rising":
        z += torch.linspace(-60.0, 60.0, vocab)
    elif kind == "lowest":  # masked with a finite number, as models do
        z[torch.rand(rows, vocab, generator=g) < 0.3] = torch.finfo(torch.float32).min
    return z


def make_keys(draws, seed):
    """(keys, positions) of ``draws`` draws, int64."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**63), 2**63 - 1, (draws,), generator=g)
    return keys, torch.randint(0, 2**20, (draws,), generator=g)


def make_case(
    kind="model", rows=3, vocab=4097, draws=None, alpha=1.0, exponents=(1.0, 4.0), dtype=torch.float32, seed=0
):
    """``draws`` draws from random rows (default: one per row, in order), all keyed differently."""
    g = torch.Generator().manual_seed(seed + 1)
    row = torch.arange(rows) if draws is None else torch.randint(rows, (draws,), generator=g)
    return Case(
        make_logits(kind, rows, vocab, seed).to(dtype),
        torch.full((rows,), alpha),
        torch.tensor(exponents, dtype=torch.float32),
        row,
        *make_keys(len(row), seed + 2),
    )


def many_draws(logits, draws, alpha=1.0, exclude=None, seed=0):
    """``draws`` draws from the single row ``logits`` (V,), no exponents."""
    return Case(
        logits[None],
        torch.tensor([alpha]),
        torch.empty(0),
        torch.zeros(draws, dtype=torch.int64),
        *make_keys(draws, seed),
        None if exclude is None else torch.full((draws,), exclude),
    )
