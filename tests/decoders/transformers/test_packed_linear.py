"""Packed products under a model, and the fused forward: same answers, nothing left behind, one row one result."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fastpower.decoders import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.decoders.transformers.fused import FusedForward, why_not
from fastpower.decoders.transformers.packed_linear import accelerate
from tests.tiny_models import tiny_model

FUSED = ("llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3")
GENERIC = ("phi3", "gpt2")
DTYPES = (torch.float32, torch.bfloat16)
PAGE = 4


def tokens_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 331, length)


class Paged:
    """A cache for a few sequences, pages handed out in a scattered order."""

    def __init__(self, model, pages=400, seed=1):
        config, attention = model.config, model.model.layers[0].self_attn
        shape = (config.num_hidden_layers, pages, PAGE, config.num_key_value_heads, attention.head_dim)
        self.k = torch.full(shape, float("nan"), dtype=model.dtype)
        self.v = self.k.clone()
        self.free = list(np.random.default_rng(seed).permutation(pages))
        self.sequences = []  # (pages, length)

    def add(self):
        self.sequences.append(([], 0))
        return len(self.sequences) - 1

    def forward(self, fused, work, keep=None):
        """work: (sequence, tokens) pairs; logits of each row's last token, or of all tokens with keep="all"."""
        tokens, positions, slots, starts, lengths = [], [], [], [0], []
        for sequence, new in work:
            pages, length = self.sequences[sequence]
            while len(pages) * PAGE < length + len(new):
                pages.append(self.free.pop())
            tokens.extend(new)
            positions.extend(range(length, length + len(new)))
            slots.extend(pages[p // PAGE] * PAGE + p % PAGE for p in range(length, length + len(new)))
            starts.append(len(tokens))
            lengths.append(length + len(new))
            self.sequences[sequence] = (pages, length + len(new))
        table = np.zeros((len(work), max(len(self.sequences[s][0]) for s, _ in work)), np.int32)
        for row, (sequence, _) in enumerate(work):
            table[row, : len(self.sequences[sequence][0])] = self.sequences[sequence][0]
        keep = np.arange(len(tokens)) if keep == "all" else np.array(starts[1:]) - 1
        long, short = (lambda a: np.asarray(a, np.int64)), (lambda a: np.asarray(a, np.int32))
        return fused(
            self.k, self.v, long(tokens), long(positions), long(slots), table, short(starts), short(lengths), long(keep)
        ).clone()


def own_logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.as_tensor(tokens)[None], use_cache=False).logits[0].float()


# ------------------------------------------------------------------------------------------------- packed modules


@pytest.mark.parametrize("kind", ["llama", "gemma3", *GENERIC])
def test_swapped_model_keeps_names_and_state_and_comes_back(kind):
    model = tiny_model(kind)
    names = [name for name, _ in model.named_modules()]
    state = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    before = own_logits(model, tokens_of(9))
    with accelerate(model) as handle:
        assert "lm_head" in handle.names and len(handle.names) > 4
        assert [name for name, _ in model.named_modules()] == names
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == {
            name: pointer for name, (pointer, _) in state.items()
        }
        torch.testing.assert_close(own_logits(model, tokens_of(9)), before, rtol=0, atol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(own_logits(model, tokens_of(9)), before)
    assert all(torch.equal(tensor, state[name][1]) for name, tensor in model.state_dict().items())


def test_tied_embedding_stays_tied():
    model = tiny_model("llama")
    with accelerate(model):
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_gradients_and_other_dtypes_take_the_modules_own_forward():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    with accelerate(model) as handle:
        assert handle.names == ("0", "1")
        model(torch.ones(2, 6)).sum().backward()
        assert model[0].weight.grad is not None
        model.double()
        with torch.no_grad():
            assert model(torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64


def test_a_weight_written_to_later_is_used():
    model = nn.Linear(6, 5)
    x = torch.ones(2, 6)
    with accelerate(model), torch.no_grad():
        model(x)
        model.weight.mul_(2.0)
        torch.testing.assert_close(model(x), x @ model.weight.T + model.bias)
        model.bias = nn.Parameter(torch.zeros(5))
        torch.testing.assert_close(model(x), x @ model.weight.T)


def test_subclasses_and_half_precision_are_left_alone():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4).half(), nn.Linear(4, 4))
    with accelerate(model) as outer:
        assert outer.names == ("2",)
        with accelerate(model) as inner:
            assert inner.names == ()
        assert "forward" in vars(model[2])


class Quantised(torch.Tensor):
    """As torchao's weights are: it says it is float32 and holds something else."""


def test_weights_that_are_no_plain_tensors_are_left_alone():
    model = tiny_model("llama")
    projection = model.model.layers[1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.detach().as_subclass(Quantised))
    assert why_not(model) == "weights are Quantised"
    with accelerate(model) as handle:
        assert "model.layers.1.mlp.up_proj" not in handle.names
        assert "model.layers.1.mlp.down_proj" in handle.names


# -------------------------------------------------------------------------------------------------- fused forward


@pytest.mark.parametrize("kind", FUSED)
def test_fused_float32_equals_transformers(kind):
    model = tiny_model(kind)
    assert why_not(model) is None
    cache = Paged(model)
    tokens = tokens_of(29)
    logits = cache.forward(FusedForward.of(model), [(cache.add(), tokens)], keep="all")
    torch.testing.assert_close(logits, own_logits(model, tokens), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", FUSED)
def test_fused_bfloat16_is_at_least_as_close_to_float32_as_transformers(kind):
    model = tiny_model(kind, torch.bfloat16)
    tokens = tokens_of(29)
    exact = own_logits(copy.deepcopy(model).float(), tokens)
    cache = Paged(model)
    ours = (cache.forward(FusedForward.of(model), [(cache.add(), tokens)], keep="all") - exact).abs()
    theirs = (own_logits(model, tokens) - exact).abs()
    assert ours.mean() <= 1.1 * theirs.mean()
    assert ours.max() <= 2 * theirs.max()


def histories(count):
    """Token lists of different lengths, each fed in chunks."""
    rng = np.random.default_rng(5)
    return [tokens_of(int(rng.integers(3, 40)), seed=100 + i) for i in range(count)]


def last_logits(model, fused, texts, chunks):
    """Logits after the last token of every text, all texts side by side, fed in ``chunks`` pieces."""
    cache = Paged(model)
    sequences = [cache.add() for _ in texts]
    result = {}
    pieces = [np.array_split(text, min(chunks, len(text))) for text in texts]
    for step in range(chunks):
        work = [(s, list(p[step])) for s, p in zip(sequences, pieces, strict=True) if step < len(p)]
        for (sequence, _), row in zip(work, cache.forward(fused, work), strict=True):
            result[sequence] = row
    return torch.stack([result[s] for s in sequences])


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "amx"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_bits_of_a_row_do_not_depend_on_batch_chunks_or_threads(kind, dtype, isa, threads):
    model = tiny_model(kind, dtype)
    fused = FusedForward.of(model)
    texts = histories(32)
    threads(1)
    alone = torch.cat([last_logits(model, fused, [text], 1) for text in texts])
    for count, chunks, workers in ((7, 1, 2), (32, 5, 2), (32, 2, 1)):
        threads(workers)
        assert torch.equal(last_logits(model, fused, texts[:count], chunks), alone[:count]), (count, chunks, workers)


def test_fused_repacks_when_a_weight_changes():
    model = tiny_model("qwen2")
    fused = FusedForward.of(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        model.model.norm.weight.add_(0.25)
    cache, tokens = Paged(model), tokens_of(5)
    logits = cache.forward(fused, [(cache.add(), tokens)], keep="all")
    torch.testing.assert_close(logits, own_logits(model, tokens), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", GENERIC)
def test_other_architectures_are_declined_by_name(kind):
    model = tiny_model(kind)
    assert FusedForward.of(model) is None
    assert type(model).__name__ in why_not(model)


def test_models_that_were_changed_are_declined():
    assert "float16" in why_not(tiny_model("llama").half())
    model = tiny_model("llama")
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    assert why_not(model) == "model.layers.1.mlp has forward hooks"
    handle.remove()
    assert why_not(model) is None
    model.model.layers[0].mlp.up_proj = nn.Identity()
    assert why_not(model) == "model.layers.0.mlp.up_proj is a Identity"
    model = tiny_model("llama")
    with accelerate(model):
        assert "has a forward of its own" in why_not(model)


def test_bad_metadata_is_refused_before_anything_is_written():
    model = tiny_model("llama")
    fused, cache = FusedForward.of(model), Paged(model)
    long, short = (lambda *a: np.array(a, np.int64)), (lambda *a: np.array(a, np.int32))
    good = dict(tokens=long(3), positions=long(0), slots=long(5), keep=long(0))
    pages = dict(table=np.array([[1]], np.int32), starts=short(0, 1), lengths=short(1))
    for name, value in (("tokens", 331), ("slots", 4 * 400), ("slots", -1), ("keep", 1), ("positions", -1)):
        bad = dict(good, **{name: long(value)})
        with pytest.raises(IndexError, match="must lie in"):
            fused(cache.k, cache.v, **bad, **pages)
    assert cache.k.isnan().all() and cache.v.isnan().all()
    with pytest.raises(TypeError, match="contiguous int32 array"):
        fused(cache.k, cache.v, **good, **dict(pages, starts=long(0, 1)))


# ---------------------------------------------------------------------------------------------------- in a decoder


def draws_for(rows):
    return Draws(
        alpha=np.full(rows, 2.0, np.float32),
        exponents=np.array([2.0], np.float32),
        rows=np.arange(rows),
        keys=np.arange(rows, dtype=np.uint64) + np.uint64(7),
        positions=np.full(rows, 3),
        exclude=np.full(rows, -1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoder_records_do_not_depend_on_the_batch(dtype, threads):
    texts = [list(map(int, text)) for text in histories(7)]
    with TransformersDecoder(tiny_model("qwen3", dtype), cache_tokens=2000) as decoder:
        assert decoder.batch_invariant
        threads(2)
        together = decoder.forward([Work(decoder.add(), text) for text in texts], draws_for(7))
        threads(1)
        for row, text in enumerate(texts):
            sequence = decoder.add()
            decoder.forward([Work(sequence, text[:-1])], draws_for(1))
            alone = decoder.forward([Work(sequence, text[-1:])], draws_for(1))
            assert alone.logz[0] == together.logz[row] and alone.entropy[0] == together.entropy[row]
            one = draws_for(1)._replace(keys=np.array([row + 7], np.uint64))
            alone = decoder.forward([Work(decoder.add(), text)], one)
            assert alone.token[0] == together.token[row] and alone.logp[0] == together.logp[row]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoder_with_and_without_acceleration_agree(kind):
    if kind == "gpt2":
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.GPT2Config(vocab_size=331, n_embd=96, n_layer=2, n_head=6, n_positions=512)
        ).eval()
    else:
        model = tiny_model(kind)
    results = []
    for accelerated in (True, False):
        with TransformersDecoder(model, cache_tokens=200, accelerate=accelerated) as decoder:
            assert decoder.batch_invariant is (accelerated and kind == "llama")
            results.append(decoder.forward([Work(decoder.add(), [5, 9, 2]), Work(decoder.add(), [7])], draws_for(2)))
            assert not any("forward" in vars(module) for module in model.modules())
    np.testing.assert_allclose(results[0].logz, results[1].logz, atol=1e-4)
    np.testing.assert_allclose(results[0].entropy, results[1].entropy, atol=1e-4)


def test_a_hook_set_later_is_called():
    model = tiny_model("llama")
    with TransformersDecoder(model, cache_tokens=200) as decoder:
        sequence, seen = decoder.add(), []
        decoder.forward([Work(sequence, [3, 4])], draws_for(1))
        handle = model.model.layers[0].register_forward_hook(lambda module, args, out: seen.append(1))
        decoder.forward([Work(sequence, [5])], draws_for(1))
        handle.remove()
        decoder.forward([Work(sequence, [6])], draws_for(1))
    assert seen == [1]
