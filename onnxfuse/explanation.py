"""What each fusion did in a model: fused, refused, nearly matched, or never seen. Data first, text second."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from onnxfuse.explain import Event, Fused, NearMiss, Refused
from onnxfuse.fusion import Fusion, where_text
from onnxfuse.report import print_near_miss, print_refusal


@dataclass(frozen=True)
class Explanation:
    """The events of one fusion; without any, the fusion never matched."""

    fusion: Fusion
    events: tuple[Event, ...]

    def of(self, kind: type[Event]) -> list[Event]:
        """The events of one outcome."""
        return [event for event in self.events if isinstance(event, kind)]

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "fusion": self.fusion.name,
            "where": where_text(self.fusion.location),
            "stage": self.fusion.stage,
            "fused": len(self.of(Fused)),
            "refused": len(self.of(Refused)),
            "near_misses": len(self.of(NearMiss)),
            "events": [event.to_dict() for event in self.events],
        }

    def print(self, console: Console, *, places: bool) -> None:
        """One line of counts, then every refusal and near miss; with `places` what was fused as well."""
        counts = [
            f"{len(self.of(kind))} {word}"
            for kind, word in ((Fused, "fused"), (Refused, "refused"), (NearMiss, "near"))
        ]
        line = Text(f"{self.fusion.name:<32}", style="bold")
        line.append("  ".join(counts) if self.events else "never matched", style="" if self.events else "dim")
        line.append(f"  {where_text(self.fusion.location)}", style="dim")
        console.print(line)
        for event in self.of(Fused) if places else ():
            console.print(Text(f"  fused {event.replaced} nodes into {event.node}", style="green"))
        for event in self.of(Refused):
            print_refusal(console, event)
        for event in self.of(NearMiss):
            print_near_miss(console, event)


def explanations(
    fusions: Sequence[Fusion], events: Iterable[Event], *, name: str | None = None, node: str | None = None
) -> list[Explanation]:
    """The events grouped by fusion: only those of the fusion `name`, only those at nodes that match the glob `node`.

    A node's glob is compared with the whole name and with its last part: `Mul_1` finds `/model/norm/Mul_1`.
    """

    def is_wanted(event: Event) -> bool:
        if node is None:
            return True
        return fnmatch.fnmatchcase(event.node, node) or fnmatch.fnmatchcase(event.node.rpartition("/")[2], node)

    events = [event for event in events if is_wanted(event)]
    chosen = [fusion for fusion in fusions if name is None or fusion.name == name]
    found = [Explanation(f, tuple(e for e in events if e.fusion == f.name)) for f in chosen]
    return found if node is None else [explanation for explanation in found if explanation.events]
