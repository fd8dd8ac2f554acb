"""Files of every kind read back as what was written, and what is wrong with a file said in full."""

from __future__ import annotations

import numpy as np
import pytest

from les_md.analysis.series_files import read_dipole_series

VALUES = np.random.default_rng(5).normal(size=(30, 3))
REPORTER = "Step,Time (ps),Short-range energy (kJ/mol),Dipole x (e nm),Dipole y (e nm),Dipole z (e nm)"
LOG = ["c_j[1]", "c_j[2]", "c_j[3]"]


def log_text(*runs: tuple[int, int], units: str = "metal", heading: str = "Step Time Temp Volume c_j[1] c_j[2] c_j[3]"):
    """A LAMMPS log with a run for each (first row, last row + 1) of VALUES, 10 steps of 0.5 fs apart."""
    time = {"metal": 0.005, "real": 5.0}[units]
    lines = ["LAMMPS (22 Jul 2025)", f"units           {units}", "run 100", "Per MPI rank memory allocation = 3"]
    for first, last in runs:
        lines.append(f"   {heading}   ")
        for i in range(first, last):
            lines.append(f"  {10 * i} {time * i:.8g} {290 + i} 1000 " + " ".join(f"{x:.17g}" for x in VALUES[i]))
            if i == 3:
                lines.append("WARNING: something that LAMMPS has to say (src/file.cpp:12)")
        lines.append("Loop time of 1.5 on 1 procs for 100 steps with 6 atoms")
        lines += ["", "Performance: 60 ns/day", "MPI task timing breakdown:", "Pair | 0.1 | 0.1", ""]
    return "\n".join(lines) + "\n"


def write(folder, text: str, name: str = "file"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lammps_log(tmp_path):
    series = read_dipole_series(write(tmp_path, log_text((0, 30))), LOG, "current")
    assert series.quantity == "current"
    assert (series.values == VALUES).all()
    assert series.interval == pytest.approx(0.005)
    assert series.volume == 1000.0
    assert series.temperature == pytest.approx(304.5)
    assert series.notes == ()


def test_real_units(tmp_path):
    series = read_dipole_series(write(tmp_path, log_text((0, 30), units="real")), LOG, "current")
    assert series.values == pytest.approx(VALUES * 1e3)  # e Å/fs
    assert series.interval == pytest.approx(0.005)
    moment = read_dipole_series(write(tmp_path, log_text((0, 30), units="real")), LOG, "dipole")
    assert (moment.values == VALUES).all()


def test_runs_one_after_the_other_and_a_restart(tmp_path):
    series = read_dipole_series(write(tmp_path, log_text((0, 11), (10, 25), (20, 30))), LOG, "current")
    assert (series.values == VALUES).all()
    assert series.notes == ("6 row(s) at repeated steps were replaced by the later ones",)


def test_runs_without_the_columns_are_left_out(tmp_path):
    equilibration = log_text((0, 5), heading="Step Time Temp Volume Press PotEng KinEng")
    series = read_dipole_series(write(tmp_path, equilibration + log_text((5, 30))), LOG, "current")
    assert (series.values == VALUES[5:]).all()
    assert series.start == pytest.approx(0.025)
    assert series.notes == ("1 of 2 runs of the log have other columns and were left out",)


def test_last_row_of_a_run_between_two_outputs(tmp_path):
    """``thermo 10``, ``run 134``, twice: the rows at steps 134 and 268, where the current may be NaN, do not count."""
    first, second = log_text((0, 14)), log_text((14, 27))
    off = [f"  {step} 0.0 300 1000 nan nan nan\n" for step in (134, 268)]
    text = first.replace("Loop", off[0] + "Loop") + second.replace("  140 ", off[0] + "  140 ").replace(
        "Loop", off[1] + "Loop"
    )
    series = read_dipole_series(write(tmp_path, text), LOG, "current")
    assert (series.values == VALUES[:27]).all()
    assert series.notes == ("3 row(s) at the start or end of runs, between two regular outputs, were left out",)


def test_a_run_that_was_stopped(tmp_path):
    """Without the line Loop time, and in the middle of a number."""
    text = log_text((0, 30))
    cut = text[: text.index("Loop time") - 5]
    series = read_dipole_series(write(tmp_path, cut), LOG, "current")
    assert (series.values == VALUES[:29]).all()
    assert series.notes == ("the last line of the file is not complete and was left out",)


def test_yaml_log(tmp_path):
    rows = "".join(f"  - [{10 * i}, {0.005 * i}, {x}, {y}, {z}, ]\n" for i, (x, y, z) in enumerate(VALUES))
    text = "units metal\n---\nkeywords: ['Step', 'Time', 'c_j[1]', 'c_j[2]', 'c_j[3]', ]\ndata:\n" + rows + "...\n"
    path = write(tmp_path, text)
    assert (read_dipole_series(path, LOG, "current").values == VALUES).all()
    write(tmp_path, text.replace(f"{VALUES[3, 0]}", ".nan"))
    with pytest.raises(ValueError, match=r"1 row\(s\) hold no finite number, first row 4, column c_j\[1\]: nan"):
        read_dipole_series(path, LOG, "current")


def test_reporter_csv(tmp_path):
    """Columns, units and quantity from the headings alone."""
    rows = "".join(f"{10 * i},{0.005 * i:.10g},-5,{x},{y},{z}\n" for i, (x, y, z) in enumerate(VALUES))
    path = write(tmp_path, f"{REPORTER}\n{rows}")
    series = read_dipole_series(path, volume=1000.0, temperature=300.0)
    assert series.quantity == "dipole"
    assert series.values == pytest.approx(10.0 * VALUES)
    assert series.interval == pytest.approx(0.005)
    assert (series.volume, series.temperature) == (1000.0, 300.0)
    one = read_dipole_series(path, ["Dipole y"])
    assert one.values == pytest.approx(10.0 * VALUES[:, [1]])


def test_csv_with_its_heading_in_a_comment(tmp_path):
    """As numpy.savetxt and OpenMM's StateDataReporter write it."""
    rows = "".join(f"{i},{0.005 * i:.10g},{x}\n" for i, x in enumerate(VALUES[:, 0]))
    path = write(tmp_path, f'# run 1, seed 2\n#"Step","Time (ps)","Jx (e nm/ps)"\n{rows}')
    assert read_dipole_series(path, ["Jx"]).values[:, 0] == pytest.approx(10.0 * VALUES[:, 0])


@pytest.mark.parametrize(("unit", "factor"), [("e nm/ps", 10.0), ("e Å/ps", 1.0), ("e Å/fs", 1e3), ("e A/ps", 1.0)])
def test_current_in_csv_is_preferred(tmp_path, unit, factor):
    heading = f"{REPORTER},Current x ({unit}),Current y ({unit}),Current z ({unit})"
    rows = "".join(f"{i},{i},-5,1,2,{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(VALUES))
    path = write(tmp_path, f"{heading}\n{rows}")
    series = read_dipole_series(path)
    assert series.quantity == "current"
    assert series.values == pytest.approx(factor * VALUES)
    assert read_dipole_series(path, quantity="dipole").values[3] == pytest.approx([10.0, 20.0, 30.0])


@pytest.mark.parametrize(
    "heading",
    [
        "# Time-averaged data for fix j\n# TimeStep c_j[1] c_j[2] c_j[3]",
        "# TimeStep c_j[1] c_j[2] c_j[3]",
        "step a b c",
    ],
)
def test_fix_ave_time_and_columns_with_names(tmp_path, heading):
    text = heading + "\n" + "".join(f"{10 * i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(VALUES))
    columns = heading.split()[-3:]
    series = read_dipole_series(write(tmp_path, text), columns, "current", "metal", timestep=0.0005)
    assert (series.values == VALUES).all()
    assert series.interval == pytest.approx(0.005)


def test_columns_without_names(tmp_path):
    """As fix print writes them, in two pieces with a second heading between."""
    lines = [f"{0.005 * i} {x} {y} {z}" for i, (x, y, z) in enumerate(VALUES)]
    text = "\n".join(["# Fix print output for fix j", *lines[:10], "# Fix print output for fix j", *lines[10:], ""])
    series = read_dipole_series(write(tmp_path, text), ["2", "3", "4"], "current", "metal", time_column="1")
    assert (series.values == VALUES).all()


def test_part_and_scale(tmp_path):
    path = write(tmp_path, log_text((0, 30)))
    series = read_dipole_series(path, LOG, "current", start=0.05, end=0.1, scale=1.3)
    assert series.values == pytest.approx(1.3 * VALUES[10:21])
    assert series.temperature == pytest.approx(305.0)
    assert series.start == pytest.approx(0.05)
    # What is cut off may have gaps.
    cut = write(tmp_path, log_text((0, 5), (10, 30)), "cut")
    assert len(read_dipole_series(cut, LOG, "current", start=0.05).values) == 20
    # So may it hold NaN.
    undefined = write(tmp_path, replaced(3, "nan"), "undefined")
    assert len(read_dipole_series(undefined, LOG, "current", start=0.02).values) == 26
    # Times from the steps.
    text = "# step a\n" + "".join(f"{10 * i} {x}\n" for i, x in enumerate(VALUES[:, 0]))
    series = read_dipole_series(write(tmp_path, text, "steps"), ["a"], "current", "metal", timestep=0.001, start=0.1)
    assert (series.values[:, 0] == VALUES[10:, 0]).all()


def test_volume_and_temperature(tmp_path):
    path = write(tmp_path, log_text((0, 30)))
    given = read_dipole_series(path, LOG, "current", volume=500.0, temperature=10.0)
    assert (given.volume, given.temperature) == (500.0, 10.0)
    assert read_dipole_series(path, LOG, "current", temperature="Volume").temperature == 1000.0
    rows = "".join(f"{i},{i},{x},2.5\n" for i, x in enumerate(VALUES[:, 0]))
    path = write(tmp_path, f"Step,Time (ps),Jx (e nm/ps),Box Volume (nm^3)\n{rows}")
    assert read_dipole_series(path, ["Jx"], volume="Box Volume").volume == pytest.approx(2500.0)


def replaced(row: int, word: str) -> str:
    """The log with one number of a row replaced."""
    lines = log_text((0, 30)).splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == [str(10 * row)])
    lines[at] = " ".join([*lines[at].split()[:-1], word])
    return "\n".join(lines) + "\n"


COLUMNS = "# step t x y z\n" + "".join(f"{i} {i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(VALUES))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (log_text((0, 30)), {"columns": ["c_j[4]"]}, r"no column 'c_j\[4\]'; its columns are: Step, Time, Temp"),
        (log_text((0, 30)), {"columns": None}, r"name the columns \(--columns\): Step, Time"),
        (log_text((0, 30)), {"columns": [*LOG, "Temp"]}, "one to three columns .* not 4"),
        (log_text((0, 30)), {"columns": ["c_j[1]", "c_j[1]"]}, r"a column is given twice: c_j\[1\] c_j\[1\]"),
        (log_text((0, 30)), {"quantity": None}, r"is column c_j\[1\] the dipole moment or its derivative\?"),
        (log_text((0, 30)), {"units": "real"}, "a log in units metal, not real"),
        (log_text((0, 30)).replace("metal", "lj"), {}, "a log in units lj; units metal and real are known"),
        (log_text((0, 30)).replace("units           metal", ""), {}, r"units of .* are not known: give --units"),
        (log_text((0, 12), (14, 30)), {}, r"step 110 is followed by 140 where the interval is 10 \(2 row"),
        (replaced(7, "nan"), {}, r"1 row\(s\) hold no finite number, first row 8, column c_j\[3\]: nan"),
        (replaced(7, "-inf"), {}, r"no finite number, first row 8"),
        (replaced(7, "1.0 2.0"), {}, r"line \d+: 8 values where 7 are expected"),
        (replaced(7, "0.3x"), {}, r"line \d+: '0.3x' is not a number"),
        (log_text(), {}, "no thermodynamic output"),
        ("units metal\n------------ Step              0 ----- CPU =   0 (sec) ---\n", {}, "thermo_modify line one"),
        (log_text((0, 30)), {"start": 0.2}, r"0 row\(s\) of data are left"),
        (log_text((0, 30)), {"step_column": "Steps"}, "no column 'Steps'"),
        (log_text((0, 30)), {"step_column": "Time"}, "does not hold whole numbers"),
        (log_text((0, 30)), {"volume": "Vol"}, "no column 'Vol'"),
        (log_text((0, 30)), {"timestep": 0.002}, "steps are equally spaced but times are not"),
        (COLUMNS, {"columns": ["x"], "units": "metal"}, "steps but no times: give the time step"),
        (COLUMNS, {"columns": ["x"], "units": "metal", "start": 1.0}, "by time needs times: name their column"),
        (COLUMNS, {"columns": ["x"], "units": "si"}, "units must be one of metal, real, openmm"),
        (COLUMNS + "30 30 1 2\n", {"columns": ["x"], "units": "metal"}, "line 32: 4 values where 5 are expected"),
        (COLUMNS + "30 30 1 a 2\n", {"columns": ["x"], "units": "metal"}, "line 32: 'a' is not a number"),
        ("1 2 3\n4 5 6\n", {"columns": ["4"]}, r"its columns are: 3 without names \(give numbers, from 1\)"),
        ("1 2 3\n4 5 7\n", {"columns": ["3"], "units": "metal"}, "neither a column of steps nor one of times"),
        (
            "# time x\n" + "".join(f"{0.0004 * i:.3f} {x}\n" for i, x in enumerate(VALUES[:, 0])),
            {"columns": ["x"], "units": "metal"},
            "neighbouring rows have the same time: it is printed with too few digits",
        ),
        ("# nothing\n", {}, "holds no rows of numbers"),
        ("", {}, "holds no rows of numbers"),
        (REPORTER + "\n", {"columns": None}, "holds no rows of numbers"),
        ("1,2,3\n4,5,6\n", {}, "first line of a CSV file must name the columns"),
        (REPORTER + "\n1,2,3\n", {}, "line 2: 3 values where 6 are expected"),
        (
            "Step,Time (ps),a (e nm),b (e nm/ps)\n1,1,1,1\n2,2,2,2\n",
            {"columns": ["a", "b"]},
            r"columns a \(e nm\), b \(e nm/ps\) have different units",
        ),
        (REPORTER + "\n1,1,1,1,1,1\n", {"columns": ["Dipole x"]}, "unit of a dipole, not of a current"),
        ("Time,a (e nm)\n1,1\n2,2\n", {"columns": ["a"], "quantity": "dipole"}, "unit of the column Time is not known"),
        (
            "Step,Time (ps),a (e nm),V\n1,1,1,1\n2,2,2,1\n",
            {"columns": ["a"], "quantity": "dipole", "volume": "V"},
            "unit of the column V is not known",
        ),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        read_dipole_series(write(tmp_path, text), **{"columns": LOG, "quantity": "current", **options})


def test_wrapped_dipole(tmp_path):
    moment = np.cumsum(VALUES[:, 0]) + np.where(np.arange(30) > 20, 500.0, 0.0)
    path = write(tmp_path, "# time m\n" + "".join(f"{i} {m}\n" for i, m in enumerate(moment)))
    with pytest.raises(ValueError, match=r"jumps by .* after 20 ps"):
        read_dipole_series(path, ["m"], "dipole", "metal")
    assert len(read_dipole_series(path, ["m"], "dipole", "metal", allow_jumps=True).values) == 30
