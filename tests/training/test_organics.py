"""Training of the organics model: the data on one scale, the split, guards of several bonds, and a short run."""

from __future__ import annotations

import json
from dataclasses import replace

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics import LongRangeParameters
from les_md.training import organics, recipes
from les_md.training.bond_guard import BondGuard, edges_within, strain_bonds
from les_md.training.bonds import bond_matrix
from les_md.training.charge_guess import bond_increment_charges, formal_charges, start_from_guess
from les_md.training.configuration import LossWeights
from les_md.training.configuration_file import parse_configuration, read_configuration
from les_md.training.contact_guard import ContactGuard, squeeze_contact
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.dataset import Frame, checked_frame, read_frames
from les_md.training.deviations import batch_loss, charge_deviation
from les_md.training.energy_model import EnergyModel
from les_md.training.networks import standardise_inputs
from les_md.training.spice import (
    ATOMIC_NUMBERS,
    DIPOLAR,
    ISOLATED_ATOMS,
    born_effective_charges,
    read_absolute,
    read_dipolar,
)
from les_md.training.training_run import train

RECIPE = parse_configuration(recipes.configuration("organics_wb97m"), "organics_wb97m.yaml")
GUARDS = tuple(section.guard(ATOMIC_NUMBERS) for section in RECIPE.training.bond_guards)
SMALL = CACEConfiguration(ATOMIC_NUMBERS, 4.0, 2, num_bessel=4, num_radial=3, max_l=2, max_nu=2, hidden=(8,))
H, C, N, O = range(4)


@pytest.fixture(scope="module")
def samples(shared):
    return organics.read(shared / "data")


def labelled(name: str, seed: int, energy: float = -20.0) -> ase.Atoms:
    """A distorted molecule with labels, neutral."""
    generator = np.random.default_rng(seed)
    atoms = molecule(name)
    atoms.positions += generator.normal(scale=0.03, size=atoms.positions.shape)
    forces = generator.normal(size=atoms.positions.shape)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces - forces.mean(0), dipole=np.zeros(3))
    atoms.info.update(subset="made up", total_charge=0)
    return atoms


def frame_of(name: str, seed: int = 0) -> Frame:
    return checked_frame(labelled(name, seed), name, ATOMIC_NUMBERS)


def test_born_charges_turn_the_dipole_with_the_molecule(samples):
    """Σ Z* (ω × r) = ω × μ for every rotation ω, to the accuracy of the data; with the other order of indices not."""
    polarisation_first, displacement_first = [], []
    for sample in samples:
        if "bec" in sample.atoms.arrays:
            dipole = sample.atoms.calc.results["dipole"]
            tensors = born_effective_charges(sample.atoms)
            for axis in np.eye(3):
                displacements = np.cross(axis, sample.atoms.positions)
                for errors_of, indices in ((polarisation_first, "iab,ib->a"), (displacement_first, "iba,ib->a")):
                    turned = np.einsum(indices, tensors, displacements)
                    errors_of.append(np.abs(turned - np.cross(axis, dipole)).max())
    assert len(polarisation_first) == 3 * 362
    assert np.median(polarisation_first) < 0.005  # e Å
    assert np.median(displacement_first) > 0.1


def test_parts_share_no_composition(samples):
    parts = organics.split(samples)
    assert sorted(index for part in parts.values() for index in part) == list(range(len(samples)))
    compositions = {part: {samples[i].composition for i in chosen} for part, chosen in parts.items()}
    assert not compositions["test"] & (compositions["train"] | compositions["validation"])
    # The conformers of the dipeptides that choose the epoch are the only exception.
    conformers = {samples[i].composition for i in parts["validation"] if samples[i].subset == DIPOLAR}
    assert compositions["validation"] & compositions["train"] == conformers
    subsets = {part: {samples[i].subset for i in chosen} for part, chosen in parts.items()}
    assert subsets["test"] == subsets["validation"] == subsets["train"] >= {"water", "solvated_amino_acids", DIPOLAR}


def test_both_sets_are_on_one_energy_scale(samples):
    """One conformer is in both sets: energies agree after the shift, and dipoles are in the same unit."""
    first = next(s for s in samples if s.source == "spice_bec.xyz, frame 239")
    second = next(s for s in samples if s.source == "spice_dipeptides_dipolar.xyz, frame 380")
    lengths = [np.sort(s.atoms.get_all_distances().ravel()) for s in (first, second)]
    assert np.abs(lengths[0] - lengths[1]).max() < 1e-4
    assert float(first.frame.energy) == pytest.approx(float(second.frame.energy), abs=1e-3)
    norms = [np.linalg.norm(s.atoms.calc.results["dipole"]) for s in (first, second)]
    # Debye or atomic units in one of the sets would make a factor of 4.8 or 1.9.
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_energies_of_the_other_kind_are_refused(tmp_path):
    atoms = labelled("H2O", 0, energy=-9.8)
    ase.io.write(tmp_path / "relative.xyz", atoms)
    assert float(read_dipolar(tmp_path / "relative.xyz")[0].frame.energy) == pytest.approx(-9.8)
    with pytest.raises(ValueError, match="relative instead of absolute"):
        read_absolute(tmp_path / "relative.xyz")
    absolute = 2 * ISOLATED_ATOMS[1] + ISOLATED_ATOMS[8] - 9.8
    ase.io.write(tmp_path / "absolute.xyz", labelled("H2O", 0, energy=absolute))
    assert float(read_absolute(tmp_path / "absolute.xyz")[0].frame.energy) == pytest.approx(-9.8)
    with pytest.raises(ValueError, match="absolute instead of relative"):
        read_dipolar(tmp_path / "absolute.xyz")


def test_charged_frames_and_other_elements_are_left_out(tmp_path):
    def absolute(name: str) -> ase.Atoms:
        numbers = molecule(name).numbers.tolist()
        return labelled(name, 0, energy=sum(ISOLATED_ATOMS.get(z, 0.0) - 3.0 for z in numbers))

    neutral, charged, chlorine, implied = (absolute(name) for name in ("H2O", "H2O", "CH3Cl", "NH3"))
    charged.info["total_charge"] = 1
    del implied.info["total_charge"]
    implied.arrays["bec"] = np.tile(np.eye(3).ravel() * 0.01, (4, 1))
    ase.io.write(tmp_path / "data.xyz", [charged, chlorine, neutral, implied])
    assert [s.composition for s in read_absolute(tmp_path / "data.xyz")] == ["H2O", "H3N"]
    del implied.arrays["bec"]
    ase.io.write(tmp_path / "data.xyz", [implied])
    with pytest.raises(ValueError, match="neither a total charge nor Born effective charges"):
        read_absolute(tmp_path / "data.xyz")
    ase.io.write(tmp_path / "data.xyz", [charged])
    with pytest.raises(ValueError, match="no neutral frames"):
        read_absolute(tmp_path / "data.xyz")
    with pytest.raises(FileNotFoundError, match="no such data file"):
        read_absolute(tmp_path / "absent.xyz")


def test_loss_of_several_frames_is_their_mean():
    frames = [frame_of("CH3CONH2", 1), frame_of("H2O", 2), frame_of("CH3CH2OH", 3)]
    torch.manual_seed(1)
    network = CACENetwork(SMALL).double()
    standardise_inputs(network, frames)
    model = EnergyModel(network, torch.zeros(4, dtype=torch.float64), LongRangeParameters())
    weights = LossWeights(10.0, 1.0, 0.0)
    together = batch_loss(frames, model.evaluate(frames, differentiable=True), weights)
    alone = [batch_loss([frame], model.evaluate([frame], differentiable=True), weights) for frame in frames]
    mean = sum(float(each.detach()) for each in alone) / 3
    assert float(together.detach()) == pytest.approx(mean, rel=1e-12)
    network.zero_grad()
    together.backward()
    gradient = network.radial_mixing[1].grad.clone()
    network.zero_grad()
    (sum(alone) / 3).backward()
    assert float((gradient - network.radial_mixing[1].grad).abs().max()) <= 1e-12 * float(gradient.abs().max())


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: "HCNO"[guard.centre])
def test_guards_strain_bonds_of_their_elements(guard):
    frame = frame_of("HCOOH") if guard.centre == O else frame_of("CH3CONH2")
    strained = strain_bonds(frame, replace(guard, fraction=1.0, clearance=0.5), torch.Generator().manual_seed(0))
    assert len(strained.ligand) > 0
    bonds = zip(strained.ligand.tolist(), strained.direction, strained.compressed, strict=True)
    for ligand, direction, compressed in bonds:
        assert int(frame.types[ligand]) == guard.ligand
        before = edges_within(frame, guard.bonded)
        bond = (before[0][1] == ligand) & (frame.types[before[0][0]] == guard.centre)
        centre = int(before[0][0][bond])
        vector = strained.frame.positions[ligand] - frame.positions[centre]
        length = float(torch.linalg.norm(vector))
        low, high = guard.compressed if compressed else guard.stretched
        assert low <= length <= high
        assert float(vector @ direction) == pytest.approx(length, rel=1e-9)


def test_guards_leave_a_ligand_near_any_other_atom_alone():
    """A hydrogen pushed onto an atom of a third element is not asked to go back."""
    atoms = ase.Atoms("OHN", [[0, 0, 0], [1.0, 0, 0], [2.3, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-9.0, forces=np.zeros((3, 3)))
    frame = checked_frame(atoms, "contact", ATOMIC_NUMBERS)
    guard = BondGuard(centre=O, ligand=H, stretched=(1.3, 1.3), fraction=1.0)
    for clearance, count in ((0.9, 1), (1.15, 0)):
        stretched = strain_bonds(frame, replace(guard, clearance=clearance), torch.Generator().manual_seed(0))
        assert len(stretched.ligand) == count


def two_waters(distance: float) -> Frame:
    """A hydrogen bond of the given H–O length along x: atoms 0–2 donate to atoms 3–5."""
    donor = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    acceptor = [[0.96 + distance, 0, 0], [1.55 + distance, 0, 0.76], [1.55 + distance, 0, -0.76]]
    atoms = ase.Atoms("OHHOHH", donor + acceptor)
    atoms.calc = SinglePointCalculator(atoms, energy=-20.0, forces=np.zeros((6, 3)))
    return checked_frame(atoms, "two waters", ATOMIC_NUMBERS)


def test_contact_guard_moves_whole_molecules_together():
    frame = two_waters(1.9)
    guard = ContactGuard(ATOMIC_NUMBERS, reach=2.0)
    squeezed = squeeze_contact(frame, guard, torch.Generator().manual_seed(0))
    assert squeezed.moved.tolist() in ([0, 1, 2], [3, 4, 5])
    shift = squeezed.frame.positions - frame.positions
    assert torch.allclose(shift[squeezed.moved], shift[squeezed.moved[:1]].expand(3, 3), atol=1e-12)
    assert float(shift.abs().sum()) == pytest.approx(float(shift[squeezed.moved].abs().sum()))
    low, high = guard.hydrogen_heavy
    assert low <= float(torch.linalg.norm(squeezed.frame.positions[3] - squeezed.frame.positions[1])) <= high
    away = torch.zeros(6, 3, dtype=torch.float64)
    away[squeezed.moved[0]] = guard.least_force * squeezed.direction
    assert float(squeezed.shortfall(away, guard.least_force)) == pytest.approx(0.0, abs=1e-20)
    assert float(squeezed.shortfall(-away, guard.least_force)) == pytest.approx(4.0 * guard.least_force**2)


def test_contact_guard_needs_two_molecules_in_contact():
    guard = ContactGuard(ATOMIC_NUMBERS)
    assert guard.disturb(frame_of("CH3CONH2"), torch.Generator().manual_seed(0)) is None
    assert guard.disturb(two_waters(6.0), torch.Generator().manual_seed(0)) is None


def water_cluster() -> Frame:
    """27 water molecules, turned at random."""
    generator = np.random.default_rng(6)
    atoms = ase.Atoms()
    for corner in np.ndindex(3, 3, 3):
        water = molecule("H2O")
        water.rotate(generator.uniform(0, 360), generator.normal(size=3))
        water.positions += 3.1 * np.array(corner) - water.positions[0]
        atoms += water
    atoms.calc = SinglePointCalculator(atoms, energy=-60.0, forces=np.zeros((81, 3)))
    return checked_frame(atoms, "cluster", ATOMIC_NUMBERS)


def test_crowd_guard():
    """Whole water molecules come as close as asked, the bonds of the atom are compressed, all else stays."""
    frame = water_cluster()
    numbers = torch.tensor(ATOMIC_NUMBERS)[frame.types]
    guard = CrowdGuard(ATOMIC_NUMBERS, centres=(8,))
    generator = torch.Generator().manual_seed(0)
    made = [each for each in (guard.disturb(frame, generator) for _ in range(10)) if each is not None]
    assert len(made) >= 5
    (fewest, most), (low, high) = guard.numbers, guard.distances
    for crowded in made:
        before, after = frame.positions, crowded.frame.positions
        assert fewest <= len(crowded.moved) <= most
        changed = set(((after - before).norm(dim=1) > 1e-9).nonzero()[:, 0].tolist())
        assert changed == {*crowded.moved.flatten().tolist(), *crowded.hydrogens.tolist()}
        assert len(crowded.hydrogens) == 2
        centre = int(crowded.hydrogens[0]) - 1  # oxygens come before their hydrogens
        assert int(numbers[centre]) == 8
        distance = torch.cdist(after, after)
        closest = crowded.moved[torch.arange(len(crowded.moved)), distance[centre, crowded.moved].argmin(1)]
        assert (numbers[closest] == 1).all()
        assert (low - 1e-9 <= distance[centre, closest]).all() and (distance[centre, closest] <= high + 1e-9).all()
        vectors = after[closest] - after[centre]
        assert torch.allclose(vectors / vectors.norm(dim=1, keepdim=True), crowded.outward, atol=1e-9)
        for members in crowded.moved:
            assert torch.allclose(torch.pdist(after[members]), torch.pdist(before[members]), atol=1e-9)
        for hydrogen in crowded.hydrogens.tolist():
            factor = distance[centre, hydrogen] / (before[hydrogen] - before[centre]).norm()
            assert guard.compressed[0] <= float(factor) <= guard.compressed[1]
        forces = torch.zeros_like(after)
        forces[crowded.moved[:, 0]] = guard.least_force * crowded.outward
        forces[crowded.hydrogens] = guard.least_bond_force * crowded.along
        assert float(crowded.shortfall(forces, guard.least_force)) == pytest.approx(0.0, abs=1e-20)
        assert torch.equal(crowded.repelled, distance[centre, closest] < guard.repelled)
        expected = 4.0 * len(crowded.hydrogens) * guard.least_bond_force**2
        if crowded.repelled.any():
            expected += 4.0 * guard.least_force**2
        assert float(crowded.shortfall(-forces, guard.least_force)) == pytest.approx(expected)


def test_crowd_guard_needs_water_around():
    guard = CrowdGuard(ATOMIC_NUMBERS)
    for frame in (frame_of("CH3CONH2"), two_waters(1.9)):
        assert guard.disturb(frame, torch.Generator().manual_seed(0)) is None


def test_guessed_charges_follow_the_electronegativity():
    frame = frame_of("CH3CONH2")
    guess = bond_increment_charges(frame, ATOMIC_NUMBERS)
    assert float(guess.sum()) == pytest.approx(0.0, abs=1e-12)
    assert (guess[frame.types == H] > 0).all()
    assert (guess[(frame.types == O) | (frame.types == N)] < -0.1).all()
    with pytest.raises(ValueError, match="no electronegativity is known for He"):
        bond_increment_charges(frame, (1, 6, 7, 2))


def test_formal_charges_of_zwitterions(samples):
    """Every frame of the second set is a zwitterion: a carboxylate and an ammonium, guanidinium or imidazolium."""
    for sample in samples:
        numbers = torch.tensor(sample.atoms.numbers)
        charges = formal_charges(numbers, bond_matrix(sample.frame, numbers))
        assert float(charges.sum()) == 0.0
        if sample.subset == DIPOLAR:
            assert float(charges.abs().sum()) == 2.0
        elif sample.subset == "water":
            assert (charges == 0.0).all()


def test_restraint_of_the_charges():
    """The mean over frames of the mean square difference from the guess, which reaches the charges' weights."""
    frames = [frame_of("H2O", 2), frame_of("CH3CH2OH", 3)]
    torch.manual_seed(1)
    network = CACENetwork(SMALL).double()
    model = EnergyModel(network, torch.zeros(4, dtype=torch.float64), LongRangeParameters())
    guesses = [bond_increment_charges(frame, ATOMIC_NUMBERS) for frame in frames]
    charges = model.evaluate(frames, differentiable=True).charges
    mean = sum(float((q[:, 0].detach() - g).square().mean()) for q, g in zip(charges, guesses, strict=True)) / 2
    deviation = charge_deviation(charges, guesses)
    assert float(deviation.detach()) == pytest.approx(mean, rel=1e-12)
    deviation.backward()
    assert float(network.charge_readout.output.weight.grad.abs().max()) > 0.0


def test_training_may_start_from_guessed_charges():
    frames = [frame_of(name, seed) for seed in range(3) for name in ("CH3CONH2", "H2O", "CH3CH2OH", "NH3")]
    torch.manual_seed(0)
    network = CACENetwork(SMALL).float()
    standardise_inputs(network, frames)
    start_from_guess(network, frames, ATOMIC_NUMBERS)
    for frame in frames:
        edge_index, vectors = edges_within(frame, network.cutoff)
        charges = network(vectors, edge_index, frame.types)[1][:, 0].detach().double()
        guess = bond_increment_charges(frame, ATOMIC_NUMBERS)
        assert float((charges - guess).square().mean().sqrt()) < 0.3 * float(guess.square().mean().sqrt())


def test_files_of_the_parts(samples, shared, tmp_path):
    """The recipe's files hold the frames of the split, with the energies relative to isolated atoms."""
    recipes.write_data("organics_wb97m", shared / "data", tmp_path)
    data = RECIPE.data
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(name for each in named.values() for name in each)
    for part, chosen in organics.split(samples).items():
        stored = {}
        for name in named[part]:
            frames = read_frames(tmp_path / name, ATOMIC_NUMBERS)
            sources = [atoms.info["source"] for atoms in ase.io.read(tmp_path / name, ":")]
            stored |= dict(zip(sources, frames, strict=True))
        assert len(stored) == len(chosen)
        for i in chosen:
            frame, again = samples[i].frame, stored[samples[i].source]
            assert float(again.energy) == pytest.approx(float(frame.energy), abs=1e-6)
            assert torch.equal(again.types, frame.types)
            assert torch.allclose(again.positions, frame.positions, atol=1e-7)
            assert torch.allclose(again.forces, frame.forces, atol=1e-7)


def test_a_short_run_of_the_recipe(samples, tmp_path):
    """All five stages, an epoch each, on few small frames of every subset: the errors fall, and it goes on exactly."""
    text = yaml.safe_load(recipes.configuration("organics_wb97m"))
    for part, chosen in organics.split(samples).items():
        for name in text["data"][part]:
            subset = name.removeprefix(f"{part}_").removesuffix(".xyz")
            of_subset = [samples[i] for i in chosen if samples[i].subset == subset]
            small = sorted(of_subset, key=lambda sample: len(sample.atoms))[:2]
            ase.io.write(tmp_path / name, [organics.labelled(sample) for sample in small], format="extxyz")
    training = text["training"]
    training |= {"epochs": 5, "warmup_steps": 5, "average": 0.9, "charge_restraint": {1: 1.0, 2: 0.0}}
    training["learning_rate"] = dict(zip(range(1, 6), training["learning_rate"].values(), strict=True))
    training["contact_guard"]["from_epoch"], training["crowd_guard"]["from_epoch"] = 3, 5
    text["model"] |= {"max_l": 2, "max_nu": 2, "num_radial": 4, "hidden": [16]}
    path = tmp_path / "organics_wb97m.yaml"
    path.write_text(yaml.safe_dump(text))
    output = train(read_configuration(path), tmp_path)
    history = json.loads(output.history_json.read_text())
    # A few dozen steps on small frames, of stages that begin anew: not every epoch is better than the one before.
    assert min(row["validation_forces"] for row in history) < 0.8 * history[0]["validation_forces"]
    card = output.card.read_text()
    assert "| test_water.xyz |" in card and "| train_qmugs.xyz |" in card
    text["output"] = "again"
    path.write_text(yaml.safe_dump(text))

    class Stop(Exception):
        pass

    def stop(trainer) -> None:
        if trainer.epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        train(read_configuration(path), tmp_path, after_epoch=stop)
    again = train(read_configuration(path), tmp_path, resume=True)
    first, second = (torch.load(each.weights, weights_only=True)["state_dict"] for each in (output, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
