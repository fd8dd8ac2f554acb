"""What the probe says of openmm-torch that is missing, broken, or works; a crash must not reach this process."""

import json
import os
import sys

import pytest
import torch

pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")

from les_md.openmm import torchforce_probe
from les_md.openmm.torchforce_probe import ProbeResult, probe

#: A TorchForce without openmm-torch: OpenMM's PythonForce calls the module.
WORKING = """
import openmm
import torch

class TorchForce(openmm.PythonForce):
    def __init__(self, module):
        Computation.module = module
        super().__init__(Computation(), {})

    def setOutputsForces(self, yes):
        assert yes

class Computation:
    def __call__(self, state):
        positions = torch.tensor(state.getPositions(asNumpy=True)._value)
        box = torch.tensor([list(vector) for vector in state.getPeriodicBoxVectors()._value])
        energy, forces = self.module(positions, box)
        return ENERGY_FACTOR * float(energy), forces.numpy()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has not probed yet."""
    monkeypatch.setenv("LES_MD_CACHE", str(tmp_path / "cache"))
    torchforce_probe._probe_once.cache_clear()
    yield tmp_path / "cache"
    torchforce_probe._probe_once.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch, cache):
    """Makes modules of this content importable, in the probe's process at least."""

    def make(**content):
        for name, text in content.items():
            (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "openmmtorch", raising=False)  # where other tests have imported the real one

    return make


def test_not_installed(monkeypatch, cache):
    """Said at once, and not remembered, since installing it must be noticed."""
    monkeypatch.setattr(torchforce_probe.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torchforce_probe.subprocess, "run", None)
    for use_cache in (False, True):
        result = probe(use_cache=use_cache)
        assert not result.works
        assert "openmm-torch is not installed" in result.reason and "pip install" in result.reason
    assert not cache.exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        ("import os; os.abort()", r"crashes in importing openmm-torch (SIGABRT); "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes in importing openmm-torch (SIGSEGV); "),
        ("raise ImportError('no libtorch')", "fails in importing openmm-torch (ImportError: no libtorch); "),
        ("raise RuntimeError('long\\nstory')", "fails in importing openmm-torch (RuntimeError: long); "),
        ("import os; os._exit(0)", "ends the process in importing openmm-torch; "),
        ("import os; os._exit(3)", "fails in importing openmm-torch (no message); "),
    ],
    ids=["abort", "segmentation fault", "raises", "raises at length", "exits", "exits with an error"],
)
def test_broken_at_import(install, content, reason):
    """The reason says what happened, where, with which versions, and what to do."""
    install(openmmtorch=content, torch="", openmm="")  # importing the real ones takes seconds
    result = probe(use_cache=False)
    assert not result.works
    assert f" with torch {torch.__version__.split('+')[0]}" in result.reason
    assert reason in result.reason
    assert "built for torch 2.9" in result.reason and "backend 'python'" in result.reason
    assert "openmmtorch" not in sys.modules


def test_wrong_numbers(install):
    install(openmmtorch=WORKING.replace("ENERGY_FACTOR", "1.001"))
    result = probe(use_cache=False)
    assert not result.works
    assert "fails in evaluating a TorchForce (ArithmeticError: wrong energy and forces" in result.reason


def test_works(install, capfd):
    """Whatever openmm-torch prints."""
    install(openmmtorch=WORKING.replace("ENERGY_FACTOR", "1.0") + "print('Warning')")
    result = probe(use_cache=False)
    assert result.works, result.reason
    assert " works with torch " in result.reason
    assert capfd.readouterr() == ("", "")


def test_hangs(install, cache):
    """A time-out is a reason, but may be due to a busy machine: it is not remembered on disk."""
    install(openmmtorch="import time; time.sleep(1000)", torch="", openmm="")
    result = probe(timeout=0.5)
    assert not result.works
    assert "took longer than 0.5 s in " in result.reason
    assert not cache.exists()


@pytest.fixture
def results(monkeypatch):
    """What the tests in another process find, in turn; each is used once."""
    values = []
    monkeypatch.setattr(torchforce_probe, "_probe", lambda timeout: (values.pop(0), True))
    return values


def test_remembered(install, cache, results):
    """For this process and on disk, until the installation changes."""
    install(openmmtorch="")
    first, second = ProbeResult(False, "first"), ProbeResult(True, "second")
    results.append(first)
    assert probe() == probe() == first
    (file,) = cache.iterdir()
    assert json.loads(file.read_text()) == {"works": False, "reason": "first"}
    torchforce_probe._probe_once.cache_clear()  # as another process
    assert probe() == first
    results.append(second)
    assert probe(use_cache=False) == second
    assert probe() == first
    torchforce_probe._probe_once.cache_clear()
    install(openmmtorch="# another version")
    results.append(second)
    assert probe() == second
    assert not results


def test_damaged_and_unwritable_cache(install, cache, results, caplog):
    """Both are said, and make no difference to the result."""
    install(openmmtorch="")
    results += [ProbeResult(True, name) for name in ("first", "second", "third")]
    assert probe().reason == "first"
    (file,) = cache.iterdir()
    file.write_text("{")
    torchforce_probe._probe_once.cache_clear()
    assert probe().reason == "second"
    assert "testing TorchForce again" in caplog.text
    file.unlink()
    cache.rmdir()
    cache.write_text("a file, not a folder")
    torchforce_probe._probe_once.cache_clear()
    assert probe().reason == "third"
    assert "cannot remember" in caplog.text


@pytest.mark.skipif(os.environ.get("LES_MD_TEST_TORCHFORCE") != "1", reason="needs the environment with openmm-torch")
def test_this_installation():
    result = probe(use_cache=False)
    assert result.works, result.reason
