"""The door: ``python -m tna_lightning.export RUN --format packed|onnx|nir|c``."""

from __future__ import annotations

import sys

import tna_lightning.export
from tna_lightning.export.checking import ExportMismatch
from tna_lightning.export.run import NAMES, export
from tna_lightning.running.console import leave, print_measured, warn_of_changes
from tna_lightning.running.doors import Parser, door
from tna_lightning.running.record import finished_record, measured_words
from tna_lightning.running.trust import refuse_foreign


@door
def main() -> None:
    """The command line."""
    parser = Parser("export", tna_lightning.export.__doc__)
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--format", required=True, choices=NAMES)
    parser.add_argument(
        "--output", help="the file to write, of C the folder (default: network-exported* in the run's folder)"
    )
    parser.add_argument(
        "--fold", action="store_true", help="fold batch norm into scales and biases (nir and c always do)"
    )
    parser.add_argument("--images", type=int, help="check with so many images of the test set (default: all)")
    parser.add_argument(
        "--data-root", help="where the data are, if not where they were in training; of arrays the file"
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: 20)")
    parser.add_argument("--trust", action="store_true", help="call what the record names beside tna_lightning's own")
    parser.add_argument("--no-check", action="store_true", help="c: do not compile it and run it beside the network")
    arguments = parser.parse_args()
    try:
        record = finished_record(arguments.run)
        config = record["config"]
        if not arguments.trust:
            refuse_foreign(arguments.run, config)
        warn_of_changes(config, arguments.data_root)
        path, counts = export(
            arguments.run,
            arguments.format,
            arguments.output,
            arguments.fold,
            arguments.images,
            arguments.data_root,
            opset=arguments.opset,
            trust=arguments.trust,
            is_checked=not arguments.no_check,
        )
    except ExportMismatch as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        leave(error)
    if arguments.format == "c":
        print(f"{path}: {counts['table_bytes']:,} bytes of constant tables, {counts['ram_bytes']:,} bytes of RAM")
    else:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if arguments.no_check:
        print("not checked")
        return
    compared = f", {counts['spikes_differing']:,} of {counts['spikes']:,} spikes" if counts["spikes"] else ""
    print(f"checked on {counts['images']:,} images: {counts['predictions_differing']:,} predictions{compared} differ")
    if arguments.format == "c":
        print_measured(str(measured_words(path)), record)


if __name__ == "__main__":
    main()
