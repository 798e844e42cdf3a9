"""Stop strings by every door: the same bits, the text up to the string, the token ids with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import fastpower
from fastpower import generate, make_sampler, stream
from fastpower.cli import main
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.runs import read_records
from fastpower.language_model import LanguageModel
from fastpower.results import Results
from fastpower.samplers.methods import Method
from fastpower.samplers.retarget import retargeted
from tests.evaluate.toys import toy_model, toy_task
from tests.test_doors import plain
from tests.tiny_models import tiny_model

STOP = ["3 1", "2 2", "4"]
SAMPLER = make_sampler("mh", alpha=2.5, max_new_tokens=11, moves=3, block=4)
PROMPTS = ["1 2", "3", "4 4 1"]


@pytest.fixture(scope="module")
def expected() -> Results:
    found = generate(toy_model(), PROMPTS, SAMPLER, seed=3, chains=4, stop=STOP)
    free = generate(toy_model(), PROMPTS, SAMPLER, seed=3, chains=4)
    assert [r.token_ids for r in found] != [r.token_ids for r in free]
    return found


def test_text_ends_before_the_string_and_token_ids_with_it(expected: Results) -> None:
    model, stopped = toy_model(), [result for result in expected if result.diagnostics["stop"] is not None]
    assert stopped and len(stopped) < len(expected)
    for result in expected:
        whole, stop = model.text(result.token_ids), result.diagnostics["stop"]
        assert result.text == (whole[: whole.index(stop)] if stop else whole)
        assert not any(string in result.text for string in STOP)
        assert not any(string in model.text(result.token_ids[:-1]) for string in STOP)
        assert result.ended == (stop is not None or result.token_ids[-1] == 0)
        assert result.diagnostics["hit_cap"] == (not result.ended)


def test_records_without_stop_strings_say_nothing_of_them() -> None:
    [result] = generate(toy_model(), "1 2", SAMPLER)
    assert "stop" not in result.diagnostics


def test_stream_and_a_sampler_that_has_them(expected: Results) -> None:
    streamed = {r.id: plain(r) for r in stream(toy_model(), PROMPTS, SAMPLER, seed=3, chains=4, stop=STOP)}
    own = generate(toy_model(), PROMPTS, retargeted(SAMPLER, stop=STOP), seed=3, chains=4)
    assert streamed == {r.id: plain(r) for r in own} == {r.id: plain(r) for r in expected}
    named = generate(toy_model(), PROMPTS, "mh(moves=3,block=4)", alpha=2.5, max_new_tokens=11, stop=STOP, seed=3)
    assert [plain(r) for r in named] == [plain(r) for r in expected if r.chain == 0]


def test_eval(tmp_path: Path) -> None:
    task = toy_task(4)
    evaluation = Evaluation(task, [Method("mh", {"moves": 3, "block": 4})], seed=3, stop=STOP)
    evaluate(evaluation, local_engine(toy_model), tmp_path)
    names = [f"toy/{problem.id}" for problem in task.problems]
    results = generate(toy_model(), [p.question for p in task.problems], SAMPLER, seed=3, prompt_ids=names, stop=STOP)
    assert [r["text"] for r in read_records(tmp_path)] == [r.text for r in results]
    free = Evaluation(task, [Method("mh", {"moves": 3, "block": 4})], seed=3)
    assert free.config() != evaluation.config(), "a run without them could be resumed with them"


def test_sample_and_eval_commands(monkeypatch: Any, capsys: Any, tmp_path: Path, expected: Results) -> None:
    monkeypatch.setattr("fastpower.commands.sample.load_from", lambda args: toy_model())
    flags = [*("--alpha", "2.5", "--max-new-tokens", "11", "--moves", "3", "--block", "4", "--seed", "3")]
    stops = [part for string in STOP for part in ("--stop", string)]
    assert main(["sample", *PROMPTS, "--chains", "4", "--json", "--quiet", *flags, *stops]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["id"]: r["text"] for r in found} == {r.id: r.text for r in expected}
    config = tmp_path / "stops.yaml"
    config.write_text(json.dumps({"stop": STOP, "seed": 3}))
    assert main(["sample", *PROMPTS, "--json", "--quiet", "--config", str(config), *flags]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["id"]: r["text"] for r in found} == {r.id: r.text for r in expected if r.chain == 0}


@pytest.mark.parametrize("typed, meant", [(r"\n\nQ:", "\n\nQ:"), (r"a\\n", r"a\n"), (r"\t\x", "\t\\x"), ("é", "é")])
def test_new_lines_can_be_typed_in_a_shell(typed: str, meant: str) -> None:
    from fastpower.cli import build_parser
    from fastpower.commands.options import sampler_from

    args = build_parser().parse_args(["sample", "x", "--stop", typed])
    assert sampler_from(args).target.stop == (meant,)


def test_lm_eval(expected: Results) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from fastpower.integrations.lm_eval import FastpowerLM

    model = FastpowerLM(toy_model(), method="mh", alpha=2.5, moves=3, block=4, seed=3)
    options = {"max_gen_toks": 11, "until": ["", *STOP]}
    requests = [Instance("generate_until", {}, (text, options), i, ("toy", i, 1)) for i, text in enumerate(PROMPTS)]
    found = model.generate_until(requests, disable_tqdm=True)
    assert found == [r.text for r in expected if r.chain == 0]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", ["mh(moves=3,block=4)", "plain"])
def test_server(method: str, streamed: bool) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from fastpower.integrations.server.app import Settings, create_app

    results = generate(toy_model(), PROMPTS, method, alpha=4.0, max_new_tokens=11, seed=3, chains=2, stop=STOP)
    body = {"model": method, "prompt": PROMPTS, "seed": 3, "n": 2, "max_tokens": 11, "stop": STOP, "stream": streamed}
    server = LanguageModel(toy_model().decoder, name="toy")
    server.decoder.max_length = 512
    with TestClient(create_app(server, Settings())) as client:
        response = client.post("/v1/completions", json=body)
    choices = (
        [c for line in response.text.split("\n") if line.startswith("data: {") for c in json.loads(line[6:])["choices"]]
        if streamed
        else response.json()["choices"]
    )
    texts, last = [""] * len(results), [{}] * len(results)
    for choice in choices:
        texts[choice["index"]] += choice["text"]
        last[choice["index"]] = choice
    assert texts == [r.text for r in results]
    assert [c["finish_reason"] for c in last] == ["stop" if r.ended else "length" for r in results]
    assert [c["fastpower"]["stop"] for c in last] == [r.diagnostics["stop"] for r in results]
    assert any(r.diagnostics["stop"] for r in results)


def test_a_stream_holds_back_what_may_begin_a_string() -> None:
    pytest.importorskip("fastapi")
    from fastpower.integrations.server.stream import Spelling

    spelling = Spelling(lambda tokens: bytes(tokens).decode(), ["END", "Nx"])
    pieces = [spelling.add([byte]) for byte in b"aENbEND"]
    assert pieces == ["a", "", "", "ENb", "", "", ""] and spelling.add([], final=True) == ""
    assert spelling.sent == "aENb"


# -- custom_generate ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spelled() -> tuple[Any, Any]:
    """A model of random weights and a tokenizer of bytes, with some longer tokens."""
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"piece{i}": i for i in range(len(vocabulary), 331)}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    return tiny_model("llama"), transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level)


def test_custom_generate(spelled: tuple[Any, Any]) -> None:
    model, tokenizer = spelled
    prompt, options = torch.tensor([[7, 8, 9, 10]]), {"max_new_tokens": 11, "seed": 5}
    ready = fastpower.load(model, tokenizer)
    sampler = make_sampler("mh", max_new_tokens=11, block=4, moves=3)
    [free] = generate(ready, [[7, 8, 9, 10]], sampler, seed=5)
    around = ready.text(free.token_ids[3:6])
    stop = around[1:-1] if len(around) > 2 else around  # borders of its own
    [expected] = generate(ready, [[7, 8, 9, 10]], sampler, seed=5, stop=stop)
    options |= {"custom_generate": fastpower.custom_generate, "language_model": ready, "block": 4, "moves": 3}
    criteria = transformers.StoppingCriteriaList([transformers.StopStringCriteria(tokenizer, stop)])
    for given in ({"stop": stop}, {"stop": [stop]}, {"stopping_criteria": criteria}):
        tokens = model.generate(prompt, **options, **given)
        assert tokens[0, 4:].tolist() == expected.token_ids != free.token_ids
    with pytest.raises(ValueError, match="loaded without a tokenizer"):
        model.generate(prompt, **{**options, "language_model": fastpower.load(model)}, stop=stop)


def test_a_special_token_among_the_strings_ends_an_answer(spelled: tuple[Any, Any]) -> None:
    model, tokenizer = spelled
    [free] = generate(fastpower.load(model, tokenizer), [[7, 8]], "plain", max_new_tokens=12, seed=3, fixed_length=True)
    token = free.token_ids[5]
    named = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        additional_special_tokens=[tokenizer.convert_ids_to_tokens(token)],
    )
    stop = named.convert_ids_to_tokens(token)
    ready = fastpower.load(model, named)
    [found] = generate(ready, [[7, 8]], "plain", max_new_tokens=12, seed=3, stop=stop)
    assert found.ended and found.token_ids == free.token_ids[: free.token_ids.index(token) + 1]
    assert stop not in found.text
