"""GGUF files of a few thousand weights, and the transformers models that they stand for."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from fastpower.kernels.quantised import FORMATS
from tests.kernels.quantised_inputs import random_blocks

#: formats of each matrix, in turn: one format alone, or those that files called Q4_K_M hold
MIXED = ("Q5_0", "Q8_0", "Q4_0", "Q4_1", "Q5_1")
MIXED_K = ("Q4_K", "Q6_K", "Q5_K", "Q8_0")
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TOKENS = ["<s>", "</s>", *(chr(c) for c in range(ord("!"), ord("~") + 1)), "ab", "cd", "Ġ", "Ċ"]
VOCAB = 300
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def configuration(architecture, formats, tied):
    wide = any(format.endswith("K") for format in formats)
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=256 if wide else 96,  # a multiple of 32, not of 256, where the formats allow it
        intermediate_size=256 if wide else 160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64 if wide else 24,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=tied,
    )
    match architecture:
        case "llama":
            return transformers.LlamaConfig(**sizes)
        case "qwen2":
            return transformers.Qwen2Config(**sizes)
        case "qwen3":
            return transformers.Qwen3Config(**sizes)
        case "gemma3":
            layers = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(6)]
            sizes |= {"num_hidden_layers": 6, "sliding_window": 7, "layer_types": layers}
            return transformers.Gemma3TextConfig(**sizes, query_pre_attn_scalar=sizes["head_dim"])
    raise ValueError(architecture)


def write(path, architecture="llama", formats=("Q8_0",), tied=False, seed=0, **changes):
    """Write ``path`` and return the model of its dequantised weights in float32.

    changes: metadata to add or replace (keys without "general." are those of the architecture)."""
    import gguf

    torch.manual_seed(seed)
    config = configuration(architecture, formats, tied)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(str(path), architecture)
    _metadata(writer, architecture, config, changes)
    count = 0

    def matrix(name, parameter, heads=0):
        nonlocal count
        format = formats[count % len(formats)]
        count += 1
        if format in _PLAIN:
            plain = (torch.randn(parameter.shape) / parameter.shape[1] ** 0.5).to(_PLAIN[format])
            stored, values = plain.view(torch.uint8), plain.to(torch.float32)
        else:
            blocks = _blocks(parameter, format, seed + count)
            stored, values = blocks.blocks, blocks.dequantise()
        writer.add_tensor(name, stored.numpy(), raw_dtype=gguf.GGMLQuantizationType[format])
        if heads:  # as llama files have it: pairs to rotate side by side
            values = _halves(values, heads)
        parameter.data.copy_(values)

    def vector(name, parameter, stored=lambda values: values, heads=0):
        centre = 1.0 if parameter.mean() == 1 else 0.0
        values = centre + 0.2 * torch.randn(parameter.shape)
        writer.add_tensor(name, stored(values).numpy())
        parameter.data.copy_(_halves(values[:, None], heads)[:, 0] if heads else values)

    norm = (lambda values: values + 1) if architecture == "gemma3" else (lambda values: values)
    matrix("token_embd.weight", model.model.embed_tokens.weight)
    if not tied:
        matrix("output.weight", model.lm_head.weight)
    vector("output_norm.weight", model.model.norm.weight, norm)
    for i, layer in enumerate(model.model.layers):
        for name, place in _NAMES.items():
            module = layer.get_submodule(place)
            heads = 4 if name == "attn_q" else 2 if name == "attn_k" else 0
            heads = heads if architecture == "llama" else 0
            matrix(f"blk.{i}.{name}.weight", module.weight, heads)
            if module.bias is not None:
                vector(f"blk.{i}.{name}.bias", module.bias, heads=heads)
        for name, place in (_GEMMA_NORMS if architecture == "gemma3" else _NORMS).items():
            vector(f"blk.{i}.{name}.weight", layer.get_submodule(place).weight, norm)
        if hasattr(layer.self_attn, "q_norm"):
            vector(f"blk.{i}.attn_q_norm.weight", layer.self_attn.q_norm.weight, norm)
            vector(f"blk.{i}.attn_k_norm.weight", layer.self_attn.k_norm.weight, norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _metadata(writer, architecture, config, changes):
    base = config.rope_parameters
    base = base["full_attention"] if architecture == "gemma3" else base
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(base["rope_theta"]),
    }
    if architecture == "gemma3":
        values["attention.sliding_window"] = config.sliding_window
    for key, value in (values | changes).items():
        name = key if key.startswith("general.") else f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    tokens = TOKENS + [f"<unused{i}>" for i in range(VOCAB - len(TOKENS))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")


def _blocks(parameter, format, seed):
    """Random blocks, scaled so that a product keeps the size of its rows."""
    blocks = random_blocks(format, *parameter.shape, seed)
    raw = blocks.blocks.numpy().reshape(parameter.shape[0], -1, FORMATS[format].block_bytes)
    size = float(blocks.dequantise().square().mean().sqrt())
    for at in (208,) if format == "Q6_K" else (0, 2) if format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,):
        factors = raw[:, :, at : at + 2].copy().view(np.float16).astype(np.float32) * (
            parameter.shape[1] ** -0.5 / size
        )
        raw[:, :, at : at + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks


def _halves(values, heads):
    """Rows in pairs (2 i, 2 i + 1) of a head → rows in its two halves."""
    rows, *rest = values.shape
    return values.reshape(heads, rows // heads // 2, 2, *rest).transpose(1, 2).reshape(rows, *rest)
