"""Rewrite the same models with onnxfuse and with every other ONNX optimizer: what each fuses, breaks, and costs.

    python examples/benchmarks/peers.py MODEL.onnx [MODEL.onnx ...] [--tools onnxfuse,onnxscript]

Needs `pip install '.[cpu]' onnxscript onnxsim onnxslim`. Each tool rewrites each model in a process of its own, one
after the other; seconds are those of the rewrite, imports aside; memory is the process's peak, which is at least that
of the process that starts it: this one loads no model. "equal" is what `onnxfuse validate` says of the result on its
whole grid of batches, lengths, pasts and paddings.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TIMEOUT = 600  # seconds for one tool on one model

# What counts as fused, under the names that the tools give their operators.
FUSED = {
    "attention": {"Attention", "MultiHeadAttention", "GroupQueryAttention"},
    "rotary": {"RotaryEmbedding"},
    "norm": {
        *("RMSNorm", "SkipRMSNorm", "RMSNormalization"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    },
    "skip": {"SkipRMSNorm", "SkipSimplifiedLayerNormalization"},
    "MLP": {"GatedMLP", "SwiGLU"},
}
HEADINGS = ("model", "tool", "nodes", *FUSED, "seconds", "MB", "equal")


def with_onnxfuse(source: str, target: str):
    import onnxfuse

    return lambda: onnxfuse.optimize(source, target)


def with_onnxruntime_transformers(source: str, target: str):
    from onnxruntime.transformers import optimizer

    # Its documentation sends Llama to the model type gpt2; opt_level 0 leaves ONNX Runtime's own fusions out.
    return lambda: optimizer.optimize_model(source, model_type="gpt2", opt_level=0).save_model_to_file(target)


def with_onnxruntime(source: str, target: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = target
    return lambda: onnxruntime.InferenceSession(source, options)


def with_onnxscript(source: str, target: str):
    import onnx_ir
    from onnxscript import optimizer
    from onnxscript.rewriter import ort_fusions

    def rewrite():
        model = onnx_ir.load(source)
        optimizer.optimize(model)
        onnx_ir.save(ort_fusions.optimize_for_ort(model)[0], target)

    return rewrite


def with_onnxsim(source: str, target: str):
    import onnx
    import onnxsim

    return lambda: onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def with_onnxslim(source: str, target: str):
    import onnxslim

    return lambda: onnxslim.slim(source, target)


TOOLS = {
    "onnxfuse": with_onnxfuse,
    "onnxruntime.transformers": with_onnxruntime_transformers,
    "onnxruntime": with_onnxruntime,
    "onnxscript": with_onnxscript,
    "onnxsim": with_onnxsim,
    "onnxslim": with_onnxslim,
}


def rewrite(tool: str, source: str, target: str) -> dict[str, float]:
    """Rewrite one model in this process."""
    work = TOOLS[tool](source, target)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_its_own_process(*arguments: str) -> tuple[dict | None, str]:
    """The JSON that this script prints for `arguments`, or None and the last line of its complaint."""
    command = [sys.executable, __file__, *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return None, f"more than {TIMEOUT} s"
    if run.returncode:
        complaint = run.stderr.strip().splitlines()
        return None, complaint[-1] if complaint else f"ends with status {run.returncode}"
    return json.loads(run.stdout.splitlines()[-1]), ""


def counts(path: str) -> dict[str, int]:
    """Nodes without Constants, and how often each kind of fused operator stands in the graph."""
    import onnx_ir

    operators = Counter(node.op_type for node in onnx_ir.load(path).graph.all_nodes() if node.op_type != "Constant")
    fused = {kind: sum(operators[name] for name in names) for kind, names in FUSED.items()}
    return {"nodes": operators.total(), **fused}


def verdict(original: str, rewritten: str) -> dict[str, str]:
    """Whether ONNX Runtime gets the same from both models."""
    import onnxfuse
    from onnxfuse.errors import UsageError
    from onnxfuse.verify.model import validate

    try:
        found = validate(original, rewritten, library=onnxfuse.library_path())
    except UsageError:
        return {"equal": "other interface"}
    if found.passed:
        return {"equal": "yes"}
    return {"equal": "no" if found.outputs else "does not run"}


def row(model: Path, tool: str, folder: Path) -> tuple:
    """One line of the table."""
    target = folder / f"{tool}.onnx"
    measured, complaint = in_its_own_process("--rewrite", tool, str(model), str(target))
    if measured is None or not target.exists():
        return model.stem, tool, *("-" for _ in HEADINGS[2:-1]), f"fails: {complaint[:60]}"
    found, _ = in_its_own_process("--counts", str(target))
    told, complaint = in_its_own_process("--verdict", str(model), str(target))
    equal = told["equal"] if told is not None else f"crashes: {complaint[:50]}"
    return model.stem, tool, *found.values(), f"{measured['seconds']:.2f}", f"{measured['megabytes']:.0f}", equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--tools", default=",".join(TOOLS), help="some of %(default)s")
    models, tools = (parsed := parser.parse_args()).models, parsed.tools.split(",")
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for model in models:
        for tool in tools:
            with tempfile.TemporaryDirectory() as folder:
                print("| " + " | ".join(map(str, row(model, tool, Path(folder)))) + " |", flush=True)


if __name__ == "__main__":
    tasks = {"--rewrite": rewrite, "--counts": counts, "--verdict": verdict}
    if sys.argv[1:2] and sys.argv[1] in tasks:
        print(json.dumps(tasks[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
