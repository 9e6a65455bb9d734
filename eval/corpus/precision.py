"""Vectors in few bytes: what each precision stores, and what it gives back.

A stored vector is of unit length when it is read back, or all zeros where its text is empty.
"""

from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

Precision: TypeAlias = Literal["float32", "float16", "int8", "2bit", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
BITS = {"float32": 32, "float16": 16, "int8": 8, "2bit": 2, "ubinary": 1}
DTYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "2bit": "uint8", "ubinary": "uint8"}
SCALED = ("int8", "2bit", "ubinary")  # need a number for each vector next to it
# The numbers of one byte: four of 2 bits, the first in its lowest bits, and eight of 1 bit, the first in its highest.
_BYTES = np.arange(256, dtype=np.uint8)[:, None]
_NUMBERS = {
    "2bit": np.array([-1, 1, -3, 3], np.int8)[_BYTES >> np.arange(0, 8, 2, dtype=np.uint8) & 3],  # (256, 4)
    "ubinary": np.where(np.unpackbits(_BYTES, axis=1), 1, -1).astype(np.int8),  # (256, 8)
}
# Each row as one integer, since a lookup of one number is the fastest of all ways tried to unpack on a CPU.
_TABLES = {
    "2bit": torch.from_numpy(_NUMBERS["2bit"].view(np.int32).ravel()),
    "ubinary": torch.from_numpy(_NUMBERS["ubinary"].view(np.int64).ravel()),
}


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def stored_width(dimensions: int, precision: str) -> int:
    """Columns of the stored array."""
    return -(-dimensions * BITS[precision] // 8) if precision in ("2bit", "ubinary") else dimensions


def calibration(vectors: np.ndarray) -> np.ndarray:
    """(2, D) float32, the smallest and largest value of each number in (n, D) vectors: the ranges of int8."""
    return np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32)


def quantized(
    vectors: np.ndarray, precision: str, ranges: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors as they are stored.

    Args:
        vectors: (n, D) float32 of unit length, or zeros for a text that is empty.
        precision: one of `PRECISIONS`. int8 and ubinary are those of sentence-transformers; 2bit has the sign of a
            number, and whether it is further from 0 than the standard deviation of its vector. Neither it nor ubinary
            has a zero: a number that is exactly 0 comes back as -1, as of a slot without tokens.
        ranges: (2, D) of int8, as from `calibration`.

    Returns:
        The stored array, (n, stored_width(D)), and of `SCALED` the (n,) float32 that each vector read back is
        multiplied with, else None.
    """
    if precision in ("float32", "float16"):
        return vectors.astype(precision), None
    if precision == "2bit":
        far = np.abs(vectors) > vectors.std(1, keepdims=True)
        levels = (vectors > 0).astype(np.uint8) | far.astype(np.uint8) << 1  # (n, D) in 0 to 3
        padded = np.pad(levels, ((0, 0), (0, -vectors.shape[1] % 4))).reshape(len(vectors), -1, 4)
        codes = (padded << np.arange(0, 8, 2, dtype=np.uint8)).sum(2, dtype=np.uint8)
    else:
        from sentence_transformers.util import quantize_embeddings  # of the extra

        codes = np.asarray(quantize_embeddings(vectors, precision, ranges))  # type: ignore[arg-type]
    norms = np.linalg.norm(_levels(codes, precision, vectors.shape[1], ranges), axis=1)
    scales = np.divide(1, norms, out=np.zeros_like(norms), where=(norms > 0) & vectors.any(1))
    return codes, scales.astype(np.float32)


def restored(
    codes: np.ndarray,
    precision: str,
    dimensions: int,
    scales: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
) -> np.ndarray:
    """(n, D) float32 vectors from what `quantized` gave."""
    levels = _levels(codes, precision, dimensions, ranges)
    return levels if scales is None else levels * scales[:, None]


def _levels(codes: np.ndarray, precision: str, dimensions: int, ranges: np.ndarray | None) -> np.ndarray:
    if precision == "int8":
        assert ranges is not None
        steps = (ranges[1] - ranges[0]) / 255
        return (codes + np.float32(128.5)) * steps + ranges[0]  # the middle of each step
    if precision in _TABLES:
        found = _TABLES[precision].index_select(
            0, torch.from_numpy(np.require(codes, requirements="W")).int().view(-1)
        )
        return found.view(torch.int8).view(len(codes), -1)[:, :dimensions].float().numpy()
    return codes.astype(np.float32)
