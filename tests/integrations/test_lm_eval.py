"""lm-evaluation-harness runs its tasks on our samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from fastpower.errors import PromptTooLong  # noqa: E402
from fastpower.integrations.lm_eval import FastpowerLM  # noqa: E402
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


def test_the_model_is_registered_under_its_name() -> None:
    assert get_model("fastpower") is FastpowerLM


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
    assert asked == [None, None]
