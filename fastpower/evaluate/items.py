"""What an evaluation is made of: one item per (method, problem, chain), and how items become results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastpower.errors import PromptTooLong

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler
    from fastpower.chains.job import Job
    from fastpower.language_model import LanguageModel
    from fastpower.scheduler import Scheduler


@dataclass(frozen=True)
class Item:
    """One answer to be drawn. Its randomness is keyed by (seed, prompt_id, chain). Can be pickled."""

    id: str
    prompt_id: str
    chain: int
    seed: int
    method: str  #: label of the method
    sampler: Sampler
    question: str  #: what a chat model is asked
    raw_prompt: str  #: what a base model continues


#: Turns items into records (``Result.to_dict()``, ``token_text``, ``finished``) in the order in which they finish.
Engine = Callable[[Sequence[Item]], Iterable[tuple[Item, dict[str, Any]]]]


def uses_chat(model: LanguageModel) -> bool:
    """Whether ``model`` is asked through a chat template."""
    if model.chat is not None:
        return model.chat
    return bool(getattr(model.tokenizer, "chat_template", None))


def job_of(model: LanguageModel, item: Item) -> Job:
    """The scheduler's job for an item. Raises PromptTooLong; ValueError for a model without end-of-sequence token."""
    from fastpower.chains.job import Job
    from fastpower.generation import require_end

    require_end(model, item.sampler.target.horizon)
    tokens = model.tokens(item.question if uses_chat(model) else item.raw_prompt)
    horizon, limit = item.sampler.target.horizon, model.decoder.max_length
    if len(tokens) + horizon > limit:
        raise PromptTooLong(
            f"the prompt of {item.prompt_id!r} has {len(tokens)} tokens; with max_new_tokens = {horizon} it exceeds "
            f"the model's context of {limit}; set max_new_tokens to at most {max(limit - len(tokens), 0)}"
        )
    return Job(item.sampler, tokens, item.seed, item.prompt_id, item.chain)


def token_texts(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text. A character that several tokens spell stands at the last of them; a special
    token adds nothing."""
    texts, start = [], 0
    before = ""
    for i in range(len(tokens)):
        # the token before is decoded, too: alone, some tokenizers drop a token's leading blank
        window = decode(tokens[max(start - 1, 0) : i + 1])
        if window.endswith("\ufffd") and i + 1 < len(tokens) and i - start < 4:
            texts.append("")
            continue
        texts.append(window[len(before) :])
        start = i + 1
        before = decode(tokens[i : i + 1])
    return texts


def local_engine(
    load: Callable[[], LanguageModel],
    *,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
) -> Engine:
    """Runs items in this process. ``load`` is called when the first item is asked for."""
    loaded: list[LanguageModel] = []

    def run(items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        from fastpower.generation import run_jobs

        if not loaded:
            loaded.append(load())
        jobs = [job_of(loaded[0], item) for item in items]
        item_of = {id(job): item for job, item in zip(jobs, items, strict=True)}
        for job, result in run_jobs(loaded[0], jobs, max_rows=max_rows, progress=progress):
            texts = token_texts(loaded[0].decoder.decode, result.token_ids)
            yield item_of[id(job)], result.to_dict() | {"token_text": texts, "finished": time.time()}

    return run
