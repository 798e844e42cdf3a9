"""Whatever forks, truncations, parks and resumes came before, forced tokens get the numbers of one fresh pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpower.decoders import Decoder, Draws, Work
from fastpower.decoders.base import PrefixDecoder
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.errors import CacheFull
from tests.tiny_models import tiny_model

EXPONENTS = np.array([3.0], np.float32)
VOCABULARY, LONGEST = 5, 40
_MODELS: dict[str, Decoder] = {}


def decoder(kind: str) -> Decoder:
    """One decoder of each kind for all examples; every example leaves it empty."""
    if kind not in _MODELS:
        if kind == "toy":
            _MODELS[kind] = ToyDecoder(random_logits(VOCABULARY, 7), VOCABULARY, cache_tokens=60)
        else:
            _MODELS[kind] = TransformersDecoder(tiny_model(kind), page_size=4, cache_tokens=60)
    return _MODELS[kind]


def forward(model: Decoder, work: list[Work]) -> list[tuple[float, float]]:
    """(logz, entropy) after each row's last token."""
    none = np.zeros(0, np.int64)
    out = model.forward(
        work, Draws(np.ones(len(work), np.float32), EXPONENTS, none, none.astype(np.uint64), none, none)
    )
    assert not out.status.any()
    return list(zip(out.logz[:, 0].tolist(), out.entropy.tolist(), strict=True))


class Histories:
    """Sequences of one decoder beside the tokens that they must hold."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.tokens: dict[int, list[int]] = {}  # by handle
        self.parked: list[list[int]] = []
        self.seen: list[tuple[tuple[int, ...], tuple[float, float]]] = []  # what every forward said

    def pick(self, which: int) -> int:
        return list(self.tokens)[which % len(self.tokens)]

    def begin(self, tokens: list[int], which: int) -> None:
        self.resume_with(tokens)

    def resume_with(self, tokens: list[int]) -> None:
        """A sequence of ``tokens``, from what the decoder remembers if it does."""
        if isinstance(self.model, PrefixDecoder):
            sequence, length = self.model.match(tokens[:-1])
        else:
            sequence, length = self.model.add(), 0
        try:
            [found] = forward(self.model, [Work(sequence, tokens[length:])])
        except CacheFull:
            assert self.model.length(sequence) == length
            self.model.free(sequence)
            return
        self.tokens[sequence] = list(tokens)
        self.seen.append((tuple(tokens), found))

    def feed(self, tokens: list[int], which: int) -> None:
        """Force tokens after up to three sequences at once, more of them after the first."""
        rows = {self.pick(which + i): tokens[i:] for i in range(3) if tokens[i:]}
        rows = {s: t for s, t in rows.items() if len(self.tokens[s]) + len(t) <= LONGEST}
        if not rows:
            return
        try:
            found = forward(self.model, [Work(s, t) for s, t in rows.items()])
        except CacheFull:
            assert all(self.model.length(s) == len(self.tokens[s]) for s in rows)
            return
        for (sequence, new), numbers in zip(rows.items(), found, strict=True):
            self.tokens[sequence] += new
            self.seen.append((tuple(self.tokens[sequence]), numbers))

    def fork(self, tokens: list[int], which: int) -> None:
        parent = self.pick(which)
        length = sum(tokens) * 7 % (len(self.tokens[parent]) + 1)
        try:
            child = self.model.fork(parent, length)
        except CacheFull:
            return
        self.tokens[child] = self.tokens[parent][:length]

    def truncate(self, tokens: list[int], which: int) -> None:
        sequence = self.pick(which)
        length = sum(tokens) * 5 % (len(self.tokens[sequence]) + 1)
        self.model.truncate(sequence, length)
        self.tokens[sequence] = self.tokens[sequence][:length]

    def park(self, tokens: list[int], which: int) -> None:
        sequence = self.pick(which)
        held = self.tokens.pop(sequence)
        if isinstance(self.model, PrefixDecoder):
            self.model.remember(sequence, held)
        self.model.free(sequence)
        if held:
            self.parked.append(held)

    def resume(self, tokens: list[int], which: int) -> None:
        if self.parked:
            self.resume_with(self.parked.pop(which % len(self.parked)))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin", "feed", "feed", "feed", "fork", "fork", "fork", "truncate", "park", "resume", "resume"]
        ),
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
        st.integers(0, 5),
    ),
    min_size=20,
    max_size=60,
)


@pytest.mark.parametrize("kind", ["toy", "llama", "gemma3"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
def test_forced_tokens_get_the_numbers_of_a_fresh_pass_after_any_history(kind, operations):
    model = decoder(kind)
    histories = Histories(model)
    for name, tokens, which in operations:
        if not histories.tokens and name not in ("begin", "resume"):
            name = "begin"
        getattr(histories, name)(tokens, which)
    for sequence in histories.tokens:
        assert model.length(sequence) == len(histories.tokens[sequence])
        model.free(sequence)
    if isinstance(model, TransformersDecoder):
        model.cache.check()
        model.cache.forget()  # from here on everything is computed anew
    assert model.stats()["sequences"] == 0
    for tokens, numbers in histories.seen:
        sequence = model.add()
        try:
            assert forward(model, [Work(sequence, tokens)]) == [numbers]
        finally:
            model.free(sequence)
