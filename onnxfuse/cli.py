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
from onnxfuse.arguments import parser
from onnxfuse.bench import bench, print_rows
from onnxfuse.custom_ops import functions
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.explanation import explanations
from onnxfuse.fusion import where_text
from onnxfuse.report import print_verification
from onnxfuse.verify.model import validate
from onnxfuse.verify.sessions import PROVIDERS

FINE, FAILED, MISUSE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = parser().parse_args(arguments)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with _terminable():
        try:
            return COMMANDS[options.command](options)
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
    if options.report is not None:
        _check_report(Path(options.report), options.model, options.output)
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
    if options.report is not None:
        model_io.save_text(report.to_json(), options.report)
    report.print(console, verbose=options.verbose)
    if status != FINE:
        Console(stderr=True, soft_wrap=True).print(Text(f"onnxfuse: {complaint}; nothing was written", style="red"))
    return status


def _check_report(path: Path, model: str, output: str | None) -> None:
    """Raise UsageError unless the report can be written and takes no model's place."""
    model_io.check_place(path)
    if output is not None and path.resolve() in (Path(output).resolve(), Path(f"{output}.data").resolve()):
        raise UsageError(f"the report and the model would both be written to {path}: choose another path for one")
    if path.is_file():
        model_io.check_output(path, model_io.load(model), protect=[model])


def _explain(options: argparse.Namespace) -> int:
    known = api.of_level(catalog.fusions(), options.level)
    if options.fusion is not None:
        api.check_level(api.choose(options.fusion), options.level)
    with _progress() as progress:
        result = api.explain(options.model, level=options.level, verify=options.verify, progress=progress)
    found = explanations(known, result.events, name=options.fusion, node=options.node)
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
        report = {"original": options.original, "fused": options.fused, **found.to_dict()}
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print_verification(_console(), found)
    return FINE if found.passed else FAILED


def _bench(options: argparse.Namespace) -> int:
    library = _library(options.provider)
    if library is None:
        told = f"onnxfuse: this build has no kernels for {options.provider}: fused nodes are timed as function bodies"
        Console(stderr=True, soft_wrap=True).print(Text(told, style="yellow"))
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
            library=library,
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
    rows = [(fusion.name, fusion.stage, fusion.op or "", _first_line(fusion.documentation)) for fusion in fusions]
    _print_columns(console, rows)
    console.print("operators of domain onnxfuse", style="bold")
    _print_columns(console, [(operator, _first_line(_operator_documentation(operator))) for operator in operators])
    return FINE


def _print_columns(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what they hold, but for the last, a sentence."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, sentence in rows:
        padded = (f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        console.print(Text(f"  {''.join(padded)}{sentence}"))


def _first_line(documentation: str) -> str:
    return documentation.partition("\n")[0]


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
    """The operator library, None where it has no kernels for `provider`: fused models then run as function bodies."""
    try:
        return runtime.library_path() if PROVIDERS[provider][0] in runtime.kernels() else None
    except FileNotFoundError:
        return None


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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "rewrite": _rewrite,
    "explain": _explain,
    "validate": _validate,
    "bench": _bench,
    "view": _view,
    "list": _list,
}
