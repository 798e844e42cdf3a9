"""Where a model goes where nobody has said, and one line where it cannot go."""

from __future__ import annotations

import pytest
import torch

import fastpower
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.language_model import placed
from fastpower.models.placement import chosen_device


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch see so many CUDA devices of a compute capability."""

    def see(count: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return see


@pytest.mark.parametrize(
    ("count", "capability", "expected"),
    [
        (0, (9, 0), ("float32", None)),
        (1, (9, 0), ("bfloat16", torch.device("cuda:0"))),
        (2, (8, 0), ("bfloat16", torch.device("cuda:0"))),
        (1, (7, 5), ("float32", None)),
    ],
)
def test_a_gpu_that_the_kernels_are_made_for_is_taken(gpus, count, capability, expected):
    gpus(count, capability)
    assert placed("folder", None, "auto") == expected
    assert placed("folder", "float16", "auto") == ("float16", expected[1])


def test_what_is_asked_for_is_taken_at_its_word(gpus):
    gpus(2)
    assert placed("folder", None, "cpu") == ("float32", torch.device("cpu"))
    assert placed("folder", None, "cuda:1") == ("bfloat16", torch.device("cuda:1"))
    assert placed("folder", None, None) == ("float32", None)


@pytest.mark.parametrize("more", [{"weights": "q8"}, {"by_others": {"device_map"}}, {"by_others": {"tp_plan"}}])
def test_what_stays_on_the_cpu_or_is_placed_by_others_is_left_there(gpus, more):
    gpus(1)
    assert placed("folder", None, "auto", **more) == ("float32", None)


def test_quantised_files_and_loaded_models_stay_where_they_are(gpus, tmp_path):
    gpus(1)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    assert placed(file, None, "auto") == ("float32", None)
    assert placed(object(), None, "auto") == ("float32", None)


@pytest.mark.parametrize(
    ("device", "count", "capability", "says"),
    [
        ("cuda", 0, (9, 0), 'sees no CUDA device here: take device="cpu"'),
        ("cuda:2", 2, (9, 0), "there are 2 CUDA devices, cuda:0 to cuda:1"),
        ("cuda", 1, (7, 5), "compute capability 7.5, and the kernels need 8.0"),
        ("gpu", 1, (9, 0), "device='gpu' is no device"),
        ("auto:1", 1, (9, 0), "is no device"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(gpus, device, count, capability, says):
    gpus(count, capability)
    with pytest.raises(ValueError, match=says) as raised:
        chosen_device(device)
    assert "\n" not in str(raised.value)


def test_load_asks_for_the_device_before_the_model(gpus):
    gpus(0)
    with pytest.raises(ValueError, match="sees no CUDA device"):
        fastpower.load("no-such-model", device="cuda")


def test_a_decoder_needs_no_place(gpus):
    gpus(0)
    decoder = ToyDecoder(random_logits(5, 1), 5, [0])
    assert fastpower.load(decoder).decoder is decoder
