"""What prompts mean: special tokens once, conversations continued, no date but the one that is set."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from fastpower.models.prompts import TODAY, prompt_tokens, text_tokens

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "<user>",
    "<assistant>",
    "<end>",
    "hello",
    "there",
    "general",
    "26",
    "Jul",
    "2024",
    "01",
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(first: str = "<s>", last: str = "", chat: str | None = None) -> Any:
    """Words, with special tokens put before and behind a text."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = " ".join(filter(None, [first, "$A", last]))
    backend.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<end>"]})
    found.chat_template = chat
    return found


def words(found: Any, prompt: Any, **options: Any) -> str:
    return " ".join(found.convert_ids_to_tokens(prompt_tokens(found, prompt, **options)))


@pytest.mark.parametrize(
    "first, last, text, expected",
    [
        ("<s>", "", "hello there", "<s> hello there"),
        ("<s>", "", "<s> hello there", "<s> hello there"),  # given already: not twice
        ("<s>", "", "<s> <s> hello", "<s> <s> hello"),  # what the text says is left alone
        ("<s>", "</s>", "hello there", "<s> hello there"),  # an end that was not asked for
        ("<s>", "</s>", "<s> hello", "<s> hello"),
        ("", "</s>", "hello", "hello"),
        ("", "</s>", "hello </s>", "hello </s>"),  # an end that the text itself has
        ("", "</s> </s>", "hello", "hello"),
        ("<s> <s>", "", "<s> <s> hello", "<s> <s> hello"),
        ("", "", "hello", "hello"),
    ],
)
def test_special_tokens_stand_before_a_text_once_and_never_behind_it(
    first: str, last: str, text: str, expected: str
) -> None:
    found = tokenizer(first, last)
    assert words(found, text, chat=False) == expected
    assert found.convert_ids_to_tokens(text_tokens(found, text)) == expected.split()


def test_a_conversation_that_ends_with_the_assistant_is_continued() -> None:
    found = tokenizer(chat=CHAT)
    user = {"role": "user", "content": "hello"}
    assert words(found, [user]) == "<s> <user> hello <end> <assistant>"
    answer = [user, {"role": "assistant", "content": "general"}]
    assert words(found, answer) == "<s> <user> hello <end> <assistant> general"
    more = [*answer, {"role": "user", "content": "there"}]
    assert words(found, more).endswith("general <end> <user> there <end> <assistant>")


@pytest.mark.parametrize("content", ["", "  ", None])
def test_an_answer_that_has_not_begun_opens_one_turn(content: str | None) -> None:
    found = tokenizer(chat=CHAT)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    expected = words(found, messages)
    assert words(found, [*messages, {"role": "assistant", "content": content or ""}]) == expected


def test_templates_write_the_date_that_is_set_and_the_same_one_every_day() -> None:
    dated = tokenizer(chat="{{ strftime_now('%d %b %Y') }} " + CHAT)
    assert words(dated, "hello").startswith("26 Jul 2024") and TODAY == "2024-07-26"
    assert words(dated, "hello", today="2024-07-01").startswith("01 Jul 2024")
    undated = tokenizer(chat=CHAT)
    assert words(undated, "hello") == words(undated, "hello", today=date.today().isoformat())


def test_what_a_template_refuses_is_named() -> None:
    picky = tokenizer(
        chat="{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHAT
    )
    with pytest.raises(ValueError, match="refuses the conversation: user first"):
        prompt_tokens(picky, [{"role": "system", "content": "hello"}])
    with pytest.raises(ValueError, match="no chat template"):
        prompt_tokens(tokenizer(), [{"role": "user", "content": "hello"}])
