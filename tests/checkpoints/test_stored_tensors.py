"""Tensors and storages of a checkpoint stay within their file."""

from __future__ import annotations

import struct

import pytest

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from tests.checkpoints.written_files import (
    call,
    integer,
    name,
    program,
    tensor_program,
    text,
    write_archive,
)


def test_tensor(tmp_path):
    content = struct.pack("<2f", 1.0, 2.0)
    path = write_archive(tmp_path / "model.pth", program(tensor_program()), {"0": content})
    assert read_checkpoint(path).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "changes",
    [{"size": (3,)}, {"offset": 1}, {"stride": (2,)}, {"offset": -1}, {"size": (-2,)}, {"numel": 3}, {"numel": 1},
     {"numel": 1 << 30}, {"kind": "DoubleStorage"}, {"size": (1 << 30, 1 << 30), "stride": (1, 0)}],
)  # fmt: skip
def test_tensors_beyond_their_storage_are_refused(changes, tmp_path):
    content = struct.pack("<2f", 1.0, 2.0)
    path = write_archive(tmp_path / "model.pth", program(tensor_program(**changes)), {"0": content})
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_numpy_types_cannot_turn_bytes_into_pointers(tmp_path):
    dtype = call(name("numpy.dtype"), text("O8"), b"\x89", b"\x88")
    # Without the flags of an object type, numpy would take bytes for the array's content.
    state = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    array = call(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"(K\x00t", b"C\x01b")
    body = array + b"(K\x01(K\x01t" + dtype + state + b"b\x89C\x08AAAAAAAAtb"
    with pytest.raises(CheckpointError, match="length of its shape"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))


@pytest.mark.parametrize(
    "saved_id",
    [text("0"), b"]", b"}", tensor_program(), b"(NNNNt", b"(NNNNNNt", b"(NNNNNt",
     b"(" + text("storage") + name("torch.float32") + text("0") + text("cpu") + b"K\x02t",
     b"(" + text("storage") + name("torch.FloatStorage") + b"K\x00" + text("cpu") + b"K\x02t",
     b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"J\xff\xff\xff\xfft"],
)  # fmt: skip
def test_storages_of_unexpected_form(saved_id, tmp_path):
    path = write_archive(tmp_path / "model.pth", program(saved_id + b"Q"), {"0": bytes(8)})
    with pytest.raises(CheckpointError, match="a storage has an unexpected form"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["../data.pkl", "../../../etc/passwd", "/etc/passwd", ""])
def test_storages_are_members_of_the_archive(key, tmp_path):
    saved_id = b"(" + text("storage") + name("torch.ByteStorage") + text(key) + text("cpu") + b"K\x02tQ"
    path = write_archive(tmp_path / "model.pth", program(saved_id), {"0": bytes(8)})
    with pytest.raises(CheckpointError, match="no item named"):
        read_checkpoint(path)


def test_storage_of_two_types(tmp_path):
    body = tensor_program() + b"0" + tensor_program(kind="IntStorage")
    with pytest.raises(CheckpointError, match="with two types"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body), {"0": bytes(8)}))


@pytest.mark.parametrize(("offset", "size"), [(1000, 1), (0, 1000)])
def test_views_do_not_enlarge_their_storage(offset, size, tmp_path):
    """A view of 2^30 elements of one number, in place of a storage."""
    view = tensor_program(size=(1 << 30,), stride=(0,))
    body = call(name("torch._utils._rebuild_tensor"), view, integer(offset), integer(size) + b"\x85", b"K\x01\x85")
    with pytest.raises(CheckpointError, match="out of bounds for storage"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body), {"0": bytes(8)}))
