"""Honest checkpoints are read as they are."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import UnsafeCheckpointError
from tests.checkpoints.written_files import (
    Reduces,
    call,
    name,
    program,
    save,
    text,
    write_archive,
)


def test_keys_of_real_files(tmp_path):
    contents = {(1, ("a", (2.5, None))): 1, frozenset({(1, 2)}): 2, (): 3}
    ordered = collections.OrderedDict([((0, 1), "pair"), ("text", 2)])
    read = read_checkpoint(save(tmp_path / "model.pth", [contents, ordered, {(1, 2), (3,)}]))
    assert read == [contents, ordered, {(1, 2), (3,)}]


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle(protocol, tmp_path):
    marker = tmp_path / "marker"
    data = pickle.dumps({"weights": [1, Reduces(os.system, f"touch {marker}")]}, protocol)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        read_checkpoint(write_archive(tmp_path / "model.pth", data))
    assert not marker.exists()


def test_protection_of_torch_stays_on(shared):
    """MACE switches it off for the whole process when it is imported."""
    script = (
        "import os, sys; from les_md.checkpoint import read_checkpoint; read_checkpoint(sys.argv[1]); "
        "assert 'mace' in sys.modules and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ"
    )
    pytest.importorskip("mace", reason="mace-torch is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"}
    path = shared / "models" / "maceles_water_nl1_l0.model"
    subprocess.run([sys.executable, "-c", script, path], check=True, env=environment)


def test_published_checkpoints_load(shared):
    paths = sorted((shared / "models").iterdir())
    assert len(paths) >= 6
    for path in paths:
        if path.suffix == ".model":
            pytest.importorskip("mace", reason="mace-torch is not installed")
        contents = read_checkpoint(path)
        if path.name.startswith("cace"):
            assert contents.class_path == "cace.models.atomistic.NeuralNetworkPotential"
            weights = contents.tensor("representation.radial_transform.weights.0")
            assert weights.shape[:2] == (6, 12)
            assert not weights.requires_grad
            assert contents.submodule("output_modules.0.les.ewald").norm_factor == 90.0474
            assert "representation.node_embedding_sender.embedding_weights" in contents.state_dict()
            with pytest.raises(AttributeError, match=r"radial_transform\.nothing"):
                contents.tensor("representation.radial_transform.nothing")
        elif path.name.startswith("mace"):
            assert type(contents).__name__ == "MACELES"
            assert contents.les.ewald.class_path == "les.module.ewald.Ewald"
        else:
            assert isinstance(contents, dict)
            assert "hyper_parameters" in contents


def test_plain_contents(tmp_path):
    shared_tensor = torch.arange(6.0).reshape(2, 3)
    contents = {
        "tensors": [shared_tensor, shared_tensor.T, torch.tensor(3), torch.empty(0, 4), torch.tensor([True])],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
        "numbers": (1, 2.5, 1 + 2j, None, True, 2**100),
        "containers": [{1, 2}, frozenset({3}), collections.OrderedDict(a=1), b"bytes", bytearray(b"array"), range(3)],
        "numpy": [np.float64(1.5), np.int32(4), np.arange(4.0).reshape(2, 2), np.array(["a", None], dtype=object)],
        "types": [torch.float32, torch.device("cuda", 1), torch.Size([2, 3]), float],
        "functions": [torch.nn.functional.silu, torch.tanh, torch.nn.functional.softplus],
    }
    read = read_checkpoint(save(tmp_path / "contents.pth", contents))
    for key in ("numbers", "containers", "types", "functions"):
        assert read[key] == contents[key]
    for got, want in zip(read["tensors"], contents["tensors"], strict=True):
        assert torch.equal(got, want)
        assert got.dtype == want.dtype
    read["tensors"][0][0, 1] = 7.0
    assert read["tensors"][1][1, 0] == 7.0
    assert isinstance(read["parameter"], torch.nn.Parameter)
    assert read["parameter"].requires_grad
    for got, want in zip(read["numpy"], contents["numpy"], strict=True):
        np.testing.assert_array_equal(got, want)
        assert type(got) is type(want)


def test_torch_modules_work(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.LayerNorm(4))
    model.extra = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2))])
    read = read_checkpoint(save(tmp_path / "model.pth", model))
    x = torch.ones(2, 3)
    assert torch.equal(read[:3](x), model[:3](x))
    assert len(read.extra) == 1
    assert read.state_dict().keys() == model.state_dict().keys()


def test_bound_methods_become_inert(tmp_path):
    body = b"}" + text("operation") + call(name("__builtin__.getattr"), b"N", text("add")) + b"s"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body, 2)))
    assert not callable(read["operation"])
    assert "add" in repr(read["operation"])
