"""The trained model that lies in this package, where the package has one."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "tiny"


def shipped_model() -> Path | None:
    """The directory of the model `tiny`; None where it was left out of this package."""
    return _present(_FOLDER / "model")


def shipped_encoder() -> Path | None:
    """The directory of its PBS encoder."""
    return _present(_FOLDER / "pbs")


def _present(directory: Path) -> Path | None:
    return directory if directory.is_dir() else None
