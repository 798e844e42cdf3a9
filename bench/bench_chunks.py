"""Does a chunk that is drawn at every position cost what as many rows of one token cost? Milliseconds of a forward.

python -m bench.bench_chunks [--model PATH] [--dtype bfloat16] [--context 200] [--sizes 1 2 4 8 16 32]

Per size n, taken in turn, medians: n sequences that are fed one token each (``forward``), and one sequence that is fed
n tokens and drawn at n positions (``verify``). ``Scheduler`` feeds guesses because the second costs little more than
one token as long as a forward waits for the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from fastpower import _C
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model


def draws(count: int, position: int) -> Draws:
    index = np.arange(count)
    alpha, exponents = np.full(count, 4.0, np.float32), np.array([4.0], np.float32)
    return Draws(alpha, exponents, index, index.astype(np.uint64), index + position, np.full(count, -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 6, 8, 12, 16, 24, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype)
    with TransformersDecoder(model, tokenizer, cache_tokens=1 << 14, verify=False) as decoder:
        text = [5 + 7 * i % 900 for i in range(arguments.context)]
        root = decoder.add()
        decoder.forward([Work(root, text)], draws(1, 0))
        seconds: dict[tuple[str, int], list[float]] = {}
        for repeat in range(arguments.repeats + 1):
            for size in arguments.sizes:
                rows = [decoder.fork(root, len(text) - repeat) for _ in range(size)]
                start = time.perf_counter()
                decoder.forward([Work(row, [9 + i]) for i, row in enumerate(rows)], draws(size, 0))
                middle = time.perf_counter()
                decoder.verify(
                    [Work(chunk := decoder.fork(root, len(text) - repeat), text[:size])], [size], draws(size, 0)
                )
                end = time.perf_counter()
                for row in (*rows, chunk):
                    decoder.free(row)
                if repeat:  # the first warms up
                    seconds.setdefault(("rows", size), []).append(middle - start)
                    seconds.setdefault(("chunk", size), []).append(end - middle)
    one = statistics.median(seconds["rows", arguments.sizes[0]])
    print("  n   n rows   chunk of n   chunk / rows   chunk / one token")
    for size in arguments.sizes:
        rows_, chunk_ = (statistics.median(seconds[kind, size]) for kind in ("rows", "chunk"))
        print(f"{size:>3} {1e3 * rows_:8.1f} {1e3 * chunk_:12.1f} {chunk_ / rows_:14.2f} {chunk_ / one:19.2f}")


if __name__ == "__main__":
    main()
