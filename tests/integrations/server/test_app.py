"""The server in one process: answers are those of ``generate``; whatever cannot be answered is refused by name."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from fastpower import generate, make_sampler
from fastpower.integrations.server.app import Settings, create_app
from fastpower.samplers import METHODS

from .toys import slow_model


@pytest.fixture
def client():
    with TestClient(create_app(slow_model(), Settings(max_new_tokens=9, max_body=65536, max_n=8))) as client:
        yield client


def events(response) -> list:
    return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_bytes_of_generate_by_every_sampler(client, method):
    body = {"model": method, "prompt": ["1 2", "3"], "seed": 4, "n": 2, "max_tokens": 9, "logprobs": 0}
    answer = client.post("/v1/completions", json=body).json()
    expected = generate(slow_model(), ["1 2", "3"], make_sampler(method, max_new_tokens=9), seed=4, chains=2)
    assert [choice["text"] for choice in answer["choices"]] == [result.text for result in expected]
    assert [c["logprobs"]["token_logprobs"] for c in answer["choices"]] == [r.token_logp for r in expected]
    assert [c["fastpower"]["id"] for c in answer["choices"]] == [r.id for r in expected]
    assert answer["usage"]["completion_tokens"] == sum(r.decoded_tokens for r in expected)
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == sum(len(r.token_ids) for r in expected)
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("method", ["plain", "low_temperature", "mh", "smc-4"])
def test_a_stream_adds_up_to_the_answer(client, method):
    body = {"model": method, "prompt": "1 2", "seed": 4, "n": 3, "stream": True}
    whole = client.post("/v1/completions", json=body | {"stream": False}).json()
    response = client.post("/v1/completions", json=body | {"stream_options": {"include_usage": True}})
    chunks = events(response)
    assert response.text.endswith("data: [DONE]\n\n")
    texts, reasons = [""] * 3, [None] * 3
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []


def test_moves_are_told_while_a_chain_runs_and_tokens_as_they_are_where_they_stay(client):
    body = {"prompt": "1 2", "seed": 4, "stream": True}
    moving = events(client.post("/v1/completions", json=body | {"model": "mh-40"}))
    told = [chunk["fastpower"]["moves"] for chunk in moving if "moves" in chunk.get("fastpower", {})]
    assert told and told == sorted(told) and told[-1] <= 80
    drawn = events(client.post("/v1/completions", json=body | {"model": "plain", "seed": 3}))
    pieces = [chunk["choices"][0]["text"] for chunk in drawn if chunk["choices"][0]["text"]]
    assert len(pieces) > 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mh-3", {"moves": 3}),
        ("mh(moves=3)", {"moves": 3}),
        ("smc-5", {"particles": 5}),
        ("ec-mh-2", {"moves": 2}),
        ("best_of_n-6", {"n": 6}),
    ],
)
def test_a_model_name_may_hold_a_samplers_size(client, name, settings):
    method = name.split("(")[0].rsplit("-", 1)[0].replace("-", "_")
    answer = client.post("/v1/completions", json={"model": name, "prompt": "1", "seed": 0}).json()
    expected = generate(slow_model(), ["1"], make_sampler(method, max_new_tokens=9, **settings), seed=0)
    assert answer["choices"][0]["text"] == expected[0].text
    assert answer["choices"][0]["fastpower"]["decoded_tokens"] == expected[0].decoded_tokens


def test_temperature_is_an_exponent_where_tokens_are_drawn_once_and_named_where_it_is_ignored(client):
    body = {"prompt": "1 2", "seed": 1, "temperature": 0.5}
    cooled = client.post("/v1/completions", json=body | {"model": "plain"}).json()
    assert cooled["choices"][0]["fastpower"]["alpha"] == 2.0 and cooled["fastpower"]["ignored"] == []
    power = client.post("/v1/completions", json=body | {"model": "mh", "top_p": 0.9}).json()
    assert power["choices"][0]["fastpower"]["alpha"] == 4.0
    assert power["fastpower"]["ignored"] == ["temperature", "top_p"]


def test_without_a_seed_one_is_drawn_and_reported(client):
    first = client.post("/v1/completions", json={"prompt": "1 2"}).json()
    seed = first["fastpower"]["seed"]
    again = client.post("/v1/completions", json={"prompt": "1 2", "seed": seed}).json()
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert client.post("/v1/completions", json={"prompt": "1 2"}).json()["fastpower"]["seed"] != seed


@pytest.mark.parametrize(
    ("budget", "limit"), [({"moves": 2}, "moves"), ({"tokens": 3}, "tokens"), ({"seconds": 1e-9}, "seconds")]
)
def test_a_budget_returns_the_current_state_and_says_so(client, budget, limit):
    body = {"model": "mh-500", "prompt": "1 2", "seed": 4, "fastpower": {"budget": budget}}
    [choice] = client.post("/v1/completions", json=body).json()["choices"]
    state = choice["fastpower"]
    assert not state["complete"] and not state["exact"]
    assert state["stopped_by"] == limit and state["moves"] < 1000
    assert ("favours" in state["note"]) == (limit != "moves")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("{", 400, "JSON"),
        ("[]", 400, "dictionary"),
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "empty"),
        ({"prompt": []}, 400, ""),
        ({"prompt": "1", "model": "gpt-9"}, 400, "samplers: plain"),
        ({"prompt": "1", "model": "mh(movs=3)"}, 400, "did you mean 'moves'"),
        ({"prompt": "1", "n": 0}, 400, "n:"),
        ({"prompt": "1", "n": 9}, 400, "at most 8"),
        ({"prompt": "1", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "1", "max_tokens": 10**7}, 400, "context"),
        ({"prompt": "1", "seed": 2**80}, 400, "seed"),
        ({"prompt": "1", "seed": "x"}, 400, "seed"),
        ({"prompt": "1", "temperature": -1}, 400, "temperature"),
        ({"prompt": "1", "fastpower": {"alpha": 0}}, 400, "alpha"),
        ({"prompt": "1", "fastpower": {"alhpa": 2}}, 400, "alhpa"),
        ({"prompt": "1", "fastpower": {"budget": {"seconds": -1}}}, 400, "seconds"),
        ({"prompt": "1", "fastpower": {"settings": {"moves": 10**9}}}, 400, "at most 10000"),
        ({"prompt": "1", "model": "smc-999999999"}, 400, "at most 1024"),
        ({"prompt": "1" * 70000}, 413, "larger than 65536"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(client, body, status, says):
    text = body if isinstance(body, str) else json.dumps(body)
    response = client.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert says in response.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": "1", "seed": 0}).status_code == 200


def test_chat_needs_a_template_and_only_text_can_be_answered(client):
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    response = client.post("/v1/chat/completions", json={"messages": [turn]})
    assert response.status_code == 400 and "text parts" in response.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 400


def test_a_key_is_asked_for_everywhere_but_at_health():
    with TestClient(create_app(slow_model(), Settings(max_new_tokens=9, api_key="sésame"))) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        for wrong in ("Bearer sesame", "Basic sésame", "Bearer", ""):
            assert client.get("/v1/models", headers={"Authorization": wrong.encode()}).status_code == 401
        right = {"Authorization": "Bearer sésame".encode()}
        assert client.get("/v1/models", headers=right).json()["data"][0]["id"] == "toy"


def test_too_many_waiting_requests_are_told_when_to_come_back():
    settings = Settings(max_new_tokens=9, max_rows=1, max_waiting=2)
    with TestClient(create_app(slow_model(0.01), settings)) as client:
        found: list = []
        body = {"model": "mh-20", "prompt": "1 2", "seed": 0}
        threads = [
            threading.Thread(target=lambda: found.append(client.post("/v1/completions", json=body))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [response for response in found if response.status_code == 429]
        answered = [response for response in found if response.status_code == 200]
        assert len(refused) + len(answered) == 8 and refused and answered
        assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
        assert len({response.json()["choices"][0]["text"] for response in answered}) == 1


def test_rows_of_a_client_that_goes_away_are_freed():
    app = create_app(slow_model(0.02), Settings(max_new_tokens=9))
    engine = app.state.service.engine
    with TestClient(app) as client:
        body = {"model": "mh-5000", "prompt": "1 2", "seed": 0, "stream": True, "n": 4}
        with client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
            response.close()
        while engine.totals.cancelled < 4 or engine.totals.running:
            time.sleep(0.01)
        assert engine.totals.answers == 0 and engine.totals.waiting == 0
        assert not engine.scheduler.live
        assert client.post("/v1/completions", json={"prompt": "1", "seed": 0}).status_code == 200


def test_a_fault_of_the_decoder_reaches_those_who_wait_and_the_next_are_served():
    model = slow_model()
    forward, broken = model.decoder.forward, [True]

    def fails_once(*arguments, **named):
        if broken:
            broken.clear()
            raise RuntimeError("a cable came loose")
        return forward(*arguments, **named)

    model.decoder.forward = fails_once
    with TestClient(create_app(model, Settings(max_new_tokens=9))) as client:
        response = client.post("/v1/completions", json={"prompt": "1", "seed": 0})
        assert response.status_code == 500 and "cable" in response.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "1", "seed": 0}).status_code == 200
        assert client.get("/health").status_code == 200


def test_metrics_count_what_was_done(client):
    client.post("/v1/completions", json={"model": "mh", "prompt": "1 2", "seed": 0, "n": 3})
    client.post("/v1/completions", json={"prompt": "1", "n": 0})
    text = client.get("/metrics").text
    assert "fastpower_answers_total 3.0" in text and "fastpower_running 0.0" in text
    assert "fastpower_moves_total" in text and "fastpower_cache_free_tokens" in text


def test_an_idle_server_holds_no_sequence(client):
    engine = client.app.state.service.engine
    for method in ("mh", "smc-4", "tempering-2", "csmc-4"):
        client.post("/v1/completions", json={"model": method, "prompt": "1 2", "seed": 0, "n": 3})
    while engine.totals.running or engine.cache["sequences"]:
        time.sleep(0.01)
    assert "fastpower_cache_sequences 0.0" in client.get("/metrics").text
