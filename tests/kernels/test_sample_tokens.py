"""``sample_tokens`` and ``score_tokens``: statistics, the law of the draws, reproducibility, errors."""

import pytest
import torch

from fastpower.kernels import sample_tokens, score_tokens
from tests.kernels.sampling_inputs import make_case, make_logits

BACKENDS = ("reference",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_of_all_tokens_sum_to_one(backend):
    z = make_logits("normal", 1, 127).expand(127, 127)
    scores = score_tokens(z, torch.arange(127), torch.tensor([2.5]), backend=backend)
    assert abs(scores.logp.double().exp().sum().item() - 1) < 1e-5
    torch.testing.assert_close(
        scores.logz[:, 0], torch.log(scores.logp.double().exp().pow(2.5).sum()).float().expand(127)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_drawn_token_has_the_logp_of_score_tokens(backend):
    case = make_case("masked_blocks", rows=3, vocab=9001, draws=20, alpha=1.5)
    drawn = sample_tokens(*case, backend=backend)
    scored = score_tokens(case.logits[case.rows], drawn.token, case.exponents, backend=backend)
    assert torch.equal(drawn.logp, scored.logp)
    assert drawn.logp.isfinite().all()
