"""``load(model, weights="q8" | "q4")``: a checkpoint, rounded while it is loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastpower
from fastpower.decoders.base import Work
from fastpower.decoders.quantised import QuantisedDecoder
from fastpower.errors import UnsupportedModel
from fastpower.kernels import quantise
from tests import tiny_gguf

KINDS = {"q8": ("Q8_0", "Q8_0"), "q4": ("Q4_0", "Q8_0")}


def tiny(architecture="llama", tied=False, seed=0):
    torch.manual_seed(seed)
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(tiny_gguf.configuration(architecture, ("Q8_0",), tied)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(
                float(parameter.ndim == 1) * float(parameter.mean() == 1) + size * torch.randn_like(parameter)
            )
    return model


def rounded(model, kind):
    """The model that the quantised weights are, in plain float32."""
    inner, outer = KINDS[kind]
    outer_modules = {id(model.lm_head.weight), id(model.model.embed_tokens.weight)}
    with torch.no_grad():
        for parameter in list(model.parameters()):
            if parameter.ndim == 2:
                format = outer if id(parameter) in outer_modules else inner
                parameter.copy_(quantise(parameter, format).dequantise())
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_it_is_the_model_of_the_rounded_weights(architecture, tied, kind):
    text = np.random.default_rng(0).integers(2, tiny_gguf.VOCAB, 50).tolist()
    model = tiny(architecture, tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = fastpower.load(model, weights=kind, cache_tokens=512)
    assert isinstance(ready.decoder, QuantisedDecoder) and ready.decoder.batch_invariant
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # it is left as it is
    scores = ready.decoder.score([Work(ready.decoder.add(), text)], np.array([1.0], np.float32))[0]
    with torch.no_grad():
        expected = rounded(model, kind)(torch.tensor([text])).logits[0].log_softmax(-1)
    wanted = expected[torch.arange(49), torch.tensor(text[1:])].numpy()
    np.testing.assert_allclose(scores.logp, wanted, atol=2e-3, rtol=0)


def test_a_folder_is_loaded_and_its_floats_are_not_kept(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(tiny_gguf.TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    ready = fastpower.load(str(tmp_path), weights="q4", dtype="bfloat16", cache_tokens=512)
    assert ready.decoder.model is None and ready.decoder.layout.dtype == torch.bfloat16
    assert ready.decoder.weights.formats == {"Q4_0": 10, "Q8_0": 1}
    assert 1 in ready.decoder.eos_ids
    assert fastpower.generate(ready, [[3, 4]], fastpower.make_sampler("plain", max_new_tokens=3))


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="weights='q5' is not one of 'q8', 'q4'"):
        fastpower.load(tiny(), weights="q5")
    with pytest.raises(ValueError, match='dtype="float32" or "bfloat16", got \'float16\''):
        fastpower.load(tiny(), weights="q8", dtype="float16")
    with pytest.raises(ValueError, match="runs on the CPU, got device='cuda'"):
        fastpower.load(tiny(), weights="q8", device="cuda")
    with pytest.raises(ValueError, match=r"does not go with decoder_options={'compile': True}"):
        fastpower.load(tiny(), weights="q8", decoder_options={"compile": True})
    from tests.tiny_models import tiny_model

    with pytest.raises(UnsupportedModel, match=r"GPT2LMHeadModel is not one of"):
        fastpower.load(tiny_model("gpt2"), weights="q8")
    with pytest.raises(UnsupportedModel, match=r"rows of multiples of 32, .* has 144"):
        fastpower.load(tiny_model("llama"), weights="q8")
    pytest.importorskip("gguf")
    tiny_gguf.write(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=r"the weights of m\.gguf are what its file says"):
        fastpower.load(tmp_path / "m.gguf", weights="q8")
