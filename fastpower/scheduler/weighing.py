"""Asking potentials: everything that chains wait for at a time is one call for each potential."""

from __future__ import annotations

import functools

from fastpower.chains.chain import Ticket
from fastpower.chains.requests import Weigh
from fastpower.chains.stopping import before_stop
from fastpower.decoders.base import Decoder
from fastpower.potential import Answer, log_values
from fastpower.scheduler.running import Running


class Weighing:
    """The potentials' side of one scheduler."""

    def __init__(self, decoder: Decoder, running: Running) -> None:
        self._decoder, self._running = decoder, running

    def advance(self) -> None:
        """Let all chains go on until each waits for decoding: answers are weighed as soon as they are asked about."""
        self._running.advance()
        while self._running.weighing:
            groups: dict[tuple[int, bool], list[tuple[Ticket, Weigh]]] = {}
            for ticket in self._running.weighing:
                request = ticket.request
                if isinstance(request, Weigh) and not ticket.cancelled:
                    groups.setdefault((id(request.potential), request.twist), []).append((ticket, request))
            self._running.weighing = []
            for group in groups.values():
                first = group[0][1]
                answers = [self._answer(ticket, request) for ticket, request in group]
                for (ticket, _), value in zip(
                    group, log_values(first.potential, answers, twist=first.twist), strict=True
                ):
                    if isinstance(value, Exception):
                        self._running.resolve(ticket, None, value)
                    else:
                        self._running.resolve(ticket, value)
            self._running.advance()

    def _answer(self, ticket: Ticket, request: Weigh) -> Answer:
        return Answer(request.tokens, request.ended, functools.partial(self._text, ticket, request))

    def _text(self, ticket: Ticket, request: Weigh) -> str:
        return before_stop(self._decoder.decode(request.tokens), ticket.chain.sampler.target.stop)[0]
