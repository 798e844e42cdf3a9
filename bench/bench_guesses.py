"""What do guesses buy one chain? Seconds and steps with and without them, the same answers bit for bit.

python -m bench.bench_guesses [--model PATH] [--dtype bfloat16] [--task code|stories] [--tokens 256] [--chains 3]
python -m bench.bench_guesses --humaneval HumanEval.jsonl --chains 4     prompts of a data file instead
python -m bench.bench_guesses --together 64 --tokens 64 --moves 2        a full batch: what they cost there

Metropolis–Hastings, one chain alone at a time (N = 10, alpha = 4), the four ways taken in turn for every prompt:
neither, moves decoded ahead only, guesses only, and both. Ratios are against neither.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import fastpower
from fastpower import _C, PowerTarget
from fastpower.chains.job import Finished, Job
from fastpower.evaluate.tasks import load_task
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler
from fastpower.scheduler.scheduler import Totals

TASKS = {
    "code": (
        'Complete this function.\ndef common(l1: list, l2: list):\n    """Return sorted unique common elements of two '
        'lists.\n    >>> common([1, 4, 3, 34, 653, 2, 5], [5, 7, 1, 5, 9, 653, 121])\n    [1, 5, 653]\n    """\n',
        'Complete this function.\ndef is_palindrome(text: str) -> bool:\n    """Check whether a text is a palindrome, '
        'ignoring case and spaces.\n    >>> is_palindrome("Never odd or even")\n    True\n    """\n',
        'Complete this function.\ndef fib4(n: int) -> int:\n    """Element n of the sequence fib4(0) = fib4(1) = 0, '
        "fib4(2) = 2, fib4(3) = 0,\n    fib4(n) = fib4(n-1) + fib4(n-2) + fib4(n-3) + fib4(n-4). Without recursion."
        '\n    """\n',
    ),
    "stories": (
        "Write a short story about a lighthouse keeper who finds a letter.",
        "Tell a story about two friends who build a boat.",
        "Write a short poem about the sea in winter.",
    ),
}
WAYS: dict[str, tuple[int | str, int | str]] = {
    "neither": (1, 0),
    "ahead": ("auto", 0),
    "guesses": (1, "auto"),
    "both": ("auto", "auto"),
}


def run(
    model: Any, prompt: list[int], way: str, tokens: int, moves: int, seed: int, together: int = 1
) -> tuple[float, Totals, list[Finished]]:
    """Seconds, totals and the finished chains in order."""
    prefetch, guess = WAYS[way]
    sampler = MetropolisHastings(PowerTarget(4.0, tokens), block=max(1, tokens // 4), moves=moves, prefetch=prefetch)
    scheduler = Scheduler(model.decoder, guess=guess)
    begin = time.perf_counter()
    finished = sorted(
        scheduler.run([Job(sampler, prompt, seed, 0, chain) for chain in range(together)]), key=lambda f: f.job.chain
    )
    seconds = time.perf_counter() - begin
    assert all(one.error is None for one in finished), [one.error for one in finished]
    return seconds, scheduler.totals, finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--task", choices=TASKS, default="code")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--chains", type=int, default=3)
    parser.add_argument("--humaneval", metavar="PATH", help="take the first prompts of this file")
    parser.add_argument("--together", type=int, default=1, help="chains of one prompt in one batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    options = {} if str(args.model).endswith(".gguf") else {"dtype": args.dtype}
    model = fastpower.load(args.model, **options)
    found: dict[str, list[tuple[float, Totals, list[Finished]]]] = {way: [] for way in args.ways}
    run(model, model.tokens(TASKS[args.task][0]), args.ways[0], 4, 2, 0)  # warms up
    texts = TASKS[args.task]
    if args.humaneval:
        texts = tuple(
            problem.question for problem in load_task("humaneval", data=args.humaneval).problems[: args.chains]
        )
    for chain in range(args.chains):
        prompt = model.tokens([{"role": "user", "content": texts[chain % len(texts)]}])
        for way in args.ways:
            found[way].append(run(model, prompt, way, args.tokens, args.moves, chain, args.together))
        answers = {tuple(tuple(f.outcome.record.tokens) for f in runs[-1][2]) for runs in found.values()}
        assert len(answers) == 1, "the ways disagree"
    print(
        f"{args.together} together, {args.humaneval or args.task}, {args.tokens} tokens, "
        f"N = {args.moves}, {args.chains} prompts"
    )
    print("way        seconds  faster   steps  ms/step  tokens fed  guesses kept  fed in vain  acceptance")
    first = sum(seconds for seconds, _, _ in found[args.ways[0]])
    for way, runs in found.items():
        seconds, steps = sum(s for s, _, _ in runs), sum(t.steps for _, t, _ in runs)
        counts = [finished.chain.counts for _, _, together in runs for finished in together]
        kept, vain = sum(c.guesses_kept for c in counts), sum(c.guesses_dropped for c in counts)
        rate = sum(c.accepted for c in counts) / max(1, sum(c.moves for c in counts))
        fed = sum(t.tokens for _, t, _ in runs)
        print(
            f"{way:<9} {seconds / len(runs):8.2f} {first / seconds:7.2f} {steps / len(runs):7.0f} "
            f"{1e3 * seconds / steps:8.1f} {fed / len(runs):11.0f} {kept / len(runs):13.0f} {vain / len(runs):12.0f} "
            f"{rate:11.2f}"
        )


if __name__ == "__main__":
    main()
