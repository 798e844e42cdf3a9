"""One finished run, ready for JSON, tables and plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpower.chains.job import Finished
from fastpower.chains.stopping import before_stop
from fastpower.models.token_texts import token_texts


@dataclass(slots=True)
class Result:
    """One answer. Log-probabilities are natural and of the model itself (exponent 1); entropies are in nats."""

    id: str  #: prompt_id/chain/method
    prompt_id: str
    chain: int
    method: str
    alpha: float
    max_new_tokens: int  #: the horizon; part of the target
    seed: int
    text: str  #: up to the stop string, if one ended it
    token_ids: list[int]  #: with those that spell the stop string
    logp: float  #: total log p, EOS factor included
    token_logp: list[float]
    token_logz: list[float]  #: log Σ_v p(v)^alpha at every position
    entropy: list[float]
    ended: bool  #: by an EOS or a stop string; False: the horizon cut the answer off
    exact: bool  #: the method's law is exactly p^alpha (in the limit of many moves, or of many particles)
    complete: bool  #: False: interrupted
    moves: int
    accepted: int
    acceptance: float | None  #: accepted / moves; None for methods without moves
    decoded_tokens: int  #: tokens drawn, rejected ones included, without savings["prefetch_dropped_tokens"]
    forwards: float  #: rows forwarded; one shared by n rollouts counts 1/n
    prefill_tokens: float  #: tokens fed beyond one per row: prompts, prefixes computed again; shared like forwards
    seconds: float
    trace: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    #: what the batch saved this run; like forwards it depends on what ran beside it: shared_rows and
    #: shared_prefill_tokens (shared lanes), resumed_tokens (prefixes in the cache), prefetch_dropped_tokens (wasted)
    savings: dict[str, float] = field(default_factory=dict)
    prompt: Any = None  #: as it was given: text, a conversation (list of messages), or token ids
    token_text: list[str] = field(default_factory=list)  #: what every token adds to the text

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        """The answer in a notebook: its tokens on a ground that is darker where the entropy is higher."""
        from fastpower.results.notebook import result_html

        return result_html(self)

    @classmethod
    def of(cls, finished: Finished, decode: Callable[[Sequence[int]], str]) -> Result:
        """From a finished job that has an outcome."""
        outcome, chain, job = finished.outcome, finished.chain, finished.job
        assert outcome is not None
        record, counts = outcome.record, chain.counts
        target = job.sampler.target
        whole = decode(record.tokens)
        text, stop = before_stop(whole, target.stop)
        in_support = record.log_potential is not None and record.log_potential > -math.inf
        return cls(
            id=job.id,
            prompt_id=str(job.prompt_id),
            chain=job.chain,
            method=job.method,
            alpha=target.alpha,
            max_new_tokens=target.horizon,
            seed=job.seed,
            text=text,
            token_ids=list(record.tokens),
            logp=record.total_logp,
            token_logp=record.logp.tolist(),
            token_logz=record.logz[:, 0].tolist(),
            entropy=record.entropy.tolist(),
            ended=record.ended,
            exact=outcome.exact and (target.potential is None or in_support),
            complete=outcome.complete,
            moves=counts.moves,
            accepted=counts.accepted,
            acceptance=counts.accepted / counts.moves if counts.moves else None,
            decoded_tokens=counts.decoded_tokens,
            forwards=counts.forwards,
            prefill_tokens=counts.prefill_tokens,
            seconds=finished.seconds,
            trace=outcome.trace,
            diagnostics={
                "free_moves": counts.free_moves,
                "skipped_tokens": counts.skipped_tokens,
                "early_rejections": counts.early_rejections,
                "early_rejection_tokens": counts.early_rejection_tokens,
                "hit_cap": not record.ended,
                **({"stop": stop} if target.stop else {}),
                **(
                    {}
                    if target.potential is None
                    else {"log_potential": record.log_potential if in_support else None, "in_support": in_support}
                ),
                **outcome.diagnostics,
            },
            savings={
                "shared_rows": counts.shared_rows,
                "shared_prefill_tokens": counts.shared_prefill_tokens,
                "resumed_tokens": counts.resumed_tokens,
                "prefetch_dropped_tokens": counts.prefetch_dropped_tokens,
                "guesses_kept": counts.guesses_kept,
                "guesses_dropped": counts.guesses_dropped,
            },
            prompt=list(job.prompt) if isinstance(job.prompt, tuple) else job.prompt,
            token_text=token_texts(decode, record.tokens) if whole else [""] * len(record.tokens),
        )
