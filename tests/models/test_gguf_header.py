"""A header that lies is refused before anything is read by it: one line that names file, tensor and remedy."""

from __future__ import annotations

import gc
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

import fastpower
from fastpower.errors import InvalidModelFile, ModelNotFound
from fastpower.models.gguf import GGUFFile
from tests import tiny_gguf

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    tiny_gguf.write(path, "qwen2", ("Q8_0", "Q4_0"))
    return path.read_bytes()


def is_mapped(path):
    gc.collect()
    return str(path) in Path("/proc/self/maps").read_text()


def refused(path, match):
    """fastpower.load raises one line that names the file and leaves nothing mapped."""
    with pytest.raises(InvalidModelFile, match=match) as caught:
        fastpower.load(path, cache_tokens=64)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    del caught
    assert not is_mapped(path)


def entry(data, name):
    """Where a tensor's entry continues behind its name: dimensions, shape, type, offset."""
    return data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


def value(data, key):
    """Where the value of a metadata key begins."""
    return data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key) + 4


def patched(data, at, form, *values):
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def test_a_good_file_is_read_and_unmapped(good, tmp_path):
    (tmp_path / "m.gguf").write_bytes(good)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.metadata["tokenizer.ggml.tokens"][:3] == ["<s>", "</s>", "!"]
        assert file.tensors["blk.0.attn_q.weight"].shape == (96, 96)
    model = fastpower.load(tmp_path / "m.gguf", cache_tokens=64)
    assert not is_mapped(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")  # nothing of the file is needed any more
    assert fastpower.generate(model, ["ab"], fastpower.samplers.Plain(fastpower.PowerTarget(horizon=2)))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused_wherever_it_ends(good, tmp_path, share):
    path = tmp_path / "m.gguf"
    path.write_bytes(good[: int(share * len(good))])
    refused(path, "is empty|begins with|truncated or still being written")


def test_every_cut_of_the_header_is_refused(good, tmp_path):
    end = entry(good, "output_norm.weight")
    for cut in np.random.default_rng(0).integers(0, end, 60):
        (tmp_path / "m.gguf").write_bytes(good[:cut])
        with pytest.raises(InvalidModelFile, match=r"m.gguf"):
            GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: b"GGML" + d[4:], r"begins with b'GGML', not b'GGUF'"),
        (lambda d: patched(d, 4, "<I", 1), "is GGUF version 1; versions 2 and 3"),
        (lambda d: patched(d, 4, ">I", 3), "is big-endian"),
        (lambda d: patched(d, 8, "<Q", 2**60), "claims 1152921504606846976 tensors"),
        (lambda d: patched(d, 16, "<Q", 2**63), "claims .* metadata in"),
        (lambda d: patched(d, 24, "<Q", 2**62), "a metadata key would need"),
        (lambda d: patched(d, value(d, "tokenizer.ggml.tokens") + 4, "<Q", 2**61), "ggml.tokens would"),
        (lambda d: patched(d, value(d, "tokenizer.ggml.tokens"), "<I", 99), "array of type 99"),
        (lambda d: patched(d, value(d, "qwen2.block_count"), "<I", 0), "qwen2.block_count is 0"),
        (lambda d: patched(d, value(d, "qwen2.block_count"), "<I", 2**31 - 1), "qwen2.block_count is 2147483647"),
        (lambda d: patched(d, value(d, "qwen2.block_count"), "<I", 3), "tensor 'blk.2.*' is missing"),
        (lambda d: patched(d, value(d, "qwen2.attention.head_count_kv"), "<I", 3), "heads over 3|has the shape"),
        (lambda d: patched(d, value(d, "qwen2.embedding_length"), "<I", 128), "has the shape"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight"), "<I", 77), "'blk.1.ffn_up.weight' has 77 dimensions"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 4, "<Q", 0), "'blk.1.ffn_up.weight' has the shape"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 4, "<Q", 2**62), "'blk.1.ffn_up.weight' has the shape"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 4, "<Q", 97), "rows of 97, no multiple of Q"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 12, "<Q", 2**30), "'blk.1.ffn_up.weight' ends at byte"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 20, "<I", 200), "unknown type 200"),
        (lambda d: patched(d, entry(d, "blk.1.ffn_up.weight") + 24, "<Q", 2**40), "'blk.1.ffn_up.weight' ends at byte"),
        (lambda d: d.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"), "'blk.0.ffn_up.weight' occurs twice"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(good, tmp_path, change, match):
    path = tmp_path / "m.gguf"
    path.write_bytes(change(good))
    refused(path, match)


def test_one_of_several_parts_is_refused(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", "one of 3 parts of a model; merge them")


def test_random_damage_never_gets_past_the_header_unnoticed_or_crashes(good, tmp_path):
    """Bits flipped anywhere in the header: refused as broken, declined with a reason, or harmless."""
    from fastpower.models.gguf import Undescribed, architecture_of

    rng, end = np.random.default_rng(1), entry(good, "blk.1.ffn_up.weight") + 32
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(0, end, 3):
            data[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "m.gguf").write_bytes(data)
        try:
            with GGUFFile(tmp_path / "m.gguf") as file:
                architecture_of(file)
        except (InvalidModelFile, Undescribed):
            pass


def test_a_file_that_is_written_to_meanwhile_is_refused(good, tmp_path, monkeypatch):
    import os

    from fastpower.decoders.quantised import loading

    path = tmp_path / "m.gguf"
    path.write_bytes(good)
    packing = loading.weights_of

    def while_written(file, architecture):
        os.utime(path, ns=(1, 1))
        return packing(file, architecture)

    monkeypatch.setattr(loading, "weights_of", while_written)
    refused(path, "was written to while it was read")


def test_paths_that_are_no_files_are_named(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(InvalidModelFile, match="is a folder"):
        GGUFFile(tmp_path / "folder.gguf")
    with pytest.raises(ModelNotFound, match="no such file"):
        GGUFFile(tmp_path / "none.gguf")


@pytest.mark.parametrize("left", [0.0, 0.3, 0.6, 0.999])
def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_not_the_end(good, tmp_path, left):
    """Touching a mapped page behind the new end would be SIGBUS."""
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(good)
    with GGUFFile(path) as file:
        os.truncate(path, int(left * len(good)))
        names = [name for name, entry in file.tensors.items() if entry.offset + entry.nbytes > left * len(good)]
        assert names
        for name in names:
            with pytest.raises(InvalidModelFile, match=rf"shrinking.gguf.*{re.escape(name)}.*become shorter"):
                file.data(name)


def test_a_file_that_becomes_shorter_while_it_is_packed_is_an_error(good, tmp_path, monkeypatch):
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(good)
    data, calls = GGUFFile.data, []

    def shrinking(self, name):
        calls.append(name)
        if len(calls) == 5:
            os.truncate(path, 5000)
        return data(self, name)

    monkeypatch.setattr(GGUFFile, "data", shrinking)
    refused(path, "become shorter")
    assert len(calls) >= 5


def test_a_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened(good, tmp_path):
    path, other = tmp_path / "m.gguf", tmp_path / "other"
    path.write_bytes(good)
    with GGUFFile(path) as file:
        expected = {name: file.data(name).copy() for name in file.tensors}
        other.write_bytes(bytes(len(good)))
        other.replace(path)
        assert all(np.array_equal(file.data(name), value) for name, value in expected.items())
