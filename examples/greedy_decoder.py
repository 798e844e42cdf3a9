"""A decoder in plain PyTorch on fastpower's kernels, without fastpower's engine.

    python examples/greedy_decoder.py

A small Llama-like model with random weights decodes several prompts of unequal length in one ragged batch: one packed
prefill, then one token per sequence and step. Everything it takes from this package are four functions:

    append_kv         writes the new keys and values into cache pages
    paged_attention   reads them back: prefill and decode are the same call
    copy_pages        gives a fork its own copy of a partly filled page
    sample_tokens     draws from p^alpha and returns log p, log Σ p^alpha and the entropy on the way

Greedy decoding is the limit of large alpha, so "greedy" below is a draw at alpha = 1000. The page tables are Python
lists; ``fastpower.decoders.cache.PagedCache`` keeps such books for real work.
"""

import torch
import torch.nn.functional as nnf

from fastpower.kernels import append_kv, copy_pages, paged_attention, sample_tokens

VOCAB, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, PAGE, PAGES = 997, 2, 96, 6, 2, 16, 16, 64


class Decoder:
    """Random weights, a paged cache, and sequences as lists of pages."""

    def __init__(self, seed=0, device="cpu"):
        g = torch.Generator().manual_seed(seed)

        def weight(rows, columns):
            return (torch.randn(rows, columns, generator=g) / columns**0.5).to(device)

        kv = 2 * KV_HEADS * HEAD_DIM
        self.embedding = 2 * weight(VOCAB, WIDTH)
        self.layers = [
            dict(
                qkv=weight(HEADS * HEAD_DIM + kv, WIDTH),
                out=weight(WIDTH, HEADS * HEAD_DIM),
                gate_up=weight(6 * WIDTH, WIDTH),
                down=weight(WIDTH, 3 * WIDTH),
            )
            for _ in range(LAYERS)
        ]
        self.k, self.v = torch.empty(2, LAYERS, PAGES, PAGE, KV_HEADS, HEAD_DIM, device=device)
        self.device = device
        self.free = list(range(PAGES))
        self.pages, self.lengths = {}, {}

    def add(self):
        """A new empty sequence."""
        name = len(self.pages)
        self.pages[name], self.lengths[name] = [], 0
        return name

    def fork(self, parent):
        """A sequence that shares the parent's full pages and copies its partly filled one."""
        child, length = self.add(), self.lengths[parent]
        self.pages[child], self.lengths[child] = self.pages[parent][: length // PAGE], length
        if length % PAGE:
            source, target, tokens = self.pages[parent][length // PAGE], self.free.pop(), length % PAGE
            copy_pages(self.k, self.v, *(self.int64([x]) for x in (source, target, tokens)))
            self.pages[child].append(target)
        return child

    def int64(self, values):
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def int32(self, values):
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    @torch.no_grad()
    def forward(self, sequences, tokens):
        """Append ``tokens[i]`` (a list) to ``sequences[i]``; logits (len(sequences), VOCAB) of the last positions."""
        slots, positions, starts = [], [], [0]
        for sequence, new in zip(sequences, tokens, strict=True):
            for _ in new:
                position = self.lengths[sequence]
                if position % PAGE == 0:
                    self.pages[sequence].append(self.free.pop())
                slots.append(self.pages[sequence][-1] * PAGE + position % PAGE)
                positions.append(position)
                self.lengths[sequence] += 1
            starts.append(len(slots))
        width = max(len(self.pages[s]) for s in sequences)
        table = self.int32([self.pages[s] + [0] * (width - len(self.pages[s])) for s in sequences])
        lengths = self.int32([self.lengths[s] for s in sequences])
        slots, starts = self.int64(slots), self.int32(starts)

        x = self.embedding[self.int64([t for new in tokens for t in new])]
        cos, sin = self.rotation(self.int64(positions))
        for layer, weights in enumerate(self.layers):
            qkv = (norm(x) @ weights["qkv"].T).unflatten(1, (-1, HEAD_DIM))
            q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            append_kv(k, v, self.k[layer], self.v[layer], slots)
            mixed = paged_attention(q, self.k[layer], self.v[layer], table, starts, lengths)
            x = x + mixed.flatten(1) @ weights["out"].T
            gate, up = (norm(x) @ weights["gate_up"].T).chunk(2, dim=1)
            x = x + (nnf.silu(gate) * up) @ weights["down"].T
        return norm(x[(starts[1:] - 1).long()]) @ self.embedding.T

    def rotation(self, positions):
        """Rotary angles (N, 1, HEAD_DIM / 2)."""
        inverse = 1e4 ** (-torch.arange(0, HEAD_DIM, 2, device=self.device) / HEAD_DIM)
        angle = (positions[:, None] * inverse)[:, None]
        return angle.cos(), angle.sin()


def norm(x):
    return nnf.rms_norm(x, (x.shape[-1],))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def decode(decoder, sequences, logits, steps, alpha, keys):
    """``steps`` tokens for every sequence from softmax(alpha · logits): (tokens, sum of logp, sum of logz_alpha)."""
    count, device = len(sequences), decoder.device
    alphas, exponents = torch.full((count,), alpha, device=device), torch.tensor([alpha], device=device)
    tokens, logp, logz = [[] for _ in sequences], torch.zeros(count), torch.zeros(count)
    for _ in range(steps):
        positions = decoder.int64([decoder.lengths[s] for s in sequences])
        drawn = sample_tokens(logits, alphas, exponents, torch.arange(count, device=device), keys, positions)
        for out, token in zip(tokens, drawn.token.tolist(), strict=True):
            out.append(token)
        logp, logz = logp + drawn.logp.cpu(), logz + drawn.logz[:, 0].cpu()
        logits = decoder.forward(sequences, [out[-1:] for out in tokens])
    return tokens, logp, logz


def main(device="cpu"):
    decoder = Decoder(device=device)
    prompts = [[1, 5, 9], list(range(100, 137)), [7] * 20]
    sequences = [decoder.add() for _ in prompts]
    logits = decoder.forward(sequences, prompts)
    keys = decoder.int64([11, 12, 13])
    forks = [decoder.fork(s) for s in sequences]
    greedy, logp, _ = decode(decoder, sequences, logits, 8, 1000.0, keys)
    for prompt, tokens, total in zip(prompts, greedy, logp.tolist(), strict=True):
        print(f"greedy     {len(prompt):2} prompt tokens → {tokens}  log p = {total:.2f}")
    powered, logp, logz = decode(decoder, forks, logits, 8, 4.0, keys)
    for tokens, total, weight in zip(powered, logp.tolist(), logz.tolist(), strict=True):
        print(f"alpha = 4  from the fork    → {tokens}  log p = {total:.2f}, log weight = {weight:.2f}")
    return greedy, powered


if __name__ == "__main__":
    main("cuda" if torch.cuda.is_available() else "cpu")
