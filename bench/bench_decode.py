"""Plain decoding through TransformersDecoder against Hugging Face ``generate``, and where each millisecond goes.

python -m bench.bench_decode [--model NAME] [--dtypes bfloat16 float32] [--batches 1 16] [--prompt 128] [--new 256]

Both draw from the full vocabulary at temperature 1 (``generate(do_sample=True, top_k=0)``) and never stop early. They
alternate; the printed ratio is the median of the ratios of neighbouring runs. The floor of a step is what has to be
read once: the weights that multiply (embedding counted as head) and the K/V of every row at half of the new tokens,
over the read bandwidth measured in this run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import numpy as np
import torch

from bench.machine import facts, read_bandwidth
from fastpower import _C
from fastpower.decoders import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model


def draws(rows: int, position: int, seed: int) -> Draws:
    keys = np.arange(rows, dtype=np.uint64) + np.uint64(1000 * seed)
    return Draws(
        alpha=np.ones(rows, np.float32),
        exponents=np.array([4.0], np.float32),
        rows=np.arange(rows),
        keys=keys,
        positions=np.full(rows, position),
        exclude=np.full(rows, -1),
    )


def decode(decoder, prompts, new, seed, parts=None):
    """Seconds of (prefill, decoding) of ``new`` tokens after every prompt; adds up the seconds of a step's parts."""
    rows, position = len(prompts), len(prompts[0])
    sequences = [decoder.add() for _ in prompts]
    start = time.perf_counter()
    drawn = decoder.forward([Work(s, p) for s, p in zip(sequences, prompts, strict=True)], draws(rows, position, seed))
    middle = time.perf_counter()
    for step in range(1, new):
        work = [Work(s, [t]) for s, t in zip(sequences, drawn.token.tolist(), strict=True)]
        drawn = decoder.forward(work, draws(rows, position + step, seed))
        if parts is not None and decoder._fused is not None:
            for name, value in decoder._fused.times().items():
                parts[name] += value
    end = time.perf_counter()
    for sequence in sequences:
        decoder.free(sequence)
    return middle - start, end - middle


def generate(model, prompts, new):
    """Seconds of ``generate`` as a whole."""
    start = time.perf_counter()
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
        )
    assert out.shape[1] == ids.shape[1] + new
    return time.perf_counter() - start


def step_bytes(decoder, rows, context):
    """What one decode step must read."""
    model, layout = decoder.model, decoder.layout
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not tied:
        weights -= embedding.numel() * embedding.element_size()
    per_token = 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * layout.dtype.itemsize
    return weights, rows * context * per_token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--generic", action="store_true", help="transformers' modules with packed products, not fused")
    arguments = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    print(json.dumps(facts()))
    rng = np.random.default_rng(0)
    for dtype in arguments.dtypes:
        model, tokenizer = load_model(arguments.model, dtype=dtype)
        decoder = TransformersDecoder(model, tokenizer, cache_tokens=max(arguments.batches) * 1024)
        if arguments.generic:
            decoder._fused = None
            decoder._substitution.accelerate()
        for rows in arguments.batches:
            prompts = rng.integers(100, 10000, (rows, arguments.prompt)).tolist()
            parts: dict[str, float] = defaultdict(float)
            decode(decoder, prompts, 4, 0)
            generate(model, prompts, 4)
            ours, theirs = [], []
            for repeat in range(arguments.repeats):
                ours.append(decode(decoder, prompts, arguments.new, repeat, parts))
                theirs.append(generate(model, prompts, arguments.new))
            total = statistics.median(sum(times) for times in ours)
            steps = arguments.repeats * (arguments.new - 1)
            step = sum(times[1] for times in ours) / steps
            prefill = statistics.median(times[0] for times in ours)
            weights, kv = step_bytes(decoder, rows, arguments.prompt + arguments.new // 2)
            floor = (weights + kv) / read_bandwidth() / 1e9
            ratio = statistics.median(b / sum(a) for a, b in zip(ours, theirs, strict=True))
            tokens = rows * arguments.new
            print(
                f"\n{dtype} batch {rows}: ours {tokens / total:.1f} tokens/s, generate "
                f"{tokens / statistics.median(theirs):.1f} tokens/s, ratio {ratio:.2f}; "
                f"prefill {prefill * 1e3:.0f} ms, "
                f"step {step * 1e3:.2f} ms"
            )
            print(
                f"floor {floor * 1e3:.2f} ms, {floor / step:.0%} of the step (weights {weights >> 20} MiB, "
                f"K/V {kv >> 20} MiB at {read_bandwidth():.1f} GB/s)"
            )
            spent = {name: value / steps for name, value in parts.items()}
            spent["draw, books, Python"] = step - sum(spent.values())
            for name, value in spent.items():
                print(f"  {name:>22} {value * 1e3:8.3f} ms {value / step:6.1%}")
        decoder.close()


if __name__ == "__main__":
    main()
