"""The models that cpu_peers.py times: a Llama of given sizes as it is exported, and as each tool leaves it.

    python examples/benchmarks/cpu_models.py NAME FOLDER SIZES

A model is made in a process of its own, since some tools take ten times its size. SIZES is JSON, see `Sizes`.
"""

import functools
import json
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

EXPORTED = "exported"


@dataclass(frozen=True)
class Sizes:
    """A Llama; by default two layers of Llama-2-7B, exported as float32 or float16.

    `level` is what onnxfuse's rewrite takes.
    """

    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocab: int = 32000
    layers: int = 2
    level: str = "op"
    dtype: str = "float32"

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.hidden // self.heads

    @property
    def matrix_elements(self) -> int:
        """What a token multiplies by: all but the embedding table."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab


def llama(sizes: Sizes):
    """The model in PyTorch, with the same random weights each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return (
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=sizes.hidden,
                intermediate_size=sizes.intermediate,
                num_attention_heads=sizes.heads,
                num_key_value_heads=sizes.kv_heads,
                vocab_size=sizes.vocab,
                num_hidden_layers=sizes.layers,
                max_position_embeddings=8192,
            )
        )
        .to(getattr(torch, sizes.dtype))
        .eval()
    )


def export(sizes: Sizes, source: Path, target: Path) -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "01_export_a_tiny_llama.py"))
    example["export"](llama(sizes), target)


def with_onnxruntime_transformers(sizes: Sizes, source: Path, target: Path) -> None:
    from onnxruntime.transformers import optimizer

    # Its documentation sends Llama to the model type gpt2; opt_level 0 leaves the runtime's own fusions to the session.
    optimized = optimizer.optimize_model(str(source), model_type="gpt2", opt_level=0)
    optimized.save_model_to_file(str(target), use_external_data_format=True)


def with_onnxscript(sizes: Sizes, source: Path, target: Path) -> None:
    import onnx_ir
    from onnxscript import optimizer
    from onnxscript.rewriter import ort_fusions

    model = onnx_ir.load(source)
    optimizer.optimize(model)
    onnx_ir.save(ort_fusions.optimize_for_ort(model)[0], target, external_data=f"{target.name}.data")


def with_genai_builder(sizes: Sizes, source: Path, target: Path) -> None:
    """The graph that onnxruntime-genai builds from a checkpoint."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    checkpoint = target.parent / "checkpoint"
    llama(sizes).save_pretrained(checkpoint)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[], unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(checkpoint)
    places = ["-i", str(checkpoint), "-o", str(target.parent), "-c", str(target.parent / "cache")]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", *places]
    subprocess.run([*builder, "-p", "fp32", "-e", "cpu"], check=True, stdout=subprocess.DEVNULL)
    for file in checkpoint.iterdir():
        file.unlink()


def with_transformers(sizes: Sizes, source: Path, target: Path, *, tokens: int) -> None:
    """The graph of transformers' own exporter, fused for ONNX Runtime's CPU provider; for any number of tokens, or one.

    Attention over a cache becomes GroupQueryAttention in the graph for one token.
    """
    import onnx_ir
    import torch
    from transformers import DynamicCache
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    batch, past = 2, 5
    cache = DynamicCache()
    for layer in range(sizes.layers):
        shape, dtype = (batch, sizes.kv_heads, past, sizes.head), getattr(torch, sizes.dtype)
        cache.update(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), layer)
    inputs = {
        "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
        "position_ids": torch.arange(past, past + tokens).repeat(batch, 1),
        "past_key_values": cache,
        "use_cache": True,
    }
    model = OnnxExporter().export(llama(sizes), inputs, OnnxConfig(dynamic=True, ort_fusions="cpu")).program
    for value in (*model.graph.inputs, *model.graph.outputs):
        for there, here in ((".keys", ".key"), (".values", ".value"), ("input.", ""), ("layers.", "")):
            value.name = value.name.replace(there, here)
        value.name = value.name.replace("output.past_key_values", "present")
    onnx_ir.save(model, target, external_data=f"{target.name}.data")


def with_onnxfuse(sizes: Sizes, source: Path, target: Path, *, kv_cache: str, weights: str) -> None:
    """Float32 weights lie in one file for both kinds of cache, which then is in memory once."""
    import onnxfuse

    if weights == "copy":
        fused = target.with_name("fused.onnx")
        if not fused.exists():
            onnxfuse.optimize(source, fused)
        source, weights = fused, "reference"
    onnxfuse.optimize(source, target, level=sizes.level, kv_cache=kv_cache, weights=weights)


@dataclass(frozen=True)
class Maker:
    """How a model is made, by which package, and in which file; `shared`: its past and present are one buffer."""

    package: str
    make: Callable[..., None]
    file: str
    shared: bool = False
    ours: bool = False
    weight_bytes: float = 4


def ours(folder: str, weights: str = "copy", *, shared: bool = False) -> Maker:
    kv_cache = "shared" if shared else "concat"
    make = functools.partial(with_onnxfuse, kv_cache=kv_cache, weights=weights)
    weight_bytes = {"copy": 4, "bf16": 2, "int8": 1 + 2 / 32}[weights]
    return Maker("onnxfuse", make, f"{folder}/{kv_cache}.onnx", shared, True, weight_bytes)


MODELS = {
    EXPORTED: Maker("torch", export, "exported/model.onnx"),
    "ort transformers": Maker("onnxruntime.transformers", with_onnxruntime_transformers, "ort/model.onnx"),
    "onnxscript": Maker("onnxscript", with_onnxscript, "onnxscript/model.onnx"),
    "genai builder": Maker("onnxruntime_genai", with_genai_builder, "genai/model.onnx"),
    "genai builder shared": Maker("onnxruntime_genai", with_genai_builder, "genai/model.onnx", shared=True),
    "transformers": Maker("transformers", functools.partial(with_transformers, tokens=3), "transformers/model.onnx"),
    "transformers one token": Maker(
        "transformers", functools.partial(with_transformers, tokens=1), "transformers/one_token.onnx"
    ),
    "onnxfuse": ours("onnxfuse"),
    "onnxfuse shared": ours("onnxfuse", shared=True),
    "onnxfuse bf16": ours("onnxfuse_bf16", "bf16"),
    "onnxfuse bf16 shared": ours("onnxfuse_bf16", "bf16", shared=True),
    "onnxfuse int8": ours("onnxfuse_int8", "int8"),
    "onnxfuse int8 shared": ours("onnxfuse_int8", "int8", shared=True),
}


def complaint_of_making(name: str, sizes: Sizes, folder: Path) -> str:
    """Make a model in a process of its own unless it is there; the last line of the complaint if that fails."""
    path = folder / MODELS[name].file
    if path.exists():
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, name, str(folder), json.dumps(asdict(sizes))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0 and path.exists():
        return ""
    return (run.stderr.strip().splitlines() or [f"ends with status {run.returncode}"])[-1]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    name, folder = sys.argv[1], Path(sys.argv[2])
    sizes = Sizes(**json.loads(sys.argv[3]))
    MODELS[name].make(sizes, folder / MODELS[EXPORTED].file, folder / MODELS[name].file)
