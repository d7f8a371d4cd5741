"""Whole weights as rows of bits, in the order that the C kernels count them.

A row holds ``digits`` times C_out lanes, filled up to whole words of 64 bits: the first digit of every output channel,
then the second, and so on. Its words come in groups of four, then of two and one. In a group of ``g`` words the lane
``8 (j g + w) + i`` is bit ``8 i + j`` of word ``w``: so the kernels, when they transpose eight words of counters, have
the numbers in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class BitTable:
    """Rows of bits; a weight is ``per_row`` plus the ``digit_values`` whose bits are set.

    Attributes:
        words: uint64 ``[rows + 1, words of a row]``; the last row is zeros.
        digit_values: what a set bit of each digit adds.
        per_row: what every weight is at least, which each row that is added brings.
    """

    words: np.ndarray
    digit_values: tuple[int, ...]
    per_row: int


def bit_table(codes: np.ndarray, bits: int) -> BitTable:
    """The table of codes ``[rows, C_out]`` in the alphabet of so many bits.

    One bit is -1 or +1, two bits are planes of +1 and of -1; more are digits in two's complement.
    """
    digits: list[np.ndarray]
    values: tuple[int, ...]
    if bits == 1:
        digits, values, per_row = [codes > 0], (2,), -1
    elif bits == 2:
        digits, values, per_row = [codes > 0, codes < 0], (1, -1), 0
    else:
        digits = [(codes >> digit) & 1 for digit in range(bits)]
        values, per_row = (*(2**digit for digit in range(bits - 1)), -(2 ** (bits - 1))), 0
    lanes = np.concatenate(digits, axis=1).astype(bool)
    rows, used = lanes.shape
    row_words = -(-used // 64)
    wide = np.zeros((rows + 1, 64 * row_words), dtype=bool)
    wide[:rows, lane_positions(row_words)[:used]] = lanes
    words = np.packbits(wide, axis=1, bitorder="little").view("<u8")
    return BitTable(words, values, per_row)


def lane_positions(row_words: int) -> np.ndarray:
    """Where each lane of a row stands among its bits; int64 ``[64 * row_words]``."""
    positions = []
    first = 0
    while first < row_words:
        group = next(size for size in (4, 2, 1) if size <= row_words - first)
        j, w, i = np.meshgrid(np.arange(8), np.arange(group), np.arange(8), indexing="ij")
        positions.append((64 * (first + w) + 8 * i + j).reshape(-1))
        first += group
    return np.concatenate(positions)


def unpack_spikes(words: np.ndarray, channels: int) -> np.ndarray:
    """Spikes uint8 ``[..., channels]`` of maps in words uint64 ``[..., words]``."""
    octets = np.ascontiguousarray(words).astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little")[..., :channels]
