"""Exceptions that tell a person what to do; everything else is a defect of onnxfuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxfuse.report import Report


class UsageError(Exception):
    """Unreadable input or impossible options. The message is one line: what was found, where, what to do."""


class Rejected(Exception):
    """The rewritten model is not what was asked for, so nothing was written; `report` says why.

    Raised when the whole model differs from the original, or when a required fusion is absent.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
