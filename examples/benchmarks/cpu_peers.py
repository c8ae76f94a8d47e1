"""Time a Llama on the CPU as each tool leaves it: the export, other ONNX optimizers, PyTorch, OpenVINO, onnxfuse.

    python examples/benchmarks/cpu_peers.py                       # dimensions of 7B, 2 layers: some 10 minutes, 16 GB
    python examples/benchmarks/cpu_peers.py --small --prompt 128  # hidden size 256

Needs `pip install '.[cpu,export]'`; peers that are not installed (onnxscript, onnxruntime-genai, openvino) are named
and left out. Weights are random. Each model is made in a process of its own; then all of them are held by this one and
run in turns, so that a machine that slows down slows them all. A ratio is that of the medians to the best ONNX model
not by onnxfuse (smaller is better). Decoding reads every matrix and the cache once: "of reads" is the share of the
bandwidth of numpy's dot product at which that would take the time that was measured; that has one stream a thread, and
kernels that prefetch several exceed it. "differs" is the largest difference of the logits from the export's, relative
to their root mean square.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cpu_models import EXPORTED, MODELS, Maker, Sizes, complaint_of_making, llama
from point import Point

OTHERS = {"torch eager": "torch", "torch compile": "torch", "openvino": "openvino"}
PAUSE = 0.05  # seconds between two models, in which the threads of the first one fall asleep
WARM_UPS = 2


def feed_of(point: Point, sizes: Sizes) -> dict[str, np.ndarray]:
    """The inputs of the export; other models take some of them."""
    rng = np.random.default_rng(0)
    total, shape = point.past + point.prompt, (point.batch, sizes.kv_heads, point.past, sizes.head)
    feed = {
        "input_ids": rng.integers(0, sizes.vocab, (point.batch, point.prompt)),
        "attention_mask": np.ones((point.batch, total), np.int64),
        "position_ids": np.tile(np.arange(point.past, total), (point.batch, 1)),
    }
    for layer in range(sizes.layers):
        for part in ("key", "value"):
            feed[f"past_key_values.{layer}.{part}"] = rng.standard_normal(shape, dtype=np.float32).astype(sizes.dtype)
    return feed


@functools.cache
def session(path: Path, ours: bool, threads: int):
    """A session, which several runners may share."""
    import onnxruntime

    import onnxfuse

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if ours:
        return onnxfuse.session(path, options=options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class InOnnxRuntime:
    """A session whose inputs lie where it reads them."""

    def __init__(self, path: Path, maker: Maker, threads: int) -> None:
        self.shared = maker.shared
        self.session = session(path, maker.ours, threads)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def step(self, point: Point, feed: dict[str, np.ndarray]):
        """A run at `point`, which returns the logits."""
        from onnxruntime import OrtValue

        feed = {name: array for name, array in feed.items() if name in self.inputs}
        if not self.shared:
            values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
            return lambda: self.session.run_with_ort_values(self.outputs, values)[0].numpy()
        binding = self.session.io_binding()
        for name, array in feed.items():
            if name.startswith("past_key_values"):
                buffer = np.zeros((*array.shape[:2], point.past + point.prompt, array.shape[3]), array.dtype)
                buffer[:, :, : point.past] = array
                array = buffer
            value = OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            if name.startswith("past_key_values"):
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")

        def run():
            self.session.run_with_iobinding(binding)
            return binding.get_outputs()[-1].numpy()  # they come in the order in which they were bound

        return run


@functools.cache
def torch_llama(sizes: Sizes):
    """The model that eager and compiled runs share."""
    return llama(sizes)


class InTorch:
    """The model in PyTorch, its cache a list of tensors that every step makes anew."""

    def __init__(self, sizes: Sizes, threads: int, *, compiled: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = torch.compile(torch_llama(sizes), dynamic=True) if compiled else torch_llama(sizes)

    def step(self, point: Point, feed: dict[str, np.ndarray]):
        import torch
        from transformers import DynamicCache

        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        pasts = [tensor for name, tensor in tensors.items() if name.startswith("past_key_values")]

        def run():
            cache = DynamicCache()
            for layer in range(len(pasts) // 2):
                cache.update(pasts[2 * layer], pasts[2 * layer + 1], layer)
            with torch.inference_mode():
                found = self.model(
                    tensors["input_ids"],
                    attention_mask=tensors["attention_mask"],
                    position_ids=tensors["position_ids"],
                    past_key_values=cache,
                )
            return found.logits.numpy()

        return run


class InOpenVINO:
    """The exported model in OpenVINO."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        # It takes bfloat16 for float32 where the processor has it, unless it is told not to.
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()

    def step(self, point: Point, feed: dict[str, np.ndarray]):
        return lambda: self.request.infer(feed, share_inputs=True, share_outputs=True)["logits"]


@dataclass
class Times:
    seconds: list[float] = field(default_factory=list)
    differs: float = 0.0
    fails: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory, each in one stream."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(threads)]
    best = 0.0
    for _ in range(8):
        workers = [threading.Thread(target=np.dot, args=(array, array)) for array in arrays]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best


def bytes_read(point: Point, sizes: Sizes, weight_bytes: float) -> float:
    """What decoding a token reads: every matrix once, the cache of every sequence once."""
    cache = point.batch * sizes.layers * 2 * sizes.kv_heads * sizes.head * point.past * 4
    return sizes.matrix_elements * weight_bytes + cache


def measured(
    point: Point,
    runners: dict,
    sizes: Sizes,
    repeats: int,
    seconds: float,
    settled: Callable[[dict[str, Times]], bool] = lambda times: False,
) -> dict[str, Times]:
    """All models at `point` in turns, the first of a round being another one each time.

    After three rounds it ends as soon as `seconds` have passed or the times are `settled`.
    """
    feed, times, steps, logits = feed_of(point, sizes), {name: Times() for name in runners}, {}, None
    for name, runner in runners.items():
        try:
            step = runner.step(point, feed)
            for _ in range(WARM_UPS if point.prompt == 1 else 1):
                found = np.array(step())
        except Exception as error:  # each runtime has its own
            times[name].fails = str(error).strip().splitlines()[0][:80]
            continue
        logits = found if logits is None else logits  # the export's, which comes first
        times[name].differs = float(np.abs(found - logits).max() / np.sqrt(np.mean(np.square(logits))))
        steps[name] = step
    order, start = list(steps), time.perf_counter()
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            time.sleep(PAUSE)
            begin = time.perf_counter()
            steps[name]()
            times[name].seconds.append(time.perf_counter() - begin)
        if turn >= 2 and (time.perf_counter() - start > seconds or settled(times)):
            break
    return times


def best_rival(times: dict[str, Times]) -> float:
    """The least median of ONNX models that are not ours."""
    return min(t.median for name, t in times.items() if t.seconds and name in MODELS and not MODELS[name].ours)


def print_ratios(tables: dict[Point, dict[str, Times]]) -> None:
    """Medians of every model at every point, relative to the best ONNX model that is not ours."""
    print(f"\n### ratios\n\n| | {' | '.join(map(str, tables))} |\n|{'---|' * (len(tables) + 1)}")
    for name in next(iter(tables.values())):
        found = [times[name].median / best_rival(times) if times[name].seconds else None for times in tables.values()]
        print(f"| {name} | {' | '.join('-' if ratio is None else f'{ratio:.2f}' for ratio in found)} |")


def print_point(point: Point, times: dict[str, Times], sizes: Sizes, bandwidth: float) -> None:
    best = best_rival(times)
    print(f"\n### {point}\n\n| | median ms | least ms | ratio | of reads | differs |\n|---|---|---|---|---|---|")
    for name, t in times.items():
        if t.fails:
            print(f"| {name} | fails: {t.fails} | | | | |")
            continue
        share = "-"
        if point.prompt == 1:
            weight_bytes = MODELS[name].weight_bytes if name in MODELS else 4
            share = f"{bytes_read(point, sizes, weight_bytes) / bandwidth / t.median:.0%}"
        numbers = f"{t.median * 1e3:.1f} | {min(t.seconds) * 1e3:.1f} | {t.median / best:.2f}"
        print(f"| {name} | {numbers} | {share} | {t.differs:.0e} |", flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def runner(name: str, sizes: Sizes, folder: Path, threads: int):
    """The model called `name`, ready to run."""
    if name in MODELS:
        return InOnnxRuntime(folder / MODELS[name].file, MODELS[name], threads)
    if name == "openvino":
        return InOpenVINO(folder / MODELS[EXPORTED].file, threads)
    return InTorch(sizes, threads, compiled=name == "torch compile")


def runners(names: list[str], sizes: Sizes, folder: Path, threads: int) -> dict:
    """Those that are installed and whose model can be made; of the others it is said why they are absent."""
    packages = {name: maker.package for name, maker in MODELS.items()} | OTHERS
    complaints, ready = {}, {}
    for name in names:  # before any is loaded, since making takes memory too
        start = time.perf_counter()
        if importlib.util.find_spec(packages[name]) is None:
            complaints[name] = f"{packages[name]} is not installed"
        elif name in MODELS:
            complaints[name] = complaint_of_making(name, sizes, folder)
            print(f"{name}: made in {time.perf_counter() - start:.0f} s", flush=True)
    for name in names:
        start = time.perf_counter()
        try:
            if complaints.get(name):
                raise RuntimeError(complaints[name])
            ready[name] = runner(name, sizes, folder, threads)
        except Exception as error:  # each tool and runtime has its own
            print(f"{name}: absent, {str(error).strip().splitlines()[0][:120]}")
            continue
        print(f"{name}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
    return ready


def parsed(description: str = __doc__) -> tuple[argparse.Namespace, Sizes]:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in Sizes.__annotations__.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=getattr(Sizes, name), help="(%(default)s)"
        )
    parser.add_argument("--small", action="store_true", help="a sixteenth of the width")
    parser.add_argument("--past", type=numbers, default=[128, 1024, 4000], help="decode behind these lengths")
    parser.add_argument("--batch", type=numbers, default=[16], help="decode in these batches, past 128")
    parser.add_argument("--prompt", type=numbers, default=[128, 512], help="prompts of these lengths, without a past")
    parser.add_argument("--peers", default=",".join([*MODELS, *OTHERS]), help="some of: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each model at each point (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=30, help="a point, after which 3 runs are enough (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where models are kept and found again (default: nowhere)")
    options = parser.parse_args()
    for name in set(options.peers.split(",")) - {*MODELS, *OTHERS}:
        parser.error(f"--peers names {name!r}, expected some of {', '.join([*MODELS, *OTHERS])}")
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes.__annotations__})
    if options.small:
        sizes = Sizes(hidden=256, intermediate=688, heads=2, kv_heads=2, vocab=2000, level=sizes.level)
    return options, sizes


def main() -> None:
    warnings.filterwarnings("ignore")
    options, sizes = parsed()
    with tempfile.TemporaryDirectory() as temporary:
        bandwidth = read_bandwidth(options.threads)
        print(f"{sizes}, {options.threads} threads, memory read at {bandwidth / 1e9:.1f} GB/s\n", flush=True)
        names = [EXPORTED, *(name for name in options.peers.split(",") if name != EXPORTED)]
        ready = runners(names, sizes, options.folder or Path(temporary), options.threads)
        points = [Point(1, past, 1) for past in options.past] + [Point(1, 128, batch) for batch in options.batch]
        points += [Point(prompt, 0, 1) for prompt in options.prompt]
        tables = {}
        for point in points:
            tables[point] = measured(point, ready, sizes, options.repeats, options.seconds)
            print_point(point, tables[point], sizes, bandwidth)
        print_ratios(tables)


if __name__ == "__main__":
    main()
