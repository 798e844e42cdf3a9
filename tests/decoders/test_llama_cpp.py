"""llama.cpp as a decoder: the protocol, its numbers against transformers, and samplers on a decoder whose bits depend
on the batch. Skipped without llama-cpp-python; `make llama-cpp` installs it and runs this file."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpower
from fastpower.decoders import base
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.llama_cpp import LlamaCppDecoder, library
from fastpower.errors import (
    BackendUnavailable,
    CacheFull,
    InvalidModelFile,
    ModelNotFound,
    PromptTooLong,
    UnknownSequence,
)
from fastpower.interfaces import INTERFACES
from fastpower.models import PACKAGED_MODELS, packaged_files
from tests import tiny_gguf

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: `make llama-cpp`"
)
TINY = (
    0.02  #: nats between two ways of llama.cpp to the same prefix (K/V in float16) on the tiny models; 0.006 was seen
)
NOISE = 0.3  #: nats between two ways of llama.cpp to the same prefix, on the packaged model


def draws(rows, position, alpha=1.0):
    """A draw a row, the same key for all."""
    n = len(rows)
    return Draws(
        np.full(n, alpha, np.float32), np.array([4], np.float32), np.arange(n), np.zeros(n, np.uint64),
        np.full(n, position), np.full(n, -1),
    )  # fmt: skip


@pytest.fixture
def tiny(models):
    """An empty decoder, whatever the test before left behind."""
    for sequence in list(models[0]._cells):
        models[0].free(sequence)
    return models


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def models(request, tmp_path_factory):
    """(decoder, the same weights in transformers)"""
    path = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    model = tiny_gguf.write(path, request.param, ("F32",), seed=3)  # with quantised ones llama.cpp rounds activations
    return LlamaCppDecoder(path, cache_tokens=512, threads=1), model


PROMPT = [5, 9, 40, 77, 12, 3, 8]


@needs_llama
def test_rows_are_those_of_transformers(tiny):
    decoder, model = tiny
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[0].float()
    logp = logits.log_softmax(-1)
    sequence = decoder.add()
    [scores] = decoder.score([Work(sequence, PROMPT)], np.array([4, 0.5], np.float32))
    expected = torch.stack([(e * logp).logsumexp(-1) for e in (4, 0.5)], 1)
    np.testing.assert_allclose(scores.logz, expected, atol=TINY)
    np.testing.assert_allclose(scores.entropy, -(logp.exp() * logp).sum(-1), atol=TINY)
    np.testing.assert_allclose(scores.logp, logp[range(6), PROMPT[1:]], atol=TINY)
    decoder.free(sequence)


@needs_llama
def test_forks_and_truncations_hold_what_a_fresh_prefill_holds(tiny):
    decoder, _ = tiny
    parent, fresh = decoder.add(), decoder.add()
    decoder.forward([Work(parent, PROMPT)], draws([0], 7))
    child = decoder.fork(parent, 4)
    decoder.forward([Work(parent, [1, 2])], draws([0], 9))  # which the child must not see
    decoder.truncate(parent, 3)
    work = [Work(child, [50, 60]), Work(parent, [77, 50, 60]), Work(fresh, [*PROMPT[:4], 50, 60])]
    out = decoder.forward(work, draws([0, 1, 2], 6))
    assert np.ptp(out.logz) < TINY and np.ptp(out.entropy) < TINY
    assert decoder.stats()["distinct_tokens"] == 3 + 1 + 2 + 3 + 6  # the prefix once, then each one's own
    for sequence in (parent, child, fresh):
        decoder.free(sequence)
    assert decoder.stats()["distinct_tokens"] == 0 and decoder.stats()["free_sequences"] == 256


@needs_llama
def test_a_long_prompt_runs_in_several_calls_and_lengths_are_kept(tiny):
    decoder, _ = tiny
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, 290, n).tolist() for n in (200, 90)]
    sequences = [decoder.add() for _ in texts]
    whole = decoder.score([Work(s, t) for s, t in zip(sequences, texts, strict=True)], np.array([2], np.float32))
    assert [decoder.length(s) for s in sequences] == [200, 90] and [len(s.logp) for s in whole] == [199, 89]
    for sequence, text, scores in zip(sequences, texts, whole, strict=True):
        decoder.truncate(sequence, 0)
        [alone] = decoder.score([Work(sequence, text)], np.array([2], np.float32))
        np.testing.assert_allclose(alone.logz, scores.logz, atol=TINY)
        np.testing.assert_allclose(alone.logp, scores.logp, atol=TINY)
        decoder.free(sequence)


@needs_llama
def test_what_does_not_fit_changes_nothing(tiny):
    decoder, _ = tiny
    sequence, other = decoder.add(), decoder.add()
    decoder.forward([Work(sequence, PROMPT)], draws([0], 7))
    before = decoder.stats()
    for work, error, message in (
        ([Work(sequence, [1]), Work(other, [4] * 506)], CacheFull, "needs 507 more tokens"),
        ([Work(sequence, [4] * 506)], PromptTooLong, "513 of 512"),
        ([Work(sequence, [1]), Work(sequence, [2])], ValueError, "only once"),
        ([Work(sequence, [])], ValueError, "no tokens"),
        ([Work(sequence, [-1])], ValueError, "must lie in"),
        ([Work(sequence, [300])], ValueError, "must lie in"),
        ([Work(sequence, [1]), Work(99_999, [1])], UnknownSequence, "99999"),
    ):
        with pytest.raises(error, match=message):
            decoder.forward(work, draws(work, 8))
        assert decoder.stats() == before and decoder.length(sequence) == 7
    bad = draws([0], 8)._replace(rows=np.array([3]))
    with pytest.raises(ValueError, match="rows"):  # found after llama.cpp ran: taken back
        decoder.forward([Work(sequence, [1])], bad)
    assert decoder.stats() == before and decoder.length(sequence) == 7
    forks = [decoder.fork(sequence, 7) for _ in range(255)]
    with pytest.raises(CacheFull, match="at most 256 sequences"):
        decoder.fork(sequence, 7)
    assert decoder.length(decoder.fork(sequence, 0)) == 0  # an empty one takes none of them
    with pytest.raises(CacheFull, match=r"1 more of llama\.cpp's sequences"):
        decoder.forward([Work(other, [1])], draws([0], 1))
    for fork in (*forks, sequence, other):
        decoder.free(fork)
    with pytest.raises(UnknownSequence):
        decoder.free(sequence)


@needs_llama
@pytest.mark.parametrize("method", ["mh", "ec_mh", "mtm", "smc", "best_of_n", "tempering", "sps"])
def test_numbers_of_answers_are_those_that_their_tokens_were_drawn_with(tiny, method, monkeypatch):
    decoder, _ = tiny
    drawn, scored = set(), []
    forward = LlamaCppDecoder.forward

    def noted(self, work, draws):
        out = forward(self, work, draws)
        drawn.update(zip(out.token.tolist(), out.logp.tolist(), strict=True))
        return out

    monkeypatch.setattr(LlamaCppDecoder, "forward", noted)
    monkeypatch.setattr(LlamaCppDecoder, "score", lambda *args: scored.append(args))
    sampler = fastpower.make_sampler(method, alpha=3.0, max_new_tokens=12)
    results = fastpower.generate(decoder, [PROMPT, PROMPT[:3]], sampler, seed=1, chains=2)
    assert not scored and len(results) >= 4
    for result in results:
        assert set(zip(result.token_ids, map(float, result.token_logp), strict=True)) <= drawn
    assert decoder.stats()["sequences"] == 0


@needs_llama
def test_a_small_cache_and_few_sequences_end_no_run(tiny, monkeypatch):
    decoder, _ = tiny
    monkeypatch.setattr(decoder, "cache_tokens", 60)
    sampler = fastpower.make_sampler("mh", alpha=2.0, max_new_tokens=16, moves=3)
    results = fastpower.generate(decoder, [PROMPT] * 5, sampler, seed=2)
    assert len(results) == 5 and all(r.complete for r in results)


@needs_llama
def test_it_loads_by_name_and_says_what_it_cannot_do(tmp_path):
    path = tmp_path / "tiny model.gguf"
    tiny_gguf.write(path, "qwen2", ("Q8_0",))
    model = fastpower.load(f"llama.cpp:{path}", cache_tokens=256, decoder_options={"threads": 1})
    assert isinstance(model.decoder, LlamaCppDecoder) and isinstance(model.decoder, base.Decoder)
    assert not model.decoder.batch_invariant and model.decoder.cache_tokens == 256
    sampler = fastpower.make_sampler("mh", alpha=4.0, max_new_tokens=8)
    assert fastpower.generate(model, [PROMPT], sampler, seed=1)[0].token_ids
    with pytest.raises(ValueError, match="weights='q8' cannot be applied"):
        fastpower.load(f"llama.cpp:{path}", weights="q8")
    with pytest.raises(TypeError, match="cache_tokens, gpu_layers, threads as decoder_options, got \\['page_size'\\]"):
        fastpower.load(f"llama.cpp:{path}", decoder_options={"page_size": 8})
    with pytest.raises(ModelNotFound, match="there is no file"):
        fastpower.load("llama.cpp:nowhere.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(InvalidModelFile, match=r"does not load .*text\.gguf"):
        fastpower.load(f"llama.cpp:{tmp_path / 'text.gguf'}")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        LlamaCppDecoder(path, threads=0)


def test_without_the_library_the_remedy_is_named(monkeypatch, tmp_path):
    from fastpower.decoders.llama_cpp import library as module

    load, found = fastpower.load, importlib.import_module

    def missing(name):
        if not name.startswith("llama_cpp"):
            return found(name)
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", missing)
    module.library.cache_clear()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackendUnavailable, match=r"'\.\[llama-cpp\]'"):
        load(f"llama.cpp:{tmp_path / 'model.gguf'}")
    module.library.cache_clear()
    assert library is module


def test_every_function_of_llama_cpp_that_is_called_is_listed():
    folder = Path(library.__file__).parent
    called = set(re.findall(r"api\.(llama_\w+)", "".join(path.read_text() for path in folder.glob("*.py"))))
    assert called == {i.name.removeprefix("llama_cpp.") for i in INTERFACES if i.library == "llama_cpp"}


# ------------------------------------------------------------------------ the packaged model


@pytest.fixture(scope="module")
def packaged():
    try:
        [path] = packaged_files(PACKAGED_MODELS[0])
    except Exception as error:
        pytest.skip(str(error))
    return fastpower.load(f"llama.cpp:{path}", cache_tokens=4096)


@needs_llama
@pytest.mark.model
def test_the_packaged_model_agrees_with_our_own_decoder(packaged):
    ours = fastpower.load()
    ids = ours.tokens("The capital of France is")
    assert packaged.tokens("The capital of France is") == ids
    assert packaged.decoder.decode(packaged.decoder.encode("Grüße, 世界")) == "Grüße, 世界"
    rows = []
    for model in (packaged, ours):
        sequence = model.decoder.add()
        [scores] = model.decoder.score([Work(sequence, ids)], np.array([4], np.float32))
        rows.append(scores)
        model.decoder.free(sequence)
    # llama.cpp rounds activations to 8 bits before products with Q4_1 weights; ours keeps them
    difference = np.abs(rows[0].logp - rows[1].logp)
    assert difference.mean() < 0.3 and difference.max() < 2


@needs_llama
@pytest.mark.model
def test_two_ways_to_a_prefix_differ_by_noise(packaged):
    decoder = packaged.decoder
    ids = packaged.tokens("Write a function that adds two numbers.")
    parent, fresh = decoder.add(), decoder.add()
    decoder.forward([Work(parent, ids)], draws([0], len(ids)))
    decoder.forward([Work(parent, [100, 200, 300])], draws([0], len(ids) + 3))
    child = decoder.fork(parent, len(ids) - 2)
    decoder.truncate(parent, len(ids) - 2)
    out = [
        decoder.forward([Work(s, t)], draws([0], len(ids)))
        for s, t in ((parent, ids[-2:]), (child, ids[-2:]), (fresh, ids))
    ]
    assert out[0].logz == out[1].logz  # fork and truncation leave the same cells
    assert abs(out[0].entropy - out[2].entropy) < NOISE and abs(out[0].logz - out[2].logz) < NOISE
    for sequence in (parent, child, fresh):
        decoder.free(sequence)


@needs_llama
@pytest.mark.model
@pytest.mark.parametrize("method, options", [("mh", {"moves": 2}), ("ec_mh", {"moves": 2}), ("smc", {})])
def test_exact_samplers_run_on_the_packaged_model(packaged, method, options):
    sampler = fastpower.make_sampler(method, alpha=4.0, max_new_tokens=16, **options)
    [result] = fastpower.generate(packaged, "What is 2 + 2?", sampler, seed=1)
    assert result.complete and result.text and np.isfinite(result.logp)
    assert packaged.decoder.stats()["sequences"] == 0
