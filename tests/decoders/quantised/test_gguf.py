"""A GGUF file read directly is the model that transformers has with the dequantised weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fastpower
from fastpower.decoders.base import Work
from fastpower.decoders.quantised import QuantisedDecoder
from fastpower.decoders.transformers import TransformersDecoder
from tests import tiny_gguf

pytest.importorskip("gguf")

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
SAMPLER = fastpower.MetropolisHastings(fastpower.PowerTarget(alpha=2.0, horizon=12), moves=3)


def load(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would say that transformers unpacks it
        model = fastpower.load(path, cache_tokens=options.pop("cache_tokens", 4096), **options)
    assert isinstance(model.decoder, QuantisedDecoder)
    return model


def tokens(count=60, seed=0):
    return np.random.default_rng(seed).integers(2, tiny_gguf.VOCAB, count).tolist()


def log_probabilities(model, text):
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0].log_softmax(-1).numpy()


def logits(decoder, text):
    sequence = decoder.add()
    with decoder._packer.reserved([Work(sequence, text)]) as batch, torch.inference_mode():
        found = decoder._all_logits(batch).clone()
    decoder.free(sequence)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("formats", [tiny_gguf.MIXED, tiny_gguf.MIXED_K, ("Q8_0",)], ids="-".join)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_equal_transformers_on_the_dequantised_weights(tmp_path, architecture, formats, tied):
    reference = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, formats, tied)
    model, text = load(tmp_path / "tiny.gguf"), tokens()
    expected = log_probabilities(reference, text)
    ours = logits(model.decoder, text).log_softmax(-1).numpy()
    assert np.abs(ours - expected).max() <= 4e-3  # tokens of any probability
    assert (ours.argmax(-1) == expected.argmax(-1)).all()
    scores = model.decoder.score([Work(model.decoder.add(), text)], np.array([1.0], np.float32))[0]
    np.testing.assert_allclose(scores.logp, expected[np.arange(len(text) - 1), text[1:]], atol=2e-3, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rotary_and_context_come_from_the_file(tmp_path, architecture):
    changes = {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "context_length": 77}
    reference = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, **changes)
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    config = reference.config
    if architecture == "gemma3":
        config.rope_parameters = {**config.rope_parameters, "full_attention": rope}
    else:
        config.rope_parameters = rope
    reference.model.rotary_emb = type(reference.model.rotary_emb)(config)
    model, text = load(tmp_path / "tiny.gguf"), tokens()
    assert model.decoder.max_length == 77
    ours = logits(model.decoder, text).log_softmax(-1).numpy()
    assert np.abs(ours - log_probabilities(reference, text)).max() <= 2e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("formats", [tiny_gguf.MIXED, tiny_gguf.MIXED_K], ids="-".join)
def test_rows_have_the_same_bits_alone_together_in_chunks_and_on_any_threads(tmp_path, formats, dtype, threads):
    tiny_gguf.write(tmp_path / "tiny.gguf", "qwen2", formats)
    decoder = load(tmp_path / "tiny.gguf", dtype=dtype).decoder
    assert decoder.batch_invariant
    texts = [tokens(count, seed) for seed, count in enumerate((40, 7, 23, 1, 12, 30))]
    threads(1)
    alone = [logits(decoder, text)[-1] for text in texts]
    for count in (1, 2, 3):
        threads(count)
        sequences = [decoder.add() for _ in texts]
        with torch.inference_mode():
            for sequence, text in zip(sequences, texts, strict=True):
                for begin in range(0, len(text) - 1, 5):
                    with decoder._packer.reserved([Work(sequence, text[:-1][begin : begin + 5])]) as batch:
                        decoder._last_logits(batch)
            work = [Work(sequence, text[-1:]) for sequence, text in zip(sequences, texts, strict=True)]
            with decoder._packer.reserved(work) as batch:
                together = decoder._last_logits(batch).clone()
        for sequence in sequences:
            decoder.free(sequence)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def records(results):
    return [(r.token_ids, r.token_logp, r.token_logz, r.entropy) for r in results]


def test_records_have_the_same_bits_under_lanes_parking_and_prefix_reuse(tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", "llama", tiny_gguf.MIXED)
    prompts = [tokens(20, 1), [*tokens(20, 1)[:15], 9], tokens(5, 2)]
    options = {"seed": 3, "chains": 3, "fixed_length": True}
    expected = records(fastpower.generate(load(tmp_path / "tiny.gguf"), prompts, SAMPLER, max_rows=1, **options))
    for cache_tokens, rows in ((4096, 64), (160, 64), (4096, 3)):
        model = load(tmp_path / "tiny.gguf", cache_tokens=cache_tokens)
        for _ in range(2):  # the second time remembered prefixes are found
            assert records(fastpower.generate(model, prompts, SAMPLER, max_rows=rows, **options)) == expected


def test_tokenizer_and_end_come_from_the_file(tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", "qwen2")
    model = load(tmp_path / "tiny.gguf")
    assert model.decoder.eos_ids == {1}
    assert model.tokenizer.name_or_path == str(tmp_path / "tiny.gguf")
    assert model.tokens("abc") == [0, tiny_gguf.TOKENS.index("ab"), tiny_gguf.TOKENS.index("c"), 1]
    assert model.text(model.tokens("abc")) == "abc"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("formats", [("F32", "Q8_0", "Q4_0"), ("BF16", "Q5_1"), ("Q4_1", "F16", "Q8_0")], ids="-".join)
def test_plain_matrices_beside_quantised_ones_are_used_as_they_are(tmp_path, formats, tied):
    reference = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", formats, tied)
    decoder, text = load(tmp_path / "tiny.gguf").decoder, tokens()
    found = logits(decoder, text)
    assert np.abs(found.log_softmax(-1).numpy() - log_probabilities(reference, text)).max() <= 2e-3
    assert torch.equal(logits(decoder, text[:1])[0], found[0])
    assert torch.equal(logits(decoder, text[:7])[6], found[6])


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"rope.scaling.type": "yarn"}, {}, "its rotary scaling is 'yarn'"),
        ({"expert_count": 8}, {}, "it is a mixture of experts"),
        ({}, {"dtype": "float16"}, "dtype='float16' was asked for"),
        ({}, {"decoder_options": {"accelerate": False}}, "decoder_options={'accelerate': False} chooses another"),
        ({}, {"attn_implementation": "eager"}, "attn_implementation can only be given to transformers"),
    ],
)
def test_what_cannot_be_read_directly_is_unpacked_by_transformers_and_says_why(tmp_path, changes, options, reason):
    from fastpower.decoders.quantised.loading import open_gguf

    tiny_gguf.write(tmp_path / "tiny.gguf", "qwen2", **changes)
    passed = dict(options)
    with pytest.warns(UserWarning, match=f"tiny.gguf: .*{reason}.*; so transformers unpacks its weights"):
        found = open_gguf(
            [tmp_path / "tiny.gguf"],
            dtype=passed.pop("dtype", "float32"),
            options=passed.pop("decoder_options", {}),
            kwargs=passed,
        )
    assert found is None


def test_a_file_of_plain_floats_goes_the_old_way(tmp_path):
    pytest.importorskip("accelerate")
    reference = tiny_gguf.write(tmp_path / "tiny.gguf", "qwen2", ("F32",))
    with pytest.warns(UserWarning, match="its weights are not quantised"):
        model = fastpower.load(tmp_path / "tiny.gguf", cache_tokens=256)
    assert type(model.decoder) is TransformersDecoder
    text = tokens()
    ours = logits(model.decoder, text).log_softmax(-1).numpy()
    assert np.abs(ours - log_probabilities(reference, text)).max() <= 1e-4
