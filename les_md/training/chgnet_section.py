"""The section ``model`` of a training's configuration with ``architecture: chgnet``."""

from __future__ import annotations

from dataclasses import dataclass

from les_md.architectures.chgnet_network import CHGNetConfiguration
from les_md.training.configuration_checks import ConfigurationError, known_elements, positive


@dataclass(frozen=True)
class CHGNetSection:
    """Sizes of a CHGNet in MatGL's layout, as of ``CHGNetConfiguration``.

    The frequencies of the radial functions stay at nπ. There the functions vanish at the cutoff; trained frequencies do
    not stay there, and the energy then jumps when a neighbour comes or goes, which forces do not show, and which spoils
    the energy as a function of density.

    Attributes: ``elements``, None for those of the data; ``charges``, whether the model is a long-range one, and the
    number of ``charge_channels`` (None: one).
    """

    cutoff: float
    architecture: str = "chgnet"
    elements: tuple[str, ...] | None = None
    three_body_cutoff: float = 3.0
    cutoff_exponent: int = 5
    num_blocks: int = 4
    max_n: int = 9
    max_f: int = 4
    atom_width: int = 64
    bond_width: int = 64
    angle_width: int = 64
    atom_hidden: tuple[int, ...] = (64,)
    bond_hidden: tuple[int, ...] = (64,)
    readout_hidden: tuple[int, ...] = (64, 64)
    charge_hidden: tuple[int, ...] = (64, 64)
    charges: bool = True
    charge_channels: int | None = None

    def __post_init__(self) -> None:
        if self.architecture != "chgnet":
            raise ConfigurationError(f"these are the sizes of architecture chgnet, not of '{self.architecture}'")
        positive(self, "cutoff", "three_body_cutoff", "num_blocks", "max_n", "max_f")
        positive(self, "atom_width", "bond_width", "angle_width")
        if self.elements is not None:
            known_elements(self.elements, "elements")
        if self.three_body_cutoff > self.cutoff:
            raise ConfigurationError("three_body_cutoff must not be larger than cutoff")
        if self.cutoff_exponent < 3:
            raise ConfigurationError(
                f"cutoff_exponent must be at least 3, got {self.cutoff_exponent}: forces would not be smooth"
            )
        for name in ("atom_hidden", "bond_hidden", "readout_hidden", "charge_hidden"):
            if any(width < 1 for width in getattr(self, name)):
                raise ConfigurationError(f"{name}: widths of layers must be greater than 0")
        if self.charge_channels is not None:
            positive(self, "charge_channels")
            if not self.charges:
                raise ConfigurationError("charge_channels needs charges: true")

    def network(self, atomic_numbers: tuple[int, ...], average_neighbours: float) -> CHGNetConfiguration:
        """The network's configuration for the elements; the average number of neighbours has no influence."""
        return CHGNetConfiguration(
            atomic_numbers=atomic_numbers,
            cutoff=self.cutoff,
            three_body_cutoff=self.three_body_cutoff,
            cutoff_exponent=self.cutoff_exponent,
            num_blocks=self.num_blocks,
            max_n=self.max_n,
            max_f=self.max_f,
            atom_width=self.atom_width,
            bond_width=self.bond_width,
            angle_width=self.angle_width,
            atom_hidden=self.atom_hidden,
            bond_hidden=self.bond_hidden,
            readout_hidden=self.readout_hidden,
            charge_hidden=self.charge_hidden,
            num_charges=(self.charge_channels or 1) if self.charges else 0,
        )
