"""What a benchmark of whole models runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Sequences of so many new tokens behind a past."""

    prompt: int
    past: int
    batch: int

    def __str__(self) -> str:
        text = f"prompt {self.prompt}" if self.prompt > 1 else f"decode, past {self.past}"
        return text + (f", batch {self.batch}" if self.batch > 1 else "")
