"""Many workers, the same records: Ray Data with one model per worker process.

Items travel to workers in small batches; each worker loads the model once and draws its batch with its own scheduler.
Every draw is keyed by (seed, prompt id, chain), so 1, 2 or N workers, retries after a crash and batch sizes give the
same records wherever a worker's logits do not depend on the batch.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastpower.errors import FastpowerError
from fastpower.evaluate.items import Engine, Item, local_engine
from fastpower.interfaces import interface
from fastpower.samplers.islands import combine, split

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler
    from fastpower.language_model import LanguageModel, Prompt

Load = Callable[[], "LanguageModel"]
Column = NDArray[Any]


class WorkerFailed(FastpowerError, RuntimeError):
    """A worker raised; the message is its own."""


class Worker:
    """What runs in a worker process: one model, batches of items in, batches of records out."""

    def __init__(self, load: Load, max_rows: int, threads: int | None) -> None:
        if threads is not None:
            from fastpower.measure.machine import set_threads

            set_threads(threads)
        self._run = local_engine(load, max_rows=max_rows)

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """``item`` (pickled) → ``record`` (pickled pair of the item's id and its record, or an error)."""
        items = [pickle.loads(data) for data in batch["item"]]
        rows: list[bytes] = []
        try:
            for item, record in self._run(items):
                rows.append(pickle.dumps((item.id, record, None)))
        except Exception as error:  # an answer that fails must not make Ray draw the whole batch again
            rows.append(pickle.dumps(("", None, f"{type(error).__name__}: {error}")))
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
    """An engine for ``fastpower.evaluate`` that spreads items over Ray workers.

    load             makes the model inside a worker; it must be picklable
    workers          worker processes; default: one per GPU that Ray sees, else 1
    gpus_per_worker  default: 1 where Ray sees GPUs, else 0
    cpus_per_worker  default: the CPUs that Ray sees, shared out evenly; also the worker's threads
    batch_size       items sent at a time and lost together with a worker; default: max_rows, or fewer so that every
                     worker gets at least four batches

    Islands of Power-SMC are items of their own, combined by their Ẑ when all are back. A worker that dies is replaced,
    and its batch is drawn again; records that were handed back are never drawn twice. Ray is started if it is not
    running.
    """
    ray = _ray()
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")

    def run(items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        with interface("ray"):
            from ray.data import ActorPoolStrategy, DataContext, from_items

        _start(ray)
        resources = ray.cluster_resources()
        gpus = float(resources.get("GPU", 0))
        count = workers or max(1, int(gpus))
        gpu_share = gpus_per_worker if gpus_per_worker is not None else float(gpus > 0)
        cpus = float(resources.get("CPU", 1))
        cpu_share = cpus_per_worker if cpus_per_worker is not None else max(1.0, cpus // count)
        if gpu_share * count > gpus or cpu_share * count > cpus:
            raise ValueError(
                f"workers = {count} need {gpu_share * count:g} GPUs and {cpu_share * count:g} CPUs; Ray has {gpus:g} "
                f"and {cpus:g}: give fewer workers, or smaller gpus_per_worker or cpus_per_worker"
            )
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False  # a slow item must not hold back what is finished
        context.max_errored_blocks = 0
        parts = [
            replace(item, id=f"{item.id}#{i}", sampler=part)
            for item in items
            for i, part in enumerate(split(item.sampler))
        ]
        size = batch_size or max(1, min(max_rows, -(-len(parts) // (4 * count))))
        data = from_items([{"item": pickle.dumps(part)} for part in parts], override_num_blocks=-(-len(parts) // size))
        records = data.map_batches(
            Worker,
            fn_constructor_args=(load, max_rows, max(1, int(cpu_share))),
            batch_size=size,
            compute=ActorPoolStrategy(size=count),
            num_gpus=gpu_share or None,
            num_cpus=cpu_share,
        )
        by_id = {item.id: item for item in items}
        found: dict[str, dict[int, dict[str, Any]]] = {item.id: {} for item in items}
        failure: str | None = None
        for row in records.iter_rows():
            name, record, error = pickle.loads(row["record"])
            if error is not None:
                failure = failure or error
                continue
            whole, _, index = name.rpartition("#")
            found[whole][int(index)] = record
            if len(found[whole]) == len(split(by_id[whole].sampler)):
                done = found.pop(whole)
                yield by_id[whole], combine([done[i] for i in range(len(done))])
        if failure is not None:
            raise WorkerFailed(f"a worker failed: {failure}")

    return run


def map(
    load: Load,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[str] | None = None,
    workers: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """``fastpower.generate`` over Ray workers: records (``Result.to_dict()``) in the order of prompts, then chains.

    load: a picklable function that makes the model, such as ``functools.partial(fastpower.load, "path")``. prompts:
    texts. prompt_ids: names that key the draws, by default made from the texts; a repeated name gets further chains.
    options: see ``ray_engine``.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1 per prompt, got {chains}")
    if prompt_ids is not None and len(prompt_ids) != len(prompts):
        raise ValueError(f"prompt_ids must name every prompt: {len(prompts)} prompts, {len(prompt_ids)} ids")
    items: list[Item] = []
    seen: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be texts here, prompt {i} is a {type(prompt).__name__}")
        name = prompt_ids[i] if prompt_ids is not None else prompt
        for chain in range(seen.get(name, 0), seen.get(name, 0) + chains):
            label = f"{name}/{chain}/{sampler.method}"
            items.append(Item(label, name, chain, seed, sampler.method, sampler, prompt, prompt))
        seen[name] = seen.get(name, 0) + chains
    found = {item.id: record for item, record in ray_engine(load, workers=workers, **options)(items)}
    return [found[item.id] for item in items]


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
