"""Feeding a model whose past and present share one buffer what its original gets: see `onnxfuse.kv_cache`."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfuse import kv_cache, model_io
from onnxfuse.verify.interface import Point
from onnxfuse.verify.sessions import Session

SPARE_ROWS = 3  # of a buffer beyond the tokens; they hold NaN, so that whoever reads them is found out

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class SharedCache:
    """The caches of a model by input, each with its output; none where past and present are separate."""

    presents: dict[str, str]

    @classmethod
    def of(cls, model: str | os.PathLike | ir.Model) -> SharedCache:
        """The shared caches of a model on disk or in memory."""
        return cls(kv_cache.caches(model_io.load(model)))

    def feed(self, feed: Arrays, point: Point, spare: int = SPARE_ROWS) -> Arrays:
        """`feed` with every past [B, K, P, D] at the start of a buffer [B, K, P + S + spare, D]."""
        return feed | {name: _buffer(feed[name], point.total + spare) for name in self.presents}

    def run(self, session: Session, feed: Arrays, point: Point) -> Arrays:
        """The outputs of a run at `point`, every present [B, K, P + S, D] as if it were separate."""
        outputs = session.run(self.feed(feed, point))
        return outputs | {name: outputs[name][:, :, : point.total] for name in self.presents.values()}


def _buffer(past: np.ndarray, rows: int) -> np.ndarray:
    buffer = np.full((*past.shape[:2], rows, past.shape[3]), np.nan, past.dtype)
    buffer[:, :, : past.shape[2]] = past
    return buffer
