"""What clients send: OpenAI's requests for completions, and what is ours in them.

Two things are added to OpenAI's fields. ``model`` may name a sampler: ``mh``, ``smc-32`` (the number is the sampler's
size), ``mh(moves=4,block=16)``, or the served model's own name for the server's default. And ``fastpower`` holds what
has no field there::

    {"model": "mh", "messages": […], "fastpower": {"alpha": 4, "settings": {"moves": 6}, "budget": {"seconds": 20}}}

Fields that would change the target are not obeyed in silence: ``temperature`` is the exponent 1/temperature for
``plain`` and ``low_temperature``; elsewhere it, ``top_p`` and penalties are listed as ``ignored`` in the answer.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fastpower.chains.chain import Sampler
from fastpower.integrations.server.engine import Budget
from fastpower.samplers import METHODS
from fastpower.samplers.methods import Method, parse_methods

#: what the number behind a method's name is, as in ``smc-32``
SIZE = {"smc": "particles", "pimh": "particles", "csmc": "particles", "mtm": "tries", "best_of_n": "n"}
#: the most that a client may ask of one answer
MOST = {"particles": 1024, "tries": 256, "n": 1024, "moves": 10_000, "islands": 64}
#: fields that a client may send and that p^alpha has no place for, with the value that says nothing
IGNORED: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": None,
}


class BudgetFields(BaseModel):
    """When to return a chain's current state: moves made, tokens decoded (rejected ones included), seconds."""

    model_config = ConfigDict(extra="forbid")
    moves: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Extension(BaseModel):
    """The ``fastpower`` field of a request."""

    model_config = ConfigDict(extra="forbid")
    method: str | None = Field(default=None, max_length=200)
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    settings: dict[str, Any] = Field(default_factory=dict)
    budget: BudgetFields = BudgetFields()

    def limits(self) -> Budget:
        """The budget for the engine."""
        return Budget(self.budget.moves, self.budget.tokens, self.budget.seconds)


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class Common(BaseModel):
    """What chat and text completions share."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(default=None, max_length=500)
    n: int = Field(default=1, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    fastpower: Extension = Extension()

    @field_validator("n", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return 1 if value is None else value

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> list[str] | None:
        stops = [value] if isinstance(value, str) else value
        if stops is not None and (len(stops) > 16 or not all(stops)):
            raise ValueError("give 1 to 16 stop strings, none of them empty")
        return stops or None

    @property
    def horizon(self) -> int | None:
        """Most new tokens that the client wants."""
        return self.max_tokens

    def ignored(self, sampler: Sampler) -> list[str]:
        """Fields that were sent, would change the target and are not obeyed."""
        said = {name: getattr(self, name) for name in IGNORED}
        if sampler.method in ("plain", "low_temperature") and (said["temperature"] or 0) > 0:
            del said["temperature"]
        return [name for name, value in said.items() if value is not None and value != IGNORED[name]]


class Message(BaseModel):
    """One turn. Content is text, or text parts as OpenAI's clients send them."""

    model_config = ConfigDict(extra="allow")
    role: str = Field(min_length=1, max_length=50)
    content: str | list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _text_only(self) -> Message:
        if isinstance(self.content, list):
            other = [part.get("type") for part in self.content if part.get("type") != "text"]
            if other or not all(isinstance(part.get("text"), str) for part in self.content):
                raise ValueError(f"only text parts can be answered, got {other or 'a part without text'}")
        return self

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(p["text"] for p in self.content or [])
        return {"role": self.role, "content": content}


class ChatRequest(Common):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)

    @property
    def horizon(self) -> int | None:
        """Most new tokens that the client wants."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common):
    """``POST /v1/completions``: text or token ids, or several of either."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: Literal[False] = False
    logprobs: int | None = Field(default=None, ge=0)
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """One by one."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


def method_of(name: str) -> Method:
    """``mh``, ``smc-32`` or ``mh(moves=4)`` as a method.

    Raises:
        ValueError: An unknown name, or a number behind a method that has no size.
    """
    match = re.fullmatch(r"([A-Za-z_-]+)-(\d{1,9})", name)
    if match is None:
        methods = parse_methods(name)
        if len(methods) != 1:
            raise ValueError(f"model {name!r} names {len(methods)} methods; a request has one")
        return methods[0]
    method = match[1].replace("-", "_")
    size = SIZE.get(method, "moves")
    return Method(method, {size: int(match[2])})


def sampler_of(request: Common, *, names: frozenset[str], default: str, alpha: float, horizon: int) -> Sampler:
    """The sampler that a request asks for.

    Args:
        request: With ``model`` and ``fastpower``.
        names: Of the served model: they stand for the default method.
        default: The server's default method, as in ``method_of``.
        alpha: The server's default exponent.
        horizon: Most new tokens.

    Raises:
        ValueError: What was asked for is not a sampler, or not with these settings.
    """
    extension = request.fastpower
    name = extension.method or (default if request.model is None or request.model in names else request.model)
    method = method_of(name)
    if method.name not in METHODS and extension.method is None:
        raise ValueError(
            f"model {name!r} is neither {' nor '.join(sorted(names))} nor a sampler; samplers: {', '.join(METHODS)}"
        )
    exponent = alpha if extension.alpha is None else extension.alpha
    if method.name == "plain" and request.temperature not in (None, 0.0, 1.0) and extension.alpha is None:
        method = Method("low_temperature", method.settings)
    if method.name == "low_temperature" and request.temperature and extension.alpha is None:
        exponent = 1.0 / request.temperature
    for setting, value in {**extension.settings, **method.settings}.items():
        if isinstance(value, int | float) and value > MOST.get(setting, 1_000_000):
            raise ValueError(
                f"{setting}={value} is more than this server takes: at most {MOST.get(setting, 1_000_000)}"
            )
    return method.sampler(exponent, horizon, extension.settings)
