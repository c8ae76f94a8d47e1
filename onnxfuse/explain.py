"""What happened at each place where a fusion looked: fused, refused, or nearly matched. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar


@dataclass
class Fused:
    """A fusion was applied: `node` is the new node, `replaced` the number of nodes it stands for."""

    outcome: ClassVar[str] = "fused"
    fusion: str
    node: str
    replaced: int

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {"outcome": self.outcome, **asdict(self)}


@dataclass
class Refused:
    """The structure matched, but `reason` forbids the fusion; `where` is the condition's file and line."""

    outcome: ClassVar[str] = "refused"
    fusion: str
    node: str
    reason: str
    where: str

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {"outcome": self.outcome, **asdict(self)}


@dataclass
class NearMiss:
    """Most of a pattern was found at `node`: where it differs first, and why each alternative failed there."""

    outcome: ClassVar[str] = "near miss"
    fusion: str
    node: str
    matched: int
    wanted: int
    where: str
    source: str
    at: str
    what: str
    expected: str
    found: str
    tried: list[tuple[str, str]] = field(default_factory=list)

    @property
    def message(self) -> str:
        """`Softmax.axis: expected -1, found 1`."""
        return f"{self.what}: expected {self.expected}, found {self.found}"

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {"outcome": self.outcome, **asdict(self)}


Event = Fused | Refused | NearMiss
