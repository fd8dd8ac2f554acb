"""Archives that lie about their members."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from tests.checkpoints.written_files import (
    program,
    save,
    tensor_program,
    write_archive,
)


def test_compressed_archive(tmp_path):
    """Which torch.save does not write, but who saves space might."""
    source = save(tmp_path / "model.pth", {"weights": torch.arange(10_000)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert (tmp_path / "small.pth").stat().st_size < source.stat().st_size / 2
    assert torch.equal(read_checkpoint(tmp_path / "small.pth")["weights"], torch.arange(10_000))


def test_compressed_a_thousandfold(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", program(tensor_program(numel=1 << 22)))
        archive.writestr("a/data/0", bytes(1 << 24))
    with pytest.raises(CheckpointError, match="larger than the file can hold"):
        read_checkpoint(path)


def nested_archive(path: Path, count: int) -> Path:
    """Uncompressed members, each of which is the next one with its header."""
    content, entries = b"x", []
    for number in range(count):
        member = f"a/data/{number}".encode() if number < count - 1 else b"a/data.pkl"
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(member), 0
        )
        content = b"PK\3\4" + common + member + content
        entries.append((common, member, len(content)))
    directory = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(content) - length) + member
        for common, member, length in entries
    )
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(content), 0)
    path.write_bytes(content + directory + b"PK\5\6" + end)
    return path


def test_members_inside_one_another(tmp_path):
    """A file of n bytes whose members have n^2 / 200."""
    path = nested_archive(tmp_path / "model.pth", 200)
    with zipfile.ZipFile(path) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 25 * path.stat().st_size
    with pytest.raises(CheckpointError, match="larger than the file can hold"):
        read_checkpoint(path)


def patched(path: Path, place: int, value: bytes) -> Path:
    """An archive with one entry of its directory changed, ``place`` bytes from the signature."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (24, struct.pack("<I", 0xFFFFFFF0), "larger than the file can hold"),  # size
        (24, struct.pack("<I", 0xFFFFFFFF), "damaged|not a file written"),  # size in a zip64 field that is not there
        (20, struct.pack("<I", 2), "damaged"),  # compressed size
        (8, b"\x01\x00", "damaged: RuntimeError"),  # encrypted
        (10, b"\x63\x00", "damaged: NotImplementedError"),  # method of compression
        (42, struct.pack("<I", 1 << 30), "damaged"),  # place of the member
        (16, b"\x00\x00", "damaged: BadZipFile"),  # checksum
        (8, b"\x00\x08" + bytes(36) + b"\xff\xfe", "damaged"),  # a name that says it is UTF-8, and is not
        (46, b"../", "damaged|not one written"),  # the first member has another name than its header says
    ],
)
def test_directory_that_lies(place, value, message, tmp_path):
    path = patched(write_archive(tmp_path / "model.pth", program(b"N")), place, value)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_members_of_the_same_name_or_role(tmp_path):
    path = write_archive(tmp_path / "model.pth", program(b"N"))
    for member in ("archive/data.pkl", "other/data.pkl"):
        with zipfile.ZipFile(write_archive(path, program(b"N")), "a") as archive:
            if member in archive.namelist():
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(member, program(b"N"))
            else:
                archive.writestr(member, program(b"N"))
        with pytest.raises(CheckpointError, match="several members of its archive have the same role"):
            read_checkpoint(path)


def test_description_of_a_folder_that_nests_deeply(tmp_path):
    for member in ("model.pt", "state.pt"):
        save(tmp_path / member, {})
    (tmp_path / "model.json").write_text(100_000 * "[")
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        read_checkpoint(tmp_path)
