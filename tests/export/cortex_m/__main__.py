"""`python tests/export/cortex_m FOLDER FILE.npy`: an exported network on emulated boards, beside this processor."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from board import BOARDS, missing_tools, run_on_board

import tna_lightning

folder, images = sys.argv[1:]
if missing := missing_tools():
    sys.exit(f"error: no {', no '.join(missing)}: make cross installs them on Debian")
pixels = np.load(images)
here = tna_lightning.load_c(folder)(pixels)
for cpu in BOARDS:
    with tempfile.TemporaryDirectory() as temporary:
        answer = run_on_board(shutil.copytree(folder, Path(temporary) / "copy"), pixels, cpu)
    equal = "equal to the bit" if np.array_equal(answer.logits, here) else "NOT EQUAL"
    print(
        f"{cpu}: {answer.flash:,} bytes of flash, {answer.state:,} of state and {answer.stack:,} of stack; logits of "
        f"{len(pixels)} images are {equal}"
    )
