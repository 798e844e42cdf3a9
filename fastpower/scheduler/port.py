"""What chains may ask of the scheduler that runs them."""

from __future__ import annotations

from collections.abc import Callable

from fastpower.chains.chain import Chain, Ticket
from fastpower.chains.requests import Request
from fastpower.chains.stopping import Stopping, special_tokens
from fastpower.decoders.base import Decoder
from fastpower.scheduler.running import Running


class SchedulerPort:
    """The scheduler as its chains see it (``chains.chain.Port``)."""

    __slots__ = ("_running", "_stopping", "decoder", "idle_rows")

    def __init__(self, decoder: Decoder, running: Running, idle_rows: Callable[[int], int]) -> None:
        self.decoder = decoder
        self.idle_rows = idle_rows
        self._running = running
        self._stopping: dict[tuple[str, ...], Stopping] = {}  # what is known of tokens serves all chains

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.decoder.eos_ids

    @property
    def max_length(self) -> int:
        return self.decoder.max_length

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    def stopping(self, strings: tuple[str, ...]) -> Stopping | None:
        if strings and strings not in self._stopping:
            special = special_tokens(getattr(self.decoder, "tokenizer", None), strings)
            self._stopping[strings] = Stopping(strings, self.decoder.decode, special)
        return self._stopping.get(strings)

    def submit(self, chain: Chain, request: Request) -> Ticket:
        return self._running.submit(chain, request)

    def cancelled(self, ticket: Ticket) -> None:
        self._running.cancelled = True
