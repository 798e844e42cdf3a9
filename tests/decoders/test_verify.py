"""``verify``: a chunk drawn at every position has the bits of its tokens fed one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from fastpower.decoders import Draws, VerifyingDecoder, Work
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.decoders.transformers import TransformersDecoder
from tests.tiny_models import tiny_model

PROMPTS = ([5, 6, 7, 8, 9], [3, 4], [11] * 17)
CHUNKS = ([1, 2, 3], [7], [4, 4, 5, 6, 1, 2])


def draws(positions: list[int]) -> Draws:
    each = np.arange(len(positions))
    alpha, keys = np.full(len(each), 2.5, np.float32), np.array(positions, np.uint64) + 77
    return Draws(alpha, np.array([1.0, 2.5], np.float32), each, keys, np.array(positions), np.full(len(each), -1))


@pytest.fixture(params=["toy", "llama", "qwen2", "phi3"])
def decoder(request):
    if request.param == "toy":
        yield ToyDecoder(random_logits(13, 4), 13)
    else:
        with TransformersDecoder(tiny_model(request.param), cache_tokens=2048) as made:
            yield made


def begin(decoder) -> list[int]:
    sequences = [decoder.add() for _ in PROMPTS]
    work = [Work(sequence, prompt) for sequence, prompt in zip(sequences, PROMPTS, strict=True)]
    decoder.forward(work, draws([len(prompt) for prompt in PROMPTS]))
    return sequences


def one_at_a_time(decoder, rows: list[int]) -> list[tuple]:
    found = []
    for sequence, prompt, chunk, n in zip(begin(decoder), PROMPTS, CHUNKS, rows, strict=True):
        for i, token in enumerate(chunk):
            out = decoder.forward([Work(sequence, [token])], draws([len(prompt) + i + 1]))
            if i >= len(chunk) - n:
                found.append((out.token[0], out.logp[0], *out.logz[0], out.entropy[0], out.status[0]))
    return found


@pytest.mark.parametrize("rows", [[3, 1, 6], [1, 1, 1], [2, 1, 4]])
def test_a_chunk_is_drawn_as_if_its_tokens_were_fed_one_at_a_time(decoder, rows):
    assert isinstance(decoder, VerifyingDecoder)
    positions = [
        len(prompt) + i + 1
        for prompt, chunk, n in zip(PROMPTS, CHUNKS, rows, strict=True)
        for i in range(len(chunk) - n, len(chunk))
    ]
    sequences = begin(decoder)
    work = [Work(sequence, chunk) for sequence, chunk in zip(sequences, CHUNKS, strict=True)]
    out = decoder.verify(work, rows, draws(positions))
    found = [(out.token[i], out.logp[i], *out.logz[i], out.entropy[i], out.status[i]) for i in range(sum(rows))]
    expected = one_at_a_time(decoder, rows)
    if decoder.batch_invariant:
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [decoder.length(s) for s in sequences] == [len(p) + len(c) for p, c in zip(PROMPTS, CHUNKS, strict=True)]


def test_a_wrong_guess_leaves_nothing_behind_once_truncated(decoder):
    [good, bad, _] = begin(decoder)
    decoder.verify([Work(bad, [9, 9, 9])], [3], draws([1, 2, 3]))
    decoder.truncate(bad, len(PROMPTS[1]))
    decoder.truncate(good, 0)
    decoder.forward([Work(good, PROMPTS[1])], draws([0]))
    a, b = (decoder.forward([Work(sequence, [8])], draws([4])) for sequence in (good, bad))
    np.testing.assert_allclose(a.logz, b.logz, rtol=0 if decoder.batch_invariant else 1e-4)


@pytest.mark.parametrize("rows", [[0], [4], [1, 1]])
def test_rows_that_were_not_fed_are_refused_and_nothing_has_changed(decoder, rows):
    [sequence, *_] = begin(decoder)
    with pytest.raises(ValueError, match="rows"):
        decoder.verify([Work(sequence, [1, 2, 3])], rows, draws(list(range(sum(rows)))))
    assert decoder.length(sequence) == len(PROMPTS[0])
