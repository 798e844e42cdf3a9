"""Any causal language model of transformers with a plain K/V cache, unmodified, over a paged cache.

transformers lets a model's attention function be chosen by name. Ours is registered once under ``ATTENTION``; it gets
query, key and value of the new tokens of a packed ragged batch (``input_ids`` is (1, N), rows one after the other,
positions given), writes K/V into the pages and attends over them. Masks, cache objects and padding are never made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpower.decoders.ahead import StepAhead
from fastpower.decoders.base import Draws, PooledDraws, SequenceScores, TokenDraws, Work, check_rows
from fastpower.decoders.transfer import to_device
from fastpower.decoders.transformers import scores, verification
from fastpower.decoders.transformers.attention import Step, register_attention
from fastpower.decoders.transformers.compiled import CompiledDecode
from fastpower.decoders.transformers.device_forward import DeviceForward, device_forward
from fastpower.decoders.transformers.fused import FusedForward
from fastpower.decoders.transformers.layout import kv_layout, refuse_by_config, refuse_by_placement
from fastpower.decoders.transformers.packing import PackedBatch, Packer
from fastpower.decoders.transformers.resources import eos_ids, paged_cache, weight_bytes
from fastpower.decoders.transformers.static_step import StaticStep
from fastpower.decoders.transformers.substitution import Substitution
from fastpower.decoders.transformers.weights import state_of
from fastpower.kernels.dispatch import pick, resolve
from fastpower.models import memory
from fastpower.models.prompts import text_tokens


class TransformersDecoder:
    """The decoder protocol (``fastpower.decoders.base``) on a transformers model.

    The model is left as it is: its attention and products are exchanged only while ``forward`` and ``score`` run (so
    they must not run at the same time as other uses of the same model in other threads), and no weight is touched.
    As a context manager a decoder gives its memory back at the end.

    Args:
        model: A causal language model of transformers ≥ 5 in evaluation mode, on one device.
        tokenizer: Its tokenizer; None if texts and stop tokens of the tokenizer are not needed.
        cache_tokens: Tokens whose K/V are kept, shared ones counted once; default: ``memory_fraction`` of the memory
            free now, at most 64 full contexts.
        memory_fraction: Share of the free memory, in (0, 1].
        page_size: Tokens per page.
        backend: Of the kernels, see ``fastpower.kernels.backends``.
        verify: Compare a short ragged batch with the model's own attention now (three forwards of a few tokens).
        accelerate: On the CPU, float32 or bfloat16: pack the weights (a second copy of them). Llama, Mistral, Qwen2,
            Qwen3 and Gemma-3 then run in one C++ call per forward, batch-invariant bit for bit
            (``fused.py``); other models with packed matrix products (``packed_linear.py``).
        compile: Run steps in which every row gets one token through ``torch.compile``, one graph per bucket of sizes
            (``compiled.py``): True, or the name of a backend of torch.compile. Meant for GPUs; it takes the place
            of the fused forward.
        graphs: Run steps in which every row gets one token and draws once in buffers that never move, one step ahead
            of the caller (``static_step.py``, ``ahead.py``), as CUDA graphs on a GPU. "auto" (default): on a
            CUDA device, for the models of ``accelerate``'s list, which then run in a forward of our own there
            (``device_forward.py``). True on the CPU runs the same code with a call in place of a graph's replay,
            slowly: for tests. Refused with a reason where it is asked for and cannot be.

    Raises:
        UnsupportedModel: What cannot run over pages, which is named: recurrent state, encoder–decoder, attention sinks,
            latent attention, layers of different shapes, more than one device, or an answer that differs from the
            model's own.
        OutOfMemory: Too little memory, before weights are packed and before pages are allocated; bytes needed and
            available are named.
    """

    _device: DeviceForward | None = None
    _ahead: StepAhead | None = None

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        cache_tokens: int | None = None,
        memory_fraction: float = 0.25,
        page_size: int = 16,
        backend: str = "auto",
        verify: bool = True,
        accelerate: bool = True,
        compile: bool | str = False,
        graphs: bool | str = "auto",
    ) -> None:
        if model.training:
            raise ValueError("model is in training mode (dropout would change its probabilities); call model.eval()")
        if not 0.0 < memory_fraction <= 1.0:
            raise ValueError(f"memory_fraction must lie in (0, 1], got {memory_fraction}")
        refuse_by_config(model)
        refuse_by_placement(model)
        register_attention()
        self.model, self.tokenizer, self.backend = model, tokenizer, backend
        self._substitution = Substitution(model)
        with self._substitution.paged():
            layout = kv_layout(model)
        self.layout = layout
        self.vocab_size, self.max_length = layout.vocab_size, layout.max_length
        self.eos_ids = eos_ids(model, tokenizer)
        self._append_kv = resolve("append_kv", backend, layout.device)
        self._attention_kernel = resolve("paged_attention", backend, layout.device)
        self._fused: FusedForward | None = None
        self._device = device_forward(model, layout.device, backend, accelerate, compile, graphs)
        if layout.device.type != "cpu" and self._device is None and not compile:
            self._substitution.widen_head()
        if self._device is None and accelerate and layout.device.type == "cpu" and pick(backend, "cpu") == "cpu":
            weights = sum(p.nbytes for p in model.parameters() if p.dtype in (torch.float32, torch.bfloat16))
            remedy = "accelerate=False runs on the model's own weights, slower"
            memory.require(weights, f"a packed copy of the weights of {type(model).__name__}", remedy)
            self._fused = None if compile else FusedForward.of(model)
            if self._fused is None:
                self._substitution.accelerate()
        self.cache = paged_cache(layout, cache_tokens, memory_fraction, page_size)
        self._weights = state_of(model)
        self._compiled: CompiledDecode | None = None
        if compile:
            self._compiled = CompiledDecode(model, self.cache, backend, "inductor" if compile is True else compile)
        self._packer = Packer(self.cache, self.vocab_size, self.max_length)
        if verify:
            self._verify()
        if self._device is not None and graphs is not False:
            self._ahead = self._step_ahead(self._device)

    # ------------------------------------------------------------------------------------------------ sequences

    def add(self) -> int:
        """A new empty sequence."""
        return self.cache.add()

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence sharing the first ``length`` tokens (0 ≤ length ≤ length(sequence)); nothing is copied."""
        self._settle(sequence)
        return self.cache.fork(sequence, length)

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` tokens."""
        self._settle(sequence)
        self.cache.truncate(sequence, length)

    def free(self, sequence: int) -> None:
        """Give a sequence back. After ``close``, which gave all of them back, nothing happens."""
        if "cache" in self.__dict__:
            self._settle(sequence)
            self.cache.free(sequence)

    def length(self, sequence: int) -> int:
        """Tokens held."""
        length = self.cache.length(sequence)
        return length if self._ahead is None else length - self._ahead.surplus(sequence)

    def remember(self, sequence: int, tokens: Sequence[int]) -> None:
        """Keep the K/V of ``tokens``, the first that ``sequence`` holds, for later ``match``es; see ``PagedCache``.

        Nothing is kept while a hook makes the model another one. Call ``forget`` after changing the model's weights.
        """
        if not self._hooked:
            self._settle(sequence)
            self.cache.remember(sequence, tokens)

    def match(self, tokens: Sequence[int]) -> tuple[int, int]:
        """See ``PagedCache.match``. Nothing is found while a hook makes the model another one."""
        return self.cache.match([] if self._hooked else tokens)

    def refresh(self) -> bool:
        """Whether the model's weights (or its modules) are others than before.

        If so, what was derived from them goes: packed weights are packed again, remembered prefixes forgotten.
        A scheduler asks at the start of every run. Whatever wrote to the weights is seen: optimizers,
        ``load_state_dict`` (with ``assign``, too), adapters that merge, ``.data``, NumPy. Costs a read of the weights.
        """
        now = state_of(self.model)
        if now == self._weights:
            return False
        self._weights = now
        self._derive()
        return True

    def forget(self) -> None:
        """Pack the weights again and forget every remembered prefix, whether or not the weights have changed.

        Raises:
            ValueError: Sequences are held, and their K/V belong to the old weights; nothing has changed.
        """
        self._refuse_held()
        self._weights = state_of(self.model)
        self._derive()

    def _derive(self) -> None:
        """What is made of the weights, made again."""
        self._settle()
        self.cache.forget_all()
        if self._device is not None:
            ahead, self._ahead = self._ahead, None
            self._device = DeviceForward.of(self.model, self.backend)
            if self._device is not None and ahead is not None:
                self._ahead = self._step_ahead(self._device)
        if self._fused is not None:
            self._fused = FusedForward.of(self.model)  # None where modules were exchanged for others
            if self._fused is None:
                self._substitution = Substitution(self.model)
                self._substitution.accelerate()
                return
        self._substitution.repack()

    def _refuse_held(self) -> None:
        held = self.stats()["sequences"]
        if held:
            raise ValueError(
                f"{held} sequences still hold K/V of the old weights: free them first (finished chains and schedulers "
                "hold theirs until they are deleted)"
            )

    def forward(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """Append every row's tokens and draw from each row's last position, all or nothing.

        Raises:
            CacheFull: No room.
            UnknownSequence: A handle that is not live.
            PromptTooLong: A row would exceed ``max_length``.
            TypeError: Draws of other dtypes, a number that is not whole.
            ValueError: An empty batch or row, a sequence twice, a token outside the vocabulary, draws that do not fit.
        """
        if self._ahead is None:
            return self._plain(work, draws)
        if self._hooked:
            self._ahead.settle()
            return self._plain(work, draws)
        with torch.inference_mode():
            return self._ahead.forward(work, draws)

    def verify(self, work: Sequence[Work], rows: Sequence[int], draws: Draws) -> TokenDraws:
        """``forward`` that draws at the last ``rows[i]`` positions of row i; see ``VerifyingDecoder``.

        A chunk costs what as many rows of one token do: products read the weights once for all of them.
        """
        check_rows(work, rows)
        self._settle()
        with self._packer.reserved(work) as batch, torch.inference_mode():
            ends, counts = batch.starts[1:].astype(np.int64), np.asarray(rows, np.int64)
            before = np.cumsum(counts) - counts  # rows of logits before those of each row
            keep = np.arange(counts.sum()) + np.repeat(ends - counts - before, counts)
            return self._draw(self._logits(batch, keep), draws)

    def forward_pooled(self, work: Sequence[Work], *places: NDArray[Any]) -> PooledDraws:
        """Append every row's tokens and draw one token per group of rows; see ``PoolingDecoder``."""
        self._settle()
        with self._packer.reserved(work) as batch, torch.inference_mode():
            return scores.pool(self._last_logits(batch), places, self.layout.device, self.backend)

    def score(self, work: Sequence[Work], exponents: NDArray[np.float32]) -> list[SequenceScores]:
        """Append every row's tokens and return their statistics, all or nothing; see ``Decoder.score``.

        At most ``scores.SCORE_BYTES`` of logits exist at a time (at least one row of them).

        Raises:
            CacheFull: As ``forward``, and so are its other errors.
            InvalidLogits: A row of NaN, +inf or nothing but −inf.
        """
        self._settle()
        with self._packer.reserved(work) as batch, torch.inference_mode():
            logits = self._all_logits if self._device is None or self._hooked else self._states(batch)
            return scores.score(batch, exponents, logits, self.vocab_size, self.layout.device, self.backend)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with what the tokenizer puts first by itself (a BOS token, if it has one), once."""
        return text_tokens(self._tokenizer(), text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens removed."""
        return str(self._tokenizer().decode(list(tokens), skip_special_tokens=True))

    def stats(self) -> dict[str, int]:
        """The cache's ``stats()``: pages, tokens and bytes, free and in use."""
        return self.cache.stats()

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads: those that multiply; an embedding of its own is only looked up."""
        return weight_bytes(self.model)

    def close(self) -> None:
        """Give the cache's memory back. The decoder cannot be used afterwards; the model can."""
        self.__dict__.pop("cache", None)
        self.__dict__.pop("_packer", None)
        self._fused = self._compiled = self._device = self._ahead = None
        self._substitution = Substitution(self.model)

    def __enter__(self) -> TransformersDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def batch_invariant(self) -> bool:
        """True while the fused forward is in use.

        It is not with a forward hook on a module, and not for other models, because torch's products choose their order
        of summation by the number of rows.
        """
        own = self._own
        return own is not None and not own.hooked and self.layout.device.type == "cpu"

    @property
    def _own(self) -> FusedForward | DeviceForward | None:
        """The forward of our own, where there is one."""
        return self._fused if self._fused is not None else self._device

    @property
    def _hooked(self) -> bool:
        own = self._own
        return own is not None and own.hooked

    def _step_ahead(self, forward: DeviceForward) -> StepAhead:
        step = StaticStep(forward, self.cache, self.max_length, self.backend)
        held = (self.cache.lengths, self.cache.truncate)
        return StepAhead(self._plain, step.launch, *held, self.max_length, self.eos_ids)

    def _settle(self, sequence: int | None = None) -> None:
        """Take back what was computed ahead for a sequence (None: for all)."""
        if self._ahead is not None:
            self._ahead.settle(sequence)

    def _plain(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """``forward``, nothing ahead."""
        with self._packer.reserved(work) as batch, torch.inference_mode():
            return self._draw(self._last_logits(batch), draws)

    def _last_logits(self, batch: PackedBatch) -> Tensor:
        """(S, V) logits after the last token of each row."""
        if self._compiled is not None and len(batch.tokens) == len(batch.sequences):
            with self._substitution.paged():
                return self._compiled(batch.tokens, batch.positions, batch.slots, batch.page_table, batch.lengths)
        return self._logits(batch, batch.starts[1:].astype(np.int64) - 1)

    def _all_logits(self, batch: PackedBatch, a: int = 0, b: int | None = None) -> Tensor:
        """(b − a, V) logits after tokens a … b − 1 (default: all), whose keys and values are computed now."""
        part = scores.part(batch, a, len(batch.tokens) if b is None else b)
        return self._logits(part, np.arange(len(part.tokens)))

    def _states(self, batch: PackedBatch) -> Callable[[PackedBatch, int, int], Tensor]:
        """The same where states are cheap to keep: one forward for all tokens, the head a chunk at a time."""
        assert self._device is not None
        tokens, _ = self._device.upload(batch)
        states = self._device.hidden(self.cache.k, self.cache.v, tokens)
        head = self._device.logits
        return lambda _, a, b: head(states[a:b])

    def _logits(self, batch: PackedBatch, keep: NDArray[np.int64]) -> Tensor:
        """One packed forward; (len(keep), V) logits of the packed tokens ``keep``, valid until the next forward."""
        tokens, positions, slots, _, _, starts, lengths, table, shared = batch
        if self._fused is not None and not self._fused.hooked:
            return self._fused(
                self.cache.k, self.cache.v, tokens, positions, slots, table, starts, lengths, keep, shared
            )
        if self._device is not None and not self._device.hooked:
            uploaded, kept = self._device.upload(batch, keep if len(keep) < len(tokens) else None)
            return self._device.logits(self._device.hidden(self.cache.k, self.cache.v, uploaded, kept))
        arrays = [tokens[None], positions[None], keep, slots, table, starts, lengths, *(shared or ())]
        ids, places, kept, *pages = to_device(arrays, self.layout.device)
        step = Step.of(self.cache.k, self.cache.v, pages, self._append_kv, self._attention_kernel)
        with self._substitution.paged():
            wanted = {"input_ids": ids, "position_ids": places, "logits_to_keep": kept, "use_cache": False}
            logits: Tensor = self.model(**wanted, fastpower_step=step).logits[0]
        return logits

    def _draw(self, logits: Tensor, draws: Draws) -> TokenDraws:
        return scores.draw(logits, draws, self.layout.device, self.backend)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("this decoder was made without a tokenizer; pass token ids, or give it one")
        return self.tokenizer

    def _verify(self) -> None:
        """See ``verification.py``; nothing is compared where the cache has no room for it."""
        longest = max(verification.LENGTHS)
        if self.max_length < longest or self.cache.free_pages < 2 * (1 + longest // self.cache.page_size):
            return
        sequences, name = [self.add(), self.add()], type(self.model).__name__
        try:
            own = partial(verification.own_logits, self.model, self._substitution.attention, self.layout.device)
            verification.verify(name, self.layout.dtype, self.vocab_size, sequences, self._paged, own)
        finally:
            for sequence in sequences:
                self.free(sequence)

    def _paged(self, work: Sequence[Work]) -> Tensor:
        with self._packer.reserved(work) as batch, torch.inference_mode():
            return self._last_logits(batch).clone()
