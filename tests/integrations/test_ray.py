"""Ray workers: the same records with 1 worker, with 2, and with one killed in the middle."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from fastpower.chains.job import prompt_id  # noqa: E402
from fastpower.evaluate.engine import local_engine  # noqa: E402
from fastpower.evaluate.evaluation import Evaluation, evaluate  # noqa: E402
from fastpower.integrations import ray as distributed  # noqa: E402
from fastpower.language_model import LanguageModel  # noqa: E402
from fastpower.samplers.methods import parse_methods  # noqa: E402
from fastpower.target import PowerTarget  # noqa: E402
from tests.evaluate.toys import toy_model, toy_task  # noqa: E402

METHODS = parse_methods("plain,mh(moves=2,block=4),smc(particles=5,block=3,ramp=0,islands=3)")


def recording_model(folder: str) -> LanguageModel:
    """The toy, leaving the process id of whoever loads it."""
    Path(folder, str(os.getpid())).touch()
    return toy_model()


def slow_model(folder: str) -> LanguageModel:
    """The toy with slow forwards, so that there is a middle to be killed in."""
    model = recording_model(folder)
    forward = model.decoder.forward

    def slowly(work: Any, draws: Any) -> Any:
        time.sleep(0.01)
        return forward(work, draws)

    model.decoder.forward = slowly  # type: ignore[method-assign]
    return model


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=distributed.runtime_environment())
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("local")
    evaluate(Evaluation(toy_task(6), METHODS, seed=4, chains=2), local_engine(toy_model), out)
    return (out / "records.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_one_and_two_workers_give_the_records_of_one_process(
    cluster: None, expected: bytes, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "pids").mkdir()
    load = functools.partial(recording_model, str(tmp_path / "pids"))
    engine = distributed.ray_engine(load, workers=workers, batch_size=2)
    evaluate(Evaluation(toy_task(6), METHODS, seed=4, chains=2), engine, tmp_path / "run", together=True)
    assert (tmp_path / "run/records.jsonl").read_bytes() == expected
    assert len(list((tmp_path / "pids").iterdir())) >= workers


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing(cluster: None, expected: bytes, tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    engine = distributed.ray_engine(functools.partial(slow_model, str(tmp_path / "pids")), workers=2, batch_size=2)
    killed: list[int] = []

    def kill(record: dict[str, Any]) -> None:
        if not killed:
            killed.append(int(next((tmp_path / "pids").iterdir()).name))
            os.kill(killed[0], signal.SIGKILL)

    evaluation = Evaluation(toy_task(6), METHODS, seed=4, chains=2)
    evaluate(evaluation, engine, tmp_path / "run", on_record=kill, together=True)
    assert killed and (tmp_path / "run/records.jsonl").read_bytes() == expected


def test_map_returns_records_in_order_and_repeats_are_further_chains(cluster: None) -> None:
    from fastpower.samplers import Plain

    prompts = ["1 2", "3", "1 2"]
    records = distributed.map(toy_model, prompts, Plain(PowerTarget(4.0, 9)), seed=2, chains=2, workers=1)
    assert [(r["prompt_id"], r["chain"]) for r in records] == [
        (prompt_id(ids), chain)
        for ids, chain in [([1, 2], 0), ([1, 2], 1), ([3], 0), ([3], 1), ([1, 2], 2), ([1, 2], 3)]
    ]


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_with_its_message(cluster: None) -> None:
    from fastpower.samplers import Plain

    with pytest.raises(distributed.WorkerFailed, match="PromptTooLong: prompt 0 has 2 tokens"):
        distributed.map(_small_model, ["1 2"], Plain(PowerTarget(4.0, 9)), workers=1)


def _small_model() -> LanguageModel:
    model = toy_model()
    model.decoder.max_length = 5
    return model


def test_more_workers_than_the_machine_has_room_for_are_refused(cluster: None) -> None:
    from fastpower.samplers import Plain

    with pytest.raises(ValueError, match=r"workers = 7 need .* Ray has 0 and 2"):
        distributed.map(toy_model, ["1"], Plain(PowerTarget(4.0, 9)), workers=7)
