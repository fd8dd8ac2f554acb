"""What a LESForce can run on: atoms, boundaries and the System it is added to, checked before any step is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import openmm
import openmm.app

#: The box of a new openmm.System, nm; a System that still has it was most likely never given a box.
OPENMM_DEFAULT_BOX = 2.0 * np.eye(3)


def atomic_numbers_of(topology: openmm.app.Topology | Sequence[int]) -> list[int | None]:
    """Atomic number of every particle; None for one without an element (virtual site, extra particle).

    Raises TypeError or ValueError if it is neither a Topology nor whole numbers from 1 to 118.
    """
    if isinstance(topology, openmm.app.Topology):
        return [None if atom.element is None else atom.element.atomic_number for atom in topology.atoms()]
    numbers = list(topology) if isinstance(topology, Iterable) and not isinstance(topology, str) else [0.5]
    unnamed = [number is None for number in numbers]
    array = np.asarray([0 if none else number for number, none in zip(numbers, unnamed, strict=True)])
    if array.size == 0:
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            "topology_or_atomic_numbers must be an openmm.app.Topology or a sequence of whole atomic numbers, one per "
            f"particle of the System; got {type(topology).__name__}"
        )
    wrong = [int(number) for number, none in zip(array, unnamed, strict=True) if not none and not 1 <= number <= 118]
    if wrong:
        raise ValueError(f"{wrong[0]} is not among the atomic numbers, 1 to 118")
    return [None if none else int(number) for number, none in zip(array, unnamed, strict=True)]


def selected_atoms(atoms: Iterable[int] | None, atomic_numbers: Sequence[int | None]) -> tuple[int, ...]:
    """Indices of the particles that the model acts on, checked; all of them for None.

    Raises ValueError for an empty or repeated selection, an index out of range, or a particle without an element, and
    TypeError for anything but whole numbers.
    """
    count = len(atomic_numbers)
    if atoms is None:
        chosen = tuple(range(count))
    else:
        chosen = tuple(_whole_index(index) for index in atoms)
        outside = [index for index in chosen if not 0 <= index < count]
        if outside:
            raise ValueError(f"atoms holds the index {outside[0]}, but there are {count} particles (0 to {count - 1})")
        if len(set(chosen)) != len(chosen):
            repeated = next(index for index in chosen if chosen.count(index) > 1)
            raise ValueError(f"atoms holds the index {repeated} more than once")
    if not chosen:
        raise ValueError("there are no atoms for the model to act on")
    nameless = [index for index in chosen if atomic_numbers[index] is None]
    if nameless:
        raise ValueError(
            f"particle {nameless[0]} has no element (a virtual site or extra particle, as of a four-site water model): "
            "a model of atoms cannot act on it. Use a topology without such particles, or leave them out with atoms="
        )
    return chosen


def _whole_index(index: object) -> int:
    if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
        raise TypeError(f"atoms must hold the indices of particles as whole numbers, not {index!r}")
    return int(index)


def choose_boundaries(
    periodic: bool | None, topology: openmm.app.Topology | Sequence[int], system: openmm.System | None
) -> tuple[bool, np.ndarray | None]:
    """Whether the force is periodic, and the box vectors [3, 3] nm that are known already (None: not known).

    Raises ValueError where that cannot be told, or contradicts topology or System.
    """
    box = None
    if isinstance(topology, openmm.app.Topology):
        vectors = topology.getPeriodicBoxVectors()
        if vectors is not None:
            box = _in_nanometers(vectors)
        if periodic is None:
            periodic = box is not None
        elif periodic and box is None and system is None:
            raise ValueError(
                "periodic=True, but the topology has no box: call topology.setPeriodicBoxVectors(...), or pass the "
                "System that has it as system=..."
            )
    elif periodic is None:
        raise ValueError("atomic numbers do not tell the boundaries: pass periodic=True or periodic=False")
    if system is not None and periodic:
        of_system = _in_nanometers(system.getDefaultPeriodicBoxVectors())
        require_box(of_system, box)
        box = of_system
    return bool(periodic), box if periodic else None


def _in_nanometers(vectors: Sequence) -> np.ndarray:
    return np.array([vector.value_in_unit(openmm.unit.nanometer) for vector in vectors], dtype=np.float64)


def require_box(present: np.ndarray, expected: np.ndarray | None) -> None:
    """Raise ValueError if ``present`` is the box of a System that was never given one, and not the ``expected`` one.

    Parameters: box vectors [3, 3], nm. Silently running a liquid in a wrong box is what this prevents.
    """
    if expected is not None and np.array_equal(present, OPENMM_DEFAULT_BOX) and not np.allclose(present, expected):
        lengths = " x ".join(f"{length:.3f}" for length in np.linalg.norm(expected, axis=1))
        raise ValueError(
            "the System still has OpenMM's default box (2 nm cube), the topology says "
            f"{lengths} nm: call system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors()) before the "
            "Context is created, or context.setPeriodicBoxVectors(...)"
        )


def check_system(
    system: openmm.System,
    num_particles: int,
    atoms: Sequence[int],
    periodic: bool,
    allow_constraints: bool = False,
    stacklevel: int = 2,
) -> None:
    """Check that a System suits a LESForce on ``atoms``.

    Raises
    ------
    ValueError : the number of particles differs; constraints between atoms of the model (rigid water, bonds to
        hydrogen) unless ``allow_constraints``; a System with periodic forces or a barostat for an isolated LESForce.

    Warns where bonded terms or a NonbondedForce of the System act between the model's atoms: their interaction would be
    counted twice (``stacklevel`` as of ``warnings.warn``).
    """
    if system.getNumParticles() != num_particles:
        raise ValueError(
            f"the System has {system.getNumParticles()} particles, topology or atomic numbers have {num_particles}: "
            "they must describe the same particles in the same order"
        )
    names = [type(force).__name__ for force in system.getForces()]
    barostat = next((name for name in names if "Barostat" in name), None)
    if not periodic and (barostat or system.usesPeriodicBoundaryConditions()):
        what = f"has a {barostat}" if barostat else "uses periodic boundaries"
        raise ValueError(
            f"the System {what}, but LESForce would be isolated: give the topology its box vectors or pass "
            "periodic=True"
        )
    chosen = frozenset(atoms)
    if not allow_constraints:
        _refuse_constraints(system, chosen)
    _warn_of_other_forces(system, chosen, stacklevel + 1)


def _refuse_constraints(system: openmm.System, chosen: frozenset[int]) -> None:
    constrained = []
    for index in range(system.getNumConstraints()):
        first, second, _ = system.getConstraintParameters(index)
        if first in chosen and second in chosen:
            constrained.append((first, second))
    if constrained:
        raise ValueError(
            f"the System constrains {len(constrained)} distances between atoms of the model (first: particles "
            f"{constrained[0][0]} and {constrained[0][1]}), as rigid water and constraints=HBonds do. Models are "
            "trained on flexible molecules: create the System with constraints=None, rigidWater=False. To keep the "
            "distances fixed all the same, pass allow_constraints=True"
        )


def _warn_of_other_forces(system: openmm.System, chosen: frozenset[int], stacklevel: int) -> None:
    bonded = {
        openmm.HarmonicBondForce: ("getNumBonds", "getBondParameters", slice(0, 2)),
        openmm.HarmonicAngleForce: ("getNumAngles", "getAngleParameters", slice(0, 3)),
        openmm.PeriodicTorsionForce: ("getNumTorsions", "getTorsionParameters", slice(0, 4)),
        openmm.RBTorsionForce: ("getNumTorsions", "getTorsionParameters", slice(0, 4)),
        openmm.CMAPTorsionForce: ("getNumTorsions", "getTorsionParameters", slice(1, 9)),
    }
    found = []
    for force in system.getForces():
        if type(force) is openmm.NonbondedForce:
            if _has_interacting_pair(force, chosen):
                found.append("NonbondedForce")
        elif type(force) in bonded:
            count, parameters, atoms = bonded[type(force)]
            terms = (getattr(force, parameters)(term)[atoms] for term in range(getattr(force, count)()))
            if any(chosen.issuperset(term) for term in terms):
                found.append(type(force).__name__)
    if found:
        warnings.warn(
            f"{', '.join(found)} of this System act(s) between atoms that LESForce acts on: their interaction is "
            "counted twice. Start from a System without forces, or use MLPotential('les').createMixedSystem, which "
            "removes the terms that the model replaces",
            stacklevel=stacklevel,
        )


def _has_interacting_pair(force: openmm.NonbondedForce, chosen: frozenset[int]) -> bool:
    """Whether two chosen particles interact by more than an exception (as between all of them in a mixed System)."""

    def interacts(index: int) -> bool:
        charge, _, epsilon = force.getParticleParameters(index)
        return charge._value != 0.0 or epsilon._value != 0.0

    active = {index for index in chosen if index < force.getNumParticles() and interacts(index)}
    exceptions = set()
    for term in range(force.getNumExceptions()):
        first, second = force.getExceptionParameters(term)[:2]
        if first in active and second in active:
            exceptions.add((min(first, second), max(first, second)))
    return len(exceptions) < len(active) * (len(active) - 1) // 2
