"""Which latent variables a model has for every atom, and in which columns they stand."""

from __future__ import annotations

from dataclasses import asdict, dataclass

#: Order of the components of a quadrupole (symmetric, traceless; e Å²) in its six columns.
QUADRUPOLE_COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class LatentLayout:
    """Columns of the latent variables [N, num_columns], which networks return and engines pass on unread.

    Of each channel, in this order: ``num_charges`` charges q (e); dipoles u (e Å; x, y, z of the first channel, then of
    the next); quadrupoles Q (e Å²; ``QUADRUPOLE_COMPONENTS``); softness κ (e²/eV), one column a channel;
    polarisability α (e² Å²/eV), isotropic, one column a channel. The first ``num_sources`` columns are sources of the
    potential; κ and α answer it, once: Δq = −κ φ and Δu = α E (Kim et al., arXiv:2605.05746). A model of charges alone
    has ``num_columns == num_charges``. Channels never mix.

    Raises
    ------
    ValueError : no charges but other latent variables.
    """

    num_charges: int
    dipoles: bool = False
    quadrupoles: bool = False
    kappas: bool = False
    alphas: bool = False

    def __post_init__(self) -> None:
        if self.num_charges < 0 or (self.num_charges == 0 and (self.has_multipoles or self.responds)):
            raise ValueError("a model with latent dipoles, quadrupoles, kappas or alphas has latent charges too")

    @property
    def has_multipoles(self) -> bool:
        """Whether there are permanent dipoles or quadrupoles."""
        return self.dipoles or self.quadrupoles

    @property
    def responds(self) -> bool:
        """Whether charges or dipoles are induced by the potential of the others."""
        return self.kappas or self.alphas

    @property
    def num_sources(self) -> int:
        """Columns of charges, dipoles and quadrupoles."""
        return self.num_charges * (1 + 3 * self.dipoles + 6 * self.quadrupoles)

    @property
    def num_columns(self) -> int:
        """Columns of all latent variables."""
        return self.num_sources + self.num_charges * (self.kappas + self.alphas)

    def __str__(self) -> str:
        """For people."""
        kinds = {"dipoles": self.dipoles, "quadrupoles": self.quadrupoles, "kappas": self.kappas, "alphas": self.alphas}
        names = ["charges", *(name for name, there in kinds.items() if there)]
        return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]

    def to_dict(self) -> dict:
        """For the metadata of files."""
        return asdict(self)

    @classmethod
    def from_metadata(cls, metadata: dict) -> LatentLayout:
        """Of an exported file; one without ``latent``, as older files are, has charges alone.

        Raises ValueError if the file has latent variables that this version does not know.
        """
        fields = metadata.get("latent", {"num_charges": metadata.get("n_q", 0)})
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown latent variables in a model file: {', '.join(sorted(unknown))}; update les_md")
        return cls(**fields)
