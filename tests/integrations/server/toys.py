"""The toy model behind a server, and one whose forwards take their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from fastpower.decoders.base import TokenDraws, Work
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.language_model import LanguageModel


class SlowDecoder(ToyDecoder):
    """Sleeps before each forward, so that requests are under way long enough to be looked at."""

    delay = 0.0

    def forward(self, work: Sequence[Work], *arguments: Any, **named: Any) -> TokenDraws:
        """As the toy does, later."""
        time.sleep(self.delay)
        return super().forward(work, *arguments, **named)


def slow_model(delay: float = 0.0) -> LanguageModel:
    """5 tokens, 0 is EOS."""
    decoder = SlowDecoder(random_logits(5, seed=7, eos=0, eos_bias=-1.5), 5, [0], max_length=512)
    decoder.delay = delay
    return LanguageModel(decoder, name="toy")


def chatty_model() -> LanguageModel:
    """The toy behind a tokenizer of words with a chat template; 0 is EOS."""
    words = Tokenizer(WordLevel({"<s>": 0, "1": 1, "2": 2, "3": 3, "4": 4}, unk_token="4"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return LanguageModel(slow_model().decoder, tokenizer, name="chatty")
