"""The routes: OpenAI's completions over one engine.

Every request becomes jobs of ``fastpower.generation.plan``, so that a seed gives the bytes that ``generate`` gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

import fastpower
from fastpower.chains.job import Job
from fastpower.errors import FastpowerError, InvalidLogits
from fastpower.generation import plan
from fastpower.integrations.server import engine as engines
from fastpower.integrations.server.engine import Busy, Done, Engine, Event
from fastpower.integrations.server.limits import Guard
from fastpower.integrations.server.metrics import exposition
from fastpower.integrations.server.protocol import ChatRequest, Common, CompletionRequest, sampler_of
from fastpower.integrations.server.responses import COMPLETION, ERRORS, METRICS, chat_choice, error, text_choice, usage
from fastpower.integrations.server.stream import chat_stream, text_stream
from fastpower.language_model import LanguageModel, Prompt
from fastpower.results import Result
from fastpower.samplers import METHODS
from fastpower.samplers.retarget import retargeted


@dataclass(frozen=True)
class Settings:
    """What the server promises and what it takes."""

    method: str = "mh"  #: where a client names no sampler
    alpha: float = 4.0
    max_new_tokens: int = 512  #: where a client names no horizon; cut to what the context leaves
    max_n: int = 64  #: answers of one request
    max_rows: int = 64
    max_waiting: int = 256
    max_body: int = 4 << 20
    body_seconds: float = 30.0
    api_key: str | None = None
    fixed_length: bool = False


class Service:
    """What the routes share: the model, its engine, and how a request becomes jobs."""

    def __init__(self, model: LanguageModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.engine = Engine(model, max_rows=settings.max_rows, max_waiting=settings.max_waiting)
        self.created = int(time.time())
        self.names = frozenset({model.name, "fastpower", "default"})

    def jobs(self, request: Common, prompts: Sequence[Prompt]) -> tuple[list[Job], int, list[str]]:
        """The jobs of a request, the seed they have, and which of its fields are ignored.

        Raises:
            ValueError: Something in the request cannot be done; the message says what and what to do.
        """
        count = request.n * len(prompts)
        if count > self.settings.max_n:
            raise ValueError(
                f"{count} answers were asked for; this server gives at most {self.settings.max_n} a request"
            )
        model = replace(self.model, chat=False) if isinstance(request, CompletionRequest) else self.model
        tokens = [model.tokens(prompt) for prompt in prompts]
        room = self.model.decoder.max_length - max(map(len, tokens))
        horizon = request.horizon or max(1, min(self.settings.max_new_tokens, room))
        settings = self.settings
        sampler = sampler_of(request, names=self.names, default=settings.method, alpha=settings.alpha, horizon=horizon)
        sampler = retargeted(sampler, stop=tuple(request.stop)) if request.stop else sampler
        seed = secrets.randbits(53) if request.seed is None else request.seed
        jobs = plan(self.model, tokens, sampler, seed=seed, chains=request.n, fixed_length=settings.fixed_length)
        return jobs, seed, request.ignored(sampler)

    def piece(self, token: int) -> str:
        """The text of one token."""
        tokenizer = self.model.tokenizer
        return str(tokenizer.decode([token])) if tokenizer is not None else self.model.text([token])


def create_app(model: LanguageModel, settings: Settings | None = None) -> FastAPI:
    """The application, its engine started and stopped with it."""
    settings = settings or Settings()
    service = Service(model, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="fastpower", version=fastpower.__version__, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Guard, api_key=settings.api_key, max_body=settings.max_body, body_seconds=settings.body_seconds)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, failure: RequestValidationError) -> JSONResponse:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return JSONResponse(
            error(f"{where or 'body'}: {first['msg']}", "invalid_request_error", where, "invalid"), status_code=400
        )

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, failure: StarletteHTTPException) -> JSONResponse:
        kind = "server_error" if failure.status_code >= 500 else "invalid_request_error"
        return JSONResponse(error(str(failure.detail), kind), status_code=failure.status_code, headers=failure.headers)

    @app.get("/health", responses=ERRORS)
    async def health() -> JSONResponse:
        """Whether answers are being made."""
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, status_code=200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=METRICS)
    async def metrics() -> Response:
        """Prometheus."""
        return Response(exposition(service.engine), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The served model, and every sampler as a model of its own."""
        names = [model.name, *METHODS]
        return {"object": "list", "data": [_card(name, service.created) for name in names]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        if name not in {model.name, *METHODS}:
            raise HTTPException(404, f"no model {name!r}; /v1/models lists them")
        return _card(name, service.created)

    @app.post("/v1/chat/completions", response_model=None, responses=COMPLETION)
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answers to a conversation."""
        turns = [message.turn() for message in body.messages]
        identity = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model or model.name,
        }
        piece = service.piece if body.logprobs else None
        if body.stream:
            return await _streamed(service, body, [turns], identity, chat_stream, piece)
        done, jobs, seed, ignored = await _answered(service, request, body, [turns])
        choices = [chat_choice(item, i, piece) for i, item in enumerate(done)]
        return JSONResponse(_completion("chat.completion", identity, choices, jobs, done, seed, ignored))

    @app.post("/v1/completions", response_model=None, responses=COMPLETION)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continuations of text or of token ids."""
        prompts = body.prompts()
        identity = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model or model.name,
        }
        piece = service.piece if body.logprobs is not None else None
        if body.stream:
            return await _streamed(service, body, prompts, identity, text_stream, piece)
        done, jobs, seed, ignored = await _answered(service, request, body, prompts)
        choices = [text_choice(item, i, piece) for i, item in enumerate(done)]
        return JSONResponse(_completion("text_completion", identity, choices, jobs, done, seed, ignored))

    return app


def _card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "fastpower"}


async def _planned(service: Service, body: Common, prompts: Sequence[Prompt]) -> tuple[list[Job], int, list[str]]:
    try:
        return await asyncio.to_thread(service.jobs, body, prompts)
    except (ValueError, TypeError) as failure:
        raise HTTPException(400, str(failure)) from failure


def _submit(service: Service, request: engines.Request) -> engines.Request:
    try:
        return service.engine.submit(request)
    except Busy as busy:
        raise HTTPException(429, str(busy), headers={"Retry-After": str(service.engine.retry_after())}) from busy


async def _answered(
    service: Service, request: Request, body: Common, prompts: Sequence[Prompt]
) -> tuple[list[Done], list[Job], int, list[str]]:
    """All answers of a request; its rows are freed as soon as the client goes away."""
    jobs, seed, ignored = await _planned(service, body, prompts)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def sink(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    order = _submit(service, engines.Request(jobs, sink, body.fastpower.limits()))
    gone = asyncio.create_task(_gone(request))
    done: dict[int, Done] = {}
    try:
        while len(done) < len(jobs):
            event = asyncio.create_task(events.get())
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                raise HTTPException(499, "the client has gone")
            found = event.result()
            if isinstance(found, Done):
                if found.error is not None:
                    raise _failure(found.error) from found.error
                done[found.index] = found
    finally:
        gone.cancel()
        service.engine.cancel(order)
    return [done[i] for i in range(len(jobs))], jobs, seed, ignored


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failure(failure: Exception) -> HTTPException:
    if isinstance(failure, ValueError):
        return HTTPException(400, str(failure))
    if isinstance(failure, FastpowerError) and not isinstance(failure, InvalidLogits):
        return HTTPException(503, str(failure), headers={"Retry-After": "1"})
    return HTTPException(500, f"{type(failure).__name__}: {failure}")


async def _streamed(
    service: Service,
    body: Common,
    prompts: Sequence[Prompt],
    identity: dict[str, Any],
    chunks: Callable[..., AsyncIterator[bytes]],
    piece: Callable[[int], str] | None,
) -> Response:
    """Server-sent events: the moves of a chain, then its answer; tokens as they are where they stay."""
    jobs, seed, ignored = await _planned(service, body, prompts)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def sink(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    jobs = [engines.tokens_as_they_come(job, i, sink) for i, job in enumerate(jobs)]
    order = _submit(service, engines.Request(jobs, sink, body.fastpower.limits(), progress=True))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    extra = {"seed": seed, "ignored": ignored}

    async def sent() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks(events, jobs, identity, service.model.text, piece, include_usage, extra):
                yield chunk
        finally:
            service.engine.cancel(order)

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(sent(), media_type="text/event-stream", headers=headers)


def _completion(
    kind: str,
    identity: dict[str, Any],
    choices: list[dict[str, Any]],
    jobs: Sequence[Job],
    done: Sequence[Done],
    seed: int,
    ignored: list[str],
) -> dict[str, Any]:
    results: list[Result] = [item.result for item in done if item.result is not None]
    fed = {str(job.prompt_id): len(job.tokens) for job in jobs}
    return {
        **identity,
        "object": kind,
        "choices": choices,
        "usage": usage(sum(fed.values()), results),
        "system_fingerprint": f"fastpower-{fastpower.__version__}",
        "fastpower": {"seed": seed, "ignored": ignored},
    }
