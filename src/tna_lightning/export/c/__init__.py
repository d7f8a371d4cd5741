"""The kept network as plain C99: spikes as bits, weights as rows of bits, and additions.

Read `program.py` (what a network is made of, and what is refused), `tables.py` (weights as rows of bits), `memory.py`,
`source.py` (the C text), `library.py` (compiled, from Python) and `kernels/tna_kernels.c` (what does the work).
"""

from tna_lightning.export.c.folder import CExport, export_c
from tna_lightning.export.c.library import CNetwork, load_c

__all__ = ["CExport", "CNetwork", "export_c", "load_c"]
