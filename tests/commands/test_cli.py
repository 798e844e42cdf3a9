"""The command line on the packaged model, and generate's promises."""

from __future__ import annotations

import json

import pytest

import fastpower
from fastpower.cli import main
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import Interrupted, PromptTooLong

PROMPTS = ["What is 2 + 2?", "Name a colour.", "Say hi.", "1 2 3", "Why?", "Count to three.", "A word:", "Is 7 prime?"]
FAST = ["--max-new-tokens", "6", "--block", "3", "--moves", "2", "--quiet"]


def run_json(capsys, *argv) -> list[dict]:
    assert main(["sample", *argv, "--json", *FAST]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.model
def test_sample_prints_one_json_object_with_everything_needed(capsys, smollm2):
    [record] = run_json(capsys, PROMPTS[0], "--method", "mh", "--alpha", "4", "--seed", "3")
    wanted = {"text", "token_ids", "logp", "acceptance", "moves", "decoded_tokens", "seed", "method", "alpha"}
    assert wanted <= set(record)
    assert record["seed"] == 3 and record["method"] == "mh" and record["alpha"] == 4.0
    assert abs(sum(record["token_logp"]) - record["logp"]) < 1e-9


@pytest.mark.model
def test_same_seed_same_tokens_also_beside_seven_other_prompts(capsys, smollm2):
    [alone] = run_json(capsys, PROMPTS[2])
    [again] = run_json(capsys, PROMPTS[2])
    together = {record["id"]: record for record in run_json(capsys, *PROMPTS)}  # in the order of finishing
    assert len(together) == len(PROMPTS)
    assert alone["token_ids"] == again["token_ids"] == together[alone["id"]]["token_ids"]
    assert alone["token_logp"] == together[alone["id"]]["token_logp"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["sample", ""], "empty"),
        (["sample", "x", "--alpha", "0"], "alpha must be a finite number > 0, got 0.0"),
        (["sample", "x", "--alpha", "nan"], "alpha must be a finite number > 0, got nan"),
        (["sample", "x", "--method", "mhh"], "did you mean 'mh'"),
        (["sample", "x", "--max-new-tokens", "0"], "horizon must be at least 1"),
        (["sample", "x", "--model", "no/such/model.gguf"], "no/such/model.gguf"),
    ],
)
def test_bad_input_is_named_on_stderr(capsys, argv, message):
    assert main(argv) in (2, 3)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.model
def test_a_model_that_does_not_fit_exits_with_2_and_names_both_sizes(capsys, monkeypatch, smollm2):
    monkeypatch.setattr("fastpower.models.memory.available", lambda device="cpu": 60 << 20)
    assert main(["sample", "x"]) == 2
    assert "as it is stored needs 93.8 MiB, and 60.0 MiB are available on cpu" in capsys.readouterr().err


def toy_model() -> fastpower.LanguageModel:
    return fastpower.load(ToyDecoder(random_logits(4, 11, eos=3), 4, [3], max_length=40))


def test_generate_keeps_the_order_of_prompts_and_chains():
    sampler = fastpower.make_sampler("mh", max_new_tokens=8)
    results = fastpower.generate(toy_model(), [[1], [2], [1]], sampler, seed=4, chains=2)
    assert [r.chain for r in results] == [0, 1, 0, 1, 2, 3]
    assert results[0].prompt_id == results[4].prompt_id != results[2].prompt_id
    alone = fastpower.generate(toy_model(), [[2]], sampler, seed=4)
    assert alone[0].token_ids == results[2].token_ids


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed():
    model = toy_model()
    with pytest.raises(PromptTooLong, match="prompt 1 has 39 tokens"):
        fastpower.generate(model, [[1], [1] * 39], fastpower.make_sampler("plain", max_new_tokens=8))
    assert model.decoder.rows == 0


def test_an_interrupt_carries_what_was_finished():
    def stop(scheduler):
        if scheduler.totals.steps == 40:
            raise KeyboardInterrupt

    sampler = fastpower.make_sampler("mh", max_new_tokens=8)
    with pytest.raises(Interrupted) as caught:
        fastpower.generate(toy_model(), [[i % 3] for i in range(30)], sampler, max_rows=2, progress=stop)
    done = [r for r in caught.value.results if r.complete]
    assert any(not r.complete and r.token_ids for r in caught.value.results), "chains under way were lost"
    whole = fastpower.generate(toy_model(), [[i % 3] for i in range(30)], sampler)
    assert done and {r.id: r.token_ids for r in done}.items() <= {r.id: r.token_ids for r in whole}.items()


def test_unknown_settings_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'moves'"):
        fastpower.make_sampler("mh", movs=3)
