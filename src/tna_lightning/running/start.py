"""``python -m tna_lightning.running.start FOLDER``: :mod:`train`, whose imports take less time from here."""

import sys

from tna_lightning.packages import quick_imports

with quick_imports():
    from tna_lightning.running.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
