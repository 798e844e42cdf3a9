"""Server-sent events: what a client sees of an answer before it is there.

A sampler that moves changes its answer until the end, so its moves are told (chunks without text, in the field
``fastpower``) and then the whole answer. ``plain`` and ``low_temperature`` draw once: their tokens are sent at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastpower.chains.job import Job
from fastpower.chains.stopping import before_stop
from fastpower.integrations.server.engine import Done, Event, Progress, Token
from fastpower.integrations.server.responses import chat_logprobs, error, facts, finish_reason, text_logprobs, usage
from fastpower.results import Result

KEEP_ALIVE = 15.0  #: seconds without an event after which a comment shows that the connection lives
Decode = Callable[[Sequence[int]], str]
Piece = Callable[[int], str] | None


class Spelling:
    """Text of growing token lists: only what further tokens cannot change is given out."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.decode = decode
        self.stop = stop
        self.tokens: list[int] = []
        self.sent = ""

    def add(self, tokens: Sequence[int], *, final: bool = False) -> str:
        """The text that has become certain."""
        self.tokens += tokens
        text, _ = before_stop(self.decode(self.tokens), self.stop)
        if not final and text.endswith("\ufffd"):  # a character of which bytes are missing
            return ""
        if not final:  # what may be the beginning of a stop string is not shown unless it goes on otherwise
            text = text[: len(text) - max((_begun(text, stop) for stop in self.stop), default=0)]
        new = text[len(self.sent) :] if text.startswith(self.sent) else ""
        self.sent += new
        return new


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def chat_stream(*arguments: Any) -> AsyncIterator[bytes]:
    """Chunks of a chat completion; see ``_stream``."""
    return _stream("chat.completion.chunk", _chat_delta, *arguments)


def text_stream(*arguments: Any) -> AsyncIterator[bytes]:
    """Chunks of a text completion; see ``_stream``."""
    return _stream("text_completion", _text_delta, *arguments)


async def _stream(
    kind: str,
    choice: Callable[[int, str, Result | None, Piece], dict[str, Any]],
    events: asyncio.Queue[Event],
    jobs: Sequence[Job],
    identity: dict[str, Any],
    decode: Decode,
    piece: Piece,
    include_usage: bool,
    extra: dict[str, Any],
) -> AsyncIterator[bytes]:
    spellings = [Spelling(decode, job.sampler.target.stop) for job in jobs]
    results: list[Result] = []

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        body = {**identity, "object": kind, "choices": choices, **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()

    for i in range(len(jobs)):
        yield chunk([choice(i, "", None, None)], fastpower=extra)
    ended = 0
    while ended < len(jobs):
        try:
            event = await asyncio.wait_for(events.get(), KEEP_ALIVE)
        except TimeoutError:
            yield b": alive\n\n"
            continue
        if isinstance(event, Progress):
            state = {"moves": event.moves, "accepted": event.accepted, "decoded_tokens": event.decoded_tokens}
            yield chunk([choice(event.index, "", None, None)], fastpower={"index": event.index, **state})
        elif isinstance(event, Token):
            text = spellings[event.index].add([event.token])
            if text:
                yield chunk([choice(event.index, text, None, None)])
        elif isinstance(event, Done):
            ended += 1
            if event.result is None:
                kept = str(event.error) or type(event.error).__name__
                yield f"data: {json.dumps(error(kept, 'server_error'))}\n\n".encode()
                continue
            results.append(event.result)
            spelling = spellings[event.index]
            text = spelling.add(event.result.token_ids[len(spelling.tokens) :], final=True)
            last = choice(event.index, text, event.result, piece)
            yield chunk([last | {"fastpower": facts(event)}])
    if include_usage:
        fed = {str(job.prompt_id): len(job.tokens) for job in jobs}
        yield chunk([], usage=usage(sum(fed.values()), results))
    yield b"data: [DONE]\n\n"


def _chat_delta(index: int, text: str, result: Result | None, piece: Piece) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {"role": "assistant", "content": text},
        "finish_reason": None if result is None else finish_reason(result),
        "logprobs": None if result is None or piece is None else chat_logprobs(result, piece),
    }


def _text_delta(index: int, text: str, result: Result | None, piece: Piece) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "finish_reason": None if result is None else finish_reason(result),
        "logprobs": None if result is None or piece is None else text_logprobs(result, piece),
    }
