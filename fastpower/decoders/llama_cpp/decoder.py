"""llama.cpp as a decoder: every sampler on any GGUF file that llama.cpp runs, on its backends, too.

    model = fastpower.load("llama.cpp:model.gguf", cache_tokens=32768)

Sequences are llama.cpp's own in one unified K/V cache, through the low-level functions of llama-cpp-python: a fork is
``llama_memory_seq_cp``, which copies no keys, a truncation is ``llama_memory_seq_rm``. Logits are read where llama.cpp
leaves them, by our kernels. Its matrix products depend on the batch in their last bits, so ``batch_invariant`` is
False: samplers then use the numbers that a token was drawn with, and never ask for them again.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastpower.decoders.base import Draws, SequenceScores, TokenDraws, Work
from fastpower.decoders.llama_cpp.library import BATCH, Batch, library, said
from fastpower.errors import (
    CacheFull,
    InvalidLogits,
    InvalidModelFile,
    ModelNotFound,
    PromptTooLong,
    UnknownSequence,
    UnsupportedModel,
)
from fastpower.kernels import sample_tokens, score_tokens

SCORED = 64  #: rows of logits at a time when a text is scored: 64 × 151,936 float32 are 39 MB
_OUT_OF_ROOM = 1  # llama_decode: no room in the K/V cache


class LlamaCppDecoder:
    """The decoder protocol (``fastpower.decoders.base``) on llama.cpp.

    Args:
        path: A GGUF file; of a model in parts, the first.
        tokenizer: Of transformers, for chat templates; without one texts go through llama.cpp's tokenizer.
        cache_tokens: Tokens of K/V that all sequences hold together, shared ones counted once.
        threads: Of llama.cpp; default: the cores this process may use.
        gpu_layers: Layers on llama.cpp's GPU backend, -1 for all where it was built with one.

    Raises:
        BackendUnavailable: llama-cpp-python is not installed.
        ModelNotFound: No such file.
        InvalidModelFile: llama.cpp does not read it; the error has its words.
        UnsupportedModel: A model whose state cannot be cut back (recurrent, hybrid), or an encoder.
        ValueError: ``cache_tokens`` or ``threads`` below 1.
    """

    batch_invariant = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        cache_tokens: int | None = None,
        threads: int | None = None,
        gpu_layers: int = -1,
    ) -> None:
        file = Path(path).expanduser()
        room, workers = cache_tokens or 16_384, threads or len(os.sched_getaffinity(0))
        for name, value in (("cache_tokens", cache_tokens), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not file.is_file():
            raise ModelNotFound(f"there is no file {file}; give llama.cpp: and the path of a GGUF file")
        self._api = api = library()
        self._model = self._context = None
        options = api.llama_model_default_params()
        options.n_gpu_layers = gpu_layers
        self._model = model = api.llama_model_load_from_file(os.fsencode(file), options)
        if not model:
            raise InvalidModelFile(f"llama.cpp does not load {file}: {said()}")
        for refused, kind in (
            (api.llama_model_is_recurrent, "recurrent"),
            (api.llama_model_is_hybrid, "partly recurrent"),
            (api.llama_model_has_encoder, "an encoder"),
        ):
            if refused(model):
                self.close()
                raise UnsupportedModel(f"{file.name} is {kind}: its state cannot be forked and cut back")
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = room, BATCH, BATCH
        settings.n_seq_max = self._slots = api.llama_max_parallel_sequences()
        settings.n_threads = settings.n_threads_batch = workers
        settings.kv_unified = True  # one cache for all: forks share its cells
        settings.swa_full = True  # windows keep what lies behind them, or a truncation could not go back
        self._context = api.llama_init_from_model(model, settings)
        if not self._context:
            self.close()
            raise InvalidModelFile(f"llama.cpp makes no context of {room} tokens: {said()}")
        self._memory = api.llama_get_memory(self._context)
        self._vocab = vocab = api.llama_model_get_vocab(model)
        self.name, self.tokenizer = file.name, tokenizer
        self.vocab_size = int(api.llama_vocab_n_tokens(vocab))
        self.eos_ids = frozenset(t for t in range(self.vocab_size) if api.llama_vocab_is_eog(vocab, t))
        self.cache_tokens = int(api.llama_n_ctx(self._context))
        self.max_length = min(int(api.llama_model_n_ctx_train(model)), self.cache_tokens)
        self.rows = 0  #: tokens fed to rows whose logits were wanted, so far
        self._batch = Batch(api)
        self._handles, self._free = itertools.count(1), list(range(self._slots))[::-1]
        self._slot: dict[int, int] = {}  # of a sequence; an empty one needs none, and its slot is -1
        self._cells: dict[int, list[int]] = {}  # of a sequence: names of its tokens' cells, shared with its forks
        self._holders: dict[int, int] = {}  # of a cell
        self._names = itertools.count()

    def close(self) -> None:
        """Give the memory of model and cache back. The decoder cannot be used afterwards."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    # -- sequences ---------------------------------------------------------------------------------------------

    def _of(self, sequence: int) -> list[int]:
        try:
            return self._cells[sequence]
        except KeyError:
            raise UnknownSequence(f"sequence {sequence} does not exist (never added, or already freed)") from None

    def _checked(self, sequence: int, length: int) -> list[int]:
        cells = self._of(sequence)
        if not 0 <= length <= len(cells):
            raise ValueError(f"length must lie in [0, {len(cells)}], got {length}")
        return cells

    def _release(self, cells: Sequence[int]) -> None:
        for cell in cells:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                del self._holders[cell]

    def _take_slot(self) -> int:
        if not self._free:
            raise CacheFull(f"llama.cpp holds at most {self._slots} sequences at a time; lower max_rows or particles")
        return self._free.pop()

    def add(self) -> int:
        """A new empty sequence."""
        handle = next(self._handles)
        self._cells[handle], self._slot[handle] = [], -1
        return handle

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence with the first ``length`` tokens; no key or value is copied."""
        cells = self._checked(sequence, length)[:length]
        slot = self._take_slot() if cells else -1
        if cells:
            self._api.llama_memory_seq_cp(self._memory, self._slot[sequence], slot, 0, length)
        for cell in cells:
            self._holders[cell] += 1
        handle = next(self._handles)
        self._cells[handle], self._slot[handle] = cells, slot
        return handle

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` tokens."""
        cells = self._checked(sequence, length)
        if length == len(cells):
            return
        slot = self._slot[sequence]
        self._api.llama_memory_seq_rm(self._memory, slot, length, -1)
        self._release(cells[length:])
        del cells[length:]
        if not length:
            self._free.append(slot)
            self._slot[sequence] = -1

    def free(self, sequence: int) -> None:
        """Give a sequence back."""
        self._of(sequence)
        self.truncate(sequence, 0)
        del self._cells[sequence], self._slot[sequence]

    def length(self, sequence: int) -> int:
        """Tokens held."""
        return len(self._of(sequence))

    def stats(self) -> dict[str, int]:
        """``free_tokens``, ``cache_tokens``, ``distinct_tokens``, ``sequences``, ``free_sequences``."""
        held = len(self._holders)
        return {
            **{"free_tokens": self.cache_tokens - held, "cache_tokens": self.cache_tokens, "distinct_tokens": held},
            **{"sequences": len(self._cells), "free_sequences": len(self._free)},
        }

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """See ``fastpower.decoders.base.Decoder``."""
        before = self._append(work)
        try:
            last = {sum(len(w.tokens) for w in work[: i + 1]) - 1 for i in range(len(work))}
            parts = [z if end else z.clone() for _, z, end in self._logits(work, before, last, BATCH)]
            logits = parts[0] if len(parts) == 1 else torch.cat(parts)
            arguments = draws._replace(keys=draws.keys.view(np.int64))  # torch has no unsigned keys
            out = TokenDraws(*(x.numpy() for x in sample_tokens(logits, *map(torch.from_numpy, arguments))))
        except BaseException:
            self._undo(work, before)
            raise
        self.rows += len(work)
        return out

    def score(self, work: Sequence[Work], exponents: NDArray[np.float32]) -> list[SequenceScores]:
        """See ``fastpower.decoders.base.Decoder``."""
        before = self._append(work)
        tokens = [token for w in work for token in w.tokens]
        following = torch.tensor([*tokens[1:], 0], dtype=torch.int64, device="cpu")  # a last one's logp is dropped
        found = []
        try:
            for first, logits, _ in self._logits(work, before, set(range(len(tokens))), SCORED):
                targets = following[first : first + len(logits)]
                found.append(score_tokens(logits, targets, torch.from_numpy(exponents)))
                if bool(found[-1].status.any()):
                    raise InvalidLogits("llama.cpp returned NaN, or a row without a finite logit")
        except BaseException:
            self._undo(work, before)
            raise
        self.rows += len(tokens)
        logp, logz, entropy = (torch.cat([getattr(s, n) for s in found]) for n in ("logp", "logz", "entropy"))
        ends = np.cumsum([len(w.tokens) for w in work])
        spans = [(end - len(w.tokens), end) for w, end in zip(work, ends, strict=True)]
        return [SequenceScores(logp[i : j - 1].numpy(), logz[i:j].numpy(), entropy[i:j].numpy()) for i, j in spans]

    def _append(self, work: Sequence[Work]) -> list[int]:
        """Take cells and slots for all tokens, or raise with nothing changed; the lengths before."""
        lengths = [self.length(w.sequence) for w in work]
        if len({w.sequence for w in work}) != len(work):
            raise ValueError("a sequence may appear only once in a batch")
        needed = 0
        for (sequence, tokens), length in zip(work, lengths, strict=True):
            if not len(tokens):
                raise ValueError(f"work for sequence {sequence} has no tokens")
            if not all(0 <= token < self.vocab_size for token in tokens):
                raise ValueError(f"tokens of sequence {sequence} must lie in [0, {self.vocab_size})")
            if length + len(tokens) > self.max_length:
                raise PromptTooLong(
                    f"sequence {sequence} would have {length + len(tokens)} of {self.max_length} tokens"
                )
            needed += len(tokens)
        free, new = self.cache_tokens - len(self._holders), sum(not n for n in lengths)
        if needed > free or new > len(self._free):
            raise CacheFull(
                f"needs {needed} more tokens and {new} more of llama.cpp's sequences, {free} and {len(self._free)} are "
                "free; free sequences or raise cache_tokens"
            )
        for (sequence, tokens), length in zip(work, lengths, strict=True):
            if not length:
                self._slot[sequence] = self._take_slot()
            cells = [next(self._names) for _ in tokens]
            self._holders.update(dict.fromkeys(cells, 1))
            self._cells[sequence].extend(cells)
        return lengths

    def _undo(self, work: Sequence[Work], before: Sequence[int]) -> None:
        for (sequence, _), length in zip(work, before, strict=True):
            self.truncate(sequence, length)

    def _logits(
        self, work: Sequence[Work], before: Sequence[int], wanted: set[int], most: int
    ) -> Iterator[tuple[int, torch.Tensor, bool]]:
        """Logits by calls of at most ``most`` tokens; they are llama.cpp's own memory, overwritten by the next call.

        Yields:
            (number of the first row's token, logits of wanted rows, whether they are the last).
        """
        fed = [
            (token, length + i, self._slot[w.sequence])
            for w, length in zip(work, before, strict=True)
            for i, token in enumerate(w.tokens)
        ]
        for first in range(0, len(fed), most):
            part = fed[first : first + most]
            outputs = [first + i in wanted for i in range(len(part))]
            code = self._api.llama_decode(self._context, self._batch.of(part, outputs))
            if code == _OUT_OF_ROOM:
                raise CacheFull(f"llama.cpp finds no room for {len(part)} tokens; raise cache_tokens")
            if code:
                raise RuntimeError(f"llama_decode failed with {code}: {said()}")
            if count := sum(outputs):
                rows = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (count, self.vocab_size))
                yield first, torch.from_numpy(rows), first + most >= len(fed)

    # -- text --------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text by llama.cpp's tokenizer, with what the model puts first (BOS), if it does."""
        data = text.encode()
        room = (ctypes.c_int * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), room, len(room), True, False)
        if count < 0:
            raise ValueError(f"llama.cpp does not tokenize {text[:40]!r}: {count}")
        return list(room[:count])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens removed."""
        ids, size = (ctypes.c_int * len(tokens))(*tokens), 16 * len(tokens) + 64
        while True:
            room = ctypes.create_string_buffer(size)
            count = self._api.llama_detokenize(self._vocab, ids, len(tokens), room, size, True, False)
            if count >= 0:
                return room.raw[:count].decode(errors="replace")
            size = -count
