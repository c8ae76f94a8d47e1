"""Whether a rewritten Llama is slower than its export anywhere on the CPU: prompts, pasts, batches, sizes, dtypes.

    python examples/benchmarks/cpu_grid.py results.jsonl --folder models                  # all of it: hours
    python examples/benchmarks/cpu_grid.py results.jsonl --folder models --dims small,1b --batch 1 --threads 2
    python examples/benchmarks/cpu_grid.py results.jsonl --folder models --most-gflop 1000 --most-cache 1000

A point is run as in cpu_peers.py: the export and both models of onnxfuse (separate and shared cache) in turns, three
times, and up to --repeats times while one of the two is not well below the export: what disturbs a few runs must not
decide. Each point is a line of the results file as soon as it is known, those with the least arithmetic first, and a
point that has one is not run again. Those beyond --most-gflop or --most-cache (MB a copy of the cache) are left out.
At the end the file is summed up: a ratio of medians above 1 is a point at which the rewritten model is slower.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from cpu_models import EXPORTED, Sizes
from cpu_peers import InOnnxRuntime, Times, measured, numbers, runners, session
from point import Point

DIMS = {
    "7b": {},
    "1b": {"hidden": 2048, "intermediate": 5632, "kv_heads": 4},
    "small": {"hidden": 768, "intermediate": 2048, "heads": 12, "kv_heads": 12},
}
OURS = ("onnxfuse", "onnxfuse shared")
WELL_BELOW = 0.9  # of the export's median


def sizes_of(dims: str, dtype: str) -> Sizes:
    return Sizes(**DIMS[dims], vocab=4000, level="block", dtype=dtype)


def gflop(point: Point, sizes: Sizes) -> float:
    """What the matrix products of a run take."""
    attention = 2 * sizes.layers * sizes.heads * sizes.head * (point.past + point.prompt)
    return 2e-9 * point.batch * point.prompt * (sizes.matrix_elements + attention)


def cache_megabytes(point: Point, sizes: Sizes) -> float:
    element = 2 if sizes.dtype == "float16" else 4
    rows = point.batch * (point.past + point.prompt)
    return 2e-6 * sizes.layers * sizes.kv_heads * sizes.head * rows * element


def settled(times: dict[str, Times]) -> bool:
    """Whether a few runs tell that the rewritten models are quicker."""
    medians = {name: t.median for name, t in times.items() if t.seconds}
    return all(medians[name] < WELL_BELOW * medians.get(EXPORTED, 0) for name in OURS if name in medians)


def read(path: Path) -> Iterator[dict]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def key(result: dict) -> tuple:
    return tuple(result[part] for part in ("dims", "dtype", "threads", "prompt", "past", "batch"))


def run(options: argparse.Namespace, dims: str, dtype: str, folder: Path) -> None:
    """The points of one export that are not in the results yet."""
    sizes, done = sizes_of(dims, dtype), {key(result) for result in read(options.results)}
    points = [Point(*p) for p in itertools.product(options.prompt, options.past, options.batch)]
    points = [
        p for p in points if gflop(p, sizes) <= options.most_gflop and cache_megabytes(p, sizes) <= options.most_cache
    ]
    points.sort(key=lambda p: (gflop(p, sizes), cache_megabytes(p, sizes)))
    for threads in options.threads:
        left = [p for p in points if (dims, dtype, threads, p.prompt, p.past, p.batch) not in done]
        if not left:
            continue
        ready: dict[str, InOnnxRuntime] = runners([EXPORTED, *OURS], sizes, folder, threads)
        for point in left:
            times = measured(point, ready, sizes, options.repeats, options.seconds, settled)
            result = {"dims": dims, "dtype": dtype, "threads": threads, **vars(point)}
            for name, t in times.items():
                result[name] = t.fails or [round(1e3 * part, 3) for part in (t.median, min(t.seconds))]
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)
        ready.clear()
        session.cache_clear()


def sum_up(path: Path) -> None:
    """A line for each export and number of threads, then the points that are slower."""
    groups, slower = {}, []
    for result in read(path):
        times = {name: result[name] for name in (EXPORTED, *OURS) if isinstance(result.get(name), list)}
        for name in OURS:
            if name in times and EXPORTED in times:
                ratio, least = (times[name][part] / times[EXPORTED][part] for part in (0, 1))
                groups.setdefault((result["dims"], result["dtype"], result["threads"], name), []).append(ratio)
                if ratio > 1:
                    slower.append(f"{name}, {key(result)}: {ratio:.2f} (of the least times {least:.2f})")
    print("\n| dims | dtype | threads | | points | median ratio | worst |\n|---|---|---|---|---|---|---|")
    for group, ratios in groups.items():
        print(
            f"| {' | '.join(map(str, group))} | {len(ratios)} | {statistics.median(ratios):.2f} | {max(ratios):.2f} |"
        )
    print(f"\n{len(slower)} slower", *slower, sep="\n")


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a line of JSON for each point; read and added to")
    parser.add_argument("--dims", default=",".join(DIMS), help="some of: %(default)s")
    parser.add_argument("--dtypes", default="float32,float16", help="of the exports: %(default)s")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--prompt", type=numbers, default=[1, 4, 16, 64, 128, 512, 2048])
    parser.add_argument("--past", type=numbers, default=[0, 128, 1024, 4000])
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16])
    parser.add_argument("--most-gflop", type=float, default=float("inf"))
    parser.add_argument("--most-cache", type=float, default=float("inf"))
    parser.add_argument("--repeats", type=int, default=15, help="runs of a doubtful point (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="a point, after which 3 are enough (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where models are kept and found again (default: nowhere)")
    options = parser.parse_args()
    for dims in options.dims.split(","):
        if dims not in DIMS:
            parser.error(f"--dims names {dims!r}, expected some of {', '.join(DIMS)}")
    with tempfile.TemporaryDirectory() as temporary:
        for dims, dtype in itertools.product(options.dims.split(","), options.dtypes.split(",")):
            run(options, dims, dtype, (options.folder or Path(temporary)) / f"{dims}_{dtype}")
    sum_up(options.results)


if __name__ == "__main__":
    main()
