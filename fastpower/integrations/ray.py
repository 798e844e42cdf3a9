"""Many workers, the same records: Ray Data with one model per worker process.

Jobs travel to workers in small batches; each worker loads the model once and draws its batch with its own scheduler.
Every draw is keyed by (seed, prompt id, chain), so 1, 2 or N workers, retries after a crash and batch sizes give the
same records wherever a worker's logits do not depend on the batch.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastpower.errors import FastpowerError
from fastpower.evaluate.engine import Engine, records
from fastpower.generation import plan, prompt_names
from fastpower.interfaces import interface
from fastpower.models.prompts import as_prompts
from fastpower.samplers.islands import combine, split
from fastpower.samplers.retarget import retargeted

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler
    from fastpower.chains.job import Job
    from fastpower.language_model import LanguageModel

Load = Callable[[], "LanguageModel"]
Column = NDArray[Any]


class WorkerFailed(FastpowerError, RuntimeError):
    """A worker raised; the message is its own."""


class Worker:
    """What runs in a worker process: one model and all jobs, batches of (job, island) in, batches of records out.

    Args:
        load: Makes the model.
        jobs: As they are, or a function of the model that makes them, which a caller without the model cannot.
        max_rows: Rows of one decode batch.
        threads: Of the process; None leaves them alone.
    """

    def __init__(
        self,
        load: Load,
        jobs: Sequence[Job] | Callable[[LanguageModel], Sequence[Job]],
        max_rows: int,
        threads: int | None,
    ) -> None:
        if threads is not None:
            from fastpower.measure.machine import set_threads

            set_threads(threads)
        self._load, self._jobs, self._max_rows = load, jobs, max_rows
        self._planned = callable(jobs)  # then they are checked when they are made
        self._model: LanguageModel | None = None

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """``job``, ``island`` (indices) → ``record`` (pickled: both indices and the record, or an error)."""
        rows: list[bytes] = []
        try:
            model = self._model = self._model or self._load()
            if callable(self._jobs):
                self._jobs = self._jobs(model)
            places = list(zip(batch["job"].tolist(), batch["island"].tolist(), strict=True))
            parts = [replace(self._jobs[j], sampler=split(self._jobs[j].sampler)[i]) for j, i in places]
            place_of = {id(part): place for part, place in zip(parts, places, strict=True)}
            for part, record in records(model, parts, fixed_length=self._planned, max_rows=self._max_rows):
                rows.append(pickle.dumps((*place_of[id(part)], record, None)))
        except Exception as error:  # an answer that fails must not make Ray draw the whole batch again
            rows.append(pickle.dumps((-1, -1, None, f"{type(error).__name__}: {error}")))
        column: Column = np.empty(len(rows), dtype=object)
        column[:] = rows
        return {"record": column}


def ray_engine(
    load: Load,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float | None = None,
    max_rows: int = 64,
    batch_size: int | None = None,
) -> Engine:
    """An engine for ``fastpower.evaluate`` that spreads jobs over Ray workers.

    Islands of Power-SMC are sent on their own, combined by their Ẑ when all are back. A worker that dies is replaced,
    and its batch is drawn again; records that were handed back are never drawn twice. Ray is started if it is not
    running.

    Args:
        load: Makes the model inside a worker; it must be picklable.
        workers: Worker processes; default: one per GPU that Ray sees, else 1.
        gpus_per_worker: Default: 1 where Ray sees GPUs, else 0.
        cpus_per_worker: Default: the CPUs that Ray sees, shared out evenly; also the worker's threads.
        max_rows: Rows of one decode batch.
        batch_size: Jobs sent at a time and lost together with a worker; default: max_rows, or fewer so that every
            worker gets at least four batches.
    """
    _ray()
    _check_workers(workers)

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        for index, record in _spread(
            load,
            list(jobs),
            [len(split(job.sampler)) for job in jobs],
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            cpus_per_worker=cpus_per_worker,
            max_rows=max_rows,
            batch_size=batch_size,
        ):
            yield jobs[index], record

    return run


def _spread(
    load: Load,
    jobs: Sequence[Job] | Callable[[LanguageModel], Sequence[Job]],
    islands: Sequence[int],
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float | None = None,
    max_rows: int = 64,
    batch_size: int | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index of the job, its record) as they finish.

    Like ``ray_engine``; ``jobs`` as of ``Worker``, ``islands`` are those of each of them.
    """
    ray = _ray()
    _check_workers(workers)
    with interface("ray"):
        from ray.data import ActorPoolStrategy, DataContext, from_items

    _start(ray)
    count, gpu_share, cpu_share = _shares(ray.cluster_resources(), workers, gpus_per_worker, cpus_per_worker)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False  # a slow job must not hold back what is finished
    context.max_errored_blocks = 0
    parts = [{"job": j, "island": i} for j, number in enumerate(islands) for i in range(number)]
    if not parts:
        return
    size = batch_size or max(1, min(max_rows, -(-len(parts) // (4 * count))))
    rows = from_items(parts, override_num_blocks=-(-len(parts) // size)).map_batches(
        Worker,
        fn_constructor_args=(load, jobs, max_rows, max(1, int(cpu_share))),
        batch_size=size,
        compute=ActorPoolStrategy(size=count),
        num_gpus=gpu_share or None,
        num_cpus=cpu_share,
    )
    found: list[dict[int, dict[str, Any]]] = [{} for _ in islands]
    failure: str | None = None
    for row in rows.iter_rows():
        index, island, record, error = pickle.loads(row["record"])
        if error is not None:
            failure = failure or error
            continue
        found[index][island] = record
        if len(found[index]) == islands[index]:
            yield index, combine([found[index].pop(i) for i in range(islands[index])])
    if failure is not None:
        raise WorkerFailed(f"a worker failed: {failure}")


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _shares(
    resources: Mapping[str, float], workers: int | None, gpus_per_worker: float | None, cpus_per_worker: float | None
) -> tuple[int, float, float]:
    """(workers, GPUs of each, CPUs of each) from what Ray has.

    Raises:
        ValueError: They do not fit.
    """
    gpus, cpus = float(resources.get("GPU", 0)), float(resources.get("CPU", 1))
    count = workers or max(1, int(gpus))
    gpu_share = gpus_per_worker if gpus_per_worker is not None else float(gpus > 0)
    cpu_share = cpus_per_worker if cpus_per_worker is not None else max(1.0, cpus // count)
    if gpu_share * count > gpus or cpu_share * count > cpus:
        raise ValueError(
            f"workers = {count} need {gpu_share * count:g} GPUs and {cpu_share * count:g} CPUs; Ray has {gpus:g} "
            f"and {cpus:g}: give fewer workers, or smaller gpus_per_worker or cpus_per_worker"
        )
    return count, gpu_share, cpu_share


def map(
    load: Load,
    prompts: Any,
    sampler: Sampler,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    stop: str | Sequence[str] | None = None,
    fixed_length: bool = False,
    workers: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """``fastpower.generate`` over Ray workers: the same answers, as records, in the order of prompts, then chains.

    Args:
        load: A picklable function that makes the model, such as ``functools.partial(fastpower.load, "path")``.
        prompts: See ``fastpower.generate``.
        sampler: What draws the answers.
        seed: See ``fastpower.generate``.
        chains: See ``fastpower.generate``.
        prompt_ids: See ``fastpower.generate``.
        stop: See ``fastpower.generate``.
        fixed_length: See ``fastpower.generate``.
        workers: See ``ray_engine``.
        **options: See ``ray_engine``.

    Returns:
        ``Result.to_dict()`` of each answer, with ``finished``.

    Raises:
        ValueError: What is no prompt, chains < 1, names that do not fit.
        WorkerFailed: A worker raised; the others' answers are drawn, but lost.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1 per prompt, got {chains}")
    sampler = sampler if stop is None else retargeted(sampler, stop=stop)
    given = as_prompts(prompts)
    names = None if prompt_ids is None else prompt_names(prompt_ids, len(given))
    # Every worker makes the same plan: a prompt's name comes from its tokens, and those need the model.
    jobs = functools.partial(
        plan,
        prompts=given,
        sampler=sampler,
        seed=seed,
        chains=chains,
        prompt_ids=names,
        fixed_length=fixed_length,
    )
    islands = [len(split(sampler))] * (len(given) * chains)
    found = dict(_spread(load, jobs, islands, workers=workers, **options))
    return [found[i] for i in range(len(islands))]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise FastpowerError("--engine ray needs Ray: `pip install '.[ray]'` in fastpower's checkout") from None
    return ray


def _start(ray: Any) -> None:
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, runtime_env=runtime_environment())


def runtime_environment() -> dict[str, Any]:
    """For ``ray.init``: workers import fastpower the way this process does, also from a checkout."""
    import fastpower

    root = os.path.dirname(os.path.dirname(os.path.abspath(fastpower.__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # Ray hides GPUs from tasks that ask for none; without this it warns about a change of that rule
    return {"env_vars": {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
