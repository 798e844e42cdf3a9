"""What the decoder does when its model changes after loading, or is not whole on one device."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import transformers as hf

from fastpower import PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.errors import UnsupportedModel
from fastpower.models import load_model
from fastpower.samplers import Plain
from fastpower.scheduler import Scheduler
from tests.tiny_models import configuration, tiny_model

TEXT = [5 + i * 7 % 300 for i in range(37)]


def logz(decoder: TransformersDecoder, sequence: int, tokens: list[int]) -> float:
    draws = Draws(
        np.ones(1, np.float32),
        np.array([2.0], np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.uint64),
        np.zeros(1, np.int64),
        np.full(1, -1),
    )
    return float(decoder.forward([Work(sequence, tokens)], draws).logz[0, 0])


def fresh(decoder: TransformersDecoder) -> float:
    sequence = decoder.add()
    found = logz(decoder, sequence, TEXT)
    decoder.free(sequence)
    return found


def remembered(decoder: TransformersDecoder) -> int:
    sequence, length = decoder.match(TEXT[:-1])
    decoder.free(sequence)
    return length


def remember(decoder: TransformersDecoder) -> None:
    sequence = decoder.add()
    logz(decoder, sequence, TEXT)
    decoder.remember(sequence, TEXT)
    decoder.free(sequence)


def test_a_hook_set_later_ends_batch_invariance_and_reuse_until_it_is_removed():
    model = tiny_model("llama")
    with TransformersDecoder(model, cache_tokens=400) as decoder:
        remember(decoder)
        assert decoder.batch_invariant and remembered(decoder) == 32
        handle = model.model.layers[1].register_forward_hook(lambda module, args, out: out * 1.25)
        assert not decoder.batch_invariant and remembered(decoder) == 0
        decoder.cache.forget()
        remember(decoder)
        handle.remove()
        assert decoder.batch_invariant
        assert remembered(decoder) == 0, "K/V of the hooked model were kept"


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_forget_packs_the_weights_again_and_drops_what_was_remembered(kind):
    model = tiny_model(kind)
    with TransformersDecoder(model, cache_tokens=400) as decoder:
        remember(decoder)
        before = fresh(decoder)
        # A write that torch does not count as one: only ``forget`` can know of it.
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        decoder.forget()
        assert remembered(decoder) == 0
        assert fresh(decoder) != before
        with TransformersDecoder(model, cache_tokens=400) as other:
            assert fresh(decoder) == fresh(other)


def test_forget_is_refused_while_sequences_hold_old_keys_and_values():
    with TransformersDecoder(tiny_model("llama"), cache_tokens=400) as decoder:
        sequence = decoder.add()
        logz(decoder, sequence, TEXT)
        decoder.remember(sequence, TEXT)
        with pytest.raises(ValueError, match="1 sequences still hold K/V of the old weights: free them first"):
            decoder.forget()
        assert remembered(decoder) == 32
        decoder.free(sequence)
        decoder.forget()
        assert remembered(decoder) == 0 and decoder.stats()["free_pages"] == decoder.stats()["pages"]


def test_a_finished_run_leaves_nothing_that_forget_would_refuse():
    with TransformersDecoder(tiny_model("llama"), cache_tokens=400) as decoder:
        finished = list(Scheduler(decoder).run([Job(Plain(PowerTarget(1.0, 5)), TEXT)]))
        assert decoder.stats()["sequences"] > 0, "the record keeps its branch"
        del finished
        gc.collect()
        assert decoder.stats()["sequences"] == 0
        decoder.forget()


# -------------------------------------------------------------------------------------------------------- placement


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    hf.AutoModelForCausalLM.from_config(
        hf.LlamaConfig(
            vocab_size=331, hidden_size=48, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(path)  # fmt: skip
    return path


def loaded(folder, **options):
    return hf.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def test_a_device_map_that_names_one_device_is_passed_through(folder):
    pytest.importorskip("accelerate")
    mapped = TransformersDecoder(loaded(folder, device_map={"": "cpu"}), cache_tokens=100)
    assert fresh(mapped) == fresh(TransformersDecoder(loaded(folder), cache_tokens=100))


def test_a_device_map_over_several_places_is_refused(folder, tmp_path):
    pytest.importorskip("accelerate")
    places = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    model = loaded(folder, device_map={**places, "lm_head": "disk"}, offload_folder=tmp_path)
    with pytest.raises(UnsupportedModel, match="spread over cpu, disk by its device_map: load it on one device"):
        TransformersDecoder(model, cache_tokens=100)


def test_weights_on_no_device_are_refused():
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(configuration("llama"))
    with pytest.raises(UnsupportedModel, match="weights on meta"):
        TransformersDecoder(model.eval(), cache_tokens=100)


@pytest.mark.parametrize("name", ["tp_size", "fsdp_size"])
def test_a_sharded_model_is_refused(monkeypatch, name):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), name, property(lambda self: 2), raising=False)  # 5.17 has no fsdp_size
    with pytest.raises(UnsupportedModel, match=f"sharded over 2 processes \\({name}\\).*fastpower.integrations.ray"):
        TransformersDecoder(model, cache_tokens=100)


def test_tp_plan_reaches_transformers(monkeypatch, folder):
    seen = {}

    def from_pretrained(location, **options):
        seen.update(options)
        raise RuntimeError("far enough")

    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(hf.AutoTokenizer, "from_pretrained", lambda *args, **options: None)
    with pytest.raises(RuntimeError, match="far enough"):
        load_model(folder, tp_plan="auto", device_map=None)
    assert seen["tp_plan"] == "auto" and "device_map" in seen
