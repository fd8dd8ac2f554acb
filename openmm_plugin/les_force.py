"""LESForce: an exported model as a Force of OpenMM."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import openmm
import openmm.app
import torch
from openmm import unit

from les_md.model_file import ExportedModel, load, load_bytes, usable_device
from les_md.openmm.python_backend import FIELD_PARAMETERS, Computation
from les_md.openmm.system_checks import atomic_numbers_of, check_system, choose_boundaries, selected_atoms
from les_md.openmm.units import VOLT_PER_NANOMETER

logger = logging.getLogger("les_md.openmm")

BACKENDS = ("auto", "python", "torchforce")


class LESForce:
    """An exported model (``les-export``) as an ``openmm.Force``::

        system.addForce(LESForce("water.pt", topology))

    It works with every integrator, barostat and reporter, alone or beside other forces, several times in one System,
    and in several Contexts (of one thread or of several).

    Parameters
    ----------
    model : path of a file written by ``les-export``, or what ``les_md.load`` returned.
    topology_or_atomic_numbers : openmm.app.Topology of the System, or the atomic number of every particle (None for one
        without an element).
    atoms : indices of the particles that the model acts on, default all. The others feel nothing of it (see Subsets).
    backend : "python", "torchforce" or "auto" (see Backends).
    device : torch device of the network for the ``python`` backend, default "cuda" where there is one, else "cpu".
        With ``torchforce`` the platform decides, and only None is accepted.
    compiled : run the network as ``les-export --compile`` compiled it, as of ``les_md.load``; ``python`` backend only.
    kspace, accuracy : the long-range sum: "ewald" (the model's own sum term by term), "mesh", or "auto" for the faster
        of the two; relative root-mean-square error of the long-range forces by the mesh.
    kset : "follow" takes the wave vectors of the present box, as the reference does; with "fixed" their set stays that
        of the topology's (or ``system``'s) box, so that the energy has no tiny jumps where the box changes.
    periodic : default: whether the topology has box vectors. Required with atomic numbers. The box is the Context's,
        read at every evaluation; that of the topology only serves to notice a System that was never given one.
    force_group : 0 to 31.
    system : the System that the force will be added to; if given, it is checked (``les_md.openmm.check_system``), and
        its default box is taken for the topology's. The force still has to be added by ``system.addForce``.
    allow_constraints : accept a ``system`` that constrains distances between atoms of the model.
    electric_field : three numbers in kJ/(mol nm e), or a Quantity ([1, 0, 0] * volt / nanometer); None for no field
        (see Electric field).
    sum_rule : take the mean force of the field off every atom of a periodic model.

    Units: nm and kJ/mol, as everywhere in OpenMM; the file's eV and Å are converted with 1 eV = 96.48533212331001
    kJ/mol. Energies include the reference energies of the elements, thousands of eV per atom for all-electron methods;
    only differences have a meaning.

    Boundaries: in a periodic System the short-range part sees all periodic images (the box may be triclinic, and
    smaller than the cutoff), and the long-range part is the model's truncated Ewald sum over the Context's box.
    Molecules may be wrapped or not. In an isolated one charges interact in open space. OpenMM has no boundaries that
    are periodic along some axes only.

    Pressure: Monte Carlo barostats need energies only, and work. They scale the centres of molecules, and tell
    molecules by the bonds of the System's forces. A System with nothing but a LESForce has none, and every atom counts
    as a molecule: right too, but the volume then moves in smaller steps. Bonds that do nothing
    (``CustomBondForce("0")``) tell the molecules. With ``kset="follow"`` the jumps of the energy are sampled too.

    Electric field: with ``electric_field`` a uniform field acts on the atoms through their Born effective charges,
    F = Z*ᵀ E, and its components are the Context's parameters ``les_electric_field_x``, ``..._y``, ``..._z`` in kJ/(mol
    nm e): ``context.setParameter("les_electric_field_z", 0.1 * les_md.openmm.VOLT_PER_NANOMETER)`` (a plain number:
    OpenMM does not convert volts). An isolated model has the energy −P·E, which the potential energy contains, at no
    cost. A periodic one has none: forces alone contain the field, the potential energy does not, so that barostats
    (refused with ``system``) and energy minimisation (refused by ``python`` on the platforms Reference and CPU) do not
    fit. It costs two more backward passes for each box vector along which the field has a component (one in all for
    models without message passing).

    Charges and response: ``getCharges(context)`` and ``getBornEffectiveCharges(context)`` for the atoms of the model as
    they are in a Context; ``LESReporter`` writes both, and the current.

    Subsets (``atoms``): the model sees these atoms alone. Their latent charges interact with each other and, in a
    periodic box, with their own images, but not with charges of other particles: what acts between them and the rest
    has to come from other forces (mechanical embedding; ``MLPotential("les").createMixedSystem`` of OpenMM-ML sets this
    up).

    Constraints and virtual sites: constraints between atoms of the model keep distances as in any OpenMM simulation,
    but models are trained on flexible molecules: with ``system`` they are refused unless ``allow_constraints``.
    Particles without an element (virtual sites of four-site water, Drude particles) cannot be atoms of the model; a
    virtual site that has an element (link atoms of OpenMM-ML) can, and OpenMM passes its force on to the particles that
    define it.

    Precision: network in the file's dtype (float32 or float64), sums in float64. Positions come in the precision of the
    platform: double on Reference and CPU, elsewhere as its property Precision says.

    Serialisation: XmlSerializer writes the whole model into the XML (about twice the size of the file); a copy needs
    les_md, but not the file, and is a plain PythonForce or TorchForce (before one with a TorchForce is read, call
    ``les_md.openmm.prepare_torchforce()``). **Load such an XML only from people you trust**:
    OpenMM runs the Python function in it. Checkpoints and States continue bit for bit (Reference and CPU platform, same
    number of threads).

    Backends
    --------
    ``python`` : OpenMM's PythonForce (OpenMM 8.5 or newer), any torch, any platform. The neighbour list is kept between
        steps.
    ``torchforce`` : openmm-torch's TorchForce: everything in TorchScript, so that positions stay on the GPU and no
        Python runs during a simulation. Needs openmm-torch built for the installed torch and OpenMM (its 1.5
        wheels: torch 2.9, OpenMM up to 8.5).
    ``auto`` : ``torchforce`` if there is a GPU, openmm-torch is installed, and a test in another process shows that it
        works here (a wrong torch makes it crash); else ``python``, which is the faster one on a CPU.
    ``describe_backend()`` and one line of the log "les_md.openmm" (level INFO) say what was chosen and why.

    Raises
    ------
    FileNotFoundError, ModelFileError : no such file; no exported file, or one in another format.
    ValueError, TypeError : an element that the model does not know, a particle without element, atoms out of range or
        repeated, boundaries that cannot be told, an option out of range, or a ``system`` that does not fit.
    During a simulation, as OpenMMException: positions that are not finite, another number of particles, a box that was
    never set, energies that are not finite.
    """

    #: Whether the backend can run compiled networks.
    _runs_compiled = False
    #: Why the backend was chosen.
    _reason = "asked for"
    _default_device: str | None = None

    def __new__(cls, *args, backend: str = "auto", device: str | None = None, compiled: bool = False, **kwargs):
        if cls is not LESForce:
            return super().__new__(cls)
        kind, reason = _choose_backend(backend, device, compiled)
        force = super().__new__(kind)
        force._reason = reason
        return force

    def __init__(
        self,
        model: str | Path | ExportedModel,
        topology_or_atomic_numbers: openmm.app.Topology | Sequence[int],
        *,
        atoms: Iterable[int] | None = None,
        backend: str = "auto",
        device: str | None = None,
        compiled: bool = False,
        kspace: str = "auto",
        accuracy: float = 1e-5,
        kset: str = "follow",
        periodic: bool | None = None,
        force_group: int = 0,
        system: openmm.System | None = None,
        allow_constraints: bool = False,
        electric_field: Sequence[float] | unit.Quantity | None = None,
        sum_rule: bool = False,
    ) -> None:
        numbers = atomic_numbers_of(topology_or_atomic_numbers)
        chosen = selected_atoms(atoms, numbers)
        self.periodic, expected_box = choose_boundaries(periodic, topology_or_atomic_numbers, system)
        if system is not None:
            check_system(system, len(numbers), chosen, self.periodic, allow_constraints, stacklevel=3)
        if kset not in ("follow", "fixed"):
            raise ValueError(f"kset must be follow or fixed, not {kset!r}")
        if kset == "fixed" and expected_box is None:
            raise ValueError("kset='fixed' needs a periodic topology with box vectors, or system=...")
        device = device or self._default_device
        if not isinstance(model, ExportedModel):
            model = load(model, device, compiled)
        else:
            compiled = (compiled or model.is_compiled) and self._runs_compiled
            elsewhere = device is not None and usable_device(device) != model.device
            if elsewhere or compiled != model.is_compiled:
                model = load_bytes(model.content, str(model.path), device or model.device, compiled)
        self.model = model
        self.atoms = chosen
        #: Components of the electric field in new Contexts, kJ/(mol nm e); None for no field.
        self.electric_field = None if electric_field is None else _components_of(electric_field)
        if sum_rule and electric_field is None:
            raise ValueError("sum_rule is about the forces of a field: give electric_field too")
        if sum_rule and not self.periodic:
            raise ValueError(
                "sum_rule is for periodic systems: in an isolated one the forces of the field are derivatives of its "
                "energy"
            )
        if electric_field is not None and self.periodic and system is not None:
            for force in system.getForces():
                if "Barostat" in force.getName():
                    raise ValueError(
                        f"an electric field has no energy in a periodic system, which {force.getName()} needs: keep "
                        "the volume constant"
                    )
        self.num_particles = len(numbers)
        #: Evaluates the model outside of a Context, see ``LESReporter``.
        self.computation = Computation(
            model_bytes=model.content,
            model_name=model.path.name,
            atomic_numbers=tuple(numbers[index] for index in chosen),
            num_particles=len(numbers),
            particles=None if atoms is None else chosen,
            periodic=self.periodic,
            expected_box=expected_box,
            kset_box=expected_box if kset == "fixed" else None,
            device=device,
            kspace=kspace,
            accuracy=accuracy,
            model=self.model,
            has_field=electric_field is not None,
            sum_rule=sum_rule,
            compiled=compiled,
        )
        if electric_field is not None:
            self.computation.evaluator.check_field()
        self._create()
        self.setUsesPeriodicBoundaryConditions(self.periodic)
        self.setForceGroup(force_group)
        self.setName("LESForce")
        logger.info("%s", self.describe_backend())

    def describe_backend(self) -> str:
        """What evaluates the model, on which device, and why it was chosen."""
        raise NotImplementedError

    def getCharges(self, context: openmm.Context) -> np.ndarray:
        """Latent charges in e of the model's atoms (in the order of ``atoms``) as they are in a Context.

        Returns: [n], or [n, n_q] for several channels. Costs nothing right after an evaluation of the forces.

        Raises ValueError for a short-range model or a Context of another number of particles.
        """
        self._require_charges()
        charges = self.computation.evaluate(*self.computation.inputs(_state_of(context)))["charges"]
        return charges[:, 0].copy() if charges.shape[1] == 1 else charges.copy()

    def getBornEffectiveCharges(self, context: openmm.Context) -> np.ndarray:
        """Born effective charges [n, 3, 3] in e of the model's atoms as they are in a Context.

        The polarisation index is the first, the displacement index the second. Costs one evaluation of the network and
        six backward passes (isolated: three; without message passing: one). Raises as ``getCharges``.
        """
        self._require_charges()
        positions, box, _field = self.computation.inputs(_state_of(context))
        return self.computation.born_effective_charges(positions, box)

    def _require_charges(self) -> None:
        if not self.model.has_long_range:
            raise ValueError(f"{self.model.path.name} is a short-range model: it has no charges")

    def _create(self) -> None:
        """Initialise the Force of OpenMM."""
        raise NotImplementedError


class PythonLESForce(LESForce, openmm.PythonForce):
    """LESForce by OpenMM's PythonForce; made by ``LESForce(..., backend="python")``."""

    _runs_compiled = True

    def describe_backend(self) -> str:
        name = f"{self.model.path.name}{', compiled,' if self.model.is_compiled else ''}"
        return f"LESForce: {name} by PythonForce on {self.model.device} ({self._reason})"

    def _create(self) -> None:
        # Not PythonForce's own subsets of particles: OpenMM does not compare them with the System's number of
        # particles, and reads beyond its arrays where that is smaller.
        parameters = {}
        if self.electric_field is not None:
            parameters = dict(zip(FIELD_PARAMETERS, self.electric_field, strict=True))
        openmm.PythonForce.__init__(self, self.computation, parameters)


def _components_of(field: Sequence[float] | unit.Quantity) -> list[float]:
    """In kJ/(mol nm e); raises ValueError or TypeError if it is no electric field."""
    wanted = f"electric_field must be three finite numbers in kJ/(mol nm e), or a Quantity, not {field!r}"
    try:
        if isinstance(field, unit.Quantity):
            if field.unit.is_compatible(unit.volt / unit.nanometer):
                field = VOLT_PER_NANOMETER * np.asarray(field.value_in_unit(unit.volt / unit.nanometer), dtype=float)
            else:
                field = field.value_in_unit(unit.kilojoule_per_mole / unit.nanometer / unit.elementary_charge)
        components = np.array(field, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(wanted) from error
    if components.shape != (3,) or not np.isfinite(components).all():
        raise ValueError(wanted)
    return components.tolist()


def _state_of(context: openmm.Context) -> openmm.State:
    return context.getState(positions=True, parameters=True)


def _choose_backend(backend: str, device: str | None, compiled: bool) -> tuple[type[LESForce], str]:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "python":
        return PythonLESForce, "asked for"
    if compiled:
        if backend == "torchforce":
            raise ValueError("backend 'torchforce' runs TorchScript: compiled=True needs backend 'python'")
        return PythonLESForce, "the only one that runs compiled networks"
    if device is not None:
        if backend == "torchforce":
            raise ValueError(f"device={device!r}: with backend 'torchforce' the platform decides where the model runs")
        return PythonLESForce, "the only one that takes a device"
    if importlib.util.find_spec("openmmtorch") is None:
        if backend == "torchforce":
            raise ValueError("backend 'torchforce' needs openmm-torch, which is not installed: pip install openmmtorch")
        return PythonLESForce, "openmm-torch is not installed"
    if backend == "auto" and not torch.cuda.is_available():
        return PythonLESForce, "without a GPU it is faster than TorchForce"
    from les_md.openmm.torchforce_probe import probe

    result = probe()
    if result.works:
        from les_md.openmm.torchforce_backend import torchforce_class

        return torchforce_class(), "asked for" if backend == "torchforce" else result.reason
    if backend == "torchforce":
        raise ValueError(f"backend 'torchforce' does not work here: {result.reason}")
    logger.warning("openmm-torch is installed but does not work: %s", result.reason)
    return PythonLESForce, result.reason
