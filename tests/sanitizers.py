"""The tests of the LAMMPS plugin with the plugin compiled for sanitizers: ``make sanitize``.

AddressSanitizer (with LeakSanitizer) and UndefinedBehaviorSanitizer watch the plugin, and libstdc++ checks its
indices. LAMMPS, PyTorch and Python are not compiled for it: only their calls of malloc and free are seen, so a block
that they allocated is as well guarded as one of the plugin's own.

The runtime has to be in a process before anything else, so it is preloaded into every program that the tests start.
Each writes a file where it finds something; whatever the tests say, the command fails if a file has

- an error of AddressSanitizer or UndefinedBehaviorSanitizer, which also end the program, or
- a leak whose allocation has the plugin among its callers. Leaks of Python, PyTorch and MPI are counted and printed.

Before the tests, a small library with one fault of each kind has to be reported.

    python -m tests.sanitizers [arguments of pytest]     tests/lammps and tests/engines by default
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "sanitizers"
REPORTS = WORK / "reports"

FLAGS = (
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-D_GLIBCXX_ASSERTIONS",
)

TESTS = ["tests/lammps", "tests/engines"]
# What cannot run so, or has nothing to do with the compiled plugin.
LEFT_OUT = {
    "tests/lammps/force_style/test_killed_run.py::test_out_of_memory": "limits the address space, which ASan reserves",
    "tests/lammps/test_build.py::test_sources_compile_without_a_warning": "compiles only",
    "tests/lammps/test_build.py::test_cmake_build_configures": "configures only",
    "tests/lammps/test_system_mpi.py": "other LAMMPS and MPI, built without sanitizers",
}

#: The libraries whose leaks are findings.
OURS = ("lesplugin.so", "operators.so", "planted.so")

# UBSan of GCC leaves its option log_path unread when it is not alone, but has the function behind it.
PRELOADED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
__attribute__((constructor)) static void write_reports_to_files(void)
{
  void *library = dlopen("libubsan.so.1", RTLD_NOW | RTLD_NOLOAD);
  void (*set_path)(const char *) = 0;
  if (library) *(void **) &set_path = dlsym(library, "__sanitizer_set_report_path");
  const char *path = getenv("LES_MD_UBSAN_REPORTS");
  if (set_path && path) set_path(path);
}
"""

PLANTED = """
#include <limits>
#include <vector>
extern "C" int overflow(const int *values, int index) { return values[index]; }
extern "C" int undefined(int number) { return std::numeric_limits<int>::max() + number; }
extern "C" int assertion(int size) { return std::vector<int>(size)[size]; }
extern "C" int leak(int size)
{
  for (int i = 0; i < 10; ++i) {    // a stale pointer on the stack may hide the last
    int *volatile lost = new int[size];
    lost[0] = size;
  }
  return 0;
}
"""
CALLS = {
    "overflow": "values = libc.malloc(40); library.overflow(ctypes.c_void_p(values), 10)",
    "undefined": "library.undefined(1)",
    "leak": "library.leak(1000)",
    "assertion": "library.assertion(3)",
}


def wrapper() -> Path:
    """The compiler with ``FLAGS``, as one program: PyTorch's compiler takes no options in CXX."""
    path = WORK / "g++"
    path.write_text(f'#!/bin/sh\nexec {shlex.join([*compiler(), *FLAGS])} "$@"\n')
    path.chmod(0o755)
    return path


def compiler() -> list[str]:
    """GCC: the runtime is a shared library of its own."""
    return shlex.split(os.environ.get("CXX", "g++"))


def runtime(name: str) -> str:
    """Path of one of the compiler's shared libraries."""
    found = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{shlex.join(compiler())} has no {name}: sanitizers need GCC with its runtime (libasan, libubsan)")
    return str(path.resolve())


def environment() -> dict[str, str]:
    """Of every program that the tests start."""
    # An exit status of 0 after leaks: those of compilers and shells are none of our business. The format names the
    # library of every frame.
    common = "abort_on_error=1:handle_abort=0:stack_trace_format='    #%n %f %s:%l (%m)'"
    libraries = [runtime("libasan.so"), runtime("libubsan.so"), runtime("libstdc++.so.6"), str(WORK / "reports.so")]
    return {
        **os.environ,
        "CXX": str(wrapper()),
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": f"{common}:exitcode=0:detect_leaks=1:detect_stack_use_after_return=1:log_path={REPORTS}/asan",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        "LES_MD_UBSAN_REPORTS": f"{REPORTS}/ubsan",
    }


@dataclass
class Findings:
    """What the files of reports say."""

    errors: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # through one of OURS
    other_leaks: Counter = field(default_factory=Counter)  # bytes by the program or library that allocated
    processes: int = 0  # with a report


def allocator(record: str) -> str:
    """The library nearest to the allocation that is not the runtime or libstdc++."""
    modules = [Path(line.rsplit("(", 1)[1].rstrip(")")).name for line in record.splitlines() if "(" in line]
    others = [name for name in modules[1:] if not re.match(r"lib(asan|stdc\+\+)\.", name)]
    return others[0] if others else "unknown"


def read_reports(folder: Path) -> Findings:
    """Errors, leaks of ours, and what else leaks, of all files of reports in a folder."""
    found = Findings()
    for path in sorted(folder.iterdir()):
        text = path.read_text(errors="replace")
        found.processes += 1
        head, *records = re.split(r"\n(?=(?:Direct|Indirect) leak of )", text)
        for record in records:
            record = record.split("\n\n")[0]
            size = int(re.search(r"leak of (\d+) byte", record)[1])
            if any(f"/{name})" in record for name in OURS):
                found.leaks.append(f"{path.name}\n{record}")
            else:
                found.other_leaks[allocator(record)] += size
        if not records or "runtime error" in text:
            found.errors.append(f"{path.name}\n{head.strip()}")
    return found


def compile_library(name: str, source: str, language: str, flags: tuple[str, ...]) -> Path:
    path = WORK / name
    command = [*compiler(), "-x", language, "-", *flags, "-O1", "-fPIC", "-shared", "-o", str(path), "-ldl"]
    subprocess.run(command, input=source, text=True, check=True)
    return path


def check_that_faults_are_reported() -> None:
    """Every planted fault in a process of its own, under the same options."""
    library = compile_library("planted.so", PLANTED, "c++", FLAGS)
    for name, call in CALLS.items():
        shutil.rmtree(REPORTS, ignore_errors=True)
        REPORTS.mkdir()
        code = (
            "import ctypes; libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
            f"library = ctypes.CDLL({str(library)!r})\n{call}"
        )
        done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
        found = read_reports(REPORTS)
        seen = {
            "overflow": "heap-buffer-overflow" in "".join(found.errors),
            "undefined": "signed integer overflow" in "".join(found.errors),
            "leak": bool(found.leaks) and not found.errors,
            "assertion": "__n < this->size()" in done.stderr,
        }[name]
        if not seen or (done.returncode == 0) != (name == "leak"):
            sys.exit(f"the planted fault '{name}' was not reported (exit status {done.returncode}):\n{done.stderr}")
    shutil.rmtree(REPORTS)
    REPORTS.mkdir()
    print(f"planted faults are reported: {', '.join(CALLS)}", flush=True)


def main(arguments: list[str]) -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    compile_library("reports.so", PRELOADED, "c", ())
    check_that_faults_are_reported()
    # Compiled before, so that the compiler runs without the preloaded libraries.
    plain = {**os.environ, "CXX": environment()["CXX"]}
    subprocess.run([sys.executable, "-c", "import les_md.lammps; les_md.lammps.build()"], env=plain, check=True)
    left_out = [option for name in LEFT_OUT for option in ("--deselect", name)]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *left_out, *(arguments or TESTS)]
    tests = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode

    found = read_reports(REPORTS)
    for text in found.errors + found.leaks:
        print(f"\n{text}")
    print(f"\nexit status of the tests: {tests}; processes with a report: {found.processes}")
    print("leaks of others, bytes:", ", ".join(f"{name} {size}" for name, size in found.other_leaks.most_common(12)))
    print(f"errors: {len(found.errors)}, leaks of the plugin: {len(found.leaks)}")
    return 1 if tests or found.errors or found.leaks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
