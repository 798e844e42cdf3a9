"""llama.cpp's decoder beside our own on the same GGUF file, in one run: tokens/s, and what a fork takes.

    python -m bench.bench_llama_cpp --model model.gguf

Both are driven through the same protocol, two rounds each in turn; the table has medians and the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

import fastpower
from fastpower.decoders.base import Draws, Work
from fastpower.measure.throughput import decode_rate

BATCHES = (1, 4, 16)


def fork_us(decoder, length=256, count=50):
    """Microseconds of a fork at ``length`` tokens and of giving it back."""
    sequence = decoder.add()
    one = np.ones(1, np.float32)
    draws = Draws(one, one, *(np.zeros(1, t) for t in (np.int64, np.uint64, np.int64)), np.full(1, -1))
    decoder.forward([Work(sequence, [5] * length)], draws)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        decoder.free(decoder.fork(sequence, length - 1))
        times.append(time.perf_counter() - start)
    decoder.free(sequence)
    return statistics.median(times) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="FILE", help="a GGUF file that both read")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    models = {
        "llama.cpp": fastpower.load(f"llama.cpp:{args.model}", cache_tokens=8192),
        "ours": fastpower.load(args.model, cache_tokens=8192),
    }
    found = {name: {f"tokens/s, {b} rows": [] for b in BATCHES} | {"fork, us": []} for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            for batch in BATCHES:
                rate = decode_rate(model.decoder, batch, prompt=128, seconds=args.seconds, bandwidth=1.0)
                found[name][f"tokens/s, {batch} rows"].append(rate.tokens_per_second)
            found[name]["fork, us"].append(fork_us(model.decoder))
    table = {name: {k: statistics.median(v) for k, v in values.items()} for name, values in found.items()}
    if args.json:
        print(json.dumps(table))
        return
    for key in table["ours"]:
        ours, theirs = table["ours"][key], table["llama.cpp"][key]
        print(f"{key:20} ours {ours:9.1f}   llama.cpp {theirs:9.1f}   ratio {ours / theirs:5.2f}")


if __name__ == "__main__":
    main()
