"""Decoding with a GGUF file's own weights against the same weights in bfloat16, step beside step in one process.

    python -m bench.bench_quantised model.gguf [--bfloat16 FOLDER] [--batches 1,16] [--prompt 128] [--rounds 60]

Every round reads the memory once, then lets each decoder take one step at the same context, so that what the machine
does to one it does to all; medians of the rounds, and medians of the ratios inside each. FOLDER: the model as
transformers saved it; without it transformers unpacks the file, which takes a while. Floors are the packed weights and
the K/V of a step over the bandwidth of the same rounds. The first line is JSON with the facts of machine and file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import fastpower
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.measure import machine
from fastpower.measure.throughput import step_bytes
from fastpower.models import load_model


class Rows:
    """Sequences of one decoder that take steps together."""

    def __init__(self, decoder, batch, prompt):
        self.decoder, self.length = decoder, prompt
        tokens = np.random.default_rng(0).integers(0, decoder.vocab_size, (batch, prompt)).tolist()
        self.sequences = [decoder.add() for _ in tokens]
        self.pending = self._forward(tokens)

    def step(self):
        """Seconds of one step."""
        start = time.perf_counter()
        self.pending = self._forward([[token] for token in self.pending])
        self.length += 1
        return time.perf_counter() - start

    def _forward(self, tokens):
        rows = len(tokens)
        draws = Draws(
            alpha=np.ones(rows, np.float32),
            exponents=np.array([4.0], np.float32),
            rows=np.arange(rows),
            keys=np.arange(rows, dtype=np.uint64),
            positions=np.full(rows, self.length),
            exclude=np.full(rows, -1),
        )
        work = [Work(sequence, row) for sequence, row in zip(self.sequences, tokens, strict=True)]
        return self.decoder.forward(work, draws).token.tolist()

    def free(self):
        for sequence in self.sequences:
            self.decoder.free(sequence)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--bfloat16", metavar="FOLDER")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    options = {"cache_tokens": 64 * (arguments.prompt + arguments.rounds + 32)}
    start = time.perf_counter()
    ours = fastpower.load(arguments.gguf, **options).decoder
    loaded = time.perf_counter() - start
    model, _ = load_model(arguments.bfloat16 or arguments.gguf, dtype="bfloat16")
    decoders = {"quantised": ours, "bfloat16": TransformersDecoder(model, None, verify=False, **options)}
    digest = hashlib.sha256(arguments.gguf.read_bytes()).hexdigest()
    facts = machine.facts() | {"file": arguments.gguf.name, "sha256": digest, "load_s": round(loaded, 2)}
    print(json.dumps(facts | {"formats": ours.weights.formats}))
    memory = np.ones(64 << 17)
    for batch in map(int, arguments.batches.split(",")):
        rows = {name: Rows(decoder, batch, arguments.prompt) for name, decoder in decoders.items()}
        times = {name: [] for name in ("memory", *rows)}
        for i in range(arguments.rounds + 3):
            start = time.perf_counter()
            machine.read(memory)
            round_times = {"memory": time.perf_counter() - start, **{name: one.step() for name, one in rows.items()}}
            if i >= 3:
                for name, value in round_times.items():
                    times[name].append(value)
        bandwidth = memory.nbytes / statistics.median(times["memory"])
        print(f"batch {batch}: memory {bandwidth / 1e9:.1f} GB/s")
        for name, one in rows.items():
            step = statistics.median(times[name])
            floor = step_bytes(one.decoder, batch, arguments.prompt + arguments.rounds // 2) / bandwidth
            parts = {part: round(1e3 * value, 2) for part, value in one.decoder._fused.times().items()}
            print(
                f"  {name}: {1e3 * step:.2f} ms (fastest {1e3 * min(times[name]):.2f}), {batch / step:.1f} tokens/s, "
                f"floor {1e3 * floor:.2f} ms, reached {floor / step:.0%}; last step {parts}"
            )
            one.free()
        pairs = zip(times["bfloat16"], times["quantised"], strict=True)
        print(f"  ratio {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
