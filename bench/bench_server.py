"""What does the server cost? The same answers through it and through ``generate``, and what a long run leaves behind.

python -m bench.bench_server [--model PATH] [--dtype bfloat16] [--answers 96] [--tokens 48]    overhead
python -m bench.bench_server --minutes 5 [--clients 64]                                        endurance

Overhead: 64 clients of a real server process on loopback ask for as many answers, samplers mixed, as one call of
``run_jobs`` draws in this process; both before and after each other, texts compared. The ratio is of whole wall clocks.

Endurance: for so many minutes every client asks for one answer after the other, some of them giving up half way. What
is printed: answers, how many differed from an earlier one of the same request, p50 and p99 of their seconds, the
server's resident memory over time, and what is held when all are done.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastpower
from fastpower.generation import plan, run_jobs

METHODS = ("plain", "low_temperature", "mh-2", "smc-4", "egps-2", "mtm-2", "csmc-4", "best_of_n-4")
PROMPTS = ("What is 17 * 24?", "Name three rivers.", "Write a line about the sea.", "Why is the sky blue?")


@contextlib.contextmanager
def served(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """Address and process id of ``fastpower serve``, ended with SIGTERM."""
    command = [sys.executable, "-m", "fastpower", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[1], process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(300)


def ask(address: str, body: dict[str, Any], timeout: float = 1200.0) -> str:
    """The text of one answer."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(address + "/v1/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def bodies(count: int, tokens: int) -> list[dict[str, Any]]:
    """Requests, samplers and prompts in turn."""
    turn = [(method, prompt) for prompt in PROMPTS for method in METHODS]
    chosen = [(*turn[i % len(turn)], i // len(turn)) for i in range(count)]
    return [
        {"model": m, "messages": [{"role": "user", "content": p}], "seed": s, "max_tokens": tokens}
        for m, p, s in chosen
    ]


def through_generate(model: Any, requests: list[dict[str, Any]], rows: int) -> tuple[float, list[str]]:
    """Seconds and texts of the same answers without a server."""
    from fastpower.integrations.server.protocol import method_of

    begin, jobs = time.perf_counter(), []
    for body in requests:
        sampler = method_of(body["model"]).sampler(4.0, body["max_tokens"])
        jobs += plan(model, [model.tokens(body["messages"])], sampler, seed=body["seed"])
    texts = {id(job): result.text for job, result in run_jobs(model, jobs, max_rows=rows)}
    return time.perf_counter() - begin, [texts[id(job)] for job in jobs]


def through_server(address: str, requests: list[dict[str, Any]], clients: int) -> tuple[float, list[str]]:
    """Seconds and texts with so many clients at once."""
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        texts = list(pool.map(lambda body: ask(address, body), requests))
    return time.perf_counter() - begin, texts


def overhead(args: argparse.Namespace, arguments: list[str]) -> None:
    requests = bodies(args.answers, args.tokens)
    model = fastpower.load(args.model, dtype=args.dtype)
    through_generate(model, requests[: len(METHODS)], args.max_rows)
    with served(arguments) as (address, _):
        through_server(address, requests[: len(METHODS)], args.clients)
        ratios = []
        for _ in range(args.repeats):
            alone, expected = through_generate(model, requests, args.max_rows)
            through, texts = through_server(address, requests, args.clients)
            assert texts == expected, "an answer differs"
            ratios.append(through / alone)
            print(f"generate {alone:6.2f} s   server {through:6.2f} s   ratio {through / alone:.3f}", flush=True)
    print(f"median ratio {np.median(ratios):.3f} over {args.answers} answers, {args.clients} clients, equal texts")


def endurance(args: argparse.Namespace, arguments: list[str]) -> None:
    requests, first = bodies(4 * len(METHODS) * len(PROMPTS), args.tokens), {}
    seconds: list[float] = []
    counts = dict.fromkeys(("answers", "differed", "given_up", "refused"), 0)
    lock = threading.Lock()
    with served(arguments) as (address, pid):
        end = time.monotonic() + 60 * args.minutes
        memory = [resident(pid)]

        def client(number: int) -> None:
            rng = np.random.default_rng(number)
            while time.monotonic() < end:
                i = int(rng.integers(len(requests)))
                begin, gives_up = time.perf_counter(), rng.random() < 0.05
                try:
                    text = ask(address, requests[i], timeout=0.2 if gives_up else 1200.0)
                except urllib.error.HTTPError as refused:
                    with lock:
                        counts["refused"] += 1
                    time.sleep(float(refused.headers.get("Retry-After", 1)))
                    continue
                except TimeoutError:
                    with lock:
                        counts["given_up"] += 1
                    continue
                with lock:
                    counts["answers"] += 1
                    seconds.append(time.perf_counter() - begin)
                    counts["differed"] += first.setdefault(i, text) != text

        threads = [threading.Thread(target=client, args=(number,)) for number in range(args.clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(10)
            memory.append(resident(pid))
            print(f"{counts}  {memory[-1]:.0f} MB", flush=True)
        with urllib.request.urlopen(address + "/metrics", timeout=60) as response:
            left = re.findall(r"^(fastpower_(?:running|waiting|cache_\w+) .*)$", response.read().decode(), re.MULTILINE)
    p50, p99 = np.percentile(seconds, [50, 99])
    third = len(memory) // 3
    print(f"{counts}\nseconds: p50 {p50:.2f}, p99 {p99:.2f}; {len(seconds) / (60 * args.minutes):.1f} answers/s")
    print(f"memory: {memory[0]:.0f} MB at first, {memory[third]:.0f} after a third, {memory[-1]:.0f} at the end")
    print("left behind:", *left, sep="\n  ")


def resident(pid: int) -> float:
    """Megabytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    arguments = ["--dtype", args.dtype, "--max-rows", str(args.max_rows)]
    arguments += ["--model", args.model] if args.model else []
    (overhead if args.minutes is None else endurance)(args, arguments)


if __name__ == "__main__":
    main()
