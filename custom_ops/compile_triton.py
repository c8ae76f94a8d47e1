"""Compiles Triton kernels into the operators' library; the build calls it where ONNXFUSE_TRITON is ON.

An operator's folder brings two files. <op>_triton.py has the kernels, functions under @triton.jit as in Unsloth or
Liger, and says what to compile:

    COMPILED = {
        "scale": {"kernel": scale_kernel, "signature": "*T:16, *T:16, fp32, i64:16", "constants": {"BLOCK": 1024}},
    }

The signature has an entry for each parameter that is not a constant: *T is a pointer to elements of the operator's
dtype (each kernel is compiled for float32, float16 and bfloat16), *fp32, *i64, ... one to elements of a dtype of its
own; fp32, i32, i64 are numbers. ":16" promises a multiple of 16, of bytes for a pointer: without it Triton reads and
writes element by element. Constants are fixed when the library is built, so sizes that differ from node to node, as
Liger's n_cols, have to be made numbers. "num_warps", "num_stages" and Triton's other options may follow.

<op>_triton.cu is the adapter, registered as Language::kTriton for all dtypes that the operator has: it replaces the
CUDA kernel where there is one. It includes "<op>/<op>_triton.h", written here, which has for each entry

    inline constexpr int64_t triton::scale_BLOCK = 1024;
    template <typename T>
    void triton::scale(const cuda::Stream&, dim3 grid, const T* x, const T* y, float factor, int64_t count);

The images beside it, one for each dtype, hold machine code or PTX for each of the library's architectures. The rest of
the operator's folder is as for any other operator; custom_ops/swiglu is a whole one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = {"fp32": "float", "fp16": "Half", "bf16": "BFloat16"}
OTHERS = {"i8": "int8_t", "i32": "int32_t", "i64": "int64_t", "u8": "uint8_t", "fp32": "float", "fp64": "double"}
LONE_NUMBERS = ("i32", "i64", "fp32")
WARP = 32


class BuildError(Exception):
    """What the kernels' author or the build got wrong."""


@dataclass(frozen=True)
class Architecture:
    """A compute capability, 80 for 8.0, and what the image has for it: machine code, PTX or both."""

    capability: int
    has_code: bool
    has_ptx: bool

    @property
    def name(self) -> str:
        """As ptxas and fatbinary call it; Triton takes the features of one generation from 9.0 on."""
        return f"{self.capability}{'a' if self.capability >= 90 else ''}"


def architectures(text: str) -> list[Architecture]:
    """Those of CMake's CUDA_ARCHITECTURES, such as "80-real,90a-real,80-virtual".

    Examples
    --------
    >>> architectures("90a-real,80")[1]
    Architecture(capability=80, has_code=True, has_ptx=True)
    """
    found = []
    for entry in re.split(r"[;,]", text):
        match = re.fullmatch(r"(\d+)a?(-real|-virtual)?", entry)
        if match is None:
            raise BuildError(f"Triton compiles for no architecture {entry!r}: expected such as 90a-real or 80-virtual")
        found.append(Architecture(int(match[1]), match[2] != "-virtual", match[2] != "-real"))
    return found


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel that is no constant: `type` is Triton's, with T for the operator's dtype."""

    name: str
    type: str
    is_multiple_of_16: bool

    def of_dtype(self, dtype: str) -> str:
        """Triton's type where T is `dtype`."""
        return self.type.replace("T", dtype)

    @property
    def declaration(self) -> str:
        """The parameter in C++."""
        kind = self.type.removeprefix("*")
        of = "T" if kind == "T" else OTHERS[kind]
        return f"const {of}* {self.name}" if self.type.startswith("*") else f"{of} {self.name}"


def parameters(entry: str, names: Iterable[str], signature: str) -> list[Parameter]:
    """The parameters called `names` by the `signature` of the kernel called `entry`."""
    names, texts = list(names), [text.strip() for text in signature.split(",")]
    if len(names) != len(texts):
        raise BuildError(f"{entry}: the signature {signature!r} has {len(texts)} entries, expected one each of {names}")
    found = []
    for name, text in zip(names, texts, strict=True):
        of, _, hint = text.partition(":")
        kind = of.removeprefix("*")
        if hint not in ("", "16") or kind not in (("T", *OTHERS) if of.startswith("*") else LONE_NUMBERS):
            raise BuildError(
                f"{entry}: {name} is {text!r}, expected such as *T, *fp32, i64 or fp32, with :16 or without"
            )
        found.append(Parameter(name, of, hint == "16"))
    return found


@dataclass(frozen=True)
class Compiled:
    """A kernel for one dtype and every architecture."""

    image: bytes
    symbol: str
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class Kernel:
    """An entry of COMPILED."""

    name: str
    function: Any
    parameters: list[Parameter]
    constants: Mapping[str, int | float | bool]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> Kernel:
        """The kernel that `entry` describes."""
        function, constants = entry["kernel"], entry.get("constants", {})
        options = {key: value for key, value in entry.items() if key not in ("kernel", "signature", "constants")}
        rest = [parameter for parameter in function.arg_names if parameter not in constants]
        return cls(name, function, parameters(name, rest, entry["signature"]), constants, options)

    def compiled(self, dtype: str, targets: Iterable[Architecture], fatbinary: str) -> Compiled:
        """The kernel where T is `dtype`."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        order = self.function.arg_names
        source = ASTSource(
            self.function,
            {p.name: p.of_dtype(dtype) for p in self.parameters} | dict.fromkeys(self.constants, "constexpr"),
            constexprs=dict(self.constants),
            attrs={(order.index(p.name),): [["tt.divisibility", 16]] for p in self.parameters if p.is_multiple_of_16},
        )
        metadata, parts = [], []
        for target in targets:
            made = triton.compile(source, GPUTarget("cuda", target.capability, WARP), dict(self.options))
            metadata.append(made.metadata)
            parts += [("elf", target.name, made.asm["cubin"])] if target.has_code else []
            parts += [("ptx", target.name, made.asm["ptx"].encode())] if target.has_ptx else []
        first = metadata[0]
        for asks, what in (
            (any(m.num_ctas > 1 for m in metadata), "clusters of blocks (num_ctas)"),
            (any(m.launch_cooperative_grid for m in metadata), "a cooperative launch"),
            (any(m.global_scratch_size for m in metadata), "memory of Triton's own (global scratch)"),
            (any(m.num_warps != first.num_warps for m in metadata), "another number of warps on another device"),
        ):
            if asks:
                raise BuildError(f"{self.name} wants {what}, which its launch in the library does not give")
        shared = max(m.shared for m in metadata)
        return Compiled(fat_binary(parts, fatbinary), first.name, first.num_warps * WARP, shared)

    def header(self, compiled: Mapping[str, Compiled]) -> str:
        """The declarations that the adapter sees; what is compiled is by dtype."""
        arguments = ", ".join(["const cuda::Stream& stream", "dim3 grid", *(p.declaration for p in self.parameters)])
        names = ", ".join(["stream", "grid", *(p.name for p in self.parameters)])
        text = "".join(
            f"inline constexpr {constant_type(value)} {self.name}_{name} = {str(value).lower()};\n"
            for name, value in self.constants.items()
        )
        text += f"\ntemplate <typename T>\nvoid {self.name}({arguments}) = delete;\n"
        for dtype, made in compiled.items():
            of_dtype = re.sub(r"\bT\b", DTYPES[dtype], arguments)
            image = f"onnxfuse_{self.name}_{dtype}"
            text += f"""
extern "C" const unsigned char {image}[];
template <>
inline void {self.name}<{DTYPES[dtype]}>({of_dtype}) {{
  static const cuda::TritonKernel kernel({image}, "{made.symbol}", {made.threads}, {made.shared_bytes});
  kernel.launch({names});
}}
"""
        return text

    def images(self, compiled: Mapping[str, Compiled]) -> str:
        """The definitions of the images."""
        text = ""
        for dtype, made in compiled.items():
            image = f"const unsigned char onnxfuse_{self.name}_{dtype}[]"
            numbers = ",".join(map(str, made.image))
            text += f'extern "C" {{\nextern {image};\nalignas(16) {image} = {{{numbers}}};\n}}\n'
        return text


def constant_type(value: int | float | bool) -> str:
    """The C++ type of a constant."""
    return "bool" if isinstance(value, bool) else "int64_t" if isinstance(value, int) else "double"


def fat_binary(parts: Iterable[tuple[str, str, bytes]], program: str) -> bytes:
    """Images of the given kinds and architectures in one, of which the driver chooses."""
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-64", f"--create={folder}/all"]
        for i, (kind, architecture, content) in enumerate(parts):
            file = Path(folder, f"{i}.{kind}")
            file.write_bytes(content)
            command.append(f"--image3=kind={kind},sm={architecture},file={file}")
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise BuildError(f"{program} failed: {made.stderr or made.stdout}")
        return Path(folder, "all").read_bytes()


def described(path: Path) -> list[Kernel]:
    """The kernels that a file says to compile."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not getattr(module, "COMPILED", None):
        raise BuildError(f"{path} says nothing to compile: expected a dict COMPILED of kernels by name")
    return [Kernel.of(name, entry) for name, entry in module.COMPILED.items()]


def write(path: Path, header: Path, targets: Iterable[Architecture], fatbinary: str) -> None:
    """Compiles the kernels of the file `path`; writes `header`, and beside it the images as a .cc file."""
    origin = f"// Written by compile_triton.py from {path.parent.name}/{path.name}.\n"
    declarations, images = [], []
    for kernel in described(path):
        compiled = {dtype: kernel.compiled(dtype, targets, fatbinary) for dtype in DTYPES}
        declarations.append(kernel.header(compiled))
        images.append(kernel.images(compiled))
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(
        f'{origin}#pragma once\n\n#include "common/dtype.h"\n#include "common/triton.h"\n\n'
        f"namespace onnxfuse::triton {{\n\n{''.join(declarations)}\n}}  // namespace onnxfuse::triton\n"
    )
    header.with_suffix(".cc").write_text(origin + "".join(images))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kernels", type=Path)
    parser.add_argument("--header", type=Path, required=True)
    parser.add_argument("--architectures", required=True)
    parser.add_argument("--fatbinary", default="fatbinary")
    options = parser.parse_args()
    # Where the kernels' file lies in the checkout is nothing for the library to hold, nor a cache for the home folder.
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
    os.environ.setdefault("TRITON_CACHE_DIR", str(options.header.parent / "cache"))
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a * b + c with one rounding, as nvcc does
    try:
        write(options.kernels, options.header, architectures(options.architectures), options.fatbinary)
    except BuildError as error:
        sys.exit(f"{options.kernels}: {error}")


if __name__ == "__main__":
    main()
