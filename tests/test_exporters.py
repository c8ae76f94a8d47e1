"""Models exported here and now, by exporters whose graphs change with their releases."""

import onnx_ir as ir
import pytest

import onnxfuse

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def by_transformers() -> ir.Model:
    """A layer of Llama with a cache, by transformers' own exporter, its sizes open."""
    exporter = pytest.importorskip("transformers.exporters.exporter_onnx", reason="transformers has no exporter yet")
    torch.manual_seed(0)
    heads, kv_heads, size, batch, past, tokens = 4, 2, 8, 2, 5, 3
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = transformers.LlamaConfig(**sizes, vocab_size=40, num_hidden_layers=1)
    cache = transformers.DynamicCache()
    cache.update(*(torch.randn(batch, kv_heads, past, size) for _ in range(2)), 0)
    inputs = {
        "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
        "position_ids": torch.arange(past, past + tokens).repeat(batch, 1),
        "past_key_values": cache,
        "use_cache": True,
    }
    model = transformers.LlamaForCausalLM(config).eval()
    return exporter.OnnxExporter().export(model, inputs, exporter.OnnxConfig(dynamic=True)).program


@pytest.mark.parametrize(
    ("level", "fused"),
    [
        (
            "op",
            {"Attention": 1, "GatedMLP": 1, "RMSNorm": 1, "RotaryEmbedding": 2, "RotaryTable": 1, "SkipRMSNorm": 2},
        ),
        ("block", {"AttentionBlock": 1, "Embedding": 1, "GatedMLP": 1, "Linear": 1, "RotaryTable": 1}),
    ],
)
def test_a_layer_by_transformers_own_exporter(by_transformers: ir.Model, level: str, fused: dict[str, int]):
    result = onnxfuse.optimize(ir.to_proto(by_transformers), level=level, verify="model")
    assert result.report.verification.passed
    assert result.report.fused == fused
    others = sorted(node.op_type for node in result.model.graph if node.domain != "onnxfuse")
    assert others == ([] if level == "block" else ["Gather", *["MatMul"] * 5])
