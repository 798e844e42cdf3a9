"""Tiny models with random weights, one per supported architecture."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

ARCHITECTURES = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "qwen3": lambda: hf.Qwen3Config(**SIZES),
    "phi3": lambda: hf.Phi3Config(**SIZES, sliding_window=7),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=9),
    "gemma2": lambda: hf.Gemma2Config(
        **SIZES, sliding_window=5, layer_types=SLIDING, attn_logit_softcapping=0.5, query_pre_attn_scalar=3
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=SLIDING, query_pre_attn_scalar=5),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=131, n_embd=48, n_layer=3, n_head=6, n_positions=96, bos_token_id=1, eos_token_id=None
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=96,
        bos_token_id=1,
        eos_token_id=None,
    ),
}


def build(config: hf.PreTrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A model whose logits spread over a few nats and whose attention is far from uniform."""
    torch.manual_seed(seed)
    # transformers 5.17 runs soft-capped attention through "sdpa", which drops the cap
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.6 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="session")
def tiny():
    """tiny(name): the model of that architecture, float32, made once."""
    made = {}

    def get(name: str) -> hf.PreTrainedModel:
        if name not in made:
            made[name] = build(ARCHITECTURES[name]())
        return made[name]

    return get
