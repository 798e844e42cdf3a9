"""TransformersDecoder against the unmodified model: statistics, forks, chunks, greedy text, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fastpower.decoders.base import Decoder, Work
from fastpower.decoders.transformers import TransformersDecoder, resources
from fastpower.decoders.transformers import decoder as module
from fastpower.decoders.transformers import scores as scoring
from fastpower.errors import CacheFull, InvalidLogits, OutOfMemory, PromptTooLong, UnknownSequence
from fastpower.kernels import Status
from tests.decoders.transformers.own_passes import (
    ATOL,
    EXPONENTS,
    GREEDY,
    assert_row_is,
    feed,
    generate,
    greedy,
    make_draws,
    prompt,
    statistics,
)

ARCHITECTURES = ["llama", "qwen2", "qwen3", "phi3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox"]


@pytest.fixture
def llama(tiny):
    with TransformersDecoder(tiny("llama"), cache_tokens=400, page_size=4) as decoder:
        yield decoder


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stored_statistics_equal_a_teacher_forced_pass(tiny, name, accelerate):
    """Ragged prompts, one of them in chunks mixed with the other's decoding; longer than every sliding window."""
    model = tiny(name)
    decoder = TransformersDecoder(model, cache_tokens=400, page_size=4, accelerate=accelerate)
    assert isinstance(decoder, Decoder)
    texts = [prompt(13, 1), prompt(5, 2)]
    stored = {0: [], 1: []}  # per sequence: (logp of the token drawn, logz, entropy) per decoded position
    ids = [decoder.add(), decoder.add()]
    pending = [texts[0][:6], texts[1]]
    for step in range(14):
        drawn = feed(decoder, (ids[0], pending[0]), (ids[1], pending[1]))
        assert (drawn.status == 0).all()
        for i in range(2):
            if i == 0 and step == 0:  # the rest of the chunked prompt follows
                pending[0] = texts[0][6:]
                continue
            stored[i].append((drawn.logp[i], drawn.logz[i], drawn.entropy[i]))
            texts[i].append(int(drawn.token[i]))
            pending[i] = [int(drawn.token[i])]
    for i, text in enumerate(texts):
        logp, logz, entropy = statistics(model, text)
        n = len(stored[i])
        np.testing.assert_allclose([s[0] for s in stored[i]], logp[-n:], atol=ATOL, rtol=0)
        np.testing.assert_allclose([s[1] for s in stored[i]], logz[-n - 1 : -1], atol=ATOL, rtol=0)
        np.testing.assert_allclose([s[2] for s in stored[i]], entropy[-n - 1 : -1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fork_truncate_and_copy_on_write_equal_a_fresh_prefill(tiny, name):
    model = tiny(name)
    decoder = TransformersDecoder(model, cache_tokens=400, page_size=4)
    text, other = prompt(18, 3), prompt(9, 4)
    parent = decoder.add()
    feed(decoder, (parent, text))
    children = [decoder.fork(parent, length) for length in (18, 14, 14, 1, 0)]  # inside pages and at their edges
    decoder.truncate(parent, 11)
    rows = [(parent, other[:4])] + [(child, other[i : i + 1 + i]) for i, child in enumerate(children)]
    drawn = feed(decoder, *rows)
    kept = [11, 18, 14, 14, 1, 0]
    for row, (length, (_, tokens)) in enumerate(zip(kept, rows, strict=True)):
        assert_row_is(model, text[:length] + tokens, drawn, row)
    decoder.free(parent)
    decoder.truncate(children[0], 3)
    drawn = feed(decoder, (children[0], other), (children[1], [7]))
    assert_row_is(model, text[:3] + other, drawn, 0)
    assert_row_is(model, text[:14] + rows[2][1] + [7], drawn, 1)
    decoder.cache.check()


def test_remembered_prefix_serves_a_new_sequence_after_the_first_is_freed(llama):
    text, other = prompt(18, 3), prompt(5, 4)
    first = llama.add()
    feed(llama, (first, text))
    llama.remember(first, text)
    llama.free(first)
    again, length = llama.match([*text[:13], *other])
    assert length == 12  # whole pages of 4
    drawn = feed(llama, (again, [text[12], *other]))
    assert_row_is(llama.model, [*text[:13], *other], drawn, 0)
    assert llama.match(other)[1] == 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_greedy_tokens_equal_generate_on_ragged_prompts(tiny, name):
    model = tiny(name)
    decoder = TransformersDecoder(model, cache_tokens=600)
    texts = [prompt(length, length) for length in (3, 17, 8)]
    assert greedy(decoder, texts, 25) == [generate(model, text, 25) for text in texts]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
def test_scores_equal_a_teacher_forced_pass(tiny, name, rows_at_a_time, monkeypatch):
    model = tiny(name)
    decoder = TransformersDecoder(model, cache_tokens=400, page_size=4, verify=False)
    monkeypatch.setattr(scoring, "SCORE_BYTES", 4 * decoder.vocab_size * rows_at_a_time)
    texts = [prompt(12, 5), prompt(1, 6), prompt(9, 7)]
    ids = [decoder.add() for _ in texts]
    feed(decoder, (ids[0], texts[0][:5]))
    decoder.truncate(ids[0], 4)  # a continuation is scored from its last token on
    scores = decoder.score([Work(ids[0], texts[0][4:]), *map(Work, ids[1:], texts[1:])], EXPONENTS)
    for start, text, score in zip((4, 0, 0), texts, scores, strict=True):
        logp, logz, entropy = statistics(model, text)
        assert score.logp.shape == (len(text) - start - 1,)
        np.testing.assert_allclose(score.logp, logp[start:], atol=ATOL, rtol=0)
        np.testing.assert_allclose(score.logz, logz[start:], atol=ATOL, rtol=0)
        np.testing.assert_allclose(score.entropy, entropy[start:], atol=ATOL, rtol=0)
    drawn = feed(decoder, (ids[2], [9]), (ids[0], [8]))  # K/V of scored tokens stay
    assert_row_is(model, [*texts[2], 9], drawn, 0)
    assert_row_is(model, [*texts[0], 8], drawn, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_low_precision_is_as_close_to_float32_as_the_model_itself(tiny, name, dtype):
    exact, low = tiny(name), copy.deepcopy(tiny(name)).to(dtype)
    decoder = TransformersDecoder(low, cache_tokens=200)
    assert decoder.cache.k.dtype == dtype
    ours, own = [], []
    for seed in range(6):
        text, sequence = prompt(15, seed), decoder.add()
        entropy = feed(decoder, (sequence, text)).entropy[0]
        truth = statistics(exact, text)[2][-1]
        ours.append(abs(entropy - truth))
        own.append(abs(statistics(low, text)[2][-1] - truth))
    assert np.mean(ours) <= 2 * np.mean(own) + 1e-3


def decode_compiled(model, backend):
    """Three sequences, decoded one and three at a time, against the model's own passes; the buckets compiled."""
    with TransformersDecoder(model, cache_tokens=400, page_size=4, compile=backend, verify=False) as decoder:
        texts = [prompt(9, 1), prompt(4, 2), prompt(17, 3)]
        ids = [decoder.add() for _ in texts]
        feed(decoder, *zip(ids, texts, strict=True))
        for rows in ([0], [0, 1, 2], [1], [2, 1, 0]):
            drawn = feed(decoder, *((ids[i], [7 + i]) for i in rows))
            for row, i in enumerate(rows):
                texts[i].append(7 + i)
                assert_row_is(model, texts[i], drawn, row)
        decoder.cache.check()
        return decoder._compiled.buckets


def test_compiled_steps_are_one_graph_per_bucket_and_equal_a_teacher_forced_pass(tiny):
    """aot_eager traces and functionalises like the real compiler, without its code generation."""
    assert decode_compiled(tiny("llama"), "aot_eager") == [(1, 64), (4, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_generated_code_of_compiled_steps_equals_a_teacher_forced_pass(tiny, name, monkeypatch):
    monkeypatch.setenv("CXX", "g++")
    assert decode_compiled(tiny(name), True) == [(1, 64), (4, 64)]


def test_many_draws_from_one_row_and_none_from_another(llama):
    a, b = llama.add(), llama.add()
    work = [Work(a, prompt(6, 1)), Work(b, prompt(3, 2))]
    drawn = llama.forward(work, make_draws([1] * 40, [3] * 40, batch=2))
    assert drawn.token.shape == drawn.logp.shape == (40,)
    assert drawn.logz.shape == (2, 3)
    assert len(set(drawn.token.tolist())) > 1
    logp, _, _ = statistics(llama.model, [*work[1].tokens, int(drawn.token[5])])
    assert abs(drawn.logp[5] - logp[-1]) < ATOL


def test_excluded_token_is_never_drawn(llama):
    sequence, text = llama.add(), prompt(6, 1)
    best = int(feed(llama, (sequence, text), alpha=GREEDY).token[0])
    llama.truncate(sequence, 5)
    assert feed(llama, (sequence, text[5:]), alpha=GREEDY, exclude=[best]).token[0] != best


def test_cache_full_leaves_everything_as_it_was(tiny):
    model = tiny("llama")
    decoder = TransformersDecoder(model, cache_tokens=24, page_size=4)
    a, text = decoder.add(), prompt(10, 8)
    feed(decoder, (a, text))
    b = decoder.fork(a, 9)
    before = decoder.stats()
    for call in (
        lambda: decoder.score([Work(b, prompt(30, 9))], EXPONENTS),
        lambda: feed(decoder, (a, [3]), (b, prompt(30, 9))),
    ):
        with pytest.raises(CacheFull):
            call()
        assert decoder.stats() == before
        assert (decoder.length(a), decoder.length(b)) == (10, 9)
    decoder.cache.check()
    drawn = feed(decoder, (a, [3]), (b, [4]))
    assert_row_is(model, [*text, 3], drawn, 0)
    assert_row_is(model, [*text[:9], 4], drawn, 1)


def test_failing_draws_leave_everything_as_it_was(llama):
    a, text = llama.add(), prompt(7, 1)
    feed(llama, (a, text))
    before = llama.stats()
    with pytest.raises(ValueError, match="alpha"):
        feed(llama, (a, [5]), alpha=-1.0)
    assert (llama.stats(), llama.length(a)) == (before, 7)
    assert_row_is(llama.model, [*text, 6], feed(llama, (a, [6])), 0)


def test_bad_work_is_refused_and_changes_nothing(llama):
    a = llama.add()
    feed(llama, (a, [1, 2, 3]))
    before = llama.stats()
    for rows, error, match in (
        ([], ValueError, "work is empty"),
        ([(a, [])], ValueError, "row 0 of work has no tokens"),
        ([(a, [4]), (a, [5])], ValueError, "twice"),
        ([(a, [131])], ValueError, r"must lie in \[0, 131\), got 131"),
        ([(a, [-1])], ValueError, r"must lie in \[0, 131\), got -1"),
        ([(a, [5] * 94)], PromptTooLong, "97 tokens; the model's context is 96"),
    ):
        work = [Work(*row) for row in rows]
        with pytest.raises(error, match=match):
            llama.forward(work, make_draws([], [], batch=len(rows)))
        with pytest.raises(error, match=match):
            llama.score(work, EXPONENTS)
    with pytest.raises(UnknownSequence):
        llama.forward([Work(a + 1000, [1])], make_draws([], [], batch=1))
    assert llama.stats() == before


def test_nan_logits_are_a_status_of_forward_and_an_error_of_score(llama):
    def break_row(row):
        return llama.model.lm_head.register_forward_hook(lambda module, args, out: out.index_fill(1, row, torch.nan))

    good, bad = llama.add(), llama.add()
    with break_row(torch.tensor(1)):
        drawn = feed(llama, (good, [3, 4]), (bad, prompt(6, 1)))
    assert drawn.status.tolist() == [0, Status.NAN]
    assert drawn.token[0] >= 0
    assert drawn.token[1] == -1
    before = llama.stats()
    with break_row(torch.tensor(3)), pytest.raises(InvalidLogits, match=f"position 5 of sequence {good} "):
        llama.score([Work(good, prompt(9, 2))], EXPONENTS)
    assert llama.stats() == before


def test_model_is_untouched_while_the_decoder_lives(tiny):
    model = tiny("gemma3")
    ids = torch.tensor([prompt(11, 3)])
    with torch.inference_mode():
        before = model(ids).logits
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    decoder = TransformersDecoder(model, cache_tokens=100)
    feed(decoder, (decoder.add(), [1, 2]))
    assert model.config._attn_implementation == attention
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    decoder.close()
    assert not hasattr(decoder, "cache")


def test_attention_is_restored_when_the_model_raises(llama):
    hook = llama.model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            feed(llama, (llama.add(), [1]))
    finally:
        hook.remove()
    assert llama.model.config._attn_implementation != "fastpower"
    assert llama.stats()["open_plans"] == 0


def test_cache_size_follows_memory_or_the_argument(tiny, monkeypatch):
    model = tiny("llama")
    per_token = 2 * 3 * 2 * 8 * 4
    monkeypatch.setattr(module.memory, "available", lambda device="cpu": 1000 * per_token)
    assert (
        TransformersDecoder(model, memory_fraction=0.5, accelerate=False).stats()["free_tokens"] == 512
    )  # whole pages of 16
    assert TransformersDecoder(model, cache_tokens=33, accelerate=False).stats()["free_tokens"] == 48
    with pytest.raises(ValueError, match="memory_fraction"):
        TransformersDecoder(model, memory_fraction=0.0)


def test_what_does_not_fit_is_refused_before_anything_is_allocated(tiny, monkeypatch):
    model = tiny("llama")
    per_page = 16 * 2 * 3 * 2 * 8 * 4
    monkeypatch.setattr(module.memory, "available", lambda device="cpu": 100 * per_page)
    monkeypatch.setattr(resources, "PagedCache", lambda *_, **__: pytest.fail("pages were allocated"))
    monkeypatch.setattr(module.FusedForward, "of", lambda model: pytest.fail("weights were packed"))
    with pytest.raises(
        OutOfMemory, match=r"1616 tokens \(pages: 101\) needs 0\.6 MiB, and 0\.6 MiB are available on cpu"
    ):
        TransformersDecoder(model, cache_tokens=101 * 16, accelerate=False)
    monkeypatch.setattr(module.memory, "available", lambda device="cpu": 5 << 10)
    with pytest.raises(
        OutOfMemory, match=r"packed copy of the weights of LlamaForCausalLM needs .* 0\.0 MiB are available"
    ):
        TransformersDecoder(model, cache_tokens=64)
    with pytest.raises(OutOfMemory, match=r"16 tokens \(pages: 1\)"):  # the default never asks for less than a page
        TransformersDecoder(model, accelerate=False)


def test_stop_tokens_are_those_of_generation_config_and_tokenizer(tiny):
    model = copy.deepcopy(tiny("llama"))
    assert TransformersDecoder(model, cache_tokens=64).eos_ids == frozenset()
    model.generation_config.eos_token_id = [5, 9]
    assert TransformersDecoder(model, cache_tokens=64).eos_ids == {5, 9}


def test_decoder_without_tokenizer_says_so(llama):
    for call in (lambda: llama.encode("a"), lambda: llama.decode([1])):
        with pytest.raises(ValueError, match="without a tokenizer"):
            call()
