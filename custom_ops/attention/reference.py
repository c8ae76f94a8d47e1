"""Attention in numpy and float64, with the whole score matrix."""

from __future__ import annotations

import numpy as np

from onnxfuse.custom_ops.rotary_embedding.reference import reference as rotate


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    causal: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    shared_cache: int = 0,
    past_rows: int = 0,
    interleaved: int = 0,
    rotary_dim: int = 0,
) -> tuple[np.ndarray, ...]:
    """y, present_key and present_value of Attention; the contract is in attention.h. All results are float64."""
    rank = q.ndim
    if cos is not None:
        rotary = {"interleaved": interleaved, "rotary_dim": rotary_dim}
        (q,) = rotate(q, cos, sin, num_heads=num_heads, **rotary)
        (k,) = rotate(k, cos, sin, num_heads=kv_num_heads, **rotary)
    q, k, v = by_head(q, num_heads), by_head(k, kv_num_heads), by_head(v, kv_num_heads)
    batch, _, queries, size = q.shape
    if past_rows and past_key is not None:
        past_key, past_value = past_key.swapaxes(1, 2), past_value.swapaxes(1, 2)
    if shared_cache:
        keys = 1 + max(np.flatnonzero(np.any(attention_mask, axis=0)), default=-1)
        attention_mask = attention_mask[:, :keys]
        present_key, present_value = written(past_key, k, keys), written(past_value, v, keys)
        k, v = present_key[:, :, :keys], present_value[:, :, :keys]
    else:
        if past_key is not None:
            k = np.concatenate([past_key.astype(np.float64), k], axis=2)
            v = np.concatenate([past_value.astype(np.float64), v], axis=2)
        present_key, present_value = k, v
        keys = k.shape[2]
        if past_rows:
            present_key, present_value = k.swapaxes(1, 2), v.swapaxes(1, 2)

    group = num_heads // kv_num_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = q @ k.swapaxes(2, 3) * (np.float32(scale) or 1 / np.sqrt(size))
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    if bias is not None:
        scores = scores + (bias if bias.ndim == 4 else bias[:, None]).astype(np.float64)
    i, j = np.ogrid[keys - queries : keys, :keys]
    visible = np.ones((batch, 1, queries, keys), bool)
    if causal:
        visible &= j <= i
    if window > 0:
        visible &= j > i - window
    if attention_mask is not None:
        visible &= (attention_mask != 0)[:, None, None]
    scores = np.where(visible, scores, -np.inf)
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.finfo(np.float64).max)  # finite where no key is visible
    weights = np.exp(scores - top)
    y = weights @ v / np.maximum(weights.sum(axis=-1, keepdims=True), 1)
    if rank == 3:
        y = y.swapaxes(1, 2).reshape(batch, queries, num_heads * v.shape[3])
    return y, present_key, present_value


def by_head(x: np.ndarray, heads: int) -> np.ndarray:
    """[B, S, heads * size] or [B, heads, S, size] -> [B, heads, S, size] float64."""
    if x.ndim == 3:
        x = x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)
    return x.astype(np.float64)


def written(buffer: np.ndarray, new: np.ndarray, end: int) -> np.ndarray:
    """A copy of the buffer [B, K, M, D] with the new rows ending at row `end`."""
    buffer = buffer.astype(np.float64)
    buffer[:, :, end - new.shape[2] : end] = new
    return buffer
