"""Whether openmm-torch's TorchForce works here, found out in another process, which may crash."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from les_md.cache import cache_directory

logger = logging.getLogger("les_md.openmm")

#: What the released wheels are built for. Others import and evaluate, and crash later: OpenMM 8.6 changed the layout
#: of a class that reading a serialised System needs.
BUILT_FOR = "openmm-torch 1.5 from PyPI is built for torch 2.9 and works with OpenMM 8.4 and 8.5"


@dataclass(frozen=True)
class ProbeResult:
    """Whether TorchForce works, and in words with what it does or why it does not."""

    works: bool
    reason: str


def probe(timeout: float = 120.0, use_cache: bool = True) -> ProbeResult:
    """Whether openmm-torch's TorchForce works in this installation.

    Another process imports openmm-torch, evaluates a TorchForce, serialises it, reads it back and evaluates it again; a
    crash, an exception, wrong numbers or taking longer than ``timeout`` (s) become a reason. openmm-torch itself is not
    imported here.

    The result is kept for this process and, unless it is a time-out, in the user's cache folder (environment variable
    LES_MD_CACHE, else XDG_CACHE_HOME/les_md, else ~/.cache/les_md) until Python, torch, OpenMM or openmm-torch change.
    With ``use_cache`` False neither is read or written.
    """
    return _probe_once(timeout) if use_cache else _probe(timeout)[0]


@functools.cache
def _probe_once(timeout: float) -> ProbeResult:
    file = cache_directory() / f"torchforce-{_installation_key()}.json"
    try:
        return ProbeResult(**json.loads(file.read_text()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        logger.warning("cannot read %s (%s): testing TorchForce again", file, error)
    result, lasting = _probe(timeout)
    if lasting:
        _remember(file, result)
    return result


def _remember(file: Path, result: ProbeResult) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=file.name, delete=False) as stream:
            json.dump(asdict(result), stream)
        os.replace(stream.name, file)  # a reader sees the whole file or none
    except OSError as error:
        logger.warning("cannot remember that TorchForce was tested (%s): it will be tested again", error)


def _probe(timeout: float) -> tuple[ProbeResult, bool]:
    """The result, and whether it would be the same another time."""
    if importlib.util.find_spec("openmmtorch") is None:
        return ProbeResult(False, "openmm-torch is not installed (pip install openmmtorch)"), False
    name = f"openmm-torch {_version('openmmtorch')}"
    together = f"torch {_version('torch')} and OpenMM {_version('openmm')}"
    advice = f"{BUILT_FOR}; backend 'python' needs no openmm-torch"
    # The other process must find what this one would import.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with tempfile.TemporaryDirectory(prefix="les_md-", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "log"
        errors = Path(scratch) / "errors"
        with log.open("w") as log_stream, errors.open("w") as error_stream:
            try:
                code = subprocess.run(
                    [sys.executable, str(Path(__file__).resolve())],
                    stdin=subprocess.DEVNULL,
                    stdout=log_stream,
                    stderr=error_stream,
                    cwd=scratch,
                    env=environment,
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        lines = log.read_text(errors="replace").splitlines()
        complaints = errors.read_text(errors="replace").strip().splitlines()
    steps = [line.removeprefix(STEP) for line in lines if line.startswith(STEP)]
    step = steps[-1] if steps else "starting Python"
    if code is None:
        return ProbeResult(False, f"{name} with {together} took longer than {timeout:g} s in {step}; {advice}"), False
    if code < 0:
        result = ProbeResult(False, f"{name} with {together} crashes in {step} ({_signal_name(-code)}); {advice}")
        return result, -code != signal.SIGKILL  # which comes from outside, as where memory is short
    if code != 0:
        return ProbeResult(False, f"{name} with {together} fails in {step} ({_cause(complaints)}); {advice}"), True
    if step != DONE:
        return ProbeResult(False, f"{name} with {together} ends the process in {step}; {advice}"), True
    return ProbeResult(True, f"{name} works with {together}"), True


def _cause(complaints: list[str]) -> str:
    """The line of a traceback that names the exception; torch's go on for many lines after it."""
    named = [line for line in complaints if re.match(r"[\w.]*(Error|Exception)(:|$)", line)]
    return (named or complaints or ["no message"])[-1][:300]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _installation_key() -> str:
    """Changes with everything that the result depends on."""
    facts = [sys.version, sys.executable, sys.platform, Path(__file__).read_text()]
    facts += [os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "OPENMM_PLUGIN_DIR")]
    for package in ("torch", "openmm", "openmmtorch"):
        spec = importlib.util.find_spec(package)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        stamp = f"{origin.stat().st_mtime_ns} {origin.stat().st_size}" if origin is not None else ""
        facts.append(f"{package} {_version(package)} {origin} {stamp}")
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:20]


# What the other process does

STEP = "step: "
DONE = "the end"


def _evaluate_torchforce() -> None:
    """Evaluate a TorchForce before and after serialisation, saying what is being done; raises if a number is wrong."""
    sys.path.pop(0)  # the folder of this file, whose modules are part of a package
    _say("importing torch")
    import torch

    _say("importing OpenMM")  # after torch, whose libraries openmm-torch's plugins need
    import openmm

    _say("importing openmm-torch")
    import openmmtorch

    class Harmonic(torch.nn.Module):
        """½ Σ |r|² L_x, differentiated by autograd as a model is."""

        def forward(self, positions: torch.Tensor, boxvectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            places = positions.data.requires_grad_(True)
            energy = 0.5 * boxvectors[0, 0] * (places * places).sum()
            gradient = torch.autograd.grad([energy], [places])[0]
            assert gradient is not None
            return energy.data, -gradient

    _say("making a TorchForce")
    force = openmmtorch.TorchForce(torch.jit.script(Harmonic()))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(True)
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors([4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0])
    for _ in range(2):
        system.addParticle(1.0)
    system.addForce(force)
    _say("evaluating a TorchForce")
    _check_numbers(openmm, system)
    _say("reading a serialised System")
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    _say("evaluating a TorchForce that was serialised")
    _check_numbers(openmm, system)
    _say(DONE)


def _check_numbers(openmm, system) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    for scale in (1.0, 2.0, 3.0):  # TorchScript optimises what it has run before
        context.setPositions([[scale, 0.0, 0.0], [0.0, 2.0, -scale]])
        state = context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoules_per_mole)
        forces = state.getForces().value_in_unit(openmm.unit.kilojoules_per_mole / openmm.unit.nanometer)
        numbers = [energy, *(component for force in forces for component in force)]
        expected = [2.0 * (2.0 * scale**2 + 4.0), -4.0 * scale, 0.0, 0.0, 0.0, -8.0, 4.0 * scale]
        if not all(abs(number - right) < 1e-9 for number, right in zip(numbers, expected, strict=True)):
            raise ArithmeticError(f"wrong energy and forces: {numbers}, not {expected}")


def _say(step: str) -> None:
    print(f"{STEP}{step}", flush=True)


if __name__ == "__main__":
    _evaluate_torchforce()
