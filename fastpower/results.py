"""Results: one finished run each, ready for JSON, tables and plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from fastpower.jobs import Finished


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
    text: str
    token_ids: list[int]
    logp: float  #: total log p, EOS factor included
    token_logp: list[float]
    token_logz: list[float]  #: log Σ_v p(v)^alpha at every position
    entropy: list[float]
    ended: bool  #: False: the horizon cut the answer off
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

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, finished: Finished, decode: Callable[[Sequence[int]], str]) -> Result:
        """From a finished job that has an outcome."""
        outcome, chain, job = finished.outcome, finished.chain, finished.job
        assert outcome is not None
        record, counts = outcome.record, chain.counts
        target = job.sampler.target
        return cls(
            id=f"{job.prompt_id}/{job.chain}/{job.sampler.method}",
            prompt_id=str(job.prompt_id),
            chain=job.chain,
            method=job.sampler.method,
            alpha=target.alpha,
            max_new_tokens=target.horizon,
            seed=job.seed,
            text=decode(record.tokens),
            token_ids=list(record.tokens),
            logp=record.total_logp,
            token_logp=record.logp.tolist(),
            token_logz=record.logz[:, 0].tolist(),
            entropy=record.entropy.tolist(),
            ended=record.ended,
            exact=outcome.exact,
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
                **outcome.diagnostics,
            },
            savings={
                "shared_rows": counts.shared_rows,
                "shared_prefill_tokens": counts.shared_prefill_tokens,
                "resumed_tokens": counts.resumed_tokens,
                "prefetch_dropped_tokens": counts.prefetch_dropped_tokens,
            },
        )


class Results(Sequence[Result]):
    """Answers in the order of prompts, then chains.

    >>> from fastpower import generate, load, make_sampler
    >>> from fastpower.decoders.toy import ToyDecoder, random_logits
    >>> model = load(ToyDecoder(random_logits(5, seed=7, eos=0), 5, [0]))
    >>> results = generate(model, ["1 2", "3"], make_sampler("mh", max_new_tokens=9), seed=4, chains=2)
    >>> results, [result.chain for result in results], results[0].ended
    (Results(4 answers), [0, 1, 0, 1], True)
    """

    def __init__(self, items: Sequence[Result]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __repr__(self) -> str:
        return f"Results({len(self)} answers)"

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON-able dictionaries, one per answer."""
        return [result.to_dict() for result in self]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, one row per answer, with the fields of ``Result`` as columns.

        What has a value per token or per move (``token_logp``, ``trace``, …) is a list in its cell. Raises
        FastpowerError, naming what to install, without pandas.
        """
        from fastpower.export import to_pandas

        return to_pandas(self)

    def to_arviz(self) -> Any:
        """The Markov chains for ArviZ: its ``InferenceData``, or an xarray ``DataTree`` from ArviZ 1 on.

        A draw is the answer after a move at the full horizon; moves of warm-up stages have another target and are left
        out. Dimensions are (chain, draw), and prompt where there are several. ``posterior`` holds ``logp`` (nats, of
        the model itself) and ``length`` (tokens); ``sample_stats`` holds ``lp`` = alpha · logp (log of the target, up
        to its constant), ``accepted``, and ``cut`` (position, −1 where the move had none) for samplers that cut.

        Raises ValueError for a method without moves, for results of several methods, horizons or exponents, and for
        chains that are not equally long; FastpowerError, naming what to install, without ArviZ.
        """
        from fastpower.export import to_arviz

        return to_arviz(self)
