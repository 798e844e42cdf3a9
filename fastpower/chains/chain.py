"""One sampler at work on one prompt: keyed randomness, requests, and the books of what it cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Branch, Request, Response, Rollout, Watch
from fastpower.chains.stopping import Stopping
from fastpower.random import Purpose, derive, uniform
from fastpower.target import PowerTarget

T = TypeVar("T")
Run = Generator[Any, Any, Outcome]


def together(parts: Iterable[Generator[Any, Any, T]]) -> Generator[Any, Any, list[T]]:
    """Parts of one run side by side: what they ask for at a time is decoded together. Their results, in order."""
    runs, results = list(parts), dict[int, T]()
    values: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while values:
        requests = {}
        for i, value in values.items():
            try:
                requests[i] = runs[i].send(value)
            except StopIteration as stop:
                results[i] = stop.value
        wanted = [request if isinstance(request, list) else [request] for request in requests.values()]
        answers = iter((yield list(itertools.chain(*wanted))) if wanted else [])
        values = {}
        for (i, request), items in zip(requests.items(), wanted, strict=True):
            received = list(itertools.islice(answers, len(items)))
            values[i] = received if isinstance(request, list) else received[0]
    return [results[i] for i in range(len(runs))]


class Sampler(Protocol):
    """A sampler: immutable settings, and a generator that is one run."""

    @property
    def target(self) -> PowerTarget:
        """What is sampled."""

    @property
    def method(self) -> str:
        """The name under which results are reported."""

    def run(self, chain: Chain) -> Run:
        """Yield requests, return the outcome."""


@dataclass(slots=True)
class Counts:
    """What a run cost and did. Rejected and abandoned work is included: it was paid for.

    What is decoded ahead in vain depends on what else runs, and only ``forwards`` and ``prefill_tokens`` include it; it
    is counted apart.
    """

    decoded_tokens: int = 0  #: tokens drawn (or forced, one forward each), without those of prefetch_dropped_tokens
    forwards: float = 0.0  #: rows forwarded; a row shared by n rollouts counts 1/n for each
    prefill_tokens: float = 0.0  #: tokens fed beyond one per row (prompts, prefixes computed again), shared likewise
    moves: int = 0
    accepted: int = 0
    free_moves: int = 0  #: proposals found equal to the current record without any forward
    skipped_tokens: int = 0  #: positions kept by the coupling, never forwarded
    early_rejections: int = 0
    early_rejection_tokens: int = 0  #: upper bound of what they saved: positions from there to the horizon
    shared_rows: float = 0.0  #: rows saved by shared lanes: one shared by n rollouts counts 1 − 1/n for each
    shared_prefill_tokens: float = 0.0  #: the same for prefill_tokens
    resumed_tokens: float = 0.0  #: tokens of prefixes taken from the cache instead of being fed again
    guesses_kept: float = 0.0  #: tokens drawn behind a guess that was right: forwards saved
    guesses_dropped: float = 0.0  #: guessed tokens fed in vain
    prefetch_dropped_tokens: int = 0  #: decoded ahead for states that an accepted move replaced


class Port(Protocol):
    """What a scheduler offers to the chains that it runs."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def max_length(self) -> int:
        """Context length, prompt + answer."""

    @property
    def vocab_size(self) -> int:
        """Tokens that a model knows."""

    def stopping(self, strings: tuple[str, ...]) -> Stopping | None:
        """What tells whether an answer has ended by its text; None without stop strings."""

    def submit(self, chain: Chain, request: Request) -> Ticket:
        """Put a request of a chain to work."""

    def cancelled(self, ticket: Ticket) -> None:
        """Told after a ticket was cancelled."""

    def idle_rows(self, tokens: int) -> int:
        """See ``Chain.idle_rows``."""


class Chain:
    """What a sampler's generator sees of the world: its labels, and the scheduler that runs it through ``port``."""

    def __init__(
        self, sampler: Sampler, prompt: Branch, seed: int, prompt_id: int | str, index: int, port: Port
    ) -> None:
        self.sampler = sampler
        self.prompt = prompt
        self.seed = seed
        self.prompt_id = prompt_id
        self.index = index
        self.counts = Counts()
        self.partial: Callable[[], Outcome] | None = None  #: what to return if the run is interrupted now
        self.eos_ids = port.eos_ids
        self.stopping = port.stopping(sampler.target.stop)
        self.max_length = port.max_length
        self.vocab_size = port.vocab_size
        self._key = derive(seed, prompt_id, index)
        self._port = port

    @property
    def prompt_length(self) -> int:
        return len(self.prompt.tokens)

    def key(self, *labels: int | str) -> int:
        """A stream of this chain: (seed, prompt id, chain, *labels)."""
        return derive(self._key, *labels)

    def uniform(self, purpose: Purpose, *labels: int | str) -> float:
        """One uniform in (0, 1) for the given use."""
        return uniform(self.key(*labels), 0, purpose)

    def stopping_at(self, strings: tuple[str, ...]) -> Stopping | None:
        """What tells whether a text has come to one of ``strings``; None without any."""
        return self._port.stopping(strings)

    def start(self, request: Request) -> Ticket:
        """Put a request to work without waiting for it: yield the ticket to get the result, or cancel it."""
        return self._port.submit(self, request)

    def onward(
        self,
        record: Record,
        end: int,
        key: int,
        alpha: float,
        exponents: tuple[float, ...],
        *,
        peek: bool = False,
        watch: Watch | None = None,
    ) -> Rollout:
        """The request that continues an answer from its last token to position ``end``; see ``Rollout``."""
        begin = self.prompt_length + len(record)
        return Rollout(record.branch, begin, end - len(record), key, alpha, exponents, watch=watch, peek=peek)

    def ending(self, tokens: Sequence[int], begin: int, horizon: int, ended: bool) -> bool | None:
        """Whether an answer whose tokens were not drawn one after the other has ended.

        Args:
            tokens: The answer's. Up to ``begin`` it has not ended.
            begin: First position to look at: it and what follows stand behind other tokens than when they were drawn.
            horizon: Most tokens of an answer.
            ended: Whether the answer that the last tokens were taken from had ended with them.

        Returns:
            True or False for a whole answer; None for one that would have ended earlier, or would go on.
        """
        if self.stopping is None:
            return ended
        last = len(tokens) - 1
        if any(self.stopping(tokens[: i + 1]) for i in range(begin, last)):
            return None
        now = tokens[last] in self.eos_ids or self.stopping(tokens)
        return now if now or len(tokens) >= horizon else None

    def idle_rows(self, tokens: int) -> int:
        """How many rollouts of up to ``tokens`` tokens may be started ahead of need at next to no cost, now.

        Those are rows that nobody else waits for, with memory for them. The number depends on what else runs: no draw
        may depend on it.
        """
        return self._port.idle_rows(tokens)

    def moved(self, accepted: bool) -> None:
        """Book one Markov-chain move."""
        self.counts.moves += 1
        self.counts.accepted += accepted


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way. ``cancel`` drops it; its result is then never delivered."""

    request: Request
    chain: Chain
    result: Response | None = None
    error: Exception | None = None
    cancelled: bool = False
    awaited: bool = False  #: the chain's generator waits for it
    decoded: int = 0  #: tokens decoded for it so far

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def cancel(self) -> None:
        self.cancelled = True
        self.result = None
        self.chain._port.cancelled(self)
