"""A Hugging Face generation loop that draws with fastpower's kernel: ``model.generate(…, custom_generate=…)``.

    python examples/custom_generate.py

Everything else stays with transformers: the model, its cache, its logits processors and stopping criteria. One call of
``sample_tokens`` replaces softmax and multinomial, and returns what power sampling needs: per token log p, the
log-weight log Σ p^alpha, and the entropy. Draws are keyed by (seed, row, position), so a row's tokens do not depend on
what it is batched with.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastpower.kernels import sample_tokens
from fastpower.random import derive


def power_generate(
    model, input_ids, logits_processor, stopping_criteria, generation_config, alpha=4.0, seed=0, record=None, **kwargs
):
    """Draw every token from softmax(alpha · logits). ``record``, a dict, receives logp, logz and entropy, (rows, new
    tokens) each; positions after a row's end are NaN."""
    rows, device = input_ids.shape[0], input_ids.device
    signed = [key - 2**64 if key >= 2**63 else key for key in (derive(seed, "row", row) for row in range(rows))]
    keys = torch.tensor(signed, device=device)
    alphas = torch.full((rows,), float(alpha), device=device)
    exponents = torch.tensor([float(alpha)], device=device)
    mask = kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    caches = ("cache", "past_key_values")  # its name from transformers 5.24 on, and before
    cache, feed = {name: kwargs[name] for name in caches if kwargs.get(name) is not None}, input_ids
    going = torch.ones(rows, dtype=torch.bool, device=device)
    pad = generation_config.pad_token_id or 0
    statistics = []
    while going.any():
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -feed.shape[1] :]
        out = model(feed, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **cache)
        cache = {name: out[name] for name in out if name in caches}
        scores = logits_processor(input_ids, out.logits[:, -1].float())
        drawn = sample_tokens(
            scores.contiguous(), alphas, exponents, torch.arange(rows, device=device), keys, mask.sum(1)
        )
        token = torch.where(going, drawn.token, pad)
        values = torch.stack([drawn.logp, drawn.logz[:, 0], drawn.entropy])
        statistics.append(values.masked_fill(~going, torch.nan))
        feed = token[:, None]
        input_ids = torch.cat([input_ids, feed], dim=1)
        mask = torch.cat([mask, torch.ones_like(feed)], dim=1)
        going = going & ~stopping_criteria(input_ids, None)
    if record is not None:
        record.update(zip(("logp", "logz", "entropy"), torch.stack(statistics, dim=2), strict=True))
    return input_ids


def tiny_model():
    """A Llama of random weights; the output layer is scaled up, or it would be nearly uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(8)
    return model


def main():
    model = tiny_model()
    prompt = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])  # left-padded
    options = dict(attention_mask=(prompt != 0).long(), max_new_tokens=12, custom_generate=power_generate, seed=3)
    answers = {}
    for alpha in (1.0, 4.0):
        record = {}
        tokens = model.generate(prompt, alpha=alpha, record=record, **options)
        answers[alpha] = tokens
        for row in range(2):
            logp, logz = record["logp"][row].nansum().item(), record["logz"][row].nansum().item()
            print(f"alpha = {alpha}: {tokens[row, 4:].tolist()}  log p = {logp:.2f}, log weight = {logz:.2f}")
    return answers


if __name__ == "__main__":
    main()
