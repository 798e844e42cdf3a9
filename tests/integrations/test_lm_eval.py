"""lm-evaluation-harness runs its tasks on our samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

from fastpower.decoders.toy import ToyDecoder, random_logits  # noqa: E402
from fastpower.errors import PromptTooLong  # noqa: E402
from fastpower.integrations.lm_eval import FastpowerLM  # noqa: E402
from fastpower.language_model import LanguageModel  # noqa: E402
from tests.evaluate.toys import toy_model  # noqa: E402

TASK = """\
task: toy_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["3"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def _request(kind: str, *args: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("toy", 0, 1))


def test_the_model_is_registered_under_its_name_beside_the_harness_s_own() -> None:
    assert get_model("fastpower") is FastpowerLM
    assert "local-chat-completions" in lm_eval.api.registry.model_registry


def test_a_task_of_the_harness_runs_and_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "toy.jsonl").write_text('{"question": "1 2", "answer": "4"}\n{"question": "2 1", "answer": "4"}\n')
    (tmp_path / "toy.yaml").write_text(TASK.format(data=tmp_path / "toy.jsonl"))
    from lm_eval.tasks import TaskManager

    def run() -> dict[str, Any]:
        model = FastpowerLM(toy_model(), method="mh", moves=2, block=3, seed=3)
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        return lm_eval.simple_evaluate(model=model, tasks=["toy_arithmetic"], task_manager=manager, bootstrap_iters=0)

    first, second = run(), run()
    samples = first["samples"]["toy_arithmetic"]
    assert 0.0 <= first["results"]["toy_arithmetic"]["exact_match,none"] <= 1.0
    assert len(samples) == 2 and all("3" not in s["resps"][0][0] for s in samples)
    assert [s["resps"] for s in samples] == [s["resps"] for s in second["samples"]["toy_arithmetic"]]


def test_equal_requests_are_different_chains() -> None:
    model = FastpowerLM(toy_model(), method="plain", seed=1)
    requests = [_request("generate_until", "1 2", {"max_gen_toks": 8}) for _ in range(6)]
    assert len(set(model.generate_until(requests, disable_tqdm=True))) > 1


def test_log_likelihoods_and_greediness_are_the_models_own() -> None:
    toy = toy_model()
    model = FastpowerLM(toy)
    decoder: Any = toy.decoder
    table = decoder.log_probabilities([1, 2])
    best = int(np.argmax(table))
    requests = [_request("loglikelihood", "1 2", f" {token}") for token in range(5)]
    for token, (logp, greedy) in enumerate(model.loglikelihood(requests)):
        assert logp == pytest.approx(table[token], abs=1e-5)
        assert greedy == (token == best)


def test_rolling_log_likelihoods_score_every_token_once_also_in_windows() -> None:
    toy = toy_model()
    decoder: Any = toy.decoder
    tokens = [1, 3, 2, 4, 1, 1, 2, 3, 4, 2, 1]
    text = " ".join(map(str, tokens))
    whole = sum(decoder.log_probabilities([0, *tokens[:i]])[t] for i, t in enumerate(tokens))
    assert FastpowerLM(toy).loglikelihood_rolling([_request("r", text)])[0] == pytest.approx(whole, abs=1e-4)
    small = toy_model()
    small.decoder.max_length = 6
    expected, done, stream = 0.0, 1, [0, *tokens]
    while done < len(stream):
        end = min(len(stream), 6 if done == 1 else done + 3)
        begin = max(0, end - 6)
        expected += sum(decoder.log_probabilities(stream[begin:i])[stream[i]] for i in range(done, end))
        done = end
    assert FastpowerLM(small).loglikelihood_rolling([_request("r", text)])[0] == pytest.approx(expected, abs=1e-4)


def test_wrong_settings_and_long_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no setting 'move'"):
        FastpowerLM(toy_model(), method="mh", move=3)
    small = toy_model()
    small.decoder.max_length = 6
    with pytest.raises(PromptTooLong, match="prompt 0 has 2 tokens"):
        FastpowerLM(small).generate_until([_request("generate_until", "1 2", {"max_gen_toks": 8})], disable_tqdm=True)


def test_the_harness_default_device_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fastpower.integrations.lm_eval.load", lambda *a, **k: asked.append(k["device"]) or toy_model())
    FastpowerLM("some/model", device="cuda")
    FastpowerLM("some/model", device="cuda:0")
    assert asked == ["auto", "auto"]


def _with_tokenizer(first: bool, last: bool = False) -> LanguageModel:
    """The toy model behind a tokenizer of words; 0 is its start and end token, put first and last if asked."""
    words = tokenizers.Tokenizer(WordLevel({"<s>": 0, "1": 1, "2": 2, "3": 3, "4": 4}, unk_token="4"))
    words.pre_tokenizer = WhitespaceSplit()
    template = " ".join(["<s>"] * first + ["$A"] + ["<s>"] * last)
    words.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>")
    return LanguageModel(toy_model().decoder, tokenizer, name="toy", chat=False)


def _expected(tokens: list[int], start: int) -> float:
    decoder: Any = toy_model().decoder
    return sum(float(decoder.log_probabilities(tokens[:i])[tokens[i]]) for i in range(start, len(tokens)))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("context", "continuation", "tokens", "start"),
    [
        ("", "3 4", [0, 3, 4], 1),
        ("", "<s> 3 4", [0, 3, 4], 1),
        (" ", "3 4", [0, 3, 4], 1),
        ("\n", "3", [0, 3], 1),
        ("1 2", " 3", [1, 2, 3], 2),
        ("1 2 ", "3", [1, 2, 3], 2),
        ("<s> 1 2", " 3", [0, 1, 2, 3], 3),
        ("1", "", [1], 1),
        ("", "", [0], 1),
    ],
)
def test_a_start_token_stands_first_once_and_the_continuation_alone_is_scored(
    first: bool, last: bool, context: str, continuation: str, tokens: list[int], start: int
) -> None:
    if first and tokens[0] != 0:
        tokens, start = [0, *tokens], start + 1
    logp, _ = FastpowerLM(_with_tokenizer(first, last)).loglikelihood([_request("l", context, continuation)])[0]
    assert logp == pytest.approx(_expected(tokens, start), abs=1e-5)


@pytest.mark.parametrize("text", ["1 3 2", "<s> 1 3 2"])
@pytest.mark.parametrize("first", [False, True])
def test_rolling_log_likelihoods_begin_behind_one_start_token(first: bool, text: str) -> None:
    found = FastpowerLM(_with_tokenizer(first)).loglikelihood_rolling([_request("r", text)])[0]
    assert found == pytest.approx(_expected([0, 1, 3, 2], 1), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "horizon"),
    [
        ({}, 7),
        ({"max_gen_toks": 3}, 3),
        ({"max_new_tokens": 3}, 3),
        ({"max_tokens": "3"}, 3),
        ({"max_completion_tokens": 3.0}, 3),
        ({"max_length": 5}, 3),
        ({"max_new_tokens": None, "max_tokens": 4}, 4),
        ({"max_gen_toks": 2, "max_new_tokens": 3, "max_length": 9}, 2),
    ],
)
def test_every_name_of_the_horizon_counts(options: dict[str, Any], horizon: int) -> None:
    endless = LanguageModel(ToyDecoder(random_logits(5, seed=7), 5), name="endless")
    model = FastpowerLM(endless, method="plain", max_new_tokens=7)
    assert len(model.generate_until([_request("g", "1 2", options)], disable_tqdm=True)[0].split()) == horizon


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"max_tokens": "many"}, {"max_length": 2}])
def test_a_horizon_without_room_for_an_answer_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FastpowerLM(toy_model()).generate_until([_request("g", "1 2", options)], disable_tqdm=True)


def test_a_long_context_fails_alone() -> None:
    def model() -> FastpowerLM:
        small = toy_model()
        small.decoder.max_length = 9
        return FastpowerLM(small, method="plain", seed=4, max_new_tokens=4)

    long, texts = "1 2 3 4 " * 3, ["1 2", "2 1 3", "4"]
    requests = [_request("g", text, {}) for text in texts]
    alone = model().generate_until(requests, disable_tqdm=True)
    with pytest.warns(UserWarning, match=r"request 1 fails.* 16 tokens.* 9"):
        among = model().generate_until([requests[0], _request("g", long, {}), *requests[1:]], disable_tqdm=True)
    assert among == [alone[0], "", *alone[1:]]
    requests = [_request("l", text, " 3") for text in texts]
    alone_scores = model().loglikelihood(requests)
    with pytest.warns(UserWarning, match="request 0 fails"):
        assert model().loglikelihood([_request("l", long, " 3"), *requests]) == [(-np.inf, False), *alone_scores]
    with pytest.warns(UserWarning), pytest.raises(PromptTooLong, match="none of the 1 requests"):
        model().loglikelihood([_request("l", long, " 3")])


def test_an_empty_context_is_continued_from_the_start_token() -> None:
    assert len(FastpowerLM(toy_model(), method="plain").generate_until([_request("g", "", {})], disable_tqdm=True)) == 1
