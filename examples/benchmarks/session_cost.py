"""What a session costs: the time to load a model and the memory at its peak, for the models of cpu_peers.py.

    python examples/benchmarks/session_cost.py                       # dimensions of 7B, 2 layers
    python examples/benchmarks/session_cost.py --small --folder models

Each session is made in a process of its own, several times in turns, from files that are in the page cache, and runs
one token behind a past of eight. Memory is the largest resident set, less what the process had before; weights that are
read where the file is mapped count as soon as they are touched. It is given relative to the bytes of the weights.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
from cpu_models import MODELS, Sizes, complaint_of_making
from cpu_peers import InOnnxRuntime, feed_of, parsed
from point import Point

POINT = Point(prompt=1, past=8, batch=1)


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def measure(name: str, folder: Path, sizes: Sizes, threads: int) -> dict[str, float]:
    """Seconds to load and bytes at the peak, in this process."""
    import onnxfuse

    onnxfuse.session_options()  # loads the runtime, its libraries and ours
    feed, before = feed_of(POINT, sizes), resident("VmRSS")
    start = time.perf_counter()
    runner = InOnnxRuntime(folder / MODELS[name].file, MODELS[name], threads)
    seconds, loaded = time.perf_counter() - start, resident("VmHWM") - before
    logits = runner.step(POINT, feed)()
    if not np.isfinite(logits).all():
        raise ValueError(f"{name} gives logits that are not finite")
    return {"seconds": seconds, "loaded": loaded, "peak": resident("VmHWM") - before}


def measured(name: str, folder: Path, sizes: Sizes, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "measure", name, str(folder), json.dumps(asdict(sizes)), str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{name}: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(run.stdout)


def main() -> None:
    options, sizes = parsed(__doc__)
    embedding = sizes.hidden * sizes.vocab
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        names, found = [], {}
        for name in options.peers.split(","):
            if name not in MODELS:
                continue
            complaint = complaint_of_making(name, sizes, folder)
            if complaint:
                print(f"{name}: absent, {complaint}")
                continue
            names.append(name)
        for turn in range(options.repeats + 1):
            for name in names:
                one = measured(name, folder, sizes, options.threads)
                if turn > 0:  # the first one reads the files
                    found.setdefault(name, []).append(one)
    print(f"{sizes}, {options.threads} threads\n\n| | load s | after loading | peak |\n|---|---|---|---|")
    for name, runs in found.items():
        weights = sizes.matrix_elements * MODELS[name].weight_bytes + embedding * 4
        memory = [statistics.median(run[part] for run in runs) / weights for part in ("loaded", "peak")]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {name} | {seconds:.2f} | {memory[0]:.2f} | {memory[1]:.2f} |")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["measure"]:
        name, folder, sizes, threads = sys.argv[2:]
        print(json.dumps(measure(name, Path(folder), Sizes(**json.loads(sizes)), int(threads))))
    else:
        main()
