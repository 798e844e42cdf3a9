"""lm-evaluation-harness's own client of chat completions evaluates a task through the server."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("tenacity")
lm_eval = pytest.importorskip("lm_eval")

from fastpower import generate, make_sampler  # noqa: E402

from .served import served  # noqa: E402
from .toys import chatty_model  # noqa: E402

TASK = """\
task: toy_chat
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["3"], max_gen_toks: 9, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = ("1 2", "2 1", "4", "1 1 1")


def test_the_harness_gets_the_answers_of_generate(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = "".join(f'{{"question": "{question}", "answer": "4"}}\n' for question in QUESTIONS)
    (tmp_path / "toy.jsonl").write_text(lines)
    (tmp_path / "toy.yaml").write_text(TASK.format(data=tmp_path / "toy.jsonl"))
    from lm_eval.tasks import TaskManager

    with served(delay="chatty") as server:
        results = lm_eval.simple_evaluate(
            model="local-chat-completions",
            model_args={"model": "mh-3", "base_url": f"{server.url}/v1/chat/completions", "num_concurrent": 1},
            tasks=["toy_chat"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
        )
    answers = [sample["resps"][0][0] for sample in results["samples"]["toy_chat"]]
    sampler = make_sampler("mh", max_new_tokens=9, moves=3)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    expected = generate(chatty_model(), prompts, sampler, seed=1234, stop=["3"])
    assert answers == [result.text for result in expected]
    assert len(set(answers)) > 1
