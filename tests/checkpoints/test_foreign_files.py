"""Files that are no checkpoints, are damaged, or need what is not there."""

from __future__ import annotations

import pickle
import sys
import zipfile

import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from tests.checkpoints.written_files import (
    name,
    program,
    save,
    write_archive,
)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder, but not one that matgl's save wrote"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"H 0.0 0.0 0.0\n", "not a file written by torch.save"),
        (b"PK\x03\x04" + bytes(50), "truncated"),
    ],
)
def test_foreign_files(content, message, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_file(share, tmp_path):
    path = save(tmp_path / "model.pth", {"weights": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated|not a file written"):
        read_checkpoint(path)


def test_changed_bytes(tmp_path):
    path = save(tmp_path / "model.pth", {"weights": torch.randn(1000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_truncated_pickle(tmp_path):
    data = pickle.dumps({"a": [1, 2, 3]}, 2)
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            read_checkpoint(write_archive(tmp_path / "model.pth", data[:end]))


def test_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one written by torch\.save"):
        read_checkpoint(tmp_path / "a.zip")


def test_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match=r"TorchScript.*already exported"):
        read_checkpoint(tmp_path / "model.pt")


def test_old_format(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_checkpoint(tmp_path / "old.pth")


def test_big_endian(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(tmp_path / "model.pth")


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    class NotInstalled:
        @staticmethod
        def find_spec(module, path=None, target=None):
            if module.split(".")[0] == "mace":
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    for module in [module for module in sys.modules if module.split(".")[0] == "mace"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.models.ScaleShiftMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace.*pip install 'les_md\[mace\]'"):
        read_checkpoint(path)


def test_class_that_the_installed_package_lacks(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.models.NewMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace\.modules\.models\.NewMACE.*installed mace does not have"):
        read_checkpoint(path)
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.novel.NewMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace\.modules\.novel"):
        read_checkpoint(path)
