"""How long a rewrite takes, and how much memory, at 2, 8, 32 and 80 layers of Llama-2-7B.

    python examples/benchmarks/scaling.py [LAYERS ...]

Each size is rewritten twice, without and with verification, each time in a process of its own; nothing is written.
Needs `pip install '.[cpu,export]'`. The weights are sparse files: 66 GB for 80 layers, next to nothing on disk.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HEADINGS = ("layers", "weights", "nodes", "fused", "normalise", "rewrite", "sum", "per node", "with proof", "memory")
ROW = "{:>7} {:>8} {:>7} {:>6} {:>10} {:>8} {:>7} {:>9} {:>11} {:>8}"


def rewrite(path: str, verify: str) -> dict:
    """Rewrite one model in this process."""
    import onnxfuse

    report = onnxfuse.optimize(path, verify=verify).report
    return {
        "nodes": (report.nodes_before, report.nodes_after),
        "seconds": report.seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_its_own_process(path: Path, verify: str) -> dict:
    command = [sys.executable, __file__, "--one", str(path), verify]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def measured(path: Path, layers: int) -> str:
    """One row of the table."""
    plain, proven = (in_its_own_process(path, verify) for verify in ("none", "match"))
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
        f"{max(plain['megabytes'], proven['megabytes']):.0f} MB",
    )


def main(sizes: list[int]) -> None:
    from synthetic import export_small, synthetic

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small.onnx")
        export_small(small)
        print(ROW.format(*HEADINGS))
        for layers in sizes:
            print(measured(synthetic(small, layers, Path(folder)), layers), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(rewrite(*sys.argv[2:])))
    else:
        main([int(argument) for argument in sys.argv[1:]] or [2, 8, 32, 80])
