"""The folder of an exported network: written, compiled, checked, and only then moved to its place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tna_lightning.data.batch import Normalization
from tna_lightning.export.c.library import KERNELS, CNetwork, compiler, load_c
from tna_lightning.export.c.program import Neurons, Program, to_program
from tna_lightning.export.c.source import write_source
from tna_lightning.export.c.tables import unpack_spikes
from tna_lightning.export.c.timing import time_c
from tna_lightning.export.checking import check, peek

COPIED = ("tna_kernels.h", "tna_kernels.c", "example.c", "Makefile")
CHECKED_AT_ONCE = 16  # inputs, whose spikes of every layer are held at the same time
UNCHECKED = "Not checked against the network that it was made from."


@dataclass(frozen=True)
class CExport:
    """What was written.

    Attributes:
        counts: of :func:`~tna_lightning.export.checking.check`; None where nothing was checked.
        table_bytes: of constant tables, which may lie in flash.
        ram_bytes: of the network's state, in one struct.
    """

    counts: dict[str, int] | None
    table_bytes: int
    ram_bytes: int


def export_c(
    network: nn.Module,
    folder: Path | str,
    batches: Iterable[Tensor],
    normalization: Normalization,
    class_names: Sequence[str],
    prepare: Callable[[Tensor], Tensor] | None = None,
    is_checked: bool = True,
) -> CExport:
    """Write a network as C99: ``network.h``, ``network.c``, the kernels, an example and a Makefile.

    Args:
        network: in eval mode.
        folder: made, or replaced if it holds such a network; not touched where anything fails.
        batches: uint8 images ``[B, C, H, W]`` or event frames ``[B, T, C, H, W]`` to check with.
        normalization: what becomes of them, inside.
        class_names: K names.
        prepare: what becomes of them before ``network`` sees them; by default ``normalization``.
        is_checked: compile it and hold it against the network: the same spikes and predictions. Then it is measured,
            too; the header says what came of both.

    Raises:
        ExportMismatch: it computes something else.
        MissingPackage: there is no C compiler to check with.
        ValueError: there is no C kernel for a module, inputs are not uint8, or ``folder`` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "network.c").is_file():
        raise ValueError(f"output={str(folder)!r}: is there already, and holds no exported network")
    if is_checked:
        compiler()
    first, batches = peek(batches)
    if first.dtype != torch.uint8:
        raise ValueError(f"inputs of {first.dtype}: C code takes uint8 pixels or counts")
    program = to_program(network, (first.shape[-3], first.shape[-2], first.shape[-1]))
    if len(class_names) != program.num_classes:
        raise ValueError(f"class_names={len(class_names)} names: must be {program.num_classes}, one a class")
    with _replacing_folder(folder) as temporary:
        for name in COPIED:
            shutil.copyfile(KERNELS / name, temporary / name)

        def write(*notes: str) -> CExport:
            source = write_source(program, normalization, class_names, first.ndim == 5, notes)
            (temporary / "network.h").write_text(source.header)
            (temporary / "network.c").write_text(source.code)
            return CExport(None, source.table_bytes, source.ram_bytes)

        written = write(UNCHECKED)
        if not is_checked:
            return written
        loaded = load_c(temporary)
        prepared = nn.Sequential(_Prepare(prepare or normalization), network)
        few = (part for x in batches for part in x.split(CHECKED_AT_ONCE))
        counts = check(prepared, lambda x: spikes_of_c(loaded, program, x), few)
        write(
            f"Checked on {counts['images']:,} inputs: {counts['predictions_differing']:,} predictions and "
            f"{counts['spikes_differing']:,} of {counts['spikes']:,} spikes differ from the network's.",
            f"Measured: {time_c(loaded, first.numpy())}.",
        )
        return CExport(counts, written.table_bytes, written.ram_bytes)


def spikes_of_c(loaded: CNetwork, program: Program, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[B, K]`` of C code for uint8 inputs, and the spikes ``[T, B, C, H, W]`` of each layer of neurons."""
    outs = [layer.out for layer in program.layers if isinstance(layer, Neurons)]
    logits, spikes = [], []
    for one in x.numpy():
        answer, layers = loaded.trace(one[None], [out.words for out in outs])
        logits.append(answer)
        spikes.append(
            [
                unpack_spikes(words.reshape(len(words), out.height, out.width, -1), out.channels).transpose(0, 3, 1, 2)
                for out, words in zip(outs, layers, strict=True)
            ]
        )
    together = [torch.from_numpy(np.stack(layer, axis=1)) for layer in zip(*spikes, strict=True)]
    return torch.from_numpy(np.concatenate(logits)), together


class _Prepare(nn.Module):
    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        return self.prepare(x)


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, moved to its place if all goes well and removed if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)
