"""Negative controls: every mistake found in published code, put into the real samplers, must fail the exactness test.

Each control runs the code with one change and asks the very G-test (or unbiasedness test) that the right code passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.decoders.base import TokenDraws
from fastpower.decoders.toy import ToyDecoder
from fastpower.kernels import sample_tokens
from fastpower.samplers import MetropolisHastings, PowerSMC
from fastpower.samplers.cuts import CutLaw, EntropyJumpCut, UniformCut
from fastpower.samplers.move import MoveKernel
from fastpower.samplers.proposal import redraw
from fastpower.samplers.staged import extend
from fastpower.target import PowerTarget

from .enumeration import Enumeration, branches, finite_law, g_test, toy_models, transition_matrix
from .kernels import smc_law
from .runs import frequencies

ALPHA = 2.5
CHAINS = 4000
FAILS = 1e-6  # a control must be rejected this clearly; the right code passes above 1e-3


@pytest.fixture(scope="module")
def models():
    return toy_models()


# -- acceptance ratios -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SuffixCutToProposal(MoveKernel):
    """Only the positions that both answers have enter the ratio."""

    def log_acceptance(self, x, y, plan):
        n = min(len(x), len(y))
        ratio = y.logz[plan.difference + 1 : n, 0].sum() - x.logz[plan.difference + 1 : n, 0].sum()
        return float(ratio) + math.log(len(x) / len(y))


@dataclass(frozen=True, slots=True)
class WrongSign(MoveKernel):
    """The proposal term is added where it has to be subtracted."""

    def log_acceptance(self, x, y, plan):
        def log_q(r):
            return float((self.alpha * r.logp - r.logz[:, 0])[plan.cut :].sum())

        target = self.alpha * (y.total_logp - x.total_logp)
        return target + log_q(y) - log_q(x) + math.log(len(x) / len(y))


@dataclass(frozen=True, slots=True)
class CappedAtLength(MoveKernel):
    """Proposals stop where the current answer ends."""

    def redraw(self, chain, x, cut, *labels):
        return redraw(chain, x, cut, len(x), chain.key(*labels), self.alpha, self.exponents)


@dataclass(frozen=True)
class NoLengthRatio(UniformCut):
    """Uniform cuts whose 1 / len is forgotten."""

    def log_probability(self, entropy, cut, horizon):
        return 0.0


@dataclass(frozen=True)
class NoJumpRatio(EntropyJumpCut):
    """Entropy-driven cuts without their ratio."""

    def log_probability(self, entropy, cut, horizon):
        return 0.0


@dataclass(frozen=True)
class NeverAtZero(CutLaw):
    """Uniform over the positions after the first."""

    def probabilities(self, entropy, horizon):
        p = np.zeros(len(entropy))
        p[1:] = 1.0 / max(len(entropy) - 1, 1)
        return p


@dataclass(frozen=True)
class WithKernel(MetropolisHastings):
    mistake: type = MoveKernel

    def kernel(self, horizon):
        return self.mistake(ALPHA, horizon, self.cut, (ALPHA,), early_rejection=False)


@dataclass(frozen=True)
class EarlyReturn(MetropolisHastings):
    """Returns at the first block that contains an EOS."""

    def run(self, chain):
        x, trace = Record.empty(chain.prompt), []
        for stage, horizon in enumerate(self.target.stages(self.block)):
            x = yield from extend(chain, x, horizon, self.target.alpha, stage)
            if x.ended:
                break
            x = yield from self.refine(chain, x, horizon, stage, trace)
            if x.ended:
                break
        return Outcome(x)


def p_value(decoder, sampler, cut_law=None) -> float:
    law = (cut_law or UniformCut()).probabilities
    space, expected = finite_law(decoder, ALPHA, [2, 4], lambda s: transition_matrix(s, law), 3)
    return g_test(frequencies(decoder, sampler, CHAINS), space.answers, expected)


SETTINGS = {"target": PowerTarget(ALPHA, 4), "block": 2, "moves": 3}
CONTROLS = {
    "suffix cut to the proposal's length": (WithKernel(**SETTINGS, mistake=SuffixCutToProposal), None),
    "proposals capped at the current length": (WithKernel(**SETTINGS, mistake=CappedAtLength), None),
    "wrong sign of the proposal term": (WithKernel(**SETTINGS, mistake=WrongSign), None),
    "uniform cut without the length ratio": (MetropolisHastings(**SETTINGS, cut=NoLengthRatio()), None),
    "position 0 never cut": (MetropolisHastings(**SETTINGS, cut=NeverAtZero()), None),
    "return at the first block with EOS": (EarlyReturn(**SETTINGS), None),
}


def test_the_right_code_passes(models):
    assert p_value(models["eos"], MetropolisHastings(**SETTINGS)) > 1e-3
    assert p_value(models["eos"], WithKernel(**SETTINGS)) > 1e-3


@pytest.mark.parametrize("sampler, cut_law", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_mistake_is_caught(models, sampler, cut_law):
    assert p_value(models["eos"], sampler, cut_law) < FAILS


def test_an_entropy_cut_without_its_ratio_is_caught():
    alpha = 1.2  # where moves in both directions are frequent
    space, law = finite_law(
        branches(), alpha, [3], lambda s: transition_matrix(s, EntropyJumpCut().probabilities), SETTINGS["moves"]
    )
    options = {"target": PowerTarget(alpha, 3), "block": 3, "moves": 3, "early_rejection": False}
    right = MetropolisHastings(**options, cut=EntropyJumpCut())
    wrong = MetropolisHastings(**options, cut=NoJumpRatio())
    assert g_test(frequencies(branches(), right, CHAINS), space.answers, law) > 1e-3
    assert g_test(frequencies(branches(), wrong, CHAINS), space.answers, law) < FAILS


# -- proposals that lose support -------------------------------------------------------------------------------


class Restricted(ToyDecoder):
    """Draws from a restricted distribution while logp, logz and entropy are those of the full softmax."""

    def restrict(self, logits: np.ndarray, position: int) -> np.ndarray:
        raise TypeError

    def forward(self, work, draws):
        full = super().forward(work, draws)
        rows = [self.restrict(self.row(self._sequences[w.sequence]).copy(), self.length(w.sequence)) for w in work]
        out = sample_tokens(
            torch.from_numpy(np.stack(rows)),
            torch.from_numpy(draws.alpha),
            torch.from_numpy(draws.exponents),
            torch.from_numpy(draws.rows),
            torch.from_numpy(draws.keys.view(np.int64)),
            torch.from_numpy(draws.positions),
        )
        token = out.token.numpy()
        logp = np.array(
            [
                self.log_probabilities(self._sequences[work[r].sequence].prefix())[t]
                for r, t in zip(draws.rows, token, strict=True)
            ],
            np.float32,
        )
        return TokenDraws(token, logp, full.logz, full.entropy, full.status)


class TopK(Restricted):
    def restrict(self, logits, position):
        logits[np.argsort(logits)[:-2]] = -np.inf
        return logits


class TopP(Restricted):
    def restrict(self, logits, position):
        p = np.exp(logits - np.logaddexp.reduce(logits))
        order = np.argsort(-p)
        logits[order[np.cumsum(p[order]) - p[order] >= 0.6]] = -np.inf
        return logits


class BannedEOS(Restricted):
    def restrict(self, logits, position):
        if position < 2:  # the prompt is one token: no EOS as the first answer token
            logits[2] = -np.inf
        return logits


@pytest.mark.parametrize("cls", [TopK, TopP, BannedEOS])
def test_a_restricted_proposal_with_a_full_target_is_caught(models, cls):
    right = models["eos"] if cls is BannedEOS else branches()
    wrong = cls(right._logits, right.vocab_size, right.eos_ids)
    plain = MetropolisHastings(**SETTINGS, skip=False, early_rejection=False)
    assert p_value(wrong, plain) < FAILS
    smc = PowerSMC(PowerTarget(ALPHA, 3), particles=2, threshold=0.9, block=1, ramp=0)
    space = Enumeration(right, ALPHA, 3)
    law, _ = smc_law(space, 2, 0.9)
    expected = np.array([law.get(x, 0.0) for x in space.answers])
    assert g_test(frequencies(wrong, smc, 3000), space.answers, expected) < FAILS


# -- tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_text_does_not_round_trip_so_answers_stay_token_ids(smollm2):
    """Decoding an answer and encoding the text again gives other tokens, hence another log p: records keep ids."""
    _, tokenizer = smollm2
    ids = [token for letter in "unbelievable" for token in tokenizer.encode(letter, add_special_tokens=False)]
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids
