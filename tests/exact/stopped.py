"""A toy whose tokens spell text with borders of their own, and its answers under stop strings, by brute force."""

from __future__ import annotations

from collections.abc import Sequence

from fastpower.decoders.toy import ToyDecoder, random_logits

from .enumeration import PROMPT, Answer, Enumeration

PIECES = ("", "a", "b", "ab")  #: 0 is EOS; "ba" and "aab" are spelt in several ways, within and across tokens
STOP = ("ba", "aab")


class Spelling(ToyDecoder):
    """Its tokens spell ``PIECES``."""

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(PIECES[token] for token in tokens)


def spelling(seed: int = 12, **options) -> Spelling:
    return Spelling(random_logits(4, seed, eos=0, **options), 4, [0])


class Stopped(Enumeration):
    """Answers that end at EOS, with the first token with which their text contains a stop string, or at the horizon."""

    def __init__(self, decoder: ToyDecoder, alpha: float, horizon: int, stop: Sequence[str] = STOP) -> None:
        super().__init__(decoder, alpha, horizon)
        whole: dict[Answer, float] = {}
        for x in self.answers:
            ends = [t for t in range(1, len(x) + 1) if any(s in decoder.decode(x[:t]) for s in stop)]
            y = x[: ends[0]] if ends else x
            whole[y] = sum(float(decoder.log_probabilities((*PROMPT, *y[:t]))[y[t]]) for t in range(len(y)))
        self.condition(whole, {})
