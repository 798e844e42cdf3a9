"""``fastpower bench``: its rates are those of a model whose speed is known."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from fastpower import make_sampler
from fastpower.cli import main
from fastpower.commands import bench
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.language_model import LanguageModel
from fastpower.measure.throughput import decode_rate, sampler_rate, step_bytes
from tests.evaluate.toys import toy_model
from tests.tiny_models import tiny_model

STEP = 0.02


def paced_model() -> LanguageModel:
    """The toy with forwards that take STEP seconds at least."""
    model = toy_model()
    forward = model.decoder.forward

    def paced(work: Any, draws: Any) -> Any:
        until = time.perf_counter() + STEP
        result = forward(work, draws)
        time.sleep(max(0.0, until - time.perf_counter()))
        return result

    model.decoder.forward = paced  # type: ignore[method-assign]
    return model


def test_decode_rate_is_rows_per_step() -> None:
    rate = decode_rate(paced_model().decoder, 6, prompt=9, seconds=0.3)
    assert rate.batch == 6 and rate.steps >= 4
    assert rate.step_ms >= 1e3 * STEP and rate.tokens_per_second == pytest.approx(6 / (rate.step_ms / 1e3))
    assert rate.tokens_per_second <= 6 / STEP
    assert rate.step_bytes is None and rate.floor is None  # the toy has no weights to read


def test_sampler_rate_counts_what_was_decoded_in_its_time() -> None:
    model = paced_model()
    rate = sampler_rate(model, make_sampler("plain", max_new_tokens=7), [[1, 2], [3]], seconds=0.8, max_rows=5)
    assert 0.8 <= rate.seconds < 5 and rate.answers > 0 and 1 < rate.rows <= 5
    assert 0 < rate.tokens_per_second <= 5 / STEP
    assert rate.moves_per_second is None and rate.acceptance is None
    assert rate.answers_per_hour == pytest.approx(3600 * rate.answers / rate.seconds)
    assert rate.tokens_per_second * rate.seconds >= rate.answers  # an answer has at least one token
    moves = sampler_rate(model, make_sampler("mh", max_new_tokens=7, moves=3), [[1, 2]], seconds=0.4, max_rows=5)
    assert moves.moves_per_second and moves.acceptance is not None and 0 <= moves.acceptance <= 1
    assert model.decoder.stats()["free_tokens"] == toy_model().decoder.stats()["free_tokens"]  # nothing is left behind


@pytest.mark.parametrize("kind, tied", [("llama", True), ("qwen2", False)])
def test_a_step_reads_the_weights_that_multiply_and_every_row_s_cache(kind: str, tied: bool) -> None:
    model = tiny_model(kind)
    with TransformersDecoder(model, cache_tokens=320) as decoder:
        numbers = sum(p.numel() for p in model.parameters()) - (0 if tied else 331 * 144)
        cache = 2 * 3 * 2 * 24 * 7 * 33  # keys and values, layers, heads, size, rows, context
        assert step_bytes(decoder, 7, 33) == 4 * (numbers + cache)
        rate = decode_rate(decoder, 3, prompt=5, seconds=0.01, bandwidth=2.0)
        assert rate.step_bytes is not None
        assert rate.floor == pytest.approx(rate.step_bytes / 2e9 / (rate.step_ms / 1e3))
        assert decoder.cache.stats()["open_plans"] == 0 and decoder.stats()["free_tokens"] == 320
        with pytest.raises(ValueError, match=r"batch 40 with prompts of 5 tokens does not fit: 320 tokens"):
            decode_rate(decoder, 40, prompt=5)


def test_bench_prints_tables_or_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Words:
        """A tokenizer for the toy, which knows digits only."""

        decoder = toy_model().decoder

        def tokens(self, prompt: str) -> list[int]:
            return [1 + len(prompt) % 4]

        name = "toy"

    monkeypatch.setattr(bench, "load_from", lambda args: Words())
    args = ["bench", "--batches", "1,3", "--seconds", "0.1", "--methods", "plain,mh(moves=2)", "--prompt", "5"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert "mh(moves=2)" in captured.out and "floor" in captured.out and "plain decoding, 3 rows" in captured.err
    assert main([*args, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert [rate["batch"] for rate in facts["decode"]] == [1, 3] and captured.err == ""
    assert [rate["method"] for rate in facts["samplers"]] == ["plain", "mh(moves=2)"]
    assert facts["machine"]["bandwidth_gb_s"] > 0 and facts["max_new_tokens"] == 32


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--batches", "1,x"], "--batches must be row counts"),
        (["--batches", "0"], "--batches must be row counts"),
        (["--seconds", "0"], "--seconds must be > 0"),
        (["--prompt", "0"], "--prompt must be at least 1"),
        (["--methods", "mhh"], "did you mean 'mh'"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    monkeypatch.setattr(bench, "load_from", lambda args: pytest.fail("the model was loaded"))
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err
