"""What a device reaches: milliseconds, floor and ratio of every kernel and of whole steps, in one table and one JSON.

python -m bench.device_report [--device cuda] [--rows 1 16 64 256] [--context 1024] [--json device.json]

`make gpu` runs it behind the tests. The model has the shape of a 0.5B Qwen2 (24 layers, 14 query and 2 key/value heads
of 64, a vocabulary of 151,936) and random weights, or is `--model`. Floors are bytes that must be moved over the
bandwidth that torch's copy reaches on this device; kernels' backends are those that the decoder would take. Beside the
steps stands `generate` of transformers, greedy, at as many rows. A part that fails is an error in its place in the
table and in the JSON, and the rest goes on; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fastpower
from fastpower import kernels
from fastpower.measure.machine import device_bandwidth, facts
from fastpower.measure.throughput import decode_rate
from tests.kernels import paging_inputs, sampling_inputs

SHAPE = {"layers": 24, "q_heads": 14, "kv_heads": 2, "head_dim": 64, "hidden": 896, "vocab": 151936}
TINY = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 64, "vocab": 512}


class Report:
    """Measures on one device; ``rows`` are what was found, each with a name, ms, floor_ms and ratio, or an error."""

    def __init__(self, device: torch.device, shape: dict[str, int], dtype: torch.dtype, seconds: float) -> None:
        self.device, self.shape, self.dtype, self.seconds = device, shape, dtype, seconds
        self.bandwidth = device_bandwidth(str(device))
        self.rows: list[dict[str, Any]] = []

    def kernel(self, name: str, call: Callable[[], object], moved: int) -> None:
        """Time ``call``, which has to move so many bytes."""
        self._put(name, lambda: {"ms": 1e3 * self._median(call), "floor_ms": 1e3 * moved / (self.bandwidth * 1e9)})

    def step(self, model: Any, batch: int, context: int) -> None:
        """Decode steps of so many rows behind so much context."""

        def measure() -> dict[str, float | None]:
            rate = decode_rate(model.decoder, batch, prompt=context, seconds=self.seconds, bandwidth=self.bandwidth)
            return {"ms": rate.step_ms, "floor_ms": rate.floor_ms, "tokens_per_second": rate.tokens_per_second}

        self._put(f"step, {batch} rows", measure)

    def generate(self, model: Any, batch: int, context: int, tokens: int) -> None:
        """transformers' own loop on the same weights."""

        def measure() -> dict[str, float | None]:
            ids = torch.randint(0, self.shape["vocab"], (batch, context), device=self.device)
            mask = torch.ones_like(ids)
            options: dict[str, Any] = {
                "attention_mask": mask,
                "do_sample": False,
                "pad_token_id": 0,
                "eos_token_id": None,
            }

            def run(new: int) -> float:
                start = time.perf_counter()
                with torch.inference_mode():
                    model.generate(ids, max_new_tokens=new, min_new_tokens=new, **options)
                self._wait()
                return time.perf_counter() - start

            run(2)
            each = (run(tokens + 1) - run(1)) / tokens
            return {"ms": 1e3 * each, "floor_ms": None, "tokens_per_second": batch / each}

        self._put(f"generate of transformers, {batch} rows", measure)

    def _put(self, name: str, measure: Callable[[], dict[str, float | None]]) -> None:
        try:
            found: dict[str, Any] = measure()
            floor = found["floor_ms"]
            found["ratio"] = None if floor is None else found["ms"] / floor
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        self.rows.append({"name": name, **found})
        print(line(self.rows[-1]), flush=True)

    def _median(self, call: Callable[[], object]) -> float:
        for _ in range(3):
            call()
        self._wait()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
            start = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "error" in row:
        return f"{row['name']:<34} {row['error']}"
    floor, ratio = row["floor_ms"], row["ratio"]
    told = f"{'–':>10} {'–':>7}" if floor is None else f"{floor:10.4f} {ratio:7.2f}"
    rate = f" {row['tokens_per_second']:10.0f}" if "tokens_per_second" in row else ""
    return f"{row['name']:<34} {row['ms']:10.4f} {told}{rate}"


def kernel_calls(report: Report, batch: int, context: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """(name, call, bytes it must move) of every kernel at ``batch`` rows."""
    shape, device = report.shape, report.device
    case = sampling_inputs.make_case("model", batch, shape["vocab"]).to(device)
    yield f"sample_tokens, {batch} rows", lambda: kernels.sample_tokens(*case), case.logits.nbytes
    tokens, exponents = case.logits.argmax(1), case.exponents
    yield (
        f"score_tokens, {batch} rows",
        lambda: kernels.score_tokens(case.logits, tokens, exponents),
        case.logits.nbytes,
    )
    heads = {"q_heads": shape["q_heads"], "kv_heads": shape["kv_heads"], "head_dim": shape["head_dim"]}
    paged = paging_inputs.make_case([context] * batch, dtype=report.dtype, **heads)
    paged = paging_inputs.Case(*(part.to(device) for part in paged))
    moved = 2 * batch * context * shape["kv_heads"] * shape["head_dim"] * report.dtype.itemsize
    yield f"paged_attention, {batch} rows", lambda: kernels.paged_attention(*paged), moved
    key = torch.randn(batch, shape["kv_heads"], shape["head_dim"], dtype=report.dtype, device=device)
    slots = torch.arange(batch, device=device)
    cache = (paged.k_cache, paged.v_cache)
    yield f"append_kv, {batch} rows", lambda: kernels.append_kv(key, key, *cache, slots), 4 * key.nbytes
    caches = [part[None].clone() for part in cache]
    half = min(batch, len(paged.k_cache) // 2)
    pages = torch.arange(2 * half, device=device)
    counts = torch.full((half,), paged.k_cache.shape[1], device=device)
    yield (
        f"copy_pages, {half} pages",
        lambda: kernels.copy_pages(*caches, pages[:half], pages[half:], counts),
        4 * half * paged.k_cache[0].nbytes,
    )


def random_model(shape: dict[str, int], dtype: torch.dtype, device: torch.device, context: int) -> Any:
    """A Qwen2 of this shape with random weights."""
    import transformers

    configuration = transformers.Qwen2Config(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=4864 * shape["hidden"] // 896,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["q_heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=max(4096, 2 * context),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(configuration, dtype=dtype)
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", help="a model instead of random weights of a 0.5B shape")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=1024, help="tokens behind which a step is timed")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--tokens", type=int, default=32, help="that generate of transformers draws")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: whether everything runs, not how fast")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    args = parser.parse_args(argv)
    from fastpower.models.placement import chosen_device

    device = chosen_device(args.device) or torch.device("cpu")
    dtype = getattr(torch, args.dtype)
    report = Report(device, TINY if args.tiny else SHAPE, dtype, args.seconds)
    machine: dict[str, Any] = {**facts(bandwidth=False), "device": str(device), "bandwidth_gb_s": report.bandwidth}
    if device.type == "cuda":
        machine["device"] = torch.cuda.get_device_name(device)
        machine["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    print(json.dumps(machine))
    print(f"{'what':<34} {'ms':>10} {'floor, ms':>10} {'ratio':>7} {'tokens/s':>10}")
    for batch in args.rows:
        for name, call, moved in kernel_calls(report, batch, args.context):
            report.kernel(name, call, moved)
    if args.model:
        model, raw = fastpower.load(args.model, device=args.device, dtype=args.dtype), None
    else:
        raw = random_model(report.shape, dtype, device, args.context)
        model = fastpower.load(raw)
    for batch in args.rows:
        report.step(model, batch, args.context)
        if raw is not None:
            report.generate(raw, batch, args.context, args.tokens)
    if args.json:
        settings = {**vars(args), "json": str(args.json)}
        content = {"machine": machine, "settings": settings, "rows": report.rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    return 1 if any("error" in row for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
