"""The packed matrix product against torch.nn.functional.linear and against the read bandwidth.

python -m bench.bench_linear [--rows 1 2 4 8 16 32 64 256] [--shapes 576x576 …] [--dtypes bfloat16 float32]

Each shape uses as many different weights as fill ``--megabytes``, visited in turn, so that they come from memory and
not from a cache; ours and torch's pass over them alternate and the printed ratio is the median of the ratios of
neighbouring passes. GB/s counts the weights; "of read" is the fraction of the read bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from bench.machine import facts, read_bandwidth
from fastpower import _C
from fastpower.kernels import linear, pack_linear


def passes(weights, packed, x, repeats):
    """Seconds per product, (ours, torch's) for each repeat; the first pair warms up and is dropped."""
    pairs = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for weight in packed:
            linear(x, weight)
        middle = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(x, weight)
        end = time.perf_counter()
        pairs.append(((middle - start) / len(packed), (end - middle) / len(weights)))
    return pairs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 256])
    parser.add_argument("--shapes", nargs="+", default=["960x576", "3072x576", "576x1536", "49152x576", "4096x4096"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    print(json.dumps(facts()))
    columns = (("weight", 22), ("rows", 5), ("ours µs", 9), ("GB/s", 6), ("of read", 8), ("GFLOP/s", 8))
    print(*(f"{name:>{width}}" for name, width in (*columns, ("torch µs", 9), ("ratio", 6))))
    with torch.inference_mode():
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            for shape in arguments.shapes:
                out_features, in_features = map(int, shape.split("x"))
                size = out_features * in_features * dtype.itemsize
                count = max(2, (arguments.megabytes << 20) // size)
                weights = [torch.randn(out_features, in_features, dtype=dtype) for _ in range(count)]
                packed = [pack_linear(weight) for weight in weights]
                for rows in arguments.rows:
                    some = count if rows <= 16 else max(2, count // 8)
                    x = torch.randn(rows, in_features).to(dtype)
                    pairs = passes(weights[:some], packed[:some], x, arguments.repeats)
                    ours, torchs = (statistics.median(column) for column in zip(*pairs, strict=True))
                    ratio = statistics.median(b / a for a, b in pairs)
                    bandwidth = size / ours / 1e9
                    speed = 2 * rows * out_features * in_features / ours / 1e9
                    print(
                        f"{str(dtype)[6:] + ' ' + shape:>22} {rows:5d} {ours * 1e6:9.0f} {bandwidth:6.1f} "
                        f"{bandwidth / read_bandwidth():8.0%} {speed:8.0f} "
                        f"{torchs * 1e6:9.0f} {ratio:6.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
