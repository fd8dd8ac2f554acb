"""Networks compiled ahead of time: the same results as TorchScript's, only where they fit, and only if asked for."""

from __future__ import annotations

import json
import zipfile

import ase
import ase.build
import numpy as np
import pytest
import torch

from les_md import LESCalculator, ahead_of_time, export, load
from les_md import compiled_packages as packages
from les_md.ahead_of_time import check_network
from les_md.architectures import LoadOptions, find_architecture
from les_md.architectures.cace_blocks import BlockDerivative, BlockValues
from les_md.check_structures import water_box
from les_md.checkpoint import read_checkpoint
from les_md.cli import main
from les_md.compiled_evaluation import CompiledEvaluation
from les_md.compiled_packages import CompilationError
from les_md.model_file import METADATA_NAME, ModelFileError
from tests.test_exporting import write_checkpoint

SHAPES = {
    "as bundled": {"max_l": 3, "max_nu": 3},
    "products of four": {"max_l": 4, "max_nu": 4},
    "smallest": {"max_l": 1, "max_nu": 2, "repulsion": False},
    "two channels": {"charges": 2},
    "short range": {"charges": 0},
}


def network_of(checkpoint):
    """Evaluation of a CACE checkpoint in float64."""
    contents = read_checkpoint(checkpoint)
    options = LoadOptions(torch.float64, allow_short_range=True)
    trained = find_architecture(contents).load(contents, options=options)
    return trained.evaluation(trained.network)


def random_edges(num_nodes, num_edges, last_centre, seed=0):
    """Unsorted edges between nodes, of which those beyond ``last_centre`` are neighbours only."""
    generator = torch.Generator().manual_seed(seed)
    vectors = 2.5 * torch.randn(num_edges, 3, generator=generator, dtype=torch.float64)
    centre = torch.randint(0, last_centre + 1, (num_edges,), generator=generator)
    neighbour = torch.randint(0, num_nodes, (num_edges,), generator=generator)
    types = torch.randint(0, 2, (num_nodes,), generator=generator)
    return vectors, torch.stack([centre, neighbour]), types


class TestBlocks:
    """What is compiled, as it is in Python."""

    @pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
    @pytest.mark.parametrize(
        "size", [(600, 5000, 599), (300, 4000, 200), (5, 12, 0), (257, 900, 256), (3, 0, 0), (0, 0, 0), (1, 3, 0)]
    )
    def test_as_scripted(self, tmp_path, changes, size):
        evaluation = network_of(write_checkpoint(tmp_path / "small.pth", **changes))
        scripted = torch.jit.script(evaluation)
        compiled = CompiledEvaluation(scripted, BlockValues(evaluation), BlockDerivative(evaluation))
        edges = (
            random_edges(*size) if size[0] > 0 else (torch.zeros(0, 3), torch.zeros(2, 0).long(), torch.zeros(0).long())
        )
        results = []
        for each in (compiled, scripted):
            energy, charge, state = each(*edges)
            generator = torch.Generator().manual_seed(1)
            of_energy = torch.randn(3, *energy.shape, generator=generator, dtype=torch.float64)
            of_charge = torch.randn(3, *charge.shape, generator=generator, dtype=torch.float64)
            gradients = each.pull_back_all(*edges, state, of_energy, of_charge)
            one = each.pull_back(*edges, state, of_energy[1], of_charge[1])
            torch.testing.assert_close(one, gradients[1], rtol=0.0, atol=0.0)
            results.append((energy, charge, gradients))
        for got, want in zip(*results, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            scale = float(want.abs().max()) if want.numel() else 1.0
            torch.testing.assert_close(got, want, rtol=0.0, atol=1e-12 * max(scale, 1.0))

    def test_message_passing(self, tmp_path):
        evaluation = network_of(write_checkpoint(tmp_path / "small.pth", num_message_passing=1))
        with pytest.raises(ValueError, match="blocks are for networks without message passing"):
            BlockValues(evaluation)
        with pytest.raises(CompilationError, match="only CACE models without message passing"):
            check_network(evaluation)


def test_other_architectures_are_not_compiled(tmp_path):
    with pytest.raises(CompilationError, match="only CACE models without message passing"):
        export("molten_salt_chgnet", tmp_path / "salt.pt", compile=True)
    assert not (tmp_path / "salt.pt").exists()


def test_compiler_that_is_too_old(monkeypatch, tmp_path):
    """As PyTorch 2.9 is: refused by name, with what to do."""
    monkeypatch.setitem(ahead_of_time.OPTIONS, "cpp.of_the_future", True)
    with pytest.raises(CompilationError, match=r"has no option .*cpp\.of_the_future: install a newer PyTorch"):
        export("water_rpbe_d3", tmp_path / "water.pt", compile=True)
    assert not (tmp_path / "water.pt").exists()


class TestTarget:
    """Which compiled networks run here."""

    def test_this_machine(self):
        assert packages.mismatch(packages.target(), torch.device("cpu")) == ""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"torch": "1.0"}, "for torch 1.0, this is"),
            ({"interface": 0}, "for interface 0, this is 1"),
            ({"system": "Plan 9"}, "for system Plan 9, this is Linux"),
            ({"device": "cuda"}, "for device cuda, this is cpu"),
            ({"processor": "x86-64-v9"}, "for processor x86-64-v9, this is x86-64-v3"),
            ({"processor": []}, "for processor"),
        ],
    )
    def test_elsewhere(self, changes, message):
        assert message in packages.mismatch({**packages.target(), **changes}, torch.device("cpu"))

    def test_another_device(self):
        assert "not cuda" in packages.mismatch(packages.target(), torch.device("cuda"))

    def test_processors(self, monkeypatch):
        here = packages.target()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert packages.mismatch(here, torch.device("cpu")) == ""
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        assert "with AVX2, this is Linux on x86_64 with DEFAULT" in packages.mismatch(here, torch.device("cpu"))
        with pytest.raises(CompilationError, match="with AVX2, this is"):
            export("water_rpbe_d3", "nowhere.pt", compile=True)


def structures():
    """Periodic, open, smaller than the cutoff, without a neighbour, and with a close pair."""
    water = water_box()
    slab = water.copy()
    slab.set_pbc([True, True, False])
    slab.center(vacuum=4.0, axis=2)
    molecule = ase.build.molecule("H2O")
    small = molecule.copy()
    small.set_cell([[2.61, 0.0, 0.0], [0.3, 2.53, 0.0], [-0.2, 0.1, 2.77]])
    small.set_pbc(True)
    far = ase.Atoms("OH", positions=[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    large = water.repeat((5, 3, 1))  # more than a block
    close = ase.Atoms("H2O", positions=[[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.1, 0.7, 0.0]])
    return [water, slab, molecule, small, far, ase.Atoms("O"), large, close, ase.Atoms()]


def assert_same(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0.0, atol=tolerance * max(np.abs(want).max(initial=0.0), 1e-3))


class TestCalculator:
    """Bundled models in ASE."""

    def test_same_as_torchscript(self, compiled_model):
        tolerance = {"float64": 1e-10, "float32": 1e-5}[load(compiled_model).metadata["dtype"]]
        calculators = [LESCalculator(compiled_model, compiled=compiled) for compiled in (True, False)]
        assert [each.model.is_compiled for each in calculators] == [True, False]
        for atoms in structures():
            ours, theirs = [], []
            for calculator, results in zip(calculators, (ours, theirs), strict=True):
                calculator.calculate(atoms, ["energy", "born_effective_charges"])
                results.append(calculator.results)
            assert set(ours[0]) == set(theirs[0])
            for name, want in theirs[0].items():
                assert_same(ours[0][name], want, tolerance)

    def test_electric_field(self, compiled_model):
        tolerance = {"float64": 1e-10, "float32": 1e-5}[load(compiled_model).metadata["dtype"]]
        field = (0.01, -0.02, 0.03)
        calculators = [
            LESCalculator(load(compiled_model, compiled=each), electric_field=field) for each in (True, False)
        ]
        for atoms in (water_box(), ase.build.molecule("H2O")):
            for calculator in calculators:
                calculator.calculate(atoms)
            for name, want in calculators[1].results.items():
                assert_same(calculators[0].results[name], want, tolerance)

    def test_model_in_memory(self, compiled_model):
        assert LESCalculator(load(compiled_model), compiled=True).model.is_compiled


class TestLoading:
    """Native code runs only where it was asked for, and only where it fits."""

    def test_not_unless_asked_for(self, compiled_model, monkeypatch):
        monkeypatch.setattr("les_md.model_file.load_functions", lambda packages: pytest.fail("native code was loaded"))
        model = load(compiled_model)
        assert not model.is_compiled and isinstance(model.module, torch.jit.ScriptModule)
        assert not LESCalculator(compiled_model).model.is_compiled

    def test_elsewhere(self, compiled_model, monkeypatch):
        monkeypatch.setattr("les_md.model_file.load_functions", lambda packages: pytest.fail("native code was loaded"))
        here = packages.target()
        monkeypatch.setattr(packages, "target", lambda: {**here, "torch": "9.9"})
        with pytest.warns(UserWarning, match="water.*runs in TorchScript: it was compiled for torch .*, this is 9.9"):
            model = load(compiled_model, compiled=True)
        assert not model.is_compiled

    def test_nothing_compiled(self, tmp_path):
        path = export(write_checkpoint(tmp_path / "small.pth"), tmp_path / "small.pt").path
        with pytest.warns(UserWarning, match="runs in TorchScript: no network was compiled into it"):
            assert not load(path, compiled=True).is_compiled

    @pytest.mark.parametrize("target", [[], "AVX2", {}, {"torch": {}}])
    def test_damaged_target(self, compiled_model, tmp_path, target):
        path = tmp_path / "water.pt"
        rewrite(compiled_model, path, lambda metadata: {**metadata, "compiled": target})
        with pytest.warns(UserWarning, match="runs in TorchScript"):
            assert not load(path, compiled=True).is_compiled

    def test_missing_package(self, compiled_model, tmp_path):
        path = tmp_path / "water.pt"
        rewrite(compiled_model, path, lambda metadata: metadata, without="les_md_derivative.pt2")
        assert not load(path).is_compiled
        with pytest.raises(ModelFileError, match="speak of a compiled network that it lacks"):
            load(path, compiled=True)

    def test_metadata(self, compiled_model, capsys):
        compiled = load(compiled_model).metadata["compiled"]
        version = torch.__version__.split("+")[0]
        assert compiled["torch"] == version and "water" in compiled["self_check"]
        assert main(["info", str(compiled_model)]) == 0
        assert f"compiled          for torch {version}, cpu x86-64-v3, Linux" in capsys.readouterr().out


def rewrite(source, target, change, without=""):
    """Copy an exported file with other metadata, or without an entry."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith(f"/extra/{METADATA_NAME}"):
                content = json.dumps(change(json.loads(content))).encode()
            if not without or not entry.filename.endswith(without):
                copy.writestr(entry, content)
