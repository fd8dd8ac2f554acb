"""Hostile pickles are refused by name and leave no trace."""

from __future__ import annotations

import io
import pickle
import struct
import sys

import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import UnsafeCheckpointError
from les_md.stand_in import StandIn
from tests.checkpoints.written_files import (
    HOSTILE,
    Reduces,
    call,
    name,
    program,
    save,
    text,
    write_archive,
)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("asked", "body"), HOSTILE, ids=[f"{i}-{case[0]}" for i, case in enumerate(HOSTILE)])
def test_hostile_pickles_are_refused_by_name(asked, body, protocol, tmp_path):
    marker = tmp_path / "marker"
    path = write_archive(tmp_path / "model.pth", program(body(marker), protocol))
    with pytest.raises(UnsafeCheckpointError) as refusal:
        read_checkpoint(path)
    assert asked in str(refusal.value)
    assert "nothing was run" in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert not marker.exists()


def test_hostile_file_made_by_torch_save(tmp_path):
    marker = tmp_path / "marker"
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.hook = Reduces(eval, f"open({str(marker)!r}, 'w')")
    with pytest.raises(UnsafeCheckpointError, match=r"builtins\.eval"):
        read_checkpoint(save(tmp_path / "model.pth", model))
    assert not marker.exists()


def test_source_of_graph_modules_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w')\ndef forward(self, x):\n    return x\n"
    body = call(name("torch.fx.graph_module.reduce_graph_module"), b"}" + text("_code") + text(source) + b"s", text(""))
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert isinstance(read, StandIn)
    assert not marker.exists()


class WritesWhenLoaded(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.data = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.data = torch.from_file(state[0], True, 4)


def test_torchscript_inside_a_checkpoint_is_not_loaded(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(WritesWhenLoaded(str(marker))), buffer)
    stored = {"__codegen__": {"_compiled_main": buffer.getvalue()}, "weight_numel": 4}
    body = name("e3nn.o3._linear.Linear") + b")\x81" + pickle.dumps(stored, 2)[2:-1] + b"b"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert type(read).__module__ == "e3nn.o3._linear"
    assert read.weight_numel == 4
    assert "_compiled_main" not in read._modules
    assert not marker.exists()
    buffer.seek(0)
    torch.jit.load(buffer)
    assert marker.exists(), "the test file was harmless after all"


def test_stand_ins_are_used_even_if_the_package_is_installed(tmp_path, monkeypatch):
    (tmp_path / "les").mkdir()
    (tmp_path / "les" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    body = name("les.les.Les") + b")\x81}" + text("sigma") + b"G" + struct.pack(">d", 1.5) + b"sb"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert (read.class_path, read.sigma, read.get("dl"), read.get("dl", 2.0)) == ("les.les.Les", 1.5, None, 2.0)
    assert "les" not in sys.modules


def test_functions_and_reexports_of_listed_packages_are_refused(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    for path in (
        "mace.modules.utils.compute_forces",
        "mace.modules.models.AtomicEnergiesBlock",
        "mace.tools.utils.tensor_dict_to_device",
    ):
        with pytest.raises(UnsafeCheckpointError, match=path):
            read_checkpoint(write_archive(tmp_path / "model.pth", program(name(path) + b")\x81")))
