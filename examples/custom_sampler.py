"""A sampler of one's own: independence Metropolis–Hastings, in a generator that says what to decode.

    python examples/custom_sampler.py

Every move draws a whole new answer y from q ∝ p^alpha, token by token, and accepts it with the ratio of p^alpha / q,
which is exp(Σ logz(y) − Σ logz(x)). Batches, caches, randomness and books are not the sampler's business.
"""

import math
from collections import Counter
from dataclasses import dataclass

import fastpower
from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Rollout
from fastpower.decoders.toy import ToyDecoder
from fastpower.random import Purpose


@dataclass(frozen=True)
class Independence:
    """Independence Metropolis–Hastings for p^alpha: exact, and slow to mix where answers are long."""

    target: fastpower.PowerTarget
    moves: int = 8
    method = "independence"

    def run(self, chain):
        alpha, horizon = self.target.alpha, self.target.horizon
        x = None
        for i in range(self.moves + 1):
            suffix = yield Rollout(chain.prompt, len(chain.prompt), horizon, chain.key("move", i), alpha, (alpha,))
            y = Record.empty(chain.prompt).spliced(0, suffix)
            log_ratio = 0.0 if x is None else float(y.logz[:, 0].sum() - x.logz[:, 0].sum())
            accepted = math.log(chain.uniform(Purpose.ACCEPT, "move", i)) < log_ratio
            x = y if accepted else x
            if i > 0:
                chain.moved(accepted)
        return Outcome(x)


def model():
    """Token 0 opens a wide choice, token 1 a sure end: a low temperature prefers the wrong one."""

    def logits(prefix):
        if len(prefix) == 1:
            return [0.6, 0.0, -math.inf, -math.inf]
        return [0.0, 0.1, -0.1, 0.2] if prefix[1] == 0 else [-math.inf, -math.inf, -math.inf, 0.0]

    return ToyDecoder(logits, 4, eos_ids=[3])


def main(chains=400):
    target = fastpower.PowerTarget(alpha=2.0, horizon=2)
    found = {}
    for sampler in (Independence(target), fastpower.LowTemperature(target)):
        results = fastpower.generate(model(), [[0]], sampler, chains=chains)
        found[sampler.method] = Counter(tuple(result.token_ids) for result in results)
    norm = sum(math.exp(2.0 * logp) for logp in model().records([0], 2).values())
    for answer, logp in model().records([0], 2).items():
        target_share = math.exp(2.0 * logp) / norm
        shares = ", ".join(f"{name} {counts[answer] / chains:.3f}" for name, counts in found.items())
        print(f"{answer}: p^2 / Z {target_share:.3f}, {shares}")
    return found


if __name__ == "__main__":
    main()
