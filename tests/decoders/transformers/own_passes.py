"""A decoder fed by hand, and the passes of the unmodified model that it must agree with."""

from __future__ import annotations

import numpy as np
import torch

from fastpower.decoders.base import Draws, Work

EXPONENTS = np.array([0.5, 1.0, 4.0], np.float32)
ATOL = 2e-4  # of logp, logz and entropy in float32
GREEDY = 1e6  # an exponent that leaves the most probable token alone


def make_draws(rows, positions, *, alpha=1.0, batch=None, exponents=EXPONENTS, exclude=None) -> Draws:
    """One draw for each of ``rows``, keyed by its place in the list."""
    rows = np.asarray(rows, np.int64)
    batch = len(rows) if batch is None else batch
    return Draws(
        np.full(batch, alpha, np.float32),
        exponents,
        rows,
        np.arange(len(rows), dtype=np.uint64) + np.uint64(2**63 + 17),
        np.asarray(positions, np.int64),
        np.full(len(rows), -1, np.int64) if exclude is None else np.asarray(exclude, np.int64),
    )


def feed(decoder, *rows, **options):
    """forward of (sequence, tokens) rows with one draw from each."""
    work = [Work(sequence, tokens) for sequence, tokens in rows]
    ends = [decoder.length(sequence) + len(tokens) for sequence, tokens in rows]
    return decoder.forward(work, make_draws(range(len(rows)), ends, **options))


def prompt(length: int, seed: int, vocab: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(2, vocab, length).tolist()


def statistics(model, tokens):
    """logp of tokens[1:], logz and entropy of every row, by the unmodified model in one pass, float64 after it."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    logp = logits.log_softmax(-1)
    given = logp[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    logz = torch.stack([(float(e) * logp).logsumexp(-1) for e in EXPONENTS], -1)
    return given.numpy(), logz.numpy(), -(logp.exp() * logp).sum(-1).numpy()


def assert_row_is(model, tokens, drawn, row, atol=ATOL):
    """The row that ``drawn`` holds is the one that the model has after ``tokens``."""
    _, logz, entropy = statistics(model, tokens)
    np.testing.assert_allclose(drawn.logz[row], logz[-1], atol=atol, rtol=0)
    np.testing.assert_allclose(drawn.entropy[row], entropy[-1], atol=atol, rtol=0)


def greedy(decoder, texts, n):
    """The n tokens after each text, each the most probable one; all texts side by side."""
    ids, new = [decoder.add() for _ in texts], [[] for _ in texts]
    pending = texts
    for _ in range(n):
        drawn = feed(decoder, *zip(ids, pending, strict=True), alpha=GREEDY)
        for tokens, token in zip(new, drawn.token.tolist(), strict=True):
            tokens.append(token)
        pending = [tokens[-1:] for tokens in new]
    for sequence in ids:
        decoder.free(sequence)
    return new


def generate(model, text, n):
    """The same for one text, by the model's own ``generate``."""
    out = model.generate(
        torch.tensor([text]),
        attention_mask=torch.ones(1, len(text)),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
    )
    return out[0, len(text) :].tolist()
