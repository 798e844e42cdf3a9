"""Token statistics and draws from rows of logits, float64 throughout: the specification of ``sample_tokens``.

With p = softmax(z) of one row:

    logp(v)  = z_v - log sum_w exp(z_w)
    logz_e   = log sum_v p(v)^e = log sum_v exp(e logp(v))
    entropy  = - sum_v p(v) logp(v)                            nats; a masked entry (z = -inf) contributes exactly 0

Draws follow q(v) proportional to p(v)^alpha, by inverse CDF over a two-level hierarchy so that a fast backend re-reads
one block of 4096 entries per draw instead of a row: u0 chooses the block by its mass, u1 the token inside the block,
both in index order, the first index whose running sum exceeds u times the total. An entry without mass is never
chosen: where rounding leaves no running sum above u times the total, the last entry with mass is taken.

(u0, u1) are the first two words of Philox 4x32-10 under the draw's own key at counter (position, 0, 0, 0), so a token
depends on its row, alpha, key and position and on nothing else.
"""

from __future__ import annotations

import torch

from .philox import philox4x32, uniform32

BLOCK = 4096
NAN, MASKED, EXHAUSTED = 1, 2, 4  # bits of fastpower.kernels.Status


def row_statistics(logits, exponents):
    """(logp (B, V), logz (B, E), entropy (B,), status (B,) int32), float64; rows with status != 0 hold NaN."""
    z = logits.double()
    broken = (z.isnan() | (z == torch.inf)).any(1)
    masked = (z == -torch.inf).all(1)
    status = broken * NAN + (masked & ~broken) * MASKED
    logp = torch.where((status == 0)[:, None], torch.log_softmax(z, dim=1), torch.nan)
    logz = torch.stack([torch.logsumexp(e * logp, dim=1) for e in exponents.double()], 1) if len(exponents) else None
    if logz is None:
        logz = z.new_empty(len(z), 0)
    entropy = -torch.where(logp == -torch.inf, 0.0, logp.exp() * logp).sum(1)
    return logp, logz, entropy, status.to(torch.int32)


def choose(mass, u):
    """First index of the last dimension whose running sum exceeds ``u`` times the total; ``u`` lacks that dimension."""
    running = mass.cumsum(-1)
    index = torch.searchsorted(running, (u * running[..., -1])[..., None], right=True)[..., 0]
    places = torch.arange(mass.shape[-1], dtype=torch.int64, device=mass.device)
    last = torch.where(mass > 0, places, 0).amax(-1)
    return torch.minimum(index, last)


def draw(z, alpha, u0, u1, exclude):
    """Tokens (D,) of D rows z (D, V) float64 without NaN or +inf; -1 where nothing is left after ``exclude``."""
    count, vocab = z.shape
    z = z.clone()
    some = exclude >= 0
    z[some, exclude[some]] = -torch.inf
    width = min(BLOCK, vocab)
    blocks = -(-vocab // width)
    z = torch.nn.functional.pad(z, (0, blocks * width - vocab), value=-torch.inf).view(count, blocks, width)
    top = z.amax(2, keepdim=True)  # maximum of each block, of what is left
    peak = top.amax(1)
    power = alpha[:, None, None]
    weight = torch.where(z == -torch.inf, 0.0, torch.exp(power * (z - top)))
    scale = torch.where(top == -torch.inf, 0.0, torch.exp(power * (top - peak[:, None])))
    mass = weight.sum(2, keepdim=True) * scale
    block = choose(mass[..., 0], u0)
    token = block * width + choose(weight[torch.arange(count, dtype=torch.int64, device=z.device), block], u1)
    return torch.where(peak[:, 0] == -torch.inf, -1, token)


def sample_tokens(logits, alpha, exponents, rows, keys, positions, exclude=None):
    """(token (D,) int64, logp (D,) float32, logz (B, E) float32, entropy (B,) float32, status (B,) int32); the façade's
    docstring is the contract."""
    logp, logz, entropy, status = row_statistics(logits, exponents)
    w0, w1, _, _ = philox4x32(keys.cpu().numpy(), positions.cpu().numpy())
    u0, u1 = (torch.from_numpy(uniform32(w)).to(logits.device) for w in (w0, w1))
    exclude = torch.full_like(rows, -1) if exclude is None else exclude
    token = torch.full_like(rows, -1)
    alive = (status[rows] == 0).nonzero()[:, 0]
    for part in alive.split(max(1, (1 << 20) // logits.shape[1])):  # bounds the memory of many draws
        row = rows[part]
        token[part] = draw(logits[row].double(), alpha[row].double(), u0[part], u1[part], exclude[part])
    exhausted = torch.zeros_like(status).index_fill(0, rows[alive][token[alive] < 0], EXHAUSTED)
    token_logp = torch.where(token < 0, torch.nan, logp[rows, token.clamp_min(0)])
    return token, token_logp.float(), logz.float(), entropy.float(), status | exhausted
