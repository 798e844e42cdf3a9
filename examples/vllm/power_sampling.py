"""Best-of-N and power SMC on vLLM, through its prefix cache and the processor beside this file.

    python examples/vllm/power_sampling.py --model FOLDER --particles 8 --max-tokens 64

vLLM has no fork: a particle goes on as a new request whose prompt is the old prompt and the tokens so far, and the
prefix cache gives back what it has of them, in whole blocks. So SMC runs in segments of one block, resamples between
them, and the partial block behind the prompt is computed again for every particle.
docs/engines/vllm.md says what has to be installed and set.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
from power_processor import DRAWN, PowerProcessor, settings
from vllm import LLM, SamplingParams

from fastpower import arrays  # noqa: F401  (the kernels are there, or this fails before a model is loaded)
from fastpower.random import derive


def generate(llm, prompts, params):
    """Token ids of every prompt's answer, in order."""
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


def key(seed, *path):
    """64 bits for the draws of one particle, signed as DLPack and torch have them."""
    return int(np.uint64(derive(seed, *path)).astype(np.int64))


def best_of_n(llm, prompt, args):
    """N answers of p; the one of the largest log p."""
    params = [
        settings(f"best{i}", key(args.seed, "best", i), 1.0, max_tokens=args.max_tokens) for i in range(args.particles)
    ]
    answers = generate(llm, [prompt] * args.particles, params)
    logp = [sum(d.logp for d in DRAWN.pop(f"best{i}")) for i in range(args.particles)]
    return answers[int(np.argmax(logp))], logp


def smc(llm, prompt, args):
    """Power SMC with proposal p^alpha: particles of p(x)^alpha, and the estimate of log Z."""
    n, rng = args.particles, np.random.default_rng(args.seed)
    tokens, weights, log_z, eos = [[] for _ in range(n)], np.zeros(n), 0.0, llm.get_tokenizer().eos_token_id
    for segment in range(math.ceil(args.max_tokens / args.block)):
        going = [i for i in range(n) if not tokens[i] or tokens[i][-1] != eos]
        if not going:
            break
        names = [f"smc{segment}.{i}" for i in going]
        params = [
            settings(name, key(args.seed, "smc", segment, i), args.alpha, start=len(tokens[i]),
                     max_tokens=min(args.block, args.max_tokens - len(tokens[i])))
            for name, i in zip(names, going, strict=True)
        ]  # fmt: skip
        answers = generate(llm, [prompt + tokens[i] for i in going], params)
        for name, i, answer in zip(names, going, answers, strict=True):
            weights[i] += sum(d.logz for d in DRAWN.pop(name)[: len(answer)])  # p^alpha over its own normaliser
            tokens[i] = tokens[i] + answer
        top = weights.max()
        mean = top + math.log(np.exp(weights - top).mean())
        share = np.exp(weights - mean) / n
        ess = 1 / (share**2).sum()
        print(f"  segment {segment}: {len(going)} particles go on, ESS {ess:.1f}")
        if ess < n / 2:
            at = (np.arange(n) + rng.random()) / n
            ancestors = np.minimum(np.searchsorted(share.cumsum(), at, side="right"), n - 1)
            tokens, weights, log_z = [list(tokens[a]) for a in ancestors], np.zeros(n), log_z + mean
    top = weights.max()
    share = np.exp(weights - top)
    log_z += top + math.log(share.mean())
    return tokens[int(rng.choice(n, p=share / share.sum()))], log_z


def speed(llm, prompt, args):
    """Tokens a second of plain sampling, by vLLM alone and by the processor's draws."""
    plain = [SamplingParams(temperature=1.0, max_tokens=args.max_tokens, ignore_eos=True)] * args.particles
    ours = [settings(f"speed{i}", i, 1.0, max_tokens=args.max_tokens, ignore_eos=True) for i in range(args.particles)]
    rates = {}
    for _ in range(2):  # the second round counts: the first fills caches
        for name, params in (("vLLM's sampler", plain), ("our draws", ours)):
            start = time.perf_counter()
            answers = generate(llm, [prompt] * args.particles, params)
            rates[name] = sum(map(len, answers)) / (time.perf_counter() - start)
    DRAWN.clear()
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--prompt", default="def is_prime(n):")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--block", type=int, default=32, help="tokens between resamplings: vLLM's block size")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="vLLM's compiled mode; a minute more to load")
    args = parser.parse_args()
    llm = LLM(
        model=args.model, dtype="bfloat16", max_model_len=1024, block_size=args.block, enable_prefix_caching=True,
        enforce_eager=not args.compile, logits_processors=[PowerProcessor],
    )  # fmt: skip
    tokenizer = llm.get_tokenizer()
    prompt = tokenizer.encode(args.prompt)
    answer, logp = best_of_n(llm, prompt, args)
    print(f"best of {args.particles}: log p {min(logp):.2f} to {max(logp):.2f}, the best: {tokenizer.decode(answer)!r}")
    again, _ = best_of_n(llm, prompt, args)
    print(f"the same seed again: {'the same tokens' if again == answer else 'other tokens'}")
    answer, log_z = smc(llm, prompt, args)
    print(f"power SMC, alpha {args.alpha}: log Z {log_z:.2f}: {tokenizer.decode(answer)!r}")
    for name, rate in speed(llm, prompt, args).items():
        print(f"{name}: {rate:.1f} tokens/s")


if __name__ == "__main__":
    main()
