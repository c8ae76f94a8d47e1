"""A family by name, a seed and an opset give one small graph, and what must be fused in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spellings import attention, functions, mlp, norms, rotary
from spellings.writer import Writer

STATIC = {"B": 2, "S": 5, "P": 6}
OPSETS = tuple(range(13, 25))

FAMILIES: dict[str, Callable[[Writer], dict[str, int]]] = {
    "rms_norm": norms.rms_norm,
    "skip_rms_norm": norms.skip_rms_norm,
    "rotary_table": rotary.rotary_table,
    "rotary_embedding": rotary.rotary_embedding,
    "attention": attention.attention,
    "swiglu": mlp.swiglu,
    "gated_mlp": mlp.gated_mlp,
}


@dataclass(eq=False)
class Case:
    """One spelled graph."""

    family: str
    seed: int
    mutation: str | None
    writer: Writer
    expected: Mapping[str, int]

    @property
    def label(self) -> str:
        """How to make it again: the arguments of `case`."""
        return ":".join([self.family, str(self.seed), str(self.writer.opset), *filter(None, [self.mutation])])

    def loses(self, fused: Mapping[str, int]) -> bool:
        """Whether what was fused is an operator that the mutation leaves no place for."""
        return any(fused[operator] for operator in self.writer.forbidden)


def case(family: str, seed: int, opset: int, mutation: str | None = None, dtype: str | None = None) -> Case:
    """The case of that number; everything random in it follows from `seed`, the dtype too where none is given."""
    w = Writer(seed, opset, prefix=f"{family}_{seed}_{mutation}/", mutation=mutation)
    w.dtype = w.fixed(*[dtype] * 3) if dtype else w.fixed("float16", "float32", "float32")
    sizes = w.fixed(STATIC, {name: name for name in STATIC})
    w.b, w.s, w.p = sizes["B"], sizes["S"], sizes["P"]
    expected = FAMILIES[family](w)
    functions.outlined(w)
    return Case(family, seed, mutation, w, expected)


def labelled(label: str) -> Case:
    """The case that a label names."""
    family, seed, opset, *mutation = label.split(":")
    return case(family, int(seed), int(opset), *mutation)
