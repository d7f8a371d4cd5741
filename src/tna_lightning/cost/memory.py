"""The energy of moving numbers: one stated model of memory, and what is moved under it."""

from __future__ import annotations

import math
from dataclasses import dataclass

KB = 1024
BITS = {"spikes": 1, "ternary spikes": 2, "whole numbers": 32, "numbers": 32}  # of one number of each kind


@dataclass(frozen=True)
class MemoryModel:
    """Energy of an access by the size of the memory: each buffer lies in a memory that just holds it.

    From Horowitz, "Computing's energy problem", ISSCC 2014 (45 nm, as the energies of operations): an access of 64 bits
    to 8 kB, 32 kB and 1 MB of SRAM, and to DRAM, of whose 1.3 to 2.6 nJ the lower end is taken. Between two sizes the
    energy is interpolated, as by Lemaire et al. (arXiv 2210.13107); up to the smallest it is that of the smallest,
    since the table has none below; what is larger than the largest lies in DRAM. A number takes its bits' share of an
    access.

    Args:
        sram: bytes and picojoule of an access, rising.
        dram: picojoule of an access to DRAM.
        access_bits: bits of an access.
        membrane_bits: bits of a membrane.

    Raises:
        ValueError: sizes that do not rise, an energy below 0 or not finite, or bits below 1.
    """

    sram: tuple[tuple[int, float], ...] = ((8 * KB, 10.0), (32 * KB, 20.0), (1024 * KB, 100.0))
    dram: float = 1300.0
    access_bits: int = 64
    membrane_bits: int = 32

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.sram]
        if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(f"sram={self.sram!r}: must be pairs of bytes and picojoule, the bytes rising from above 0")
        for name, energy in [("dram", self.dram), *(("sram", energy) for _, energy in self.sram)]:
            if not 0 <= energy < math.inf:
                raise ValueError(f"{name}={energy!r}: must be 0 or more")
        for name, bits in {"access_bits": self.access_bits, "membrane_bits": self.membrane_bits}.items():
            if bits < 1:
                raise ValueError(f"{name}={bits!r}: must be at least 1")

    def access_pj(self, num_bytes: float) -> float:
        """Picojoule of an access to a buffer of that many bytes."""
        smaller, low = self.sram[0]
        for size, energy in self.sram:
            if num_bytes <= size:
                return (
                    energy if num_bytes <= smaller else low + (energy - low) * (num_bytes - smaller) / (size - smaller)
                )
            smaller, low = size, energy
        return self.dram

    def energy_uj(self, num_bits: float, num_bytes: float) -> float:
        """Microjoule of reading or writing that many bits in a buffer of that many bytes."""
        return num_bits / self.access_bits * self.access_pj(num_bytes) / 1e6
