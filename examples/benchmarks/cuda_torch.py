"""A Llama written by hand for PyTorch, the peer of cuda_models.py: packed weights, a static cache, torch.compile."""

from dataclasses import dataclass

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Sizes:
    """A Llama, without biases."""

    dtype: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    layers: int

    @property
    def matrix_elements(self) -> int:
        """What a token multiplies by: all but the embedding table."""
        attention = self.hidden * self.head * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab

    @property
    def row_elements(self) -> int:
        """Keys and values of a token."""
        return 2 * self.layers * self.kv_heads * self.head


class Llama:
    """Random weights on the device; the cache holds `room` rows."""

    def __init__(self, sizes: Sizes, batch: int, room: int) -> None:
        self.sizes, head, hidden = sizes, sizes.head, sizes.hidden
        dtype = getattr(torch, sizes.dtype)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=dtype) * 0.02

        self.embedding, self.last = random(sizes.vocab, hidden), random(hidden, sizes.vocab)
        self.ones = torch.ones(hidden, device="cuda", dtype=dtype)
        self.layers = [
            {
                "qkv": random(hidden, head * (sizes.heads + 2 * sizes.kv_heads)),
                "output": random(head * sizes.heads, hidden),
                "gate_up": random(hidden, 2 * sizes.intermediate),
                "down": random(sizes.intermediate, hidden),
                "key": random(batch, sizes.kv_heads, room, head),
                "value": random(batch, sizes.kv_heads, room, head),
            }
            for _ in range(sizes.layers)
        ]
        angles = torch.arange(room)[:, None] * 10000.0 ** (-torch.arange(0, head, 2) / head)
        self.cos, self.sin = (f(angles).to("cuda", dtype) for f in (torch.cos, torch.sin))

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids: [B, S], positions: [S], the last rows of the cache -> logits [B, S, vocab]."""
        sizes, (batch, length) = self.sizes, ids.shape
        cos, sin = self.cos[positions], self.sin[positions]

        def rotated(x: torch.Tensor) -> torch.Tensor:
            left, right = x.chunk(2, dim=-1)
            return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

        def heads_first(x: torch.Tensor, heads: int) -> torch.Tensor:
            return x.view(batch, length, heads, sizes.head).transpose(1, 2)

        h = self.embedding[ids]
        for layer in self.layers:
            normed = rms_norm(h, (sizes.hidden,), self.ones, 1e-5)
            q, k, v = (normed @ layer["qkv"]).split(
                [sizes.heads * sizes.head, sizes.kv_heads * sizes.head, sizes.kv_heads * sizes.head], dim=-1
            )
            layer["key"].index_copy_(2, positions, rotated(heads_first(k, sizes.kv_heads)))
            layer["value"].index_copy_(2, positions, heads_first(v, sizes.kv_heads))
            y = scaled_dot_product_attention(
                rotated(heads_first(q, sizes.heads)),
                layer["key"],
                layer["value"],
                is_causal=length > 1,  # a prompt fills the cache; a token sees all of it
                enable_gqa=sizes.heads != sizes.kv_heads,
            )
            h = h + y.transpose(1, 2).reshape(batch, length, -1) @ layer["output"]
            gate, up = (rms_norm(h, (sizes.hidden,), self.ones, 1e-5) @ layer["gate_up"]).chunk(2, dim=-1)
            h = h + (silu(gate) * up) @ layer["down"]
        return rms_norm(h, (sizes.hidden,), self.ones, 1e-5) @ self.last


def captured(sizes: Sizes, batch: int, prompt: int, past: int):
    """A step of torch.compile's max-autotune as a CUDA graph; call it to run it."""
    model = Llama(sizes, batch, past + prompt)
    ids = torch.randint(0, sizes.vocab, (batch, prompt), device="cuda")
    positions = torch.arange(past, past + prompt, device="cuda")
    torch.compiler.reset()
    step = torch.compile(model.step, mode="max-autotune-no-cudagraphs", dynamic=False)
    with torch.inference_mode():
        for _ in range(3):
            step(ids, positions)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.logits = step(ids, positions)

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    run.model = model  # whose memory the graph uses
    return run
