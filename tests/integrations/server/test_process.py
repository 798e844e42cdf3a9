"""A real server process on loopback: official clients, many of them at once, rude ones, signals."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from fastpower import generate, make_sampler  # noqa: E402

from .served import Served, served  # noqa: E402
from .toys import slow_model  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


def post(server: Served, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def connect(server: Served) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=120)


def test_the_official_client_completes_streams_and_sees_errors(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)
    assert next(iter(client.models.list())).id == "toy"
    answer = client.completions.create(model="mh", prompt="1 2", seed=4, n=2, max_tokens=9)
    expected = generate(slow_model(), ["1 2"], make_sampler("mh", max_new_tokens=9), seed=4, chains=2)
    assert [choice.text for choice in answer.choices] == [result.text for result in expected]
    chunks = list(client.completions.create(model="plain", prompt="1 2", seed=4, stream=True))
    assert (
        "".join(chunk.choices[0].text for chunk in chunks)
        == generate(slow_model(), ["1 2"], make_sampler("plain", max_new_tokens=9), seed=4)[0].text
    )
    with pytest.raises(openai.BadRequestError, match="samplers"):
        client.completions.create(model="gpt-9", prompt="1")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_gets_the_same_bytes_for_the_same_seed(server):
    body = '{"model": "smc-4", "prompt": "1 2", "seed": 7, "n": 2}'
    command = ["curl", "-sS", server.url + "/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    first, second = (json.loads(subprocess.check_output(command, timeout=300)) for _ in "ab")
    assert [c["text"] for c in first["choices"]] == [c["text"] for c in second["choices"]]


def test_many_clients_with_mixed_samplers_get_each_their_own_answer(server):
    methods = ["plain", "mh-3", "smc-4", "mtm-2", "egps-2", "low_temperature", "tempering-2", "csmc-4"]
    prompts = ["1 2", "3", "4 4 1", "2 2"]
    bodies = [{"model": m, "prompt": p, "seed": s} for m in methods for p in prompts for s in range(4)]
    alone = [post(server, body)["choices"][0]["text"] for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda body: post(server, body), bodies))
    assert [answer["choices"][0]["text"] for answer in together] == alone
    assert len({answer["id"] for answer in together}) == len(bodies)
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as response:
        metrics = response.read().decode()
    assert "fastpower_running 0.0" in metrics and "fastpower_waiting 0.0" in metrics


def test_headers_without_end_slow_bodies_and_half_requests_harm_nobody(server):
    flood = connect(server)
    try:
        flood.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"a" * 70_000)
        assert flood.recv(100).startswith(b"HTTP/1.1 400")
    except OSError:
        pass  # cut off while still sending: as good
    slow = connect(server)
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    lying = connect(server)
    lying.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    gone = connect(server)
    gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    gone.close()
    assert lying.recv(100).startswith(b"HTTP/1.1 413")
    assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert post(server, {"prompt": "1", "seed": 0})["choices"]


def test_a_prompt_is_not_logged(server):
    post(server, {"prompt": "4 3 2 1 4 3 2 1", "seed": 0})
    assert not any("4 3 2 1" in line for line in server.lines)


def test_sigterm_finishes_what_was_taken_and_takes_nothing_more():
    with served(delay=0.05) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(post, server, {"model": "mh-40", "prompt": "1 2", "seed": s}) for s in range(4)]
        while True:
            with urllib.request.urlopen(server.url + "/metrics", timeout=60) as response:
                if "fastpower_running 4.0" in response.read().decode():
                    break
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        answers = [answer.result(timeout=300) for answer in under_way]
        assert all(answer["choices"][0]["fastpower"]["complete"] for answer in answers)
        assert server.process.wait(120) in (0, -signal.SIGTERM)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            post(server, {"prompt": "1"})


def test_a_killed_server_starts_again_and_gives_the_same_bytes():
    body = {"model": "mh", "prompt": "1 2", "seed": 3}
    with served() as server:
        first = post(server, body)["choices"][0]["text"]
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with served() as server:
        assert post(server, body)["choices"][0]["text"] == first
