"""What a prompt is: text, a conversation or token ids; and its token ids, ready to be continued."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from jinja2 import TemplateError

#: the date of chat templates that write one, unless another is set; what Llama's fall back on
TODAY = "2024-07-26"
_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


@dataclass(frozen=True, slots=True)
class Question:
    """One question in two wordings: what a chat model is asked, and what a model without a template continues."""

    chat: str
    plain: str


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Question


def as_prompts(prompts: Any) -> list[Prompt]:
    """The prompts that a caller gave, one by one and in their plain form (see ``as_prompt``).

    Args:
        prompts: One text, conversation or flat list of token ids, or several of them in any sequence, NumPy array or
            tensor (the rows of a 2-D one); or what a tokenizer returns (``input_ids`` with ``attention_mask``, whose
            masked positions are left out).

    Raises:
        ValueError: Anything else, naming which prompt it is.
    """
    if isinstance(prompts, (str, Question)):
        return [prompts]
    if isinstance(prompts, Mapping):
        return [[prompts]] if "role" in prompts else list(_encoded(prompts, "prompts"))
    if isinstance(prompts, (bytes, bytearray)) or prompts is None:
        return [as_prompt(prompts, "prompts")]
    if getattr(prompts, "ndim", None) == 0 or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be texts, conversations or token ids, got {prompts!r}")
    items = _items(prompts)
    if items and (_is_token(items[0]) or (isinstance(items[0], Mapping) and "role" in items[0])):
        return [as_prompt(items, "prompts")]
    return [as_prompt(item, f"prompt {i}") for i, item in enumerate(items)]


def as_prompt(prompt: Any, name: str = "prompt") -> Prompt:
    """One prompt in its plain form: text, a ``Question``, a list of ids (ints), or a list of messages (dicts).

    Args:
        prompt: Such a form; ids also as tuple, NumPy array, tensor (1-D, or 2-D with one row) or a tokenizer's output.
        name: What to call it in an error.

    Raises:
        ValueError: Anything else, an empty one, ids that are no whole numbers, a message without a role.
    """
    if isinstance(prompt, (bytes, bytearray)):
        raise ValueError(f"{name} is {type(prompt).__name__}, not text: give {name}.decode() or token ids")
    if isinstance(prompt, (str, Question)):
        if prompt == "":
            raise ValueError(f"{name} = '' is empty: give at least one character or token")
        return prompt
    if isinstance(prompt, Mapping):
        if "role" in prompt:
            return [_message(prompt, name)]
        rows = list(_encoded(prompt, name))
        if len(rows) != 1:
            raise ValueError(
                f"{name} holds {len(rows)} rows of input_ids where one prompt is needed: give it as prompts"
            )
        return rows[0]
    if hasattr(prompt, "ids") and hasattr(prompt, "attention_mask"):  # an Encoding of the library tokenizers
        return as_prompt(list(prompt.ids), name)
    if prompt is None or getattr(prompt, "ndim", None) == 0 or not isinstance(prompt, Iterable):
        raise ValueError(f"{name} must be text, a conversation or token ids, got {prompt!r}")
    items = _items(prompt)
    if not items:
        raise ValueError(f"{name} = {prompt!r} is empty: give at least one character or token")
    if all(isinstance(item, Mapping) for item in items):
        return [_message(item, f"message {i} of {name}") for i, item in enumerate(items)]
    if len(items) == 1 and isinstance(items[0], list) and hasattr(prompt, "ndim"):
        items = items[0]
    odd = next((item for item in items if not _is_token(item)), None)
    if odd is not None:
        raise ValueError(
            f"{name} mixes kinds or holds no token ids: {odd!r} is a {type(odd).__name__}. A prompt is text, a "
            'conversation [{"role": …, "content": …}, …], or token ids, which are whole numbers'
        )
    return [operator.index(item) for item in items]


def _items(values: Any) -> list[Any]:
    """What a sequence, an array or a tensor holds, as Python's own objects."""
    return list(values.tolist() if hasattr(values, "ndim") else values)


def _is_token(item: Any) -> bool:
    if isinstance(item, bool) or getattr(item, "ndim", 0) != 0:
        return False
    try:
        operator.index(item)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _encoded(encoding: Mapping[str, Any], name: str) -> Iterable[list[int]]:
    """The rows of a tokenizer's output, without what its mask leaves out."""
    if "input_ids" not in encoding:
        raise ValueError(
            f"{name} is a mapping without input_ids (its keys: {', '.join(map(str, encoding))}): give a tokenizer's "
            "output, a message with role and content, or a list of prompts"
        )
    rows, mask = (_rows(encoding.get(key)) for key in ("input_ids", "attention_mask"))
    for i, row in enumerate(rows):
        kept = row if not mask else [token for token, keep in zip(row, mask[i], strict=True) if keep]
        prompt = as_prompt(kept, f"row {i} of {name}")
        yield prompt  # type: ignore[misc]


def _rows(values: Any) -> list[list[Any]]:
    if values is None:
        return []
    values = values.tolist() if hasattr(values, "ndim") else [v.tolist() if hasattr(v, "ndim") else v for v in values]
    return [values] if values and not isinstance(values[0], (list, tuple)) else [list(row) for row in values]


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A message as templates of text models take it: content in parts becomes one text."""
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{name} = {dict(message)!r} has no role: give 'system', 'user' or 'assistant'")
    plain, content = dict(message), message.get("content")
    if isinstance(content, (list, tuple)):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise ValueError(f"{name} has content that is not text: {content!r}; only text can be continued")
        plain["content"] = "".join(part["text"] for part in content)
    elif not isinstance(content, str) and not (content is None and "tool_calls" in message):
        raise ValueError(f"{name} = {dict(message)!r} has no text as its content")
    return plain


def prompt_tokens(tokenizer: Any, prompt: Any, *, chat: bool | None = None, today: str = TODAY) -> list[int]:
    """Token ids of a prompt, ready to be continued.

    Args:
        tokenizer: Of transformers.
        prompt: Text; or a conversation, [{"role": "user", "content": "…"}, …], whose last message is continued if it is
            the assistant's; or token ids, which are returned as they are.
        chat: True: through the model's chat template, text being one user turn; False: plain text with the special
            tokens that the tokenizer puts first by itself, once; None: True if the tokenizer has a template.
        today: The date, YYYY-MM-DD, of templates that write one: an answer must not depend on the day.

    Raises:
        ValueError: What is no prompt, a conversation or chat=True without a chat template, or one that the template
            refuses.
    """
    prompt = as_prompt(prompt)
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    if isinstance(prompt, Question):
        prompt = prompt.chat if chat else prompt.plain
    if isinstance(prompt, str):
        return (
            _chat_tokens(tokenizer, [{"role": "user", "content": prompt}], today)
            if chat
            else text_tokens(tokenizer, prompt)
        )
    if isinstance(prompt[0], Mapping):
        return _chat_tokens(tokenizer, list(prompt), today)
    ids = [int(token) for token in prompt]
    check_tokens(ids, len(tokenizer))
    return ids


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text that is to be continued.

    They have the special tokens that the tokenizer puts first, unless the text begins with them, and not those that it
    puts last, which would end the text.
    """
    whole = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            first = whole[:start]
            return plain if plain[: len(first)] == first else first + plain
    return whole  # text is cut otherwise beside special tokens: nothing is known of what was put where


def check_tokens(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary.

    Raises:
        ValueError: One is outside.
    """
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ValueError(f"prompt token ids must lie in [0, {vocab_size}); got {min(ids)} … {max(ids)}")


def _chat_tokens(tokenizer: Any, messages: list[Any], today: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; pass text and chat=False")
    last = messages[-1]
    continued = last["role"] == "assistant" and bool((last.get("content") or "").strip())
    if last["role"] == "assistant" and not continued and "tool_calls" not in last:
        messages = messages[:-1]  # an answer that has not begun is the turn that is opened anyway
        if not messages:
            raise ValueError("the conversation holds nothing but an empty answer: give at least one user message")
    name, template = tokenizer.name_or_path, tokenizer.chat_template
    options: dict[str, Any] = {"add_generation_prompt": not continued, "continue_final_message": continued}
    if isinstance(template, str) and "strftime_now" in template:
        day = date.fromisoformat(today)
        # a function given to the template would not reach it: what it returns is written in the call's place
        options["chat_template"] = _NOW.sub(lambda call: repr(day.strftime(call[2])), template)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TypeError, ValueError, KeyError, TemplateError) as error:
        raise ValueError(f"the chat template of {name!r} refuses the conversation: {error}") from error
    # The template writes its own special tokens, first one included.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
