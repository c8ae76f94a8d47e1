"""The command line: parses, calls, prints. What it computes is computed by `api`, `verify` and `bench`."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from onnxfuse import api, catalog, model_io, runtime
from onnxfuse.bench import REPEATS, bench, print_rows
from onnxfuse.custom_ops import functions
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.explanation import explanations
from onnxfuse.fusion import where_text
from onnxfuse.report import Report, print_verification
from onnxfuse.verify.model import validate

FINE, FAILED, MISUSE = 0, 1, 2

EXAMPLES = """
examples:
  onnxfuse rewrite model.onnx -o fused.onnx                    fuse, every rewritten piece verified
  onnxfuse rewrite model.onnx -o fused.onnx --verify model     ... and the whole model too
  onnxfuse explain model.onnx --node '*layers.0*'              why a place was not fused
  onnxfuse validate model.onnx fused.onnx                      compare two models on generated inputs
  onnxfuse bench model.onnx fused.onnx --prompt 1,128          time them against each other

exit status: 0 fine; 1 the models differ, or a required fusion is absent; 2 misuse or unreadable input
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with _terminable():
        try:
            return options.run(options)
        except UsageError as error:
            errors.print(Text(f"onnxfuse: {error}", style="red"))
            return MISUSE
        except (KeyboardInterrupt, BrokenPipeError):
            return MISUSE
        except Exception as error:
            if options.debug:
                raise
            what = str(error).splitlines()[0] if str(error) else ""
            message = f"onnxfuse: internal error, {type(error).__name__}: {what} (--debug shows where)"
            errors.print(Text(message, style="red"))
            return MISUSE


@contextmanager
def _terminable():
    """A terminated process still removes its temporary files; threads other than the first get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Commands


def _rewrite(options: argparse.Namespace) -> int:
    if options.output is None and not options.dry_run:
        raise UsageError("no output: give -o OUT, or --dry-run to see what would happen")
    if options.report is not None and not Path(options.report).resolve().parent.is_dir():
        raise UsageError(f"cannot write {options.report}: its folder does not exist")
    console = _console()
    status = FINE
    with _progress() as progress:
        try:
            report = api.optimize(
                options.model,
                None if options.dry_run else options.output,
                target=options.target,
                fusions=options.fusions,
                skip=options.skip or (),
                require=options.require or (),
                level=options.level,
                kv_cache=options.kv_cache,
                verify=options.verify,
                weights=options.weights,
                progress=progress,
            ).report
        except Rejected as rejection:
            report, status, complaint = rejection.report, FAILED, str(rejection)
    _write_report(options.report, report)
    report.print(console, verbose=options.verbose)
    if status != FINE:
        Console(stderr=True, soft_wrap=True).print(Text(f"onnxfuse: {complaint}; nothing was written", style="red"))
    return status


def _write_report(path: str | None, report: Report) -> None:
    if path is not None:
        try:
            Path(path).write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _explain(options: argparse.Namespace) -> int:
    if options.fusion is not None:
        api.choose([options.fusion])
    with _progress() as progress:
        result = api.explain(options.model, verify=options.verify, progress=progress)
    found = explanations(catalog.fusions(), result.events, name=options.fusion, node=options.node)
    if options.json:
        print(json.dumps([explanation.to_dict() for explanation in found], indent=2, default=str))
        return FINE
    console = _console()
    for explanation in found:
        explanation.print(console, places=options.node is not None)
    if not found:
        console.print(f"nothing was fused, refused or nearly matched at a node that matches {options.node!r}")
    return FINE


def _validate(options: argparse.Namespace) -> int:
    with _progress() as progress:
        found = validate(
            options.original,
            options.fused,
            tolerance=options.tolerance,
            library=_library(options.provider),
            provider=options.provider,
            progress=lambda done, total: progress("comparing", done, total),
        )
    if options.json:
        report = {"original": options.original, "fused": options.fused, **_plain(found)}
        print(json.dumps(report, indent=2, default=float))
    else:
        print_verification(_console(), found)
    return FINE if found.passed else FAILED


def _bench(options: argparse.Namespace) -> int:
    with _progress() as progress:
        rows = bench(
            options.original,
            options.fused,
            prompts=options.prompt,
            pasts=options.past,
            batch=options.batch,
            provider=options.provider,
            threads=options.threads,
            repeats=options.repeat,
            library=_library(options.provider),
            progress=lambda done, total: progress("timing", done, total),
        )
    if options.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        print_rows(_console(), rows)
    return FINE


def _view(options: argparse.Namespace) -> int:
    model_io.load(options.model)
    try:
        import netron
    except ImportError:
        raise UsageError("Netron is not installed: pip install 'onnxfuse[view]'") from None
    netron.start(str(options.model), address=("localhost", options.port) if options.port else None)
    try:
        netron.wait()
    finally:
        netron.stop()
    return FINE


def _list(options: argparse.Namespace) -> int:
    console = _console()
    fusions, operators = catalog.fusions(), sorted(functions.folders())
    if options.name is not None:
        return _documentation(console, options.name)
    console.print("fusions", style="bold")
    for fusion in fusions:
        summary = fusion.documentation.partition("\n")[0].rpartition(": ")[2]
        console.print(Text(f"  {fusion.name:<30}{fusion.stage:<12}{fusion.op or '':<16}{summary}"))
    console.print("operators of domain onnxfuse", style="bold")
    for operator in operators:
        summary = _operator_documentation(operator).partition("\n")[0].removeprefix(f"{operator}: ")
        console.print(Text(f"  {operator:<30}{summary}"))
    return FINE


def _documentation(console: Console, name: str) -> int:
    if name in functions.folders():
        console.print(Text(_operator_documentation(name)))
        return FINE
    (fusion,) = api.choose([name])
    module = sys.modules[fusion.module]
    console.print(Text(f"{fusion.name}  stage {fusion.stage}  {where_text(fusion.location)}\n", style="bold"))
    console.print(Text((module.__doc__ or fusion.documentation).strip()))
    return FINE


def _operator_documentation(operator: str) -> str:
    return (importlib.import_module(functions.folders()[operator]).__doc__ or "").strip()


# Words shared by the commands


def _library(provider: str) -> Path | None:
    """The operator library for `provider`, None where there is none: fused models then run as function bodies."""
    if provider != "cpu":
        return None
    try:
        return runtime.library_path()
    except FileNotFoundError:
        return None


def _plain(found: object) -> dict:
    from dataclasses import asdict

    return asdict(found)


def _console() -> Console:
    """Plain text of any length where it is not read on a terminal; rich itself obeys NO_COLOR."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000, soft_wrap=True)


@contextmanager
def _progress():
    """A callable(stage, done, total) that shows a bar, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, done: int, total: int | None) -> None:
            text = stage if total else f"{stage} {done or ''}"
            bar.update(task, description=text, completed=done, total=total)

        yield show


# Arguments


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(least: int) -> Callable[[str], list[int]]:
    def numbers(text: str) -> list[int]:
        found = [int(part) for part in _names(text)]
        if not found or min(found) < least:
            raise ValueError
        return found

    numbers.__name__ = "list of numbers"
    return numbers


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


_positive.__name__ = "positive number"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnxfuse",
        description="Fuse exported Llama-family ONNX models into custom operators, and prove the result equal.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_rewrite, _add_explain, _add_validate, _add_bench, _add_view, _add_list):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return parser


def _add_rewrite(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "rewrite",
        help="fuse a model and verify the result",
        description="Fuse MODEL and write OUT, complete or not at all. Inputs and outputs keep names, order and types.",
        epilog="examples:\n"
        "  onnxfuse rewrite model.onnx -o fused.onnx --verify model --report report.json\n"
        "  onnxfuse rewrite model.onnx --dry-run -v\n"
        "  onnxfuse rewrite model.onnx -o fused.onnx --skip gated_mlp --require attention",
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument("-o", "--output", metavar="OUT", help="the .onnx file to write, in an existing folder")
    command.add_argument("--target", choices=api.TARGETS, default="cpu", help="what OUT shall run on (default cpu)")
    command.add_argument("--fusions", type=_names, metavar="A,B", help="apply only these fusions (onnxfuse list)")
    command.add_argument("--skip", type=_names, metavar="A,B", help="do not apply these fusions")
    command.add_argument("--require", type=_names, metavar="A,B", help="exit 1 unless these fusions were applied")
    command.add_argument("--level", choices=api.LEVELS, default="op", help="how much a fused node comprises")
    command.add_argument(
        "--kv-cache", choices=api.KV_CACHES, default="concat", help="interface of the KV cache (default: as exported)"
    )
    command.add_argument(
        "--verify",
        choices=api.VERIFICATIONS,
        default="match",
        help="run each rewritten piece before and after (match, the default), the whole model too (model), or neither",
    )
    command.add_argument(
        "--weights",
        choices=model_io.WEIGHTS,
        default="copy",
        help="copy external weights beside OUT (default), or refer to them where they are, in the folder of OUT",
    )
    command.add_argument("--report", metavar="FILE.json", help="write what happened as JSON")
    command.add_argument("--dry-run", action="store_true", help="do everything but writing OUT")
    command.add_argument("-v", "--verbose", action="store_true", help="list every refusal and near miss")
    command.set_defaults(run=_rewrite)
    return command


def _add_explain(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "explain",
        help="say what would be fused and why the rest would not",
        description="For every fusion: where it applies, where a condition refuses it, and where it nearly matched, "
        "with the pattern's line, what it expected and what it found.",
        epilog="examples:\n"
        "  onnxfuse explain model.onnx\n"
        "  onnxfuse explain model.onnx --fusion attention --node '*layers.0*' --json",
    )
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument("--fusion", metavar="F", help="only this fusion")
    command.add_argument("--node", metavar="GLOB", help="only nodes of such a name, in full or in its last part")
    command.add_argument("--verify", choices=("match", "none"), default="match", help="whether matches are run")
    command.add_argument("--json", action="store_true", help="print data instead of text")
    command.set_defaults(run=_explain)
    return command


def _add_validate(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "validate",
        help="compare two models on generated inputs",
        description="Run ORIGINAL without optimisations and FUSED, with the operator library and without, on inputs of "
        "several batch, prompt and past sizes, left- and right-padded ones included, and compare every output. "
        "Exit status 1 if one differs by more than the tolerance.",
        epilog="example:\n  onnxfuse validate model.onnx fused.onnx --tolerance 1e-4",
    )
    command.add_argument("original", metavar="ORIGINAL")
    command.add_argument("fused", metavar="FUSED")
    command.add_argument(
        "--tolerance",
        type=_positive,
        metavar="T",
        help="largest accepted difference, relative to the value or to the output's root mean square, whichever is "
        "larger (default by dtype: float32 2e-3, float16 4e-2, bfloat16 0.3)",
    )
    command.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run")
    command.add_argument("--json", action="store_true", help="print data instead of a table")
    command.set_defaults(run=_validate)
    return command


def _add_bench(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "bench",
        help="time two models against each other",
        description="Time ORIGINAL, with all of ONNX Runtime's optimisations, and FUSED in turns. Every past length is "
        "combined with every prompt length; prompt 1 is decoding.",
        epilog="example:\n  onnxfuse bench model.onnx fused.onnx --prompt 1,128,512 --past 0,1024",
    )
    command.add_argument("original", metavar="ORIGINAL")
    command.add_argument("fused", metavar="FUSED")
    command.add_argument("--prompt", type=_numbers(1), default=[1, 128], metavar="N,M", help="new tokens (1,128)")
    command.add_argument("--past", type=_numbers(0), default=[0, 1024], metavar="N,M", help="cached tokens (0,1024)")
    command.add_argument("--batch", type=int, default=1, help="sequences (1)")
    command.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run")
    command.add_argument("--threads", type=int, default=0, help="threads of each session (default: ONNX Runtime's)")
    command.add_argument("--repeat", type=int, default=REPEATS, help=f"runs of each model a row ({REPEATS})")
    command.add_argument("--json", action="store_true", help="print data instead of a table")
    command.set_defaults(run=_bench)
    return command


def _add_view(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "view", help="open a model in Netron", description="Open MODEL in Netron; a fused node opens into its body."
    )
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--port", type=int, help="port to serve on (default: one that is free)")
    command.set_defaults(run=_view)
    return command


def _add_list(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "list",
        help="fusions and operators with their documentation",
        description="All fusions and operators, or the documentation of one.",
        epilog="example:\n  onnxfuse list rms_norm",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="a fusion or an operator")
    command.set_defaults(run=_list)
    return command


if __name__ == "__main__":
    sys.exit(main())
