"""Weights that change between runs: every answer is that of the weights as they are now."""

from __future__ import annotations

import copy
import ctypes

import pytest
import torch

from fastpower import generate, load, make_sampler
from fastpower.decoders.transformers.weights import state_of
from tests.tiny_models import tiny_model

PROMPT = [5 + i * 7 % 60 for i in range(40)]
SAMPLER = make_sampler("mh", max_new_tokens=8, block=4, moves=2)


def answer(model):
    [result] = generate(model, [PROMPT], SAMPLER, seed=3)
    return result.token_ids, result.token_logp


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def load_state(model, **options):
    other = {name: tensor * 1.2 for name, tensor in model.state_dict().items()}
    model.load_state_dict(other, **options)


def through_data(model):
    model.model.layers[1].self_attn.q_proj.weight.data += 0.5


def one_row_through_data(model):
    model.lm_head.weight.data[PROMPT[3] % 7] += 1.0


def through_numpy(model):
    model.model.layers[0].mlp.up_proj.weight.detach().numpy()[3, :5] = 2.0


def through_a_pointer(model):
    weight = model.model.layers[0].mlp.down_proj.weight
    (ctypes.c_float * 8).from_address(weight.data_ptr())[:] = [1.0] * 8


def two_rows_change_places(model):
    weight = model.model.layers[0].self_attn.v_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()


def half_of_it_replaced(model):
    with torch.no_grad():
        for name, tensor in list(model.model.layers[0].mlp.named_parameters()):
            owner, leaf = name.rsplit(".", 1)
            setattr(getattr(model.model.layers[0].mlp, owner), leaf, torch.nn.Parameter(tensor * 0.5))


def a_module_is_wrapped(model):
    class Adapted(torch.nn.Module):  # as adapters do it: the layer they wrap is one of their modules
        def __init__(self, base):
            super().__init__()
            self.base_layer = base

        @property
        def weight(self):
            return self.base_layer.weight

        @property
        def bias(self):
            return self.base_layer.bias

        def forward(self, x):
            return self.base_layer(x) + 0.3 * x.mean(-1, keepdim=True)

    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)


CHANGES = [
    step, load_state, lambda model: load_state(model, assign=True), through_data, one_row_through_data, through_numpy,
    through_a_pointer, two_rows_change_places, half_of_it_replaced, a_module_is_wrapped,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "phi3"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_answer_is_that_of_the_weights_as_they_are(kind, change):
    model = tiny_model(kind)
    for parameter in model.parameters():
        parameter.requires_grad_(change is step)
    loaded = load(model, cache_tokens=2000, decoder_options={"verify": False})
    before = answer(loaded)
    assert answer(loaded) == before
    try:
        change(model)
    except AttributeError:
        pytest.skip(f"{kind} has no such part")
    after = answer(loaded)
    assert after == answer(load(copy.deepcopy(model), cache_tokens=2000, decoder_options={"verify": False}))
    assert after[1] != before[1], "the change did not change the model"


def test_an_untouched_model_is_not_packed_again(monkeypatch):
    loaded = load(tiny_model("llama"), cache_tokens=2000, decoder_options={"verify": False})
    answer(loaded)
    monkeypatch.setattr(type(loaded.decoder), "_derive", lambda self: pytest.fail("packed again"))
    answer(loaded)


def test_a_checksum_sees_every_byte_and_its_place():
    layer = torch.nn.Linear(700, 301)
    seen = {state_of(layer)["weight"][-1]}
    flat = layer.weight.detach().view(-1)
    for i in (0, 1, 17, 65_535, 131_072, flat.numel() - 1):
        flat[i] += 0.5
        seen.add(state_of(layer)["weight"][-1])
    flat[[3, 4]] = flat[[4, 3]].clone()
    seen.add(state_of(layer)["weight"][-1])
    assert len(seen) == 8
