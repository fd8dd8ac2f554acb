"""Models that come with les_md, each with a card (``NAME.md``) beside its checkpoint (``NAME.pth``)."""

from __future__ import annotations

from pathlib import Path


def bundled_models() -> dict[str, Path]:
    """Checkpoints that come with les_md, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.pth"))}


def resolve_checkpoint(checkpoint: str | Path) -> Path:
    """Path of a checkpoint given as a file or folder, or as the name of a bundled model.

    Raises FileNotFoundError naming the bundled models.
    """
    path, bundled = Path(checkpoint), bundled_models()
    if path.is_file() or (path.is_dir() and str(checkpoint) not in bundled):
        return path
    if str(checkpoint) in bundled:
        return bundled[str(checkpoint)]
    names = ", ".join(bundled) or "none"
    raise FileNotFoundError(f"there is no checkpoint {checkpoint} (bundled models: {names})")
