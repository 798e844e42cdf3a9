"""The examples run, and do what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import custom_generate, greedy_decoder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["greedy_decoder", "custom_generate"])
def test_example_runs_as_a_program(name):
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py")], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("log p") >= 4


def test_greedy_decoder_gives_the_tokens_of_a_full_recomputation():
    """Ragged, paged and cached against one prefill per token, in a decoder of its own."""
    decoder, fresh = greedy_decoder.Decoder(), greedy_decoder.Decoder()
    prompts = [[1, 5, 9], list(range(100, 137)), [7] * 20]
    sequences = [decoder.add() for _ in prompts]
    logits = decoder.forward(sequences, prompts)
    tokens, logp, _ = greedy_decoder.decode(decoder, sequences, logits, 5, 1000.0, torch.tensor([1, 2, 3]))
    for i, prompt in enumerate(prompts):
        total, history = 0.0, list(prompt)
        for _ in range(5):
            fresh.free, fresh.pages, fresh.lengths = list(range(greedy_decoder.PAGES)), {}, {}
            row = fresh.forward([fresh.add()], [history])[0].log_softmax(0)
            history.append(int(row.argmax()))
            total += float(row.max())
        assert history[len(prompt) :] == tokens[i]
        assert abs(total - float(logp[i])) < 1e-4


def test_forks_continue_from_the_parents_prompt_and_leave_it_alone():
    decoder = greedy_decoder.Decoder()
    parent = decoder.add()
    logits = decoder.forward([parent], [[4] * 21])
    fork = decoder.fork(parent)
    drawn = [greedy_decoder.decode(decoder, [s], logits, 6, 1.0, torch.tensor([5]))[0] for s in (fork, parent)]
    assert drawn[0] == drawn[1] and decoder.pages[fork][1] != decoder.pages[parent][1]


def generate(prompt, **options):
    mask = (prompt != 0).long()
    chosen = dict(max_new_tokens=12, custom_generate=custom_generate.power_generate, seed=3, alpha=2.0)
    return custom_generate.tiny_model().generate(prompt, attention_mask=mask, **{**chosen, **options})


def test_generation_gives_the_same_tokens_alone_as_in_a_padded_batch():
    batch = generate(torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]))
    alone = generate(torch.tensor([[5, 6]]))
    assert alone.shape == (1, 14) and torch.equal(batch[0, 4:], alone[0, 2:])
    assert not torch.equal(alone, generate(torch.tensor([[5, 6]]), seed=4))


def test_recorded_statistics_are_those_of_the_model():
    record = {}
    tokens = generate(torch.tensor([[7, 8, 9, 10]]), record=record)
    logp = custom_generate.tiny_model()(tokens).logits[0, 3:-1].double().log_softmax(-1)
    expected = {
        "logp": logp.gather(1, tokens[0, 4:, None])[:, 0],
        "logz": torch.logsumexp(2 * logp, 1),
        "entropy": -(logp.exp() * logp).sum(1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(record[name][0].double(), value, atol=1e-4, rtol=0)


def test_a_row_stops_at_its_end_token_and_the_others_go_on():
    """The sixth token of row 0 is declared the end: the same draws up to there, then padding and no statistics."""
    prompt, record = torch.tensor([[7, 8, 9, 10], [3, 9, 4, 5]]), {}
    free = generate(prompt)
    end = int(free[0, 9])
    assert end not in free[0, 4:9] and end not in free[1]
    tokens = generate(prompt, eos_token_id=end, record=record)
    assert torch.equal(tokens[0, :10], free[0, :10]) and torch.equal(tokens[1], free[1])
    assert (tokens[0, 10:] == 0).all()
    assert record["logp"].isfinite().sum(1).tolist() == [6, 12]
