"""Time a Llama on a GPU: as it was exported, as onnxfuse leaves it, as onnxruntime-genai builds it, and in PyTorch.

    python examples/benchmarks/cuda_models.py exported.onnx [--builder model.onnx] [--torch]

`exported.onnx` is a float16 or bfloat16 export with a key-value cache (inputs input_ids, attention_mask, perhaps
position_ids, and past_key_values.I.key|value), its weights in a file beside it. The fused models are written there,
too: they refer to the same weights. `--builder` takes the model that `python -m onnxruntime_genai.models.builder
-p fp16|bf16 -e cuda` makes. Needs onnxruntime-gpu and PyTorch with CUDA.

All models run in turns with inputs and outputs on the device, in an order drawn anew each time: prompts keep a GPU at
its limit of power, where a model is quicker behind one that draws less. The table gives medians in milliseconds, and in
brackets the ratio to the builder's model, or to the best of the others without it. "floor" is the time in which the
matrices and the cache could be read once at the bandwidth that this run measured, which for a prompt is far too little:
there the products of the matrices count, at the rate of a large product of that dtype. "shared": past and present are
one buffer of `--room` rows. "graph": replayed as a CUDA graph, the mask as long as the buffer.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch  # before onnxruntime, which finds CUDA's libraries in the process then
from cuda_torch import Sizes, captured
from onnxruntime import InferenceSession, OrtValue, SessionOptions
from point import Point

import onnxfuse

BYTES = 2  # of a number
Run = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """One column: which graph, and how its cache and its kernels are run."""

    graph: str  # "exported", "builder", or a level of onnxfuse
    shared: bool = False
    captured: bool = False

    def __str__(self) -> str:
        return self.graph + " shared" * self.shared + " graph" * self.captured

    @property
    def ours(self) -> bool:
        return self.graph in ("op", "block")


VARIANTS = [
    Variant("exported"),
    *(Variant(level, shared) for level in ("op", "block") for shared in (False, True)),
    Variant("builder", True),
    *(Variant(graph, True, True) for graph in ("op", "block", "builder")),
]


def sizes_of(path: Path) -> Sizes:
    """What the shapes of the export's cache, logits and weights say."""
    graph = onnx.load(path, load_external_data=False).graph
    cache = next(v for v in graph.input if v.name == "past_key_values.0.key").type.tensor_type
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}
    _, kv_heads, _, head = dims["past_key_values.0.key"]
    vocab = dims["logits"][-1]
    matrices = [list(t.dims) for t in graph.initializer if len(t.dims) == 2 and min(t.dims) > 1]
    hidden = next(sum(shape) - vocab for shape in matrices if vocab in shape)
    intermediate = max(max(shape) for shape in matrices if vocab not in shape)
    layers = sum(name.startswith("past_key_values") for name in dims) // 2
    heads, dtype = hidden // head, onnx.TensorProto.DataType.Name(cache.elem_type).lower()
    return Sizes(dtype, hidden, intermediate, heads, kv_heads, head, vocab, layers)


def fused(exported: Path, variant: Variant) -> Path:
    """The export, rewritten, beside its weights."""
    path = exported.with_name(f"{exported.stem}_{variant.graph}{'_shared' * variant.shared}.onnx")
    kv_cache = "shared" if variant.shared else "concat"
    onnxfuse.optimize(exported, path, target="cuda", level=variant.graph, kv_cache=kv_cache, weights="reference")
    return path


def session(path: Path, variant: Variant) -> InferenceSession:
    options = SessionOptions()
    options.log_severity_level = 3
    cuda = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"} if variant.captured else {})
    if variant.ours:
        return onnxfuse.session(path, providers=[cuda], options=options)
    return InferenceSession(str(path), options, providers=[cuda, "CPUExecutionProvider"])


def on_device(array: np.ndarray) -> OrtValue:
    return OrtValue.ortvalue_from_numpy(array, "cuda", 0)


def empty(*shape: int, dtype: str) -> OrtValue:
    """A tensor of a dtype as ONNX calls it."""
    return OrtValue.ortvalue_from_shape_and_type(shape, onnx.TensorProto.DataType.Value(dtype.upper()), "cuda", 0)


def cache_of(point: Point, sizes: Sizes, rows: int) -> OrtValue:
    """Random keys or values."""
    shape = (point.batch, sizes.kv_heads, rows, sizes.head)
    numbers = torch.randn(shape, device="cuda", dtype=getattr(torch, sizes.dtype)).cpu()
    value = empty(*shape, dtype=sizes.dtype)
    if rows > 0:
        value.update_inplace(numbers.view(torch.uint16).numpy())
    return value


def step(model: InferenceSession, variant: Variant, point: Point, sizes: Sizes, room: int) -> Run:
    """A run at `point` whose inputs and outputs stay where they are."""
    rng = np.random.default_rng(0)
    total, rows = point.past + point.prompt, room if variant.shared else point.past
    mask = np.zeros((point.batch, room if variant.captured else total), np.int64)
    mask[:, :total] = 1
    inputs = {
        "input_ids": rng.integers(0, sizes.vocab, (point.batch, point.prompt)),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(point.past, total), (point.batch, 1)),
    }
    binding = model.io_binding()
    bound = []  # what the binding refers to
    for entry in model.get_inputs():
        if entry.name in inputs:
            value = on_device(inputs[entry.name])
        else:
            value = cache_of(point, sizes, rows)
            if variant.shared:
                binding.bind_ortvalue_output(entry.name.replace("past_key_values", "present"), value)
        binding.bind_ortvalue_input(entry.name, value)
        bound.append(value)
    for entry in model.get_outputs():
        if entry.name == "logits":
            dtype = entry.type.removeprefix("tensor(").removesuffix(")")
            value = empty(point.batch, point.prompt, sizes.vocab, dtype=dtype)
        elif variant.shared:
            continue
        else:
            value = empty(point.batch, sizes.kv_heads, total, sizes.head, dtype=sizes.dtype)
        binding.bind_ortvalue_output(entry.name, value)
        bound.append(value)

    def run() -> None:
        model.run_with_iobinding(binding)  # with RunOptions it would look for a WebGPU graph's number, for 45 us

    run.bound = bound
    return run


def medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """The median time of each run in milliseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    end, order = time.perf_counter() + seconds, random.Random(0)
    while time.perf_counter() < end or min(map(len, times.values())) < 9:
        for name in order.sample(list(runs), len(runs)):
            for _ in range(3):
                torch.cuda.synchronize()
                start = time.perf_counter()
                runs[name]()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def device_time(work: Run, repeats: int = 10) -> float:
    """Seconds that the device takes for `work`."""
    work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second that a sum reads, and flops a second of a product of matrices."""
    x = torch.randn(1 << 28, device="cuda")
    bandwidth = x.nbytes / device_time(lambda: x.sum())
    a = torch.randn(4096, 8192, device="cuda", dtype=dtype)
    b = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    return bandwidth, 2 * a.numel() * b.shape[1] / device_time(lambda: a @ b)


def floor(point: Point, sizes: Sizes, bandwidth: float, rate: float) -> float:
    """Milliseconds; see the top."""
    total = point.past + point.prompt
    moved = BYTES * (sizes.matrix_elements + point.batch * total * sizes.row_elements)
    return 1e3 * max(moved / bandwidth, 2 * point.batch * point.prompt * sizes.matrix_elements / rate)


def row_of(point: Point, found: dict[str, float], names: list[str], least: float) -> str:
    rivals = {name: value for name, value in found.items() if not name.startswith(("op", "block"))}
    builders = [value for name, value in rivals.items() if name.startswith("builder")]
    cells = []
    for name in names:
        if name not in found:
            cells.append("-")
            continue
        base = min(builders or rivals.values())
        cells.append(f"{found[name]:.3f} ({found[name] / base:.2f}; {least / found[name]:.0%} of floor)")
    return f"| {point} | {least:.3f} | {' | '.join(cells)} |"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--builder", type=Path, help="the model of onnxruntime-genai's builder")
    parser.add_argument("--torch", action="store_true", help="PyTorch, too; compiling takes a minute a point")
    parser.add_argument("--past", type=numbers, default=[128, 1024, 4000], help="decode behind these lengths")
    parser.add_argument("--prompt", type=numbers, default=[512, 2048], help="prompts without a past")
    parser.add_argument("--batch", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--room", type=int, default=4096, help="rows of a shared cache (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="a point (%(default)s)")
    return parser.parse_args()


def main() -> None:
    warnings.filterwarnings("ignore")
    options = parsed()
    sizes = sizes_of(options.exported)
    bandwidth, rate = ceilings(getattr(torch, sizes.dtype))
    print(f"{sizes}\nreads {bandwidth / 1e12:.2f} TB/s, products {rate / 1e12:.0f} TFLOP/s\n", flush=True)
    paths = {"exported": options.exported, "builder": options.builder}
    variants = [variant for variant in VARIANTS if variant.ours or paths[variant.graph] is not None]
    made = {(v.graph, v.shared): fused(options.exported, v) for v in variants if v.ours and not v.captured}
    models = {v: session(made.get((v.graph, v.shared), paths.get(v.graph)), v) for v in variants if not v.captured}
    names = [*map(str, variants), *(["torch"] if options.torch else [])]
    print(f"| | floor | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}", flush=True)
    points = [Point(1, past, options.batch) for past in options.past]
    points += [Point(prompt, 0, options.batch) for prompt in options.prompt]
    for point in points:
        runs = {}
        for variant in variants:
            if variant.captured and point.prompt > 1:
                continue  # every prompt has a length of its own
            # A session has one graph, of one point.
            path = made.get((variant.graph, variant.shared), paths.get(variant.graph))
            model = session(path, variant) if variant.captured else models[variant]
            runs[str(variant)] = step(model, variant, point, sizes, options.room)
        if options.torch:
            runs["torch"] = captured(sizes, point.batch, point.prompt, point.past)
        found = medians(runs, options.seconds)
        print(row_of(point, found, names, floor(point, sizes, bandwidth, rate)), flush=True)


if __name__ == "__main__":
    main()
