"""Export a tiny Llama with random weights and a KV cache: any checkpoint of transformers goes the same way.

Needs `pip install '.[export]'`. Its result is carried as `tiny_llama.onnx`, so that the other examples do not.
"""

import sys
import warnings
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


class WithFlatCache(torch.nn.Module):
    """A Llama whose cache is a list of tensors, which is how an ONNX graph takes it."""

    def __init__(self, llama):
        super().__init__()
        self.llama = llama

    def forward(self, input_ids, attention_mask, position_ids, past):
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.llama(input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache)
        present = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
        return out.logits, *present


def random_llama(**sizes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, max_position_embeddings=512, **sizes)).eval()


def export(llama, path):
    config = llama.config
    batch, tokens, past = 2, 3, 5
    cache_names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    inputs = (
        torch.zeros(batch, tokens, dtype=torch.int64),
        torch.ones(batch, past + tokens, dtype=torch.int64),
        torch.arange(past, past + tokens).expand(batch, tokens).contiguous(),
        [torch.zeros(batch, config.num_key_value_heads, past, config.head_dim, dtype=llama.dtype) for _ in cache_names],
    )
    cache_in, cache_out = ([f"{way}.{name}" for name in cache_names] for way in ("past_key_values", "present"))
    axes = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "position_ids", "logits")}
    axes |= {"attention_mask": {0: "batch", 1: "total"}}
    axes |= {name: {0: "batch", 2: "past"} for name in cache_in}
    axes |= {name: {0: "batch", 2: "total"} for name in cache_out}
    torch.onnx.export(
        WithFlatCache(llama),
        inputs,
        str(path),  # beside a file that has a name as text it puts the weights of a model over 2 GB
        dynamo=False,  # the other exporter is fused as well; this one is faster and keeps the modules' names
        opset_version=17,
        input_names=["input_ids", "attention_mask", "position_ids", *cache_in],
        output_names=["logits", *cache_out],
        dynamic_axes=axes,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "tiny_llama.onnx")
    llama = random_llama(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
    )
    export(llama, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
