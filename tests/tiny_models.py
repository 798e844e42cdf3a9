"""Models of a few thousand parameters for every architecture that has a path of its own."""

import torch
import transformers

SIZES = dict(
    vocab_size=331,
    hidden_size=144,
    intermediate_size=150,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def configuration(kind):
    match kind:
        case "llama":
            return transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
        case "llama3":  # its rotary scaling, biases and no tying
            rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
            return transformers.LlamaConfig(**SIZES, rope_parameters=rope, attention_bias=True, mlp_bias=True)
        case "mistral":
            return transformers.MistralConfig(**SIZES, head_dim=16, sliding_window=7)
        case "qwen2":
            return transformers.Qwen2Config(**SIZES)
        case "qwen3":
            return transformers.Qwen3Config(**SIZES, head_dim=40)
        case "gemma3":
            layers = ["sliding_attention", "full_attention", "sliding_attention"]
            return transformers.Gemma3TextConfig(
                **SIZES, head_dim=40, sliding_window=7, query_pre_attn_scalar=24, layer_types=layers
            )
        case "phi3":
            return transformers.Phi3Config(**SIZES)
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=331, n_embd=84, n_layer=2, n_head=6, n_positions=512, bos_token_id=1, eos_token_id=2
            )
    raise ValueError(kind)


def tiny_model(kind, dtype=torch.float32, seed=0):
    """Random weights large enough that every part of the model moves the logits."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configuration(kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.ndim > 1 else 0.2
            centre = 1.0 if parameter.ndim == 1 and float(parameter.mean()) == 1.0 else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    return model.to(dtype)
