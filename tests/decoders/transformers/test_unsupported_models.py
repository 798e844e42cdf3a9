"""What cannot run over pages is refused when the decoder is made, by name and with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

from fastpower.decoders.transformers import TransformersDecoder
from fastpower.errors import UnsupportedModel
from tests.tiny_models import tiny_model

SMALL = dict(vocab_size=131, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
REFUSED = {
    "state-space": (
        lambda: hf.MambaConfig(vocab_size=131, hidden_size=32, num_hidden_layers=2, state_size=4),
        "state|attention",
    ),
    "linear attention": (
        lambda: hf.Qwen3NextConfig(
            **SMALL, num_key_value_heads=2, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        ),
        "linear_attention",
    ),
    "convolution": (
        lambda: hf.Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=["conv", "full_attention"]),
        "conv",
    ),
    "attention sinks": (
        lambda: hf.GptOssConfig(
            **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=8
        ),
        "attention sinks",
    ),
    "latent attention": (
        lambda: hf.DeepseekV3Config(
            **SMALL, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
            v_head_dim=8, first_k_dense_replace=2,
        ),
        "latent attention",
    ),
    "odd heads": (lambda: hf.LlamaConfig(**SMALL, head_dim=12), "heads of 12"),
    "attention of its own": (
        lambda: hf.BloomConfig(vocab_size=131, hidden_size=32, n_layer=2, n_head=4),
        "AttentionInterface",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_models_are_refused_by_name(kind):
    config, reason = REFUSED[kind]
    model = hf.AutoModelForCausalLM.from_config(config()).eval()
    with pytest.raises(UnsupportedModel, match=reason):
        TransformersDecoder(model, cache_tokens=64)


def test_encoder_decoder_and_headless_models_are_refused(tiny):
    t5 = hf.T5Config(vocab_size=131, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4)
    with pytest.raises(UnsupportedModel, match="encoder–decoder"):
        TransformersDecoder(hf.T5ForConditionalGeneration(t5).eval())
    with pytest.raises(UnsupportedModel, match="AutoModelForCausalLM"):
        TransformersDecoder(tiny("llama").model)


def test_training_mode_is_refused(tiny):
    model = copy.deepcopy(tiny("llama")).train()
    with pytest.raises(ValueError, match=r"call model\.eval"):
        TransformersDecoder(model)


class CountingLlama(hf.LlamaForCausalLM):
    """A model with a state that no configuration tells of: every token's embedding is mixed with its neighbour's."""

    def forward(self, input_ids=None, **kwargs):
        embeds = self.get_input_embeddings()(input_ids)
        return super().forward(inputs_embeds=embeds + embeds.roll(1, dims=1), **kwargs)


def test_hidden_state_is_found_by_comparing_with_the_models_own_attention(tiny):
    model = CountingLlama(tiny("llama").config).eval()
    model.load_state_dict(tiny("llama").state_dict())
    with pytest.raises(UnsupportedModel, match="outside the K/V cache"):
        TransformersDecoder(model, cache_tokens=64)
    TransformersDecoder(model, cache_tokens=64, verify=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hidden_state_is_found_in_16_bits_too(tiny, dtype):
    model = CountingLlama(tiny("llama").config).eval()
    model.load_state_dict(tiny("llama").state_dict())
    with pytest.raises(UnsupportedModel, match="outside the K/V cache"):
        TransformersDecoder(model.to(dtype), cache_tokens=64)


@pytest.mark.parametrize("size", [50.0, 354.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_whose_keys_have_large_biases_is_not_refused_for_its_own_rounding(size, seed):
    """Qwen2.5 in bfloat16: its eager attention is farther from float32 than ours is."""
    model = tiny_model("qwen2", torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            bias = layer.self_attn.k_proj.bias
            bias.copy_(size * (2 * torch.rand(bias.shape, generator=generator) - 1))
    TransformersDecoder(model.to(torch.bfloat16), cache_tokens=64)


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, 24),
        ({"rope_type": "dynamic", "factor": 2.0}, 96),
        ({"rope_type": "linear", "factor": 2.0}, 96),
    ],
)
def test_context_ends_where_a_rotary_scaling_would_switch(rope, length):
    from fastpower.decoders.transformers.layout import max_length

    original = {"original_max_position_embeddings": 24} if rope["rope_type"] == "longrope" else {}
    config = hf.LlamaConfig(
        max_position_embeddings=96, head_dim=8, rope_parameters={"rope_theta": 1e4, **rope, **original}
    )
    assert max_length(config) == length
