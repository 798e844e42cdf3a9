"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def prompt_tokens(tokenizer: Any, prompt: str | Sequence[Any], *, chat: bool | None = None) -> list[int]:
    """Token ids of a prompt, ready to be continued.

    prompt  text; or a conversation, [{"role": "user", "content": "…"}, …]; or token ids, which are returned as they are
    chat    True: through the model's chat template, text being one user turn; False: plain text with the special
            tokens that the tokenizer puts first by itself; None: True if the tokenizer has a template

    Raises ValueError for an empty prompt, and for a conversation or chat=True without a chat template.
    """
    if not prompt:
        raise ValueError(f"prompt={prompt!r} is empty: give at least one character or token")
    if not isinstance(prompt, str):
        if all(isinstance(item, Mapping) for item in prompt):
            return _chat_tokens(tokenizer, list(prompt))
        ids = [int(item) for item in prompt]
        size = len(tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise ValueError(f"prompt token ids must lie in [0, {size}); got {min(ids)} … {max(ids)}")
        return ids
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    if chat:
        return _chat_tokens(tokenizer, [{"role": "user", "content": prompt}])
    return list(tokenizer(prompt)["input_ids"])


def _chat_tokens(tokenizer: Any, messages: list[Any]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; pass text and chat=False")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # The template writes its own special tokens, first one included.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
