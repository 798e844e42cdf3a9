"""What clients get: OpenAI's completion objects, with what fastpower knows of an answer in a field ``fastpower``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from fastpower.integrations.server.engine import Done
from fastpower.results import Result

#: why a state that was taken by a budget has another law than the chain's
TAKEN = {
    "moves": "the state after so many moves",
    "tokens": "taken when the tokens were spent, which favours states whose moves are long: not a draw from p^alpha",
    "seconds": "taken by the clock, which favours states whose moves are long: not a draw from p^alpha",
}


class ErrorFacts(BaseModel):
    """What went wrong, and in which field of the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error as OpenAI's clients read it."""

    error: ErrorFacts


#: what every route may answer beside what it is for, as FastAPI documents it
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; 429 and 503 say in Retry-After when to come back"},
    "5XX": {"model": ErrorBody, "description": "Not answered"},
}
METRICS = ERRORS | {200: {"description": "Prometheus", "content": {"text/plain": {}}}}
COMPLETION = ERRORS | {
    200: {"description": "Answers; with `stream`, server-sent events", "content": {"text/event-stream": {}}}
}


def facts(done: Done) -> dict[str, Any]:
    """What is known of an answer beside its text. ``done`` has a result."""
    result = done.result
    assert result is not None
    found: dict[str, Any] = {
        "id": result.id,
        "method": result.method,
        "alpha": result.alpha,
        "max_new_tokens": result.max_new_tokens,
        "seed": result.seed,
        "chain": result.chain,
        "exact": result.exact and result.complete,
        "complete": result.complete,
        "logp": result.logp,
        "moves": result.moves,
        "acceptance": result.acceptance,
        "decoded_tokens": result.decoded_tokens,
        "seconds": result.seconds,
    }
    if "stop" in result.diagnostics:
        found["stop"] = result.diagnostics["stop"]  # the string that ended it, if one did
    if done.stopped_by is not None:
        found |= {"stopped_by": done.stopped_by, "note": TAKEN[done.stopped_by]}
    return found


def finish_reason(result: Result) -> str:
    """``stop``: the answer ended by itself; ``length``: the horizon or the budget ended it."""
    return "stop" if result.ended else "length"


def chat_logprobs(result: Result, piece: Callable[[int], str]) -> dict[str, Any]:
    """Natural log-probabilities under the model itself, token by token; no alternatives."""
    tokens = [(piece(token), logp) for token, logp in zip(result.token_ids, result.token_logp, strict=True)]
    return {
        "content": [
            {"token": text, "logprob": logp, "bytes": list(text.encode()), "top_logprobs": []} for text, logp in tokens
        ],
        "refusal": None,
    }


def text_logprobs(result: Result, piece: Callable[[int], str]) -> dict[str, Any]:
    """The same in the older interface."""
    texts = [piece(token) for token in result.token_ids]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {"tokens": texts, "token_logprobs": result.token_logp, "top_logprobs": None, "text_offset": offsets[:-1]}


def usage(prompt_tokens: int, results: Sequence[Result]) -> dict[str, Any]:
    """Tokens paid for: what was decoded and rejected is among ``completion_tokens``, and named apart."""
    kept = sum(len(result.token_ids) for result in results)
    decoded = max(kept, sum(result.decoded_tokens for result in results))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": decoded,
        "total_tokens": prompt_tokens + decoded,
        "completion_tokens_details": {
            "accepted_prediction_tokens": kept,
            "rejected_prediction_tokens": decoded - kept,
            "reasoning_tokens": 0,
            "audio_tokens": 0,
        },
    }


def chat_choice(done: Done, index: int, piece: Callable[[int], str] | None) -> dict[str, Any]:
    """One choice of a chat completion; ``piece`` gives a token's text if log-probabilities were asked for."""
    result = done.result
    assert result is not None
    return {
        "index": index,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "finish_reason": finish_reason(result),
        "logprobs": None if piece is None else chat_logprobs(result, piece),
        "fastpower": facts(done),
    }


def text_choice(done: Done, index: int, piece: Callable[[int], str] | None) -> dict[str, Any]:
    """One choice of a text completion."""
    result = done.result
    assert result is not None
    return {
        "index": index,
        "text": result.text,
        "finish_reason": finish_reason(result),
        "logprobs": None if piece is None else text_logprobs(result, piece),
        "fastpower": facts(done),
    }


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    facts = ErrorFacts(message=message, type=kind, param=param, code=code)
    return ErrorBody(error=facts).model_dump()
