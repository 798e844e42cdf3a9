"""fastpower's statistics and keyed draws on vLLM's rows, as a logits processor of its V1 engine.

vLLM samples by itself and reports no more than log-probabilities. This processor draws instead, with
``fastpower.kernels.sample_tokens``: exactly from p^alpha of the whole vocabulary, by a key and a position, so that an
answer does not depend on what else is in the batch, and with log p(token), logz and entropy of the row. It then leaves
vLLM a row in which only the drawn token is finite, and keeps the numbers under the request's name.

A request switches it on by ``SamplingParams(extra_args={"power": {"name": …, "key": …, "alpha": …}})`` (``settings``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from fastpower.kernels import sample_tokens


class Drawn(NamedTuple):
    """One token with the numbers of the row that it was drawn from."""

    token: int
    logp: float  #: natural logarithm of p(token)
    logz: float  #: log sum_v p(v)^alpha
    entropy: float  #: nats


class Request(NamedTuple):
    name: str
    key: int
    alpha: float
    start: int  #: tokens of the prompt that are part of the answer: where the counter of the draws goes on


#: numbers of every request, by its name; read where the engine runs in this process
DRAWN: dict[str, list[Drawn]] = defaultdict(list)


def settings(name: str, key: int, alpha: float, *, start: int = 0, **params: Any) -> SamplingParams:
    """Sampling parameters of a request whose tokens are ours: vLLM's temperature and filters stay out of it."""
    extra = {"power": {"name": name, "key": key, "alpha": alpha, "start": start}}
    return SamplingParams(temperature=1.0, extra_args=extra, **params)


class PowerProcessor(LogitsProcessor):
    """See the module."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        power = (params.extra_args or {}).get("power")
        if power is None:
            return
        alpha = power.get("alpha")
        if not isinstance(alpha, float | int) or not 0 < alpha < float("inf"):
            raise ValueError(f"power: alpha must be finite and > 0, got {alpha!r}")
        if params.temperature != 1 or params.top_p != 1 or params.top_k not in (0, -1) or params.min_p:
            raise ValueError("power: leave temperature, top_p, top_k and min_p alone; alpha is the temperature")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, Request] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, params, _, _ in batch_update.added:
            power = (params.extra_args or {}).get("power")
            if power is None:
                self.requests.pop(index, None)
            else:
                self.requests[index] = Request(*(power[n] for n in ("name", "key", "alpha", "start")))
        for source, target, direction in batch_update.moved:
            a, b = self.requests.pop(source, None), self.requests.pop(target, None)
            if a is not None:
                self.requests[target] = a
            if b is not None and direction == MoveDirectionality.SWAP:
                self.requests[source] = b

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.requests:
            return logits
        indices = sorted(self.requests)
        mine = [self.requests[i] for i in indices]
        rows = logits if len(indices) == len(logits) else logits[indices]
        device = logits.device
        alpha = torch.tensor([r.alpha for r in mine], dtype=torch.float32, device=device)
        exponents = alpha.unique()  # a column of logz for each exponent under way
        out = sample_tokens(
            rows,
            alpha,
            exponents,
            torch.arange(len(mine), device=device),
            torch.tensor([r.key for r in mine], dtype=torch.int64, device=device),
            torch.tensor([r.start + len(DRAWN[r.name]) for r in mine], dtype=torch.int64, device=device),
        )
        column = torch.searchsorted(exponents, alpha)
        logz = out.logz.gather(1, column[:, None])[:, 0]
        numbers = zip(out.token.tolist(), out.logp.tolist(), logz.tolist(), out.entropy.tolist(), strict=True)
        for request, drawn in zip(mine, numbers, strict=True):
            DRAWN[request.name].append(Drawn(*drawn))
        if len(indices) == len(logits):
            logits.fill_(-torch.inf)
        else:
            logits[indices] = -torch.inf
        logits[indices, out.token] = 0.0
        return logits
