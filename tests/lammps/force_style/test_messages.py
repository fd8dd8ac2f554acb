"""Every message of the plugin has a test that matches it: those of the other files, and those that follow here."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch

from les_md.lammps import source_directory
from tests.lammps.conftest import ELEMENTS, lmp, water, write_data, write_model, write_network

TESTS = Path(__file__).resolve().parents[2]

#: Messages that no test can provoke, and why.
EXEMPT = {
    "does not exist: there are": "needs a machine with CUDA",
    "ghost atom with ID": "LAMMPS makes no ghost of an atom that does not exist",
    "cannot write the compiled network": "needs a full disk",
    "cannot open model file": "the file would have to vanish between two calls",
}


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def messages() -> list[tuple[str, list[str]]]:
    """Where each message of the C++ sources is, and its constant parts."""
    found = []
    for path in sorted(source_directory().glob("*.cpp")):
        source = path.read_text()
        starts = r"error->(?:all|one)\(FLERR,|throw std::runtime_error\(|problem = (?=[\"f])|return fmt::format\("
        for start in re.finditer(starts, source):
            statement = re.match(r"(?:\"(?:[^\"\\]|\\.)*\"|[^;\"])*;", source[start.end() :]).group()
            text = "{}".join(re.findall(r"((?:\"(?:[^\"\\]|\\.)*\"\s*)+)", statement))
            text = re.sub(r"\"\s*\"", "", text).replace('"', "")
            text = re.sub(r"^Pair[ _]style mliap/les:? ?", "", text)
            parts = [part for part in re.split(r"\{[^}]*\}|\b\d+\b", text) if len(words(part)) >= 10]
            if parts and "mliap_les_current_" not in text:
                found.append((f"{path.name}:{source[: start.start()].count(chr(10)) + 1}", parts))
    return found


def test_every_message_has_a_test():
    tested = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A pattern is constant between its special characters, numbers and names.
                pieces = re.split(r"[][.*+?()|^$\\{}]+|\b\d+\b|'\w*'|'", node.value)
                tested |= {words(piece) for piece in pieces if len(words(piece)) >= 10}
    found = messages()
    assert len(found) > 50
    missing = [
        f"{where}: {parts}"
        for where, parts in found
        if not any(reason in " ".join(parts) for reason in EXEMPT)
        and not any(piece in words(part) or words(part) in piece for part in parts for piece in tested)
    ]
    assert not missing, "\n".join(missing)
    for reason in EXEMPT:
        assert any(reason in " ".join(parts) for _, parts in found), f"{reason} is no message any more"


def test_two_dimensions(models, lammps_of):
    session = lammps_of(water()).run("clear\nunits metal\ndimension 2\nregion b block 0 6 0 6 -0.5 0.5\ncreate_box 2 b")
    session.run("mass * 1.0\ncreate_atoms 1 single 1 1 0").potential(models["water"])
    with pytest.raises(Exception, match="Pair style mliap/les needs dimension 3"):
        session.run("run 0")


def test_atom_ids_that_are_not_unique(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    session.lmp.numpy.extract_atom("id")[1] = 1
    with pytest.raises(Exception, match="atom ID 1 is not unique"):
        session.run("run 0")


def test_fix_id_that_is_taken(models, lammps_of):
    session = lammps_of(water()).potential(models["water"], "current 1")
    (taken,) = [name for name in session.lmp.available_ids("fix") if name.startswith("mliap_les_current_")]
    session.run(f"pair_style mliap/les current 0\nfix {taken} all nve")
    with pytest.raises(Exception, match=f"the fix ID {taken} is taken; rename that fix"):
        session.run("pair_style mliap/les current 1")


class Fails(torch.nn.Module):
    """A network that fails as one would that ran out of memory."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(
        self, edge_vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if types.size(0) > 0:
            raise RuntimeError("broken on purpose")
        energy = edge_vectors.sum() * torch.ones(types.size(0), dtype=torch.float64)
        return energy, torch.zeros(types.size(0), 0, dtype=torch.float64)


def test_model_that_fails(lammps_of, tmp_path):
    model = write_network(tmp_path / "fails.pt", Fails(4.0), "none", 1, 0)
    session = lammps_of(water()).potential(model)
    with pytest.raises(Exception, match=r"the model failed at step 0: .*broken on purpose"):
        session.run("run 0")


def test_file_that_has_changed(models, lammps_of, tmp_path):
    """Operators are taken back by reading the file once more, which must be the one that pair_coeff read."""
    model = shutil.copy(models["water"], tmp_path / "model.pt")
    session = lammps_of(water()).potential(model).run("run 0")
    shutil.copy(models["two charges"], model)
    with pytest.raises(Exception, match=r"model.pt' has changed since it was read: give pair_coeff again"):
        session.run("pair_style mliap/les operators file")


class TestFieldByVariables:
    @pytest.fixture
    def session(self, models, lammps_of):
        session = lammps_of(water()).run("variable e equal 0.01\nfix 1 all nve\ntimestep 0.0001")
        return session.potential(models["gentle"], "efield 0 0 v_e")

    def test_gone(self, session):
        with pytest.raises(Exception, match="variable e of efield is gone"):
            session.run("run 1\nvariable e delete\nrun 1 pre no")

    def test_not_a_number(self, session):
        session.run("variable e delete\nvariable e equal exp(1000*(step-1))")
        with pytest.raises(Exception, match="variable e of efield is not a number at step 2"):
            session.run("run 3")


def test_ghosts_without_neighbours(plugin, tmp_path):
    model = write_model(tmp_path / "deep.pt", num_message_passing=1)
    write_data(tmp_path / "w.data", water(), ELEMENTS, "atomic")
    script = (
        f"units metal\nneighbor 1.0 multi\nread_data w.data\npair_style mliap/les\npair_coeff * * {model} H O\nrun 0\n"
    )
    done = lmp(script, tmp_path, ranks=2)
    assert done.returncode != 0
    assert re.search(
        r"a model of 2 layers on several MPI ranks needs neighbors of ghost atoms, which LAMMPS lists with neighbor "
        r"style bin or nsq only: use neighbor 1 bin",
        done.stdout + done.stderr,
    )
