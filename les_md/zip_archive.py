"""What is checked of an archive before any of it is read."""

from __future__ import annotations

import os
import zipfile

#: Of the size of all members to that of the file. Those who write checkpoints do not compress; our own tests do, by 3.
_MAX_EXPANSION = 20


def expands_too_far(archive: zipfile.ZipFile) -> bool:
    """Whether the members are much larger than the file: compressed a thousandfold, or sharing the same bytes."""
    if archive.fp is None:
        raise ValueError("the archive is closed")
    size = archive.fp.seek(0, os.SEEK_END)
    return sum(member.file_size for member in archive.infolist()) > _MAX_EXPANSION * size
