"""``model.generate(…, custom_generate=fastpower.custom_generate)`` on a model of random weights."""

from __future__ import annotations

import inspect
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

import fastpower
from fastpower.integrations.transformers import PowerGenerateOutput
from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = dict(max_new_tokens=11, custom_generate=fastpower.custom_generate, block=4, moves=3, seed=5)
PROMPT = torch.tensor([[7, 8, 9, 10]])
BATCH = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def same_by_generate(model: Any, prompts: list[list[int]], sampler: Any, **options: Any) -> list[list[int]]:
    """Answers of fastpower.generate, EOS being the model's."""
    found = fastpower.generate(fastpower.load(model), prompts, sampler, seed=5, **options)
    return [result.token_ids for result in found]


def test_the_answer_is_that_of_fastpower_generate_behind_its_prompt(model: Any) -> None:
    tokens = model.generate(PROMPT, **OPTIONS)
    sampler = fastpower.make_sampler("mh", max_new_tokens=11, block=4, moves=3)
    [expected] = same_by_generate(model, [[7, 8, 9, 10]], sampler)
    assert tokens.dtype == torch.int64 and tokens[0].tolist() == [7, 8, 9, 10, *expected]
    assert torch.equal(tokens, model.generate(PROMPT, **OPTIONS))
    assert not torch.equal(tokens, model.generate(PROMPT, **{**OPTIONS, "seed": 6}))


def test_a_left_padded_batch_gives_each_row_the_answer_it_has_alone(model: Any) -> None:
    tokens = model.generate(BATCH, attention_mask=(BATCH != 0).long(), **OPTIONS)
    alone = model.generate(torch.tensor([[5, 6]]), **OPTIONS)
    assert torch.equal(tokens[:, :4], BATCH)
    width = alone.shape[1] - 2
    assert torch.equal(tokens[0, 4 : 4 + width], alone[0, 2:])
    assert (tokens[0, 4 + width :] == 0).all()


def test_answers_end_at_the_stop_token_of_the_call_and_are_padded_behind_it(model: Any) -> None:
    free = model.generate(BATCH, attention_mask=(BATCH != 0).long(), eos_token_id=None, sampler="plain", **_few())
    assert free.shape == (2, 15)
    stop = next(t for t in free[0, 5:9].tolist() if t not in free[1, 4:].tolist())
    tokens = model.generate(
        BATCH, attention_mask=(BATCH != 0).long(), eos_token_id=stop, pad_token_id=3, sampler="plain", **_few()
    )
    end = free[0].tolist().index(stop)
    assert tokens[0, : end + 1].tolist() == free[0, : end + 1].tolist()
    assert set(tokens[0, end + 1 :].tolist()) == {3}
    assert torch.equal(tokens[1], free[1])


def _few() -> dict[str, Any]:
    return {name: OPTIONS[name] for name in ("max_new_tokens", "custom_generate", "seed")}


def test_return_dict_holds_log_probabilities_and_acceptance(model: Any) -> None:
    out = model.generate(
        PROMPT, return_dict_in_generate=True, num_return_sequences=3, do_sample=True, top_k=0, **OPTIONS
    )
    assert isinstance(out, PowerGenerateOutput) and out.sequences.shape[0] == 3
    assert [result.chain for result in out.results] == [0, 1, 2]
    assert len({tuple(row) for row in out.sequences.tolist()}) > 1, "the chains are not independent"
    for row, result in enumerate(out.results):
        answer = torch.tensor([[7, 8, 9, 10, *result.token_ids]])
        with torch.inference_mode():
            logp = model(answer).logits[0, 3:-1].double().log_softmax(-1)
        expected = logp.gather(1, answer[0, 4:, None]).sum()
        assert abs(float(out.logp[row]) - float(expected)) < 1e-3
        assert float(out.acceptance[row]) == result.acceptance
    plain = model.generate(PROMPT, return_dict_in_generate=True, sampler="plain", **_few())
    assert plain.acceptance.isnan().all()


def test_a_sampler_may_be_given_whole_and_gets_the_horizon_of_the_call(model: Any) -> None:
    sampler = fastpower.MetropolisHastings(fastpower.PowerTarget(alpha=2.0, horizon=999), block=5, moves=2)
    tokens = model.generate(PROMPT, sampler=sampler, **_few())
    named = fastpower.make_sampler("mh", alpha=2.0, max_new_tokens=11, block=5, moves=2)
    assert tokens[0, 4:].tolist() == same_by_generate(model, [[7, 8, 9, 10]], named)[0]
    with pytest.raises(ValueError, match="alpha cannot be given beside a sampler"):
        model.generate(PROMPT, sampler=sampler, alpha=3.0, **_few())


def test_a_loaded_language_model_is_kept_between_calls_and_left_as_it_was(model: Any) -> None:
    ready = fastpower.load(model)
    before = ready.decoder.eos_ids
    tokens = [model.generate(PROMPT, language_model=ready, eos_token_id=9, **OPTIONS) for _ in range(2)]
    assert torch.equal(*tokens) and ready.decoder.eos_ids == before
    assert ready.decoder.stats()["open_plans"] == 0
    with pytest.raises(ValueError, match="made of another model"):
        tiny_model("llama", seed=1).generate(PROMPT, language_model=ready, **OPTIONS)


def test_temperature_and_its_like_are_ignored_with_a_warning(model: Any) -> None:
    with pytest.warns(UserWarning, match="ignored: TemperatureLogitsWarper, TopPLogitsWarper"):
        warped = model.generate(PROMPT, do_sample=True, temperature=0.3, top_p=0.5, top_k=0, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(warped, model.generate(PROMPT, **OPTIONS))


class Never(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"stopping_criteria": StoppingCriteriaList([Never()])}, "Never"),
        ({"max_time": 3.0}, "MaxTimeCriteria"),
        ({"num_beams": 2}, "num_beams = 2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores cannot be had"),
        ({"position_ids": torch.tensor([[3, 4, 5, 6]])}, "position_ids"),
        ({"sampler": "mhh"}, "did you mean 'mh'"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"max_new_tokens": 600}, "context of 512"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPT, **{**OPTIONS, **wrong})


@pytest.mark.parametrize("name", ["past_key_values", "cache", "a_name_to_come"])
def test_an_empty_cache_is_not_needed_and_one_that_holds_tokens_is_refused_under_any_name(
    model: Any, name: str
) -> None:
    """What a decoding loop is called with; transformers named its cache anew in 5.24."""
    config = transformers.GenerationConfig(max_length=15, eos_token_id=torch.tensor([2, 9]), pad_token_id=None)
    options = dict(generation_config=config, block=4, moves=3, seed=5)
    empty, full = transformers.DynamicCache(), transformers.DynamicCache()
    full.update(*torch.zeros(2, 1, 2, 3, 24), 0)
    tokens = fastpower.custom_generate(model, PROMPT, **{name: empty}, **options)
    assert torch.equal(tokens, model.generate(PROMPT, eos_token_id=[2, 9], **OPTIONS))
    with pytest.raises(ValueError, match=f"{name} holds tokens"):
        fastpower.custom_generate(model, PROMPT, **{name: full}, **options)
    with pytest.raises(
        ValueError, match=rf"inputs \['{name}'\] cannot be used \(transformers {transformers.__version__}"
    ):
        fastpower.custom_generate(model, PROMPT, **{name: torch.zeros(1)}, **options)


def test_a_cache_given_to_transformers_own_call_is_refused_if_it_holds_tokens(model: Any) -> None:
    full = transformers.DynamicCache()
    full.update(*torch.zeros(2, 1, 2, 2, 24), 0)
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    with pytest.raises(ValueError, match=r"(cache|past_key_values) holds tokens"):
        model.generate(PROMPT, **{name: full}, **OPTIONS)


def test_the_function_alone_says_who_calls_it(model: Any) -> None:
    with pytest.raises(ValueError, match="called by transformers"):
        fastpower.custom_generate(model, PROMPT)


def test_the_folder_form_runs_with_trust_remote_code(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "power_sampling"
    shutil.copytree(ROOT / "examples" / "power_sampling", folder)
    options = {**OPTIONS, "custom_generate": str(folder), "trust_remote_code": True}
    assert torch.equal(model.generate(PROMPT, **options), model.generate(PROMPT, **OPTIONS))
