"""The same prompt, seed and sampler give the same bits by every door: one plan, one way to name a prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastpower import generate, make_sampler, stream
from fastpower.chains.job import prompt_id
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.runs import read_records
from fastpower.generation import plan
from fastpower.language_model import LanguageModel
from fastpower.results import Results
from fastpower.samplers.islands import combine, split
from fastpower.samplers.methods import Method
from tests.evaluate.toys import toy_model, toy_task

SAMPLER = make_sampler("mh", alpha=2.5, max_new_tokens=11, moves=2, block=4)
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}4{% endif %}"
VOLATILE = ("seconds", "finished", "forwards", "prefill_tokens", "savings", "token_text", "task", "problem", "question")
VOLATILE += ("reference", "answer", "correct", "note")


def chat_model() -> LanguageModel:
    """The toy behind a tokenizer of words with a chat template, so that conversations mean something."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(5)}, unk_token="1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0")
    tokenizer.chat_template = TEMPLATE
    return replace(toy_model(), tokenizer=tokenizer)


def plain(record: Any) -> dict[str, Any]:
    """What decides a record."""
    row = record if isinstance(record, dict) else record.to_dict()
    return {key: value for key, value in row.items() if key not in VOLATILE}


def _ids(model: LanguageModel, prompt: Any, count: int = 1) -> list[tuple[str, int, list[int]]]:
    return [(r.prompt_id, r.chain, r.token_ids) for r in generate(model, prompt, SAMPLER, seed=3, chains=count)]


CONVERSATION = [{"role": "user", "content": "1 2"}]
IDS = [1, 2, 4]  #: what the template makes of it
FORMS: dict[str, Callable[[], Any]] = {
    "text": lambda: "1 2",
    "texts": lambda: ["1 2"],
    "texts of NumPy": lambda: np.array(["1 2"]),
    "conversation": lambda: [CONVERSATION],
    "conversation unwrapped": lambda: CONVERSATION,
    "message": lambda: CONVERSATION[0],
    "content in parts": lambda: [{"role": "user", "content": [{"type": "text", "text": "1 2"}]}],
    "ids": lambda: [IDS],
    "ids unwrapped": lambda: IDS,
    "tuple": lambda: tuple(IDS),
    "list of tuples": lambda: [tuple(IDS)],
    "NumPy": lambda: np.array(IDS),
    "NumPy rows": lambda: np.array([IDS], np.int32),
    "list of NumPy": lambda: [np.array(IDS)],
    "NumPy scalars": lambda: [np.int64(token) for token in IDS],
    "tensor": lambda: torch.tensor(IDS),
    "tensor rows": lambda: torch.tensor([IDS]),
    "list of tensors": lambda: [torch.tensor(IDS, dtype=torch.int32)],
    "list of rows": lambda: [torch.tensor([IDS])],
    "tensor scalars": lambda: list(torch.tensor(IDS)),
    "tokenizer's output": lambda: {"input_ids": [IDS], "attention_mask": [[1, 1, 1]]},
    "tokenizer's output, one text": lambda: {"input_ids": IDS},
    "tokenizer's output, tensors": lambda: chat_model().tokenizer("1 2 4", return_tensors="pt"),
    "tokenizer's output, padded": lambda: {
        "input_ids": torch.tensor([[0, 0, *IDS]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
    },
    "Encoding": lambda: [chat_model().tokenizer("1 2 4")[0]],
    "generator": lambda: (text for text in ["1 2"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_in_any_form_is_one_prompt(form: str) -> None:
    model = chat_model()
    expected = _ids(model, ["1 2"])
    assert _ids(model, FORMS[form]()) == expected and expected[0][0] == prompt_id(IDS)


def test_a_padded_batch_is_its_rows_without_the_padding() -> None:
    model = chat_model()
    model.tokenizer.pad_token = "0"
    for side in ("left", "right"):
        batch = model.tokenizer(["1 2 4", "3"], padding=True, padding_side=side, return_tensors="pt")
        assert _ids(model, batch) == _ids(model, [IDS, [3]])


@pytest.mark.parametrize(
    "prompts, error",
    [
        (b"1 2", r"prompts is bytes, not text: give prompts\.decode\(\)"),
        ([b"1 2"], "prompt 0 is bytes"),
        (["1", None], "prompt 1 must be text, a conversation or token ids, got None"),
        (None, "prompts must be text"),
        (7, "got 7"),
        (torch.tensor(7), "got tensor"),
        ([[1, 2.9]], "2.9 is a float"),
        ([[1, True]], "True is a bool"),
        (np.array([[1.0, 2.0]]), "1.0 is a float"),
        ([1, "2"], "'2' is a str"),
        ([1, [2]], r"\[2\] is a list"),
        ([[1], "", "3"], "prompt 1 = '' is empty"),
        ([[]], r"prompt 0 = \[\] is empty"),
        ({"ids": [1]}, "mapping without input_ids"),
        ([{"content": "1"}], "mapping without input_ids"),
        ([[{"content": "1"}]], "message 0 of prompt 0.*no role"),
        ([[{"role": "user"}]], "no text as its content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content that is not text"),
        ([[{"role": "user", "content": "1"}, "2"]], "mixes kinds"),
        ([[1, 5]], r"must lie in \[0, 5\)"),
        ([[-1]], r"must lie in \[0, 5\)"),
    ],
)
def test_what_is_no_prompt_is_named(prompts: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        generate(chat_model(), prompts, SAMPLER)


def test_no_prompts_have_no_answers() -> None:
    assert len(generate(toy_model(), [], SAMPLER)) == 0


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_that_a_result_shows_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_ids holds 1 and '1'"):
        plan(toy_model(), ["1", "2"], SAMPLER, prompt_ids=[1, "1"])


@pytest.mark.parametrize("names", ["ab", [None, "a"], [1.5, 2], [True, 2], 7, ["a"]])
def test_names_that_are_no_names_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match="prompt_ids must"):
        plan(toy_model(), ["1", "2"], SAMPLER, prompt_ids=names)


def test_a_name_given_by_numpy_is_the_number() -> None:
    first, second = (
        [r.token_ids for r in generate(toy_model(), ["1", "2"], SAMPLER, prompt_ids=ids, chains=3)]
        for ids in ([7, 8], np.array([7, 8]))
    )
    assert first == second


def test_the_same_tokens_in_two_forms_are_further_chains_of_one_prompt() -> None:
    results = generate(chat_model(), ["1 2", IDS, CONVERSATION], SAMPLER, seed=3, chains=2)
    assert [r.chain for r in results] == list(range(6)) and len({r.id for r in results}) == 6


@pytest.mark.parametrize("name", [7, -3, "7", "p"])
def test_islands_apart_choose_as_the_sampler_does_whatever_the_name(name: int | str) -> None:
    sampler = make_sampler("smc", alpha=3.0, max_new_tokens=9, particles=4, block=3, ramp=0, islands=3)
    chosen = set()
    for seed in range(8):
        run = functools.partial(generate, toy_model(), ["1 2"], seed=seed, prompt_ids=[name])
        whole = run(sampler=sampler)[0]
        joined = combine([run(sampler=part)[0].to_dict() for part in split(sampler)])
        assert plain(joined) == plain(whole)
        chosen.add(joined["diagnostics"]["island"])
    assert len(chosen) > 1


# -- doors -------------------------------------------------------------------------------------------------------------

PROMPTS: list[Any] = ["1 2", CONVERSATION, (3, 4), np.array(IDS), torch.tensor([2]), "3"]


@pytest.fixture(scope="module")
def expected() -> Results:
    return generate(chat_model(), PROMPTS, SAMPLER, seed=3, chains=2)


def test_stream_gives_what_generate_does(expected: Results) -> None:
    found = {r.id: plain(r) for r in stream(chat_model(), PROMPTS, SAMPLER, seed=3, chains=2)}
    assert found == {r.id: plain(r) for r in expected}


def test_eval_gives_what_generate_does_under_its_problems_names(tmp_path: Path) -> None:
    task = toy_task(4)
    evaluation = Evaluation(task, [Method("mh", {"moves": 2, "block": 4})], seed=3, chains=2)
    evaluate(evaluation, local_engine(toy_model), tmp_path)
    names = [f"toy/{problem.id}" for problem in task.problems]
    results = generate(toy_model(), [p.question for p in task.problems], SAMPLER, seed=3, chains=2, prompt_ids=names)
    label = {"method": "mh(block=4,moves=2)"}
    found = [plain(record) for record in read_records(tmp_path)]
    assert found == [plain(r.to_dict() | label | {"id": f"{r.prompt_id}/{r.chain}/{label['method']}"}) for r in results]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    from fastpower.integrations.ray import runtime_environment

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=runtime_environment())
    yield
    ray.shutdown()


@pytest.mark.parametrize("names, stop", [(None, ["3 1", "2 2"]), ([1, 2, 2, "a", "b", "c"], None)])
def test_ray_gives_what_generate_does(cluster: None, names: Any, stop: Any) -> None:
    from fastpower.integrations import ray as distributed

    expected = generate(chat_model(), PROMPTS, SAMPLER, seed=3, chains=2, prompt_ids=names, stop=stop)
    found = distributed.map(
        chat_model, PROMPTS, SAMPLER, seed=3, chains=2, prompt_ids=names, stop=stop, workers=1, cpus_per_worker=1
    )
    assert [plain(record) for record in found] == [plain(result) for result in expected]


def test_lm_eval_gives_what_generate_does() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from fastpower.integrations.lm_eval import FastpowerLM

    model = FastpowerLM(toy_model(), method="mh", alpha=2.5, moves=2, block=4, seed=3)
    texts = ["1 2", "3", "1 2"]
    options = {"max_gen_toks": 11}
    requests = [Instance("generate_until", {}, (text, options), i, ("toy", i, 1)) for i, text in enumerate(texts)]
    found = model.generate_until(requests, disable_tqdm=True)
    assert found == [r.text for r in generate(toy_model(), texts, SAMPLER, seed=3)]


# -- samplers by name, and what a call does not have ------------------------------------------------------------------


def test_a_sampler_by_name_is_the_sampler() -> None:
    expected = [plain(r) for r in generate(toy_model(), ["1 2"], SAMPLER, seed=3)]
    for sampler, settings in [
        ("mh(alpha=2.5,max_new_tokens=11,moves=2,block=4)", {}),
        ("mh", {"alpha": 2.5, "max_new_tokens": 11, "moves": 2, "block": 4}),
        ("mh(moves=2,block=4)", {"alpha": 2.5, "max_new_tokens": 11, "moves": 7}),  # what the name says comes first
    ]:
        options: Any = settings
        assert [plain(r) for r in generate(toy_model(), ["1 2"], sampler, seed=3, **options)] == expected
        assert [plain(r) for r in stream(toy_model(), ["1 2"], sampler, seed=3, **options)] == expected


@pytest.mark.parametrize("spec", ["mh", "mh(moves=2)", "low-temperature", "smc(particles=3)", "best_of_n(n=2)"])
def test_names_mean_the_same_by_every_door(spec: str) -> None:
    from fastpower.cli import build_parser
    from fastpower.commands.options import sampler_from
    from fastpower.integrations.transformers import _sampler
    from fastpower.samplers.methods import parse_methods, sampler_named

    expected = sampler_named(spec, alpha=2.5, max_new_tokens=16)
    command = build_parser().parse_args(["sample", "x", "--method", spec, "--alpha", "2.5", "--max-new-tokens", "16"])
    assert sampler_from(command) == expected  # sample
    [method] = parse_methods(spec)
    assert method.sampler(2.5, 16, {"block": None, "moves": None}) == expected  # compare, eval
    assert _sampler(spec, 2.5, 16, block=None, moves=None) == expected  # custom_generate


@pytest.mark.parametrize(
    "options, error",
    [
        ({"stop": [""]}, "stop must be texts of at least one character"),
        ({"stop": 7}, "stop must be a text or several, got 7"),
        ({"until": ["x"]}, "until = .*strings that end an answer are called stop"),
        ({"eos_token_id": 3}, "eos_token_id = 3: answers end at the model's end-of-sequence tokens"),
        ({"temperature": 0.7}, "temperature = 0.7: p.alpha is not a temperature: set alpha"),
        ({"top_p": 0.9}, "would change the distribution"),
        ({"max_tokens": 9}, "called max_new_tokens"),
        ({"n": 4}, "called chains"),
        ({"moves": 4}, r'unknown option moves: settings belong to a sampler, either a named one \("mh", moves=…\)'),
        ({"sampler": "mhh"}, "unknown method 'mhh'.*did you mean 'mh'"),
        ({"sampler": "mh", "movs": 3}, "no setting 'movs'.*did you mean 'moves'"),
        ({"sampler": "mh,plain"}, "names 2 methods where one sampler is needed"),
        ({"sampler": 4.0}, "sampler must be a sampler or the name of one"),
    ],
)
def test_options_that_a_call_does_not_have_say_what_to_do(options: Any, error: str) -> None:
    for door in (generate, lambda *a, **k: next(stream(*a, **k))):
        with pytest.raises(ValueError, match=error):
            door(toy_model(), ["1"], **options)
    settings: Any = {"n": 2, "max_new_tokens": 5}
    assert len(generate(toy_model(), ["1"], "best_of_n", **settings)) == 1  # its own n


@pytest.mark.parametrize("prompt, kept", [("1 2", "1 2"), (CONVERSATION, CONVERSATION), (np.array(IDS), IDS)])
def test_a_result_carries_its_prompt(prompt: Any, kept: Any) -> None:
    import json

    [result] = generate(chat_model(), prompt, SAMPLER)
    assert result.prompt == kept and json.loads(json.dumps(result.to_dict()))["prompt"] == kept


def test_a_stream_that_is_left_early_warns_that_short_answers_come_first() -> None:
    running = stream(toy_model(), ["1 2"], SAMPLER, chains=4)
    next(running)
    with pytest.warns(UserWarning, match="left after 1 of 4 answers: short answers finish first"):
        running.close()  # type: ignore[attr-defined]
