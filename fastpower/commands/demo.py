"""``make demo``: one problem, the packaged model, exact Metropolis–Hastings; everything printed is measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

PROBLEM = (
    "A shop sells pens at 3 dollars each. Ana buys 4 pens and pays with a 20 dollar bill. How much change does she get?"
)
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastpower.commands.demo", description=__doc__)
    parser.add_argument("--problem", default=PROBLEM)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--block", type=int, default=32, help="tokens per stage")
    parser.add_argument("--moves", type=int, default=8, help="moves per stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    import fastpower

    print("loading SmolLM2-135M-Instruct (the first start unpacks it, about half a minute) …", file=sys.stderr)
    model = fastpower.load()
    prompt = f"{args.problem} {INSTRUCTION}"
    common = {"alpha": args.alpha, "max_new_tokens": args.max_new_tokens}
    plain = fastpower.generate(model, prompt, fastpower.make_sampler("plain", **common), seed=args.seed)[0]
    sampler = fastpower.make_sampler("mh", block=args.block, moves=args.moves, **common)
    result = fastpower.generate(model, prompt, sampler, seed=args.seed, progress=True)[0]

    print(f"problem         {args.problem}\n")
    print(f"a plain draw    log p = {plain.logp:.2f}, {len(plain.token_ids)} tokens\n{_indent(plain.text)}\n")
    print(f"exact p^{args.alpha:g}       Metropolis–Hastings, seed {args.seed}\n{_indent(result.text)}\n")
    before = result.diagnostics["initial_logp"]
    print(f"log p           {before:.2f} before the last stage's moves → {result.logp:.2f} after")
    print(f"acceptance      {result.acceptance:.2f} of {result.moves} moves ({result.diagnostics['free_moves']} free)")
    print(
        f"tokens decoded  {result.decoded_tokens} for an answer of {len(result.token_ids)}; "
        f"{result.diagnostics['skipped_tokens']} more were skipped as certain to agree"
    )
    print(f"time            {result.seconds:.1f} s (plain: {plain.seconds:.1f} s)")
    return 0


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
