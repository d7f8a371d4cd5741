"""Pictures as grey levels of a given size: the one way in which files become inputs, for training and for questions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tna_lightning.data.array_cache import BadSample

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MOST_PIXELS = 1 << 26  # of a picture before it is scaled: 67 million, 200 MB in colour


def read_picture(path: Path, size: tuple[int, int], *, grey: bool) -> np.ndarray:
    """A picture's file as :func:`levels_of` makes it, uint8 ``[C, H, W]``.

    Raises:
        BadSample: the file is no picture, damaged, or larger than any camera's.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if file.width * file.height > MOST_PIXELS:
                    raise ValueError(f"has {file.width} x {file.height} pixels, more than {MOST_PIXELS}")
                return levels_of(file, size, grey=grey)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(f"{path}: is damaged or no picture ({' '.join(str(error).split())})") from error


def levels_of(picture: Image, size: tuple[int, int], *, grey: bool) -> np.ndarray:
    """Uint8 ``[C, H, W]``: turned as its EXIF says, cut to the shape of ``size`` around the middle, scaled (bicubic).

    Args:
        picture: Pillow's, of any mode; of 16 bits the upper 8 are taken.
        size: H and W.
        grey: one channel in place of three.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
    converted = upright.convert("L" if grey else "RGB")
    levels = np.asarray(ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BICUBIC))
    return levels[None] if grey else levels.transpose(2, 0, 1)
