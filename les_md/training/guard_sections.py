"""Guards as the configuration of a training names them: of bonds, of contacts between molecules, of crowded atoms."""

from __future__ import annotations

from dataclasses import dataclass

from ase.data import atomic_numbers as number_of

from les_md.training.bond_guard import BondGuard
from les_md.training.configuration_checks import ConfigurationError, interval, known_elements, positive
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard


@dataclass(frozen=True)
class BondGuardSection:
    """A bond that must pull back when stretched, and push when compressed, beyond the data, see ``bond_guard.py``.

    Attributes: elements ``centre`` and ``ligand``; ``from_epoch``, from which it acts; others as of ``BondGuard``.
    """

    centre: str
    ligand: str
    bonded: float
    stretched: tuple[float, ...]
    from_epoch: int = 1
    clearance: float = 1.15
    fraction: float = 0.15
    least_force: float = 2.5
    every: int = 2
    weight: float = 0.1
    compressed: tuple[float, ...] | None = None
    least_push: float = 5.0

    def __post_init__(self) -> None:
        known_elements((self.centre,), "centre")
        known_elements((self.ligand,), "ligand")
        positive(self, "bonded", "from_epoch", "clearance", "fraction", "least_force", "every", "weight", "least_push")
        if len(self.stretched) != 2 or not 0.0 < self.stretched[0] <= self.stretched[1]:
            raise ConfigurationError("stretched must be two lengths in Å, the shorter one first")
        if self.compressed is not None:
            interval(self, "compressed")
            if self.compressed[1] > self.stretched[0]:
                raise ConfigurationError("compressed bonds must be shorter than stretched ones")
        if self.fraction > 1.0:
            raise ConfigurationError(f"fraction must be at most 1, got {self.fraction}")

    def guard(self, atomic_numbers: tuple[int, ...]) -> BondGuard:
        """The guard, for elements in type order. Raises ConfigurationError for an element that is not among them."""
        _must_be_in_the_model((self.centre, self.ligand), atomic_numbers, "bond_guards")
        types = [atomic_numbers.index(number_of[symbol]) for symbol in (self.centre, self.ligand)]
        return BondGuard(
            *types,
            self.bonded,
            self.stretched,
            self.clearance,
            self.fraction,
            self.least_force,
            self.every,
            self.weight,
            self.compressed,
            self.least_push,
        )


@dataclass(frozen=True)
class ContactGuardSection:
    """Molecules of clusters that must push each other away when they are squeezed together, see ``contact_guard.py``.

    Attributes: ``from_epoch``, from which it acts; others as of ``ContactGuard``.
    """

    from_epoch: int = 1
    hydrogens: tuple[float, ...] = (0.9, 1.4)
    hydrogen_heavy: tuple[float, ...] = (0.95, 1.35)
    heavy: tuple[float, ...] = (1.6, 2.2)
    reach: float = 3.0
    clearance: float = 0.1
    least_force: float = 0.8
    every: int = 2
    weight: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "from_epoch", "reach", "clearance", "least_force", "every", "weight")
        interval(self, "hydrogens", "hydrogen_heavy", "heavy")

    def guard(self, atomic_numbers: tuple[int, ...]) -> ContactGuard:
        """The guard, for elements in type order."""
        return ContactGuard(
            atomic_numbers,
            self.hydrogens,
            self.hydrogen_heavy,
            self.heavy,
            self.reach,
            self.clearance,
            self.least_force,
            self.every,
            self.weight,
        )


@dataclass(frozen=True)
class CrowdGuardSection:
    """Atoms of clusters with water that must push it away when it crowds around them, see ``crowd_guard.py``.

    Attributes: ``from_epoch``, from which it acts; ``centres``, elements, one of which is drawn; others as of
    ``CrowdGuard``.
    """

    from_epoch: int = 1
    centres: tuple[str, ...] = ("O", "O", "O", "N")
    numbers: tuple[int, ...] = (2, 5)
    distances: tuple[float, ...] = (1.3, 2.0)
    repelled: float = 1.5
    clearance: tuple[float, ...] = (1.3, 2.2)
    compressed: tuple[float, ...] = (0.7, 0.92)
    least_force: float = 0.5
    least_bond_force: float = 2.0
    every: int = 2
    weight: float = 0.1

    def __post_init__(self) -> None:
        known_elements(self.centres, "centres", distinct=False)
        if not self.centres:
            raise ConfigurationError("centres needs at least one element")
        positive(self, "from_epoch", "repelled", "least_force", "least_bond_force", "every", "weight")
        interval(self, "numbers", "distances", "clearance", "compressed")

    def guard(self, atomic_numbers: tuple[int, ...]) -> CrowdGuard:
        """The guard, for elements in type order. Raises ConfigurationError for a centre that is not among them."""
        _must_be_in_the_model((*self.centres, "H", "O"), atomic_numbers, "crowd_guard")
        return CrowdGuard(
            atomic_numbers,
            tuple(number_of[symbol] for symbol in self.centres),
            self.numbers,
            self.distances,
            self.repelled,
            self.clearance,
            self.compressed,
            self.least_force,
            self.least_bond_force,
            self.every,
            self.weight,
        )


GuardSection = BondGuardSection | ContactGuardSection | CrowdGuardSection


def _must_be_in_the_model(symbols: tuple[str, ...], atomic_numbers: tuple[int, ...], key: str) -> None:
    for symbol in symbols:
        if number_of[symbol] not in atomic_numbers:
            raise ConfigurationError(f"training.{key}: {symbol} is not an element of the model")
