"""A cut law of one's own: where a Metropolis–Hastings move cuts an answer.

    python examples/custom_cut_law.py

A law says how probable each position is for a given answer; the ratio that keeps the sampler exact is made from that.
This one cuts early positions more often, because a change there changes more.
"""

from dataclasses import dataclass

import numpy as np

import fastpower
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.samplers.cuts import CutLaw


@dataclass(frozen=True)
class EarlyCut(CutLaw):
    """λ(m | x) ∝ decay^m."""

    decay: float = 0.8

    def probabilities(self, entropy, horizon):
        weights = self.decay ** np.arange(len(entropy))
        return weights / weights.sum()


def main(chains=20):
    model = ToyDecoder(random_logits(8, 3, eos=7, eos_bias=-1.0), 8, eos_ids=[7])
    target = fastpower.PowerTarget(alpha=4.0, horizon=24)
    for cut in (EarlyCut(), EarlyCut(decay=0.5)):
        sampler = fastpower.MetropolisHastings(target, block=8, moves=10, cut=cut)
        results = fastpower.generate(model, [[0]], sampler, chains=chains)
        cuts = [event["cut"] for result in results for event in result.trace]
        logp = np.mean([result.logp for result in results])
        print(f"{cut}: mean cut {np.mean(cuts):.1f}, mean log p {logp:.2f}")
    return results


if __name__ == "__main__":
    main()
