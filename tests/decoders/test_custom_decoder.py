"""The decoder of ``examples/custom_decoder.py`` keeps the decoder contract."""

import numpy as np
import pytest
import torch

import fastpower
from examples.custom_decoder import RecomputingDecoder, RecurrentModel, main
from fastpower.decoders import Decoder, Draws, Work
from fastpower.decoders.toy import ToyDecoder
from fastpower.errors import InvalidLogits, UnknownSequence
from fastpower.samplers import make_sampler

VOCAB = 29
MODEL = RecurrentModel(VOCAB)


def decoder(model=MODEL) -> RecomputingDecoder:
    return RecomputingDecoder(model, VOCAB, eos_ids=[0], max_length=64)


def one_draw(rows: int) -> Draws:
    each = np.arange(rows)
    alpha, none = np.full(rows, 2.0, np.float32), np.full(rows, -1)
    return Draws(alpha, np.ones(1, np.float32), each, each.astype(np.uint64), each, none)


def test_it_is_a_decoder():
    assert isinstance(decoder(), Decoder)


@pytest.mark.parametrize("method", ["mh", "ec_mh", "smc"])
def test_every_answer_is_that_of_the_enumerable_decoder_on_the_same_model(method):
    """Same seed, same model, two decoders of different make: the same tokens and log-probabilities."""

    def logits(prefix):
        with torch.inference_mode():
            return MODEL(torch.tensor([prefix]))[0, -1].tolist()

    toy = ToyDecoder(logits, VOCAB, eos_ids=[0])
    sampler = make_sampler(method, alpha=2.5, max_new_tokens=11, block=5)
    ours, theirs = (fastpower.generate(d, [[5, 6, 7], [11]], sampler, seed=3, chains=2) for d in (decoder(), toy))
    assert [result.token_ids for result in ours] == [result.token_ids for result in theirs]
    assert len({tuple(result.token_ids) for result in ours}) > 1
    np.testing.assert_allclose([r.logp for r in ours], [r.logp for r in theirs], rtol=1e-5)


def test_a_fork_shares_the_past_and_leaves_its_parent_alone():
    d = decoder()
    parent = d.add()
    d.forward([Work(parent, [5, 6, 7])], one_draw(1))
    child = d.fork(parent, 2)
    d.forward([Work(child, [9])], one_draw(1))
    d.truncate(parent, 1)
    assert (d.length(parent), d.length(child)) == (1, 3)
    fresh = d.add()
    assert d.forward([Work(child, [4])], one_draw(1)).logp == d.forward([Work(fresh, [5, 6, 9, 4])], one_draw(1)).logp


def test_scores_are_the_log_probabilities_of_a_full_pass():
    tokens = [5, 6, 7, 8, 2]
    d = decoder()
    [scores] = d.score([Work(d.add(), tokens)], np.array([1.0, 3.0], np.float32))
    logp = MODEL(torch.tensor([tokens]))[0].detach().double().log_softmax(1)
    np.testing.assert_allclose(scores.logp, [logp[i, token] for i, token in enumerate(tokens[1:])], atol=1e-5)
    np.testing.assert_allclose(scores.logz[:, 1], torch.logsumexp(3 * logp, 1), atol=1e-5)
    np.testing.assert_allclose(scores.entropy, -(logp.exp() * logp).sum(1), atol=1e-5)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda a, b: [Work(a, [1]), Work(a, [2])], ValueError),
        (lambda a, b: [Work(a, [1]), Work(b, [])], ValueError),
        (lambda a, b: [Work(a, [1]), Work(99, [2])], UnknownSequence),
        (lambda a, b: [Work(a, [1]), Work(b, [VOCAB])], IndexError),
    ],
)
def test_a_batch_that_fails_changes_nothing(work, error):
    d = decoder()
    a, b = d.add(), d.add()
    with pytest.raises(error):
        d.forward(work(a, b), one_draw(2))
    assert (d.length(a), d.length(b)) == (0, 0)


def test_nan_logits_are_a_status_of_forward_and_an_error_of_score():
    d = decoder(lambda ids: torch.full((1, ids.shape[1], VOCAB), torch.nan))
    assert d.forward([Work(d.add(), [3])], one_draw(1)).status[0] != 0
    with pytest.raises(InvalidLogits):
        d.score([Work(d.add(), [3])], np.ones(1, np.float32))


def test_it_runs_as_a_program(capsys):
    main()
    assert capsys.readouterr().out.count("log p = ") == 4
