"""examples/vllm/power_processor.py on rows and batch changes as vLLM passes them; vLLM itself is not needed."""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastpower import kernels

PATH = Path(__file__).resolve().parents[2] / "examples" / "vllm" / "power_processor.py"
BatchUpdate = namedtuple("BatchUpdate", "batch_size removed added moved", defaults=((), (), ()))


class Direction(enum.Enum):
    UNIDIRECTIONAL = 1
    SWAP = 2


class Params(SimpleNamespace):
    def __init__(self, **given):
        super().__init__(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "extra_args": None} | given)


@pytest.fixture
def example(monkeypatch):
    """The module, with stand-ins for the five names that it takes from vLLM."""
    vllm, processor = ModuleType("vllm"), ModuleType("vllm.v1.sample.logits_processor")
    vllm.SamplingParams = Params
    processor.BatchUpdate, processor.LogitsProcessor, processor.MoveDirectionality = BatchUpdate, object, Direction
    names = {"vllm": vllm, "vllm.v1": ModuleType("vllm.v1"), "vllm.v1.sample": ModuleType("vllm.v1.sample")}
    for name, module in (names | {processor.__name__: processor}).items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("power_processor", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def added(example, index, name, key, alpha, **options):
    return index, example.settings(name, key, alpha, **options), [1], []


def expected(row, key, alpha, position):
    one = torch.tensor([alpha])
    out = kernels.sample_tokens(row[None], one, one, *(torch.tensor([x]) for x in (0, key, position)))
    return tuple(float(x[0]) for x in (out.token, out.logp, out.logz[0], out.entropy))


def test_a_row_is_drawn_by_its_own_key_alpha_and_position_wherever_it_stands(example):
    torch.manual_seed(0)
    processor = example.PowerProcessor(None, torch.device("cpu"), False)
    other = (1, Params(), [1], [])  # a request that does not ask for us
    start = [added(example, 0, "a", 11, 4.0), other, added(example, 2, "b", 12, 1.0, start=5)]
    processor.update_state(BatchUpdate(3, added=start))
    logits = torch.randn(3, 300)
    before = logits.clone()
    out = processor.apply(logits)
    assert torch.equal(out[1], before[1])
    assert example.DRAWN["a"] == [pytest.approx(expected(before[0], 11, 4.0, 0))]
    assert example.DRAWN["b"] == [pytest.approx(expected(before[2], 12, 1.0, 5))]
    for row, name in ((0, "a"), (2, "b")):
        assert out[row].isfinite().sum() == 1 and out[row].argmax() == example.DRAWN[name][0].token
    # a ends, b takes its place, a new one comes behind it
    processor.update_state(BatchUpdate(2, removed=[0], moved=[(2, 0, Direction.UNIDIRECTIONAL)]))
    processor.update_state(BatchUpdate(2, added=[added(example, 1, "c", 13, 2.0)]))
    processor.update_state(BatchUpdate(2, moved=[(0, 1, Direction.SWAP)]))
    processor.update_state(None)
    logits = torch.randn(2, 300)
    before = logits.clone()
    processor.apply(logits)
    assert example.DRAWN["c"] == [pytest.approx(expected(before[0], 13, 2.0, 0))]
    assert example.DRAWN["b"][1] == pytest.approx(expected(before[1], 12, 1.0, 6))
    assert len(example.DRAWN["a"]) == 1


def test_without_requests_of_ours_rows_are_left_alone(example):
    processor = example.PowerProcessor(None, torch.device("cpu"), False)
    logits = torch.randn(2, 30)
    assert processor.apply(logits) is logits and not example.DRAWN
    assert not processor.is_argmax_invariant()


def test_settings_that_would_change_the_law_are_refused(example):
    check = example.PowerProcessor.validate_params
    check(example.settings("a", 1, 4.0))
    check(Params(temperature=0.5))  # not ours
    for bad in ({"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        params = example.settings("a", 1, 4.0)
        vars(params).update(bad)
        with pytest.raises(ValueError, match="alpha is the temperature"):
            check(params)
    for alpha in (0, -1.0, float("inf"), "4"):
        with pytest.raises(ValueError, match="alpha must be finite and > 0"):
            check(example.settings("a", 1, alpha))
