"""Exact Metropolis–Hastings through fastpower against the published procedure written with Hugging Face ``generate``.

python -m bench.bench_procedure --out procedure.json [--moves 10] [--horizon 256] [--only official ours] [--limit 8]
python -m bench.bench_procedure --model PATH --humaneval HumanEval.jsonl --limit 16 --chains 1 --only official alone

Chains: two of each of 8 prompts, T = 256, 16 stages of T/16 tokens, N = 10 moves a stage, α = 4. The end-of-text token
is an ordinary token on both sides, so that every chain makes 16 N moves at the same horizons.

*official*: one prompt at a time; an extension or a proposal is one call of ``generate`` on the whole prefix, which is
prefilled again, with scores and logits of every position kept and log-probabilities gathered afterwards; the
acceptance ratio is that of Karan & Du (arXiv 2510.14901). It is slow, so a sample of it is timed and scaled: all stages
of ``--official-chains`` chains, in each its extension and ``--official-moves`` of its N moves, whose cuts are spread
evenly over the answer (a move's cost is near linear in its cut, so their mean is that of uniform cuts). The printed
line says what was timed and what was scaled.

*ours*: all chains, all moves. *alone*: ``--official-chains`` chains one at a time, all moves, scaled: what one
prompt waits for. The other parts switch one thing off each, at ``--part-moves`` moves a stage, against
``base`` at as many: ``batching`` (one chain at a time; ``--official-chains`` of them, scaled), ``prefill`` (each
rollout is fed its whole prefix), ``epilogue`` (full logits kept, log-softmax twice, multinomial and gather in PyTorch),
``accelerations`` (no skipping to the first difference, no early rejection), ``forward`` (transformers' own modules).

With ``--out`` each part is written as soon as it is there, and parts that the file already has are not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import facts
from fastpower import _C, PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders import Draws, TokenDraws
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.evaluate.tasks import load_task
from fastpower.models import load_model, prompt_tokens
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler

STAGES = 16
PROMPTS = (
    "Write a long story about a lighthouse keeper and her brother.",
    "Explain step by step how bread is made, from the field to the oven.",
    "Describe the history of the violin in detail.",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Explain every step.",
    "Compare three ways to sort a list of numbers.",
    "Write a dialogue between the sun and the moon.",
    "Plan a week of meals for two people who do not eat meat.",
    "Explain why the sky is blue to a child, and then to a physicist.",
)


class Official:
    """The published procedure on one prompt."""

    def __init__(self, model: Any, alpha: float) -> None:
        self.model, self.alpha = model, alpha

    def propose(self, prefix: list[int], length: int) -> tuple[list[int], list[float], list[float]]:
        """``prefix`` continued to ``length`` tokens, with log q and α log p of the new ones."""
        ids = torch.tensor([prefix])
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length - len(prefix),
                do_sample=True,
                temperature=1.0 / self.alpha,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
            )
            logits, scores = torch.stack(out.logits), torch.stack(out.scores)
            if len(out.sequences[0]) != length:
                raise RuntimeError(f"generate returned {len(out.sequences[0])} tokens instead of {length}")
            drawn = out.sequences[0, len(prefix) :].view(-1, 1, 1)
            target = self.alpha * torch.gather(torch.log_softmax(logits, -1), -1, drawn)
            proposal = torch.gather(torch.log_softmax(scores, -1), -1, drawn)
        return out.sequences[0].tolist(), proposal.view(-1).tolist(), target.view(-1).tolist()

    def chain(self, prompt: list[int], horizon: int, moves: int, rng: random.Random) -> tuple[list[float], list[float]]:
        """Per stage: seconds of the extension, and mean seconds of a move (``moves`` of them are made)."""
        x, logq, logp = list(prompt), list[float](), list[float]()
        extensions, means = [], []
        for stage in range(1, STAGES + 1):
            start = time.perf_counter()
            x, new_q, new_p = self.propose(x, len(prompt) + horizon * stage // STAGES)
            extensions.append(time.perf_counter() - start)
            logq, logp = logq + new_q, logp + new_p
            seconds = []
            for i in range(moves):
                cut = int((i + 0.5) / moves * len(logq))
                start = time.perf_counter()
                y, y_q, y_p = self.propose(x[: len(prompt) + cut], len(x))
                log_ratio = sum(y_p) - sum(logp[cut:]) + sum(logq[cut:]) - sum(y_q)
                if rng.random() < np.exp(min(log_ratio, 0.0)):
                    x, logq, logp = y, logq[:cut] + y_q, logp[:cut] + y_p
                seconds.append(time.perf_counter() - start)
            means.append(statistics.fmean(seconds))
        return extensions, means


class EagerEpilogue(TransformersDecoder):
    """The decoder with the epilogue of the published procedure: everything in PyTorch, every row of logits kept."""

    kept: list[torch.Tensor]

    def _draw(self, logits: torch.Tensor, draws: Draws) -> TokenDraws:
        rows = torch.from_numpy(draws.rows)
        alpha = torch.from_numpy(draws.alpha)[:, None]
        scores = logits.float() * alpha
        self.kept = [*self.kept[-255:], logits, scores] if hasattr(self, "kept") else [logits, scores]
        mass = torch.softmax(scores, -1)[rows]
        excluded = torch.from_numpy(draws.exclude)
        mass[excluded >= 0, excluded[excluded >= 0]] = 0.0
        token = torch.multinomial(mass, 1)
        log_p, log_q = torch.log_softmax(logits.float(), -1), torch.log_softmax(scores, -1)
        logz = torch.stack([torch.logsumexp(log_p * float(e), -1) for e in draws.exponents], 1)
        torch.gather(log_q[rows], -1, token)
        return TokenDraws(
            token[:, 0].numpy(),
            torch.gather(log_p[rows], -1, token)[:, 0].numpy(),
            logz.numpy(),
            -(log_p.exp() * log_p).sum(-1).numpy(),
            np.zeros(len(logits), np.int32),
        )


class Bench:
    """The parts, each with its seconds and what was run for them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model, self.tokenizer = load_model(arguments.model, dtype=arguments.dtype)
        self.model.generation_config.eos_token_id = None
        texts: Sequence[str] = PROMPTS
        if arguments.humaneval:
            texts = [problem.question for problem in load_task("humaneval", data=arguments.humaneval).problems]
        texts = texts[: arguments.limit]
        self.prompts = [prompt_tokens(self.tokenizer, text) for text in texts for _ in range(arguments.chains)]

    def official(self) -> dict[str, Any]:
        a = self.arguments
        procedure, rng = Official(self.model, a.alpha), random.Random(1)
        procedure.propose(self.prompts[0], len(self.prompts[0]) + 4)
        per_chain, timed = [], 0.0
        for prompt in self.prompts[:: a.chains][: a.official_chains]:
            extensions, means = procedure.chain(prompt, a.horizon, a.official_moves, rng)
            timed += sum(extensions) + a.official_moves * sum(means)
            per_chain.append(sum(extensions) + a.moves * sum(means))
        return {
            "seconds": statistics.fmean(per_chain) * len(self.prompts),
            "timed_seconds": timed,
            "timed_chains": len(per_chain),
            "timed_moves": len(per_chain) * STAGES * a.official_moves,
            "moves": len(self.prompts) * STAGES * a.moves,
        }

    def run(
        self, moves: int, make: Callable[..., TransformersDecoder] = TransformersDecoder, chains: int | None = None,
        sampler: dict[str, Any] | None = None, decoder_options: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:  # fmt: skip
        a = self.arguments
        prompts = self.prompts[:: a.chains][:chains] if chains else self.prompts
        method = MetropolisHastings(
            PowerTarget(a.alpha, a.horizon), block=a.horizon // STAGES, moves=moves, **(sampler or {})
        )
        room = sum(len(prompt) + 3 * a.horizon for prompt in prompts)
        with make(self.model, self.tokenizer, cache_tokens=room, verify=False, **(decoder_options or {})) as decoder:
            decoder.eos_ids = frozenset()
            warm = Job(MetropolisHastings(PowerTarget(a.alpha, 8), block=4, moves=1), prompts[0])
            list(Scheduler(decoder).run([warm]))
            decoder.cache.forget()
            scheduler = Scheduler(decoder, **options)
            jobs = [Job(method, prompt, 1, f"p{i // a.chains}", i) for i, prompt in enumerate(prompts)]
            start, counts = time.perf_counter(), []
            for finished in scheduler.run(jobs):
                if finished.error is not None:
                    raise finished.error
                counts.append(finished.chain.counts)
            seconds = time.perf_counter() - start
        made = sum(c.moves for c in counts)
        if made != len(prompts) * STAGES * moves:
            raise RuntimeError(f"{made} moves were made instead of {len(prompts) * STAGES * moves}")
        scale = len(self.prompts) / len(prompts)
        return {
            "seconds": seconds * scale,
            "timed_seconds": seconds,
            "timed_chains": len(prompts),
            "timed_moves": made,
            "moves": int(made * scale),
            "decoded_tokens": sum(c.decoded_tokens for c in counts),
            "prefill_tokens": sum(c.prefill_tokens for c in counts),
            "acceptance": sum(c.accepted for c in counts) / made,
        }

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        a = self.arguments
        few = a.part_moves
        off = {"skip": False, "early_rejection": False}
        return {
            "official": self.official,
            "ours": lambda: self.run(a.moves),
            "alone": lambda: self.run(a.moves, chains=a.official_chains, max_chains=1),
            "base": lambda: self.run(few),
            "batching": lambda: self.run(few, chains=a.official_chains, max_chains=1),
            "prefill": lambda: self.run(few, resume=False, share_lanes=False),
            "epilogue": lambda: self.run(few, EagerEpilogue),
            "accelerations": lambda: self.run(few, sampler=off),
            "forward": lambda: self.run(few, decoder_options={"accelerate": False}),
        }


def report(parts: dict[str, dict[str, Any]]) -> None:
    for name, part in parts.items():
        scaled = "" if part["timed_moves"] == part["moves"] else ", scaled from "
        if scaled:
            scaled += f"{part['timed_moves']} moves of {part['timed_chains']} chains in {part['timed_seconds']:.1f} s"
        extra = f", {part['decoded_tokens']} tokens decoded" if "decoded_tokens" in part else ""
        print(f"{name:>14}: {part['seconds']:8.1f} s for {part['moves']} moves{scaled}{extra}")
    if {"official", "ours"} <= parts.keys():
        print(f"official / ours at equal moves: {parts['official']['seconds'] / parts['ours']['seconds']:.1f}")
    if {"official", "alone"} <= parts.keys():
        print(f"official / alone at equal moves: {parts['official']['seconds'] / parts['alone']['seconds']:.1f}")
    for name, part in parts.items():
        if name not in ("official", "ours", "alone", "base") and "base" in parts:
            print(f"without {name}: {part['seconds'] / parts['base']['seconds']:.2f} x the time of base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--horizon", type=int, default=256, help=f"T, a multiple of {STAGES}")
    parser.add_argument("--moves", type=int, default=10, help="N, moves a stage")
    parser.add_argument(
        "--humaneval", metavar="PATH", help="take the first prompts of this file (default: eight texts)"
    )
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--chains", type=int, default=2, help="chains a prompt")
    parser.add_argument("--official-chains", type=int, default=1, help="chains timed one at a time")
    parser.add_argument("--official-moves", type=int, default=1, help="moves timed a stage of the official procedure")
    parser.add_argument("--part-moves", type=int, default=2, help="N of the parts that switch something off")
    parser.add_argument("--only", nargs="+", default=None, help="parts to run (default: all)")
    parser.add_argument("--out", type=Path, default=None, help="JSON file, to which finished parts are added")
    arguments = parser.parse_args()
    if arguments.horizon % STAGES:
        parser.error(f"--horizon must be a multiple of {STAGES}, got {arguments.horizon}")
    torch.set_num_threads(_C.num_threads())
    settings = {k: v for k, v in vars(arguments).items() if k not in ("only", "out")}
    found: dict[str, Any] = {"machine": facts(bandwidth=False), "settings": settings, "parts": {}}
    if arguments.out is not None and arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        if before["settings"] != settings:
            parser.error(f"{arguments.out} was made with other settings: {before['settings']}")
        found = before
    bench = Bench(arguments)
    parts = bench.parts()
    if unknown := set(arguments.only or ()) - parts.keys():
        parser.error(f"unknown parts {sorted(unknown)}; known: {', '.join(parts)}")
    print(json.dumps(found["machine"]))
    for name in arguments.only or parts:
        if name not in found["parts"]:
            found["parts"][name] = parts[name]()
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    report(found["parts"])


if __name__ == "__main__":
    main()
