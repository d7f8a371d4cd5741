"""Moved: ``python -m tna_lightning.show``."""

if __name__ == "__main__":
    raise SystemExit(
        "error: python -m tna_lightning.data.show: is python -m tna_lightning.show now, arguments as before"
    )
