"""What a training is made of, as ``les-train`` reads it from a YAML file: one dataclass for each section.

Every section checks its values when it is made. ``template.yaml`` holds all keys with comments.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ase.data import chemical_symbols

from les_md.architectures.cace_network import CACEConfiguration
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.chgnet_section import CHGNetSection
from les_md.training.configuration_checks import ConfigurationError
from les_md.training.configuration_checks import known_elements as _known_elements
from les_md.training.configuration_checks import positive as _positive
from les_md.training.guard_sections import BondGuardSection, ContactGuardSection, CrowdGuardSection, GuardSection
from les_md.training.labels import STRESS_UNITS, LabelKeys

SCHEDULES = ("cosine", "exponential", "plateau", "constant")


@dataclass(frozen=True)
class DataSection:
    """Where frames and labels come from; paths are relative to the configuration file.

    Attributes
    ----------
    train : file or files, extended XYZ or anything that ASE reads.
    validation : file or files, or the fraction of the training files' frames that is held out.
    test : the same, or None.
    split_seed : of the random choice of held-out frames.
    group_key : key of the comment line whose value names the trajectory of a frame; groups are held out as a whole.
    energy_key, forces_key, stress_key : names of the labels; energies in eV, forces in eV/Å.
    stress_unit : eV/Å^3, GPa or kbar; eV for a virial. Needed to train on stress.
    stress_sign : "tension" (ASE, VASP's OUTCAR negated) or "compression": what a positive diagonal means.
    atomic_energies : "average" (least squares over the training frames), or eV by element.
    repeat : how often an epoch goes through the training frames of a file, by file; once where it is not named.
    largest_force : eV/Å; frames with a larger one are errors.
    shortest_distance : Å; frames with a shorter one are errors.
    """

    train: tuple[str, ...]
    validation: float | tuple[str, ...]
    test: float | tuple[str, ...] | None = None
    split_seed: int = 0
    group_key: str | None = None
    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str | None = None
    stress_unit: str | None = None
    stress_sign: str | None = None
    atomic_energies: str | dict[str, float] = "average"
    repeat: dict[str, int] | None = None
    largest_force: float = 50.0
    shortest_distance: float = 0.4

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigurationError("train needs at least one file")
        fractions = [part for part in (self.validation, self.test) if isinstance(part, float)]
        if any(not 0.0 < fraction < 1.0 for fraction in fractions) or sum(fractions) >= 1.0:
            raise ConfigurationError(
                "validation and test, where they are fractions, must be between 0 and 1 and leave frames for training"
            )
        if self.group_key is not None and not fractions:
            raise ConfigurationError("group_key says how frames are held out; validation and test are files here")
        if self.stress_key is None and (self.stress_unit is not None or self.stress_sign is not None):
            raise ConfigurationError("stress_unit and stress_sign need stress_key, the name of the label")
        if self.stress_key is not None:
            known = ", ".join(STRESS_UNITS)
            if self.stress_unit is None:
                raise ConfigurationError(f"stress_unit must be stated for the label '{self.stress_key}': {known}")
            if self.stress_unit not in STRESS_UNITS:
                raise ConfigurationError(f"unknown stress_unit '{self.stress_unit}'; known: {known}")
            if self.stress_sign not in ("tension", "compression"):
                raise ConfigurationError(
                    "stress_sign must be stated: tension if a positive stress on the diagonal means that the cell is "
                    "under tension (ASE), compression if it means pressure (VASP prints this, and virials have it)"
                )
        if isinstance(self.atomic_energies, str) and self.atomic_energies != "average":
            raise ConfigurationError("atomic_energies must be average, or an energy in eV for each element")
        if isinstance(self.atomic_energies, dict):
            _known_elements(tuple(self.atomic_energies), "atomic_energies")
        for name, times in (self.repeat or {}).items():
            if name not in self.train:
                raise ConfigurationError(f"repeat: '{name}' is not a training file")
            if times < 1:
                raise ConfigurationError(f"repeat: a file is used once or more often, got {times} for '{name}'")
        _positive(self, "largest_force", "shortest_distance")

    def labels(self) -> LabelKeys:
        """How a frame's labels are found."""
        return LabelKeys(self.energy_key, self.forces_key, self.stress_key, self.stress_unit, self.stress_sign)


@dataclass(frozen=True)
class ModelSection:
    """Sizes of a CACE, as of ``CACEConfiguration``; those of a CHGNet are in ``CHGNetSection``.

    Attributes: ``elements``, None for those of the data; ``message_normalisation``, None for 1/√(average number of
    neighbours); ``charges``, whether the model is a long-range one, and the number of ``charge_channels`` (None: one);
    ``dipoles``, ``quadrupoles``, ``kappas``, ``alphas``, latent variables beyond charges; ``fixed_charges`` of the
    elements, e, to which learned ones are added; ``zbl``, the repulsion of close atoms, which keeps molecular dynamics
    out of unphysical wells.
    """

    cutoff: float
    elements: tuple[str, ...] | None = None
    num_embedding: int = 2
    num_bessel: int = 6
    num_radial: int = 12
    max_l: int = 3
    max_nu: int = 3
    num_message_passing: int = 0
    message_normalisation: float | None = None
    cutoff_exponent: int = 6
    hidden: tuple[int, ...] = (32, 16)
    charges: bool = True
    charge_channels: int | None = None
    charge_scale: float = 0.1
    dipoles: bool = False
    quadrupoles: bool = False
    kappas: bool = False
    alphas: bool = False
    fixed_charges: dict[str, float] | None = None
    zbl: bool = True
    architecture: str = "cace"

    def __post_init__(self) -> None:
        if self.architecture != "cace":
            raise ConfigurationError(f"these are the sizes of architecture cace, not of '{self.architecture}'")
        _positive(self, "cutoff", "num_embedding", "num_bessel", "num_radial", "charge_scale")
        if self.elements is not None:
            _known_elements(self.elements, "elements")
        if self.num_message_passing < 0:
            raise ConfigurationError(f"num_message_passing must not be negative, got {self.num_message_passing}")
        if self.message_normalisation is not None:
            _positive(self, "message_normalisation")
            if self.num_message_passing == 0:
                raise ConfigurationError("message_normalisation needs num_message_passing of 1 or more")
        if self.cutoff_exponent < 3:
            raise ConfigurationError(
                f"cutoff_exponent must be at least 3, got {self.cutoff_exponent}: forces would not be smooth"
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigurationError("hidden needs the widths of one or more layers")
        if self.charge_channels is not None:
            _positive(self, "charge_channels")
            if not self.charges:
                raise ConfigurationError("charge_channels needs charges: true")
        if self.max_l < 1 or not 1 <= self.max_nu <= 4:
            raise ConfigurationError(f"max_l must be at least 1 and max_nu 1 to 4, got {self.max_l} and {self.max_nu}")
        for name in ("dipoles", "quadrupoles", "kappas", "alphas", "fixed_charges"):
            if getattr(self, name) and not self.charges:
                raise ConfigurationError(f"{name} needs charges: true")
        if self.quadrupoles and self.max_l < 2:
            raise ConfigurationError(f"quadrupoles needs max_l of at least 2, got {self.max_l}")
        if self.fixed_charges is not None:
            _known_elements(tuple(self.fixed_charges), "fixed_charges")
            if (self.charge_channels or 1) != 1:
                raise ConfigurationError(f"fixed_charges needs one charge channel, got {self.charge_channels}")

    def network(self, atomic_numbers: tuple[int, ...], average_neighbours: float) -> CACEConfiguration:
        """The network's configuration for the elements and the average number of neighbours of the training frames.

        Raises ConfigurationError if ``fixed_charges`` holds other elements than the model.
        """
        normalisation = self.message_normalisation or max(average_neighbours, 1.0) ** -0.5
        return CACEConfiguration(
            atomic_numbers=atomic_numbers,
            cutoff=self.cutoff,
            num_embedding=self.num_embedding,
            num_bessel=self.num_bessel,
            num_radial=self.num_radial,
            max_l=self.max_l,
            max_nu=self.max_nu,
            num_message_passing=self.num_message_passing,
            message_normalisation=normalisation,
            cutoff_exponent=self.cutoff_exponent,
            hidden=self.hidden,
            num_charges=(self.charge_channels or 1) if self.charges else 0,
            charge_scale=self.charge_scale,
            repulsion=self.zbl,
            dipoles=self.dipoles,
            quadrupoles=self.quadrupoles,
            kappas=self.kappas,
            alphas=self.alphas,
            fixed_charges=self._fixed_charges(atomic_numbers),
        )

    def _fixed_charges(self, atomic_numbers: tuple[int, ...]) -> tuple[float, ...] | None:
        """Fixed charges in type order."""
        if self.fixed_charges is None:
            return None
        symbols = [chemical_symbols[z] for z in atomic_numbers]
        for symbol in symbols:
            if symbol not in self.fixed_charges:
                raise ConfigurationError(f"model.fixed_charges has no charge for {symbol}")
        for symbol in self.fixed_charges:
            if symbol not in symbols:
                raise ConfigurationError(f"model.fixed_charges: {symbol} is not an element of the model")
        return tuple(self.fixed_charges[symbol] for symbol in symbols)


@dataclass(frozen=True)
class TrainingSection:
    """How the weights are optimised.

    The loss is the mean over frames of w_F mean(ΔF²) + w_E (ΔE/N)² + w_S mean((V Δσ/N)²), in eV and Å. A weight is a
    number, or a mapping from the epoch at which it begins (the first is 1) to the weight.

    Attributes
    ----------
    epochs : passes over the training frames, at most.
    batch_size : frames of a step.
    learning_rate : highest; rises linearly over ``warmup_steps`` steps. A mapping from epochs (the first is 1) to rates
        makes stages: at each of the epochs Adam, the average and the schedule start anew, from the weights kept of the
        stage before. The weights of the last stage are those of the model.
    learning_rate_schedule : one of ``SCHEDULES``; cosine and exponential end at ``final_learning_rate`` (None: 0, and
        a hundredth of the highest), plateau multiplies by ``plateau_factor`` (None: 0.5) when the validation loss has
        not fallen for ``plateau_patience`` (None: 10) epochs.
    average : decay per step of the exponential average of the weights; 0 for none. The average is what is kept.
    gradient_limit : the norm of the gradient is cut off here; None for no limit.
    patience : epochs without a lower validation loss after which the training stops; None for never.
    guess_charges : start from charges by electronegativity (``charge_guess.py``) instead of small random ones.
    charge_restraint : weight, or weights by epoch, of mean((q − guess)²) in e, which keeps the charges near that guess
        while the short range is learned.
    bond_guards, contact_guard, crowd_guard : bonds that must not break, molecules that must not collapse, atoms that
        must not be crowded. Weights of epochs before all of them act are not kept.
    """

    epochs: int
    batch_size: int = 1
    learning_rate: float | dict[int, float] = 0.01
    learning_rate_schedule: str = "cosine"
    final_learning_rate: float | None = None
    plateau_factor: float | None = None
    plateau_patience: int | None = None
    warmup_steps: int = 100
    energy_weight: float | dict[int, float] = 1.0
    forces_weight: float | dict[int, float] = 1.0
    stress_weight: float | dict[int, float] = 0.0
    average: float = 0.99
    gradient_limit: float | None = 0.1
    patience: int | None = None
    guess_charges: bool = False
    charge_restraint: float | dict[int, float] = 0.0
    bond_guards: tuple[BondGuardSection, ...] = ()
    contact_guard: ContactGuardSection | None = None
    crowd_guard: CrowdGuardSection | None = None

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size")
        self._check_by_epoch("learning_rate")
        if min(stage.learning_rate for stage in self.stages) <= 0.0:
            raise ConfigurationError("learning_rate must be greater than 0")
        if self.learning_rate_schedule not in SCHEDULES:
            raise ConfigurationError(
                f"unknown learning_rate_schedule '{self.learning_rate_schedule}'; known: {', '.join(SCHEDULES)}"
            )
        if self.final_learning_rate is not None:
            if self.learning_rate_schedule not in ("cosine", "exponential"):
                raise ConfigurationError("final_learning_rate belongs to the schedules cosine and exponential")
            lowest_is_zero = self.learning_rate_schedule == "cosine" and self.final_learning_rate == 0.0
            lowest = min(stage.learning_rate for stage in self.stages)
            if not (lowest_is_zero or 0.0 < self.final_learning_rate <= lowest):
                raise ConfigurationError("final_learning_rate must be between 0 and learning_rate")
        for name in ("plateau_factor", "plateau_patience"):
            if getattr(self, name) is not None and self.learning_rate_schedule != "plateau":
                raise ConfigurationError(f"{name} belongs to the schedule plateau")
        if self.plateau_factor is not None and not 0.0 < self.plateau_factor < 1.0:
            raise ConfigurationError(f"plateau_factor must be between 0 and 1, got {self.plateau_factor}")
        for name in ("plateau_patience", "patience", "gradient_limit"):
            if getattr(self, name) is not None:
                _positive(self, name)
        if self.warmup_steps < 0:
            raise ConfigurationError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0.0 <= self.average < 1.0:
            raise ConfigurationError(f"average must be at least 0 and below 1, got {self.average}")
        if self.patience is not None and len(self.stages) > 1:
            raise ConfigurationError("patience is for a single learning_rate: stages have the epochs that are given")
        for name in ("energy_weight", "forces_weight", "stress_weight", "charge_restraint"):
            self._check_by_epoch(name)
        if self.guarded_from > self.epochs:
            raise ConfigurationError(f"guards: epoch {self.guarded_from} is beyond the last, {self.epochs}")
        last = self.weights(self.epochs)
        if max(last.energy, last.forces, last.stress) == 0.0:
            raise ConfigurationError("all weights of the loss are 0 in the last epoch")

    def _check_by_epoch(self, name: str) -> None:
        value = getattr(self, name)
        values = value if isinstance(value, dict) else {1: value}
        if any(each < 0.0 for each in values.values()):
            raise ConfigurationError(f"{name} must not be negative")
        if 1 not in values or min(values) < 1:
            raise ConfigurationError(f"{name}: the epochs at which values begin are counted from 1, which must occur")
        if max(values) > self.epochs:
            raise ConfigurationError(f"{name}: epoch {max(values)} is beyond the last, {self.epochs}")

    def weights(self, epoch: int) -> LossWeights:
        """Weights of an epoch, counted from 1."""
        return LossWeights(
            *(_at_epoch(getattr(self, f"{name}_weight"), epoch) for name in ("energy", "forces", "stress"))
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, of which a single learning rate makes one."""
        rates = self.learning_rate if isinstance(self.learning_rate, dict) else {1: self.learning_rate}
        begins = sorted(rates)
        ends = [begin - 1 for begin in begins[1:]] + [self.epochs]
        return tuple(Stage(begin, end, rates[begin]) for begin, end in zip(begins, ends, strict=True))

    def stage(self, epoch: int) -> Stage:
        """The stage that an epoch, counted from 1, belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first <= epoch)

    @property
    def guard_sections(self) -> tuple[GuardSection, ...]:
        """All guards, in the order in which they take turns."""
        others = (self.contact_guard, self.crowd_guard)
        return (*self.bond_guards, *(section for section in others if section is not None))

    @property
    def guarded_from(self) -> int:
        """The epoch from which all guards act."""
        return max((guard.from_epoch for guard in self.guard_sections), default=1)

    def restraint(self, epoch: int) -> float:
        """Weight of the restraint of the charges in an epoch, counted from 1."""
        return _at_epoch(self.charge_restraint, epoch)

    @property
    def restrains_charges(self) -> bool:
        """Whether the weight of the restraint is ever more than 0."""
        return _largest(self.charge_restraint) > 0.0

    @property
    def trains_on_stress(self) -> bool:
        """Whether the weight of the stress is ever more than 0."""
        return _largest(self.stress_weight) > 0.0


@dataclass(frozen=True)
class Stage:
    """Epochs ``first`` to ``last``, counted from 1, with the highest ``learning_rate``."""

    first: int
    last: int
    learning_rate: float


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss of ``TrainingSection``."""

    energy: float
    forces: float
    stress: float


def _at_epoch(weight: float | dict[int, float], epoch: int) -> float:
    if isinstance(weight, dict):
        return weight[max(begin for begin in weight if begin <= epoch)]
    return weight


def _largest(weight: float | dict[int, float]) -> float:
    return max(weight.values()) if isinstance(weight, dict) else weight


@dataclass(frozen=True)
class TrainingConfiguration:
    """All of a training.

    Attributes
    ----------
    output : folder for everything that is written, relative to the configuration file.
    long_range : parameters of the sum over charges; None for the default ones.
    seed : of the initial weights and of the order of frames.
    dtype : arithmetic of the network and of the exported file, "float32" or "float64".
    device : torch device.
    threads : CPU threads; results vary with it by rounding.
    """

    output: str
    data: DataSection
    model: ModelSection | CHGNetSection
    training: TrainingSection
    long_range: LongRangeParameters | None = None
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise ConfigurationError(f"dtype must be float32 or float64, got '{self.dtype}'")
        _positive(self, "threads")
        if self.seed < 0 or self.data.split_seed < 0:
            raise ConfigurationError("seeds must not be negative")
        if self.long_range is not None and not self.model.charges:
            raise ConfigurationError("the section long_range needs model.charges: true")
        if self.training.guard_sections and not self.device.startswith("cpu"):
            raise ConfigurationError(
                "the guards of training (bond_guards, contact_guard, crowd_guard) need device: cpu"
            )
        if not self.model.charges and (self.training.guess_charges or self.training.restrains_charges):
            raise ConfigurationError("training.guess_charges and charge_restraint need model.charges: true")
        if self.training.guess_charges and self.model.architecture != "cace":
            raise ConfigurationError("training.guess_charges needs model.architecture: cace")
        if self.training.guess_charges and self.model.fixed_charges is not None:
            raise ConfigurationError("training.guess_charges and model.fixed_charges are two first guesses: give one")
        if self.training.trains_on_stress and self.data.stress_key is None:
            raise ConfigurationError(
                "training.stress_weight needs data.stress_key, data.stress_unit and data.stress_sign"
            )
        if self.data.stress_key is not None and not self.training.trains_on_stress:
            raise ConfigurationError("data.stress_key is given but training.stress_weight is 0: give both or none")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def long_range_parameters(self) -> LongRangeParameters | None:
        """Parameters of the long-range energy; None for a short-range model."""
        return (self.long_range or LongRangeParameters()) if self.model.charges else None


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """Values of nested sections by dotted names; mappings that are values (with keys that vary) are kept whole."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name in ("data", "model", "training", "long_range"):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
