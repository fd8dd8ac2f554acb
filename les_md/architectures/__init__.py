"""Trained models of several packages as networks over edge vectors: one module each, found through the registry."""

from les_md.architectures.registry import (
    ENTRY_POINT_GROUP,
    Architecture,
    LoadOptions,
    NoLatentChargesError,
    OriginalResult,
    TrainedModel,
    UnsupportedModelError,
    architectures,
    find_architecture,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "Architecture",
    "LoadOptions",
    "NoLatentChargesError",
    "OriginalResult",
    "TrainedModel",
    "UnsupportedModelError",
    "architectures",
    "find_architecture",
]
