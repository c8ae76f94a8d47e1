"""How long a rewrite takes, and how much memory, at 2, 8, 32 and 80 layers of Llama-2-7B.

    python examples/benchmarks/scaling.py [LAYERS ...]

Each size is rewritten three times, each time in a process of its own: without verification, with it, and with the
result written for CUDA, whose kernels read all weights as they lie, so that they stay in their file. Needs
`pip install '.[cpu,export]'`. The weights are sparse files: 66 GB for 80 layers, next to nothing on disk.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HEADINGS = (
    "layers",
    "weights",
    "nodes",
    "fused",
    "normalise",
    "rewrite",
    "sum",
    "per node",
    "proof",
    "write",
    "memory",
)
ROW = "{:>7} {:>8} {:>7} {:>6} {:>10} {:>8} {:>7} {:>9} {:>7} {:>7} {:>8}"


def rewrite(path: str, verify: str, output: str | None = None) -> dict:
    """Rewrite one model in this process."""
    import onnxfuse

    onnxfuse.api.choose()  # loads the fusions, which a longer process does once
    target = "cpu" if output is None else "cuda"
    report = onnxfuse.optimize(path, output, verify=verify, target=target, weights="reference").report
    return {
        "nodes": (report.nodes_before, report.nodes_after),
        "seconds": report.seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_its_own_process(task: str, *arguments: str | Path) -> bytes:
    command = [sys.executable, __file__, f"--{task}", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def rewritten(*arguments: str | Path) -> dict:
    return json.loads(in_its_own_process("rewrite", *arguments).splitlines()[-1])


def measured(path: Path, layers: int) -> str:
    """One row of the table."""
    plain = rewritten(path, "none")
    proven = rewritten(path, "match")
    written = rewritten(path, "match", path.with_suffix(".fused.onnx"))
    before, after = plain["nodes"]
    normalise = plain["seconds"]["normalise"]
    rewriting = plain["seconds"]["rewrite"] + plain["seconds"]["tidy"]
    return ROW.format(
        layers,
        f"{path.with_suffix('.bin').stat().st_size / 1e9:.1f} GB",
        before,
        after,
        f"{normalise:.2f} s",
        f"{rewriting:.2f} s",
        f"{normalise + rewriting:.2f} s",
        f"{(normalise + rewriting) / before * 1e6:.0f} us",
        f"{sum(proven['seconds'].values()):.1f} s",
        f"{written['seconds']['write']:.2f} s",
        f"{max(run['megabytes'] for run in (plain, proven, written)):.0f} MB",
    )


def main(sizes: list[int]) -> None:
    from synthetic import synthetic

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small.onnx")
        in_its_own_process(
            "export", small
        )  # a child's peak memory is at least its parent's, so torch stays out of here
        print(ROW.format(*HEADINGS))
        for layers in sizes:
            print(measured(synthetic(small, layers, Path(folder)), layers), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--export", path]:
            from synthetic import export_small

            export_small(Path(path))
        case ["--rewrite", *arguments]:
            print(json.dumps(rewrite(*arguments)))
        case sizes:
            main([int(size) for size in sizes] or [2, 8, 32, 80])
