"""Pickles that ask for nothing forbidden and make no sense: each is refused with what is wrong."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from les_md.stand_in import StandIn
from tests.checkpoints.written_files import (
    LINEAR,
    NUMPY_ARRAY,
    call,
    name,
    program,
    save,
    text,
    with_attribute,
    write_archive,
)

TRUE, FALSE, NONE, NUMBER = b"\x88", b"\x89", b"N", b"K\x01"
NEW_LINEAR = LINEAR + b")\x81"
FLOAT64 = call(name("numpy.dtype"), text("f8"), FALSE, TRUE)

MALFORMED = {
    "object of another": (call(name("copyreg._reconstructor"), LINEAR, LINEAR, NONE), "made of another one"),
    "named arguments": (LINEAR + b")}" + text("bias") + TRUE + b"s\x92", "made with named arguments"),
    "arguments that are a list": (name("torch.device") + b"]R", "no tuple of arguments"),
    "state that is a number": (NEW_LINEAR + NUMBER + b"b", "is not a dictionary of attributes"),
    "keys of a state": (NEW_LINEAR + b"}" + NUMBER + NUMBER + b"sb", "is not a dictionary of attributes"),
    "parameters that are none": (
        with_attribute(NEW_LINEAR, "_parameters", b"}" + text("weight") + NUMBER + b"s"),
        "_parameters of torch.nn.modules.linear.Linear is damaged",
    ),
    "modules that are a list": (with_attribute(NEW_LINEAR, "_modules", b"]"), "_modules of .* is damaged"),
    "type of numpy": (FLOAT64 + b"(K\x03" + text(">") + b"tb", "a numpy type has an unexpected state"),
    "state of an array": (NUMPY_ARRAY + NUMBER + b"\x85b", "a numpy array has an unexpected state"),
    "class of an array": (
        call(name("numpy.core.multiarray._reconstruct"), LINEAR, NUMBER + b"\x85", NONE),
        "of a class that is not supported",
    ),
    "number of numpy": (
        call(name("numpy.core.multiarray.scalar"), FLOAT64, b"C\x04\x00\x00\x00\x00"),
        "a numpy number has no proper type or length",
    ),
    "tensor without a storage": (
        call(name("torch._utils._rebuild_tensor_v2"), NONE, b"K\x00", b")", b")", FALSE, NONE),
        "a tensor has no storage",
    ),
    "parameter": (call(name("torch._utils._rebuild_parameter"), NUMBER, TRUE, NONE), "a parameter is not a tensor"),
    "device": (call(name("torch.device"), NUMBER), "a device has no name"),
    "set of a number": (call(name("__builtin__.set"), NUMBER), "a set is made of something"),
    "slice of texts": (call(name("__builtin__.slice"), text("a"), text("b")), "a slice is not made of numbers"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case, tmp_path):
    body, message = MALFORMED[case]
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))


@pytest.mark.parametrize(
    ("gradient", "metadata", "message"),
    [
        (NONE, NONE, "does not say whether it has a gradient"),
        (FALSE, b"}" + text("conj") + TRUE + b"s", "conjugate or negative bit"),
    ],
)
def test_tensor_with_odd_flags(gradient, metadata, message, tmp_path):
    storage = name("torch.FloatStorage")
    storage = b"(" + text("storage") + storage + text("0") + text("cpu") + b"K\x02tQ"
    body = call(
        name("torch._utils._rebuild_tensor_v2"), storage, b"K\x00", b"K\x02\x85", b"K\x01\x85", gradient, NONE, metadata
    )
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body), {"0": bytes(8)}))


def test_folder_in_place_of_a_file_of_weights(tmp_path):
    save(tmp_path / "model.pt", [1, 2])
    save(tmp_path / "state.pt", [1, 2])
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no dictionary but a list"):
        read_checkpoint(tmp_path)


class TestContents:
    """What is unusual and sound."""

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_numpy_arrays_of_protocol_5(self, order, tmp_path):
        array = np.array([[1.0, 2.0], [3.0, 4.0]], order=order)
        read = read_checkpoint(write_archive(tmp_path / "model.pth", pickle.dumps(array, protocol=5)))
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)

    def test_bytearrays(self, tmp_path):
        for protocol in (2, 5):
            path = write_archive(tmp_path / "model.pth", pickle.dumps(bytearray(b"a\xff"), protocol=protocol))
            assert read_checkpoint(path) == bytearray(b"a\xff")

    def test_tensor_with_a_gradient(self, tmp_path):
        read = read_checkpoint(save(tmp_path / "model.pth", torch.ones(2, requires_grad=True)))
        assert read.requires_grad
        assert read.tolist() == [1.0, 1.0]

    def test_list_of_parameters_of_old_torch(self, tmp_path):
        parameters = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1))])
        del parameters.__dict__["_size"]
        read = read_checkpoint(save(tmp_path / "model.pth", parameters))
        assert [entry.tolist() for entry in read] == [[1.0]]


class TestStandIns:
    @pytest.fixture
    def stand_in(self, tmp_path):
        """Of a class whose package is never imported."""
        body = name("cace.modules.atomwise.Atomwise") + b")\x81" + b"}" + text("width") + NUMBER + b"sb"
        stand_in = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
        assert isinstance(stand_in, StandIn)
        return stand_in

    def test_cannot_be_called(self, stand_in):
        with pytest.raises(NotImplementedError, match="is only a stand-in for its stored state"):
            stand_in(torch.ones(1))

    @pytest.mark.parametrize(("method", "kind"), [("tensor", "tensor"), ("submodule", "module")])
    def test_of_another_kind(self, stand_in, method, kind):
        assert stand_in.get("width") == 1
        with pytest.raises(AttributeError, match=rf"cace.modules.atomwise.Atomwise.width is not a {kind} but int"):
            getattr(stand_in, method)("width")

    def test_are_not_made_elsewhere(self):
        with pytest.raises(TypeError, match="stand-ins come from checkpoints only"):
            StandIn()
