"""The words of the command line: commands, options, help."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import onnxfuse
from onnxfuse import api
from onnxfuse.bench import REPEATS

EXAMPLES = """
examples:
  onnxfuse rewrite model.onnx -o fused.onnx                    fuse, every rewritten piece verified
  onnxfuse rewrite model.onnx -o fused.onnx --verify model     ... and the whole model too
  onnxfuse explain model.onnx --node '*layers.0*'              why a place was not fused
  onnxfuse validate model.onnx fused.onnx                      compare two models on generated inputs
  onnxfuse bench model.onnx fused.onnx --prompt 1,128          time them against each other

exit status: 0 fine; 1 the models differ, or a required fusion is absent; 2 misuse or unreadable input
"""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(least: int) -> Callable[[str], list[int]]:
    def numbers(text: str) -> list[int]:
        found = [int(part) for part in _names(text)]
        if not found or min(found) < least:
            raise ValueError
        return found

    numbers.__name__ = f"list of numbers of at least {least}"
    return numbers


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number of at least {least}"
    return number


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


_positive.__name__ = "positive number"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; its namespace names the command in `command`."""
    made = argparse.ArgumentParser(
        prog="onnxfuse",
        description="Fuse exported Llama-family ONNX models into custom operators, and prove the result equal.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"onnxfuse {onnxfuse.__version__}")
    commands = made.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in (_add_rewrite, _add_explain, _add_validate, _add_bench, _add_view, _add_list):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return made


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
    _add_level(command)
    command.add_argument(
        "--kv-cache",
        choices=api.KV_CACHES,
        default="concat",
        help="past and present as exported (concat, default), or one buffer that is updated in place (shared)",
    )
    command.add_argument(
        "--verify",
        choices=api.VERIFICATIONS,
        default="match",
        help="run each rewritten piece before and after (match, the default), the whole model too (model), or neither",
    )
    command.add_argument(
        "--weights",
        choices=api.WEIGHTS,
        default="copy",
        help="copy external weights beside OUT (default), refer to them where they are, in the folder of OUT "
        "(reference), or store matrices in bfloat16 (bf16, of a float32 model) or 8.5 bits (int8), for the CPU; "
        "--verify model then reports the error of that beside what it was before",
    )
    command.add_argument("--report", metavar="FILE.json", help="write what happened as JSON")
    command.add_argument("--dry-run", action="store_true", help="do everything but writing OUT")
    command.add_argument("-v", "--verbose", action="store_true", help="list every refusal and near miss")
    return command


def _add_level(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--level",
        choices=api.LEVELS,
        default="op",
        help="what a fused node comprises: an operator (op, default) or half a layer (block)",
    )


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
    _add_level(command)
    command.add_argument("--verify", choices=("match", "none"), default="match", help="whether matches are run")
    command.add_argument("--json", action="store_true", help="print data instead of text")
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
        "larger (default by the arithmetic of ORIGINAL: float32 2e-3, float16 4e-2, bfloat16 and 8 bits 0.3)",
    )
    command.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run")
    command.add_argument("--json", action="store_true", help="print data instead of a table")
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
    command.add_argument("--batch", type=_number(1), default=1, help="sequences (1)")
    command.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run")
    command.add_argument(
        "--threads", type=_number(0), default=0, help="threads of each session (default: ONNX Runtime's)"
    )
    command.add_argument("--repeat", type=_number(1), default=REPEATS, help=f"runs of each model a row ({REPEATS})")
    command.add_argument("--json", action="store_true", help="print data instead of a table")
    return command


def _add_view(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "view", help="open a model in Netron", description="Open MODEL in Netron; a fused node opens into its body."
    )
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--port", type=_number(1), help="port to serve on (default: one that is free)")
    return command


def _add_list(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "list",
        help="fusions and operators with their documentation",
        description="All fusions and operators, or the documentation of one.",
        epilog="example:\n  onnxfuse list rms_norm",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="a fusion or an operator")
    return command
