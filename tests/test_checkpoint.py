"""Reading checkpoints: published ones load, hostile ones are refused by name and leave no trace."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from les_md.stand_in import StandIn


def write_archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, with any pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def save(path: Path, contents: object) -> Path:
    torch.save(contents, path)
    return path


# ---- hand-written pickles


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(path: str) -> bytes:
    """GLOBAL, which cannot hold dotted names."""
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, which can."""
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def touch(marker: Path) -> bytes:
    return text(f"touch {marker}")


def python(marker: Path) -> bytes:
    return text(f"open({str(marker)!r}, 'w')")


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


LINEAR = name("torch.nn.modules.linear.Linear")
IDENTITY = name("torch.nn.modules.linear.Identity")
GETATTR = name("__builtin__.getattr")
ORDERED = call(name("collections.OrderedDict"))


def with_attribute(instance: bytes, attribute: str, value: bytes) -> bytes:
    return instance + b"}" + text(attribute) + value + b"sb"


#: What a pickle asks for, and the pickle.
HOSTILE = [
    ("os.system", lambda m: call(name("os.system"), touch(m))),
    ("posix.system", lambda m: call(name("posix.system"), touch(m))),
    ("subprocess.getoutput", lambda m: call(name("subprocess.getoutput"), touch(m))),
    ("builtins.eval", lambda m: call(name("builtins.eval"), python(m))),
    ("builtins.eval", lambda m: call(name("__builtin__.eval"), python(m))),
    ("builtins.exec", lambda m: call(name("builtins.exec"), python(m))),
    ("builtins.__import__", lambda m: call(name("builtins.__import__"), text("os"))),
    ("importlib.import_module", lambda m: call(name("importlib.import_module"), text("os"))),
    ("runpy.run_path", lambda m: call(name("runpy.run_path"), text(str(m)))),
    ("builtins.open", lambda m: call(name("builtins.open"), text(str(m)), text("w"))),
    ("io.open", lambda m: call(name("io.open"), text(str(m)), text("w"))),
    ("numpy.load", lambda m: call(name("numpy.load"), text(str(m)))),
    ("pickle.loads", lambda m: call(name("pickle.loads"), text("x"))),
    ("functools.partial", lambda m: call(name("functools.partial"), name("os.system"), touch(m))),
    ("operator.attrgetter", lambda m: call(name("operator.attrgetter"), text("x"))),
    ("operator.methodcaller", lambda m: call(name("operator.methodcaller"), text("x"))),
    ("codecs.decode", lambda m: call(name("codecs.decode"), text("x"), text("hex"))),
    ("torch.load", lambda m: call(name("torch.load"), text(str(m)))),
    ("torch.hub.load", lambda m: call(name("torch.hub.load"), text(str(m)))),
    ("torch.hub.load", lambda m: call(stack_name("torch", "hub.load"), text(str(m)))),
    ("torch.jit.load", lambda m: call(name("torch.jit.load"), text(str(m)))),
    ("torch.from_file", lambda m: call(name("torch.from_file"), text(str(m)), b"\x88", b"K\x10")),
    ("torch.save", lambda m: call(name("torch.save"), b"N", text(str(m)))),
    ("torch.storage._load_from_bytes", lambda m: call(name("torch.storage._load_from_bytes"), text("x"))),
    ("torch._utils._rebuild_wrapper_subclass", lambda m: call(name("torch._utils._rebuild_wrapper_subclass"))),
    ("torch._utils._import_dotted_name", lambda m: call(name("torch._utils._import_dotted_name"), text("os.system"))),
    ("torch._tensor._rebuild_from_type_v2", lambda m: call(name("torch._tensor._rebuild_from_type_v2"))),
    ("torch.utils.data.DataLoader", lambda m: name("torch.utils.data.DataLoader")),
    ("torch.nn.modules.container.operator.add", lambda m: stack_name("torch.nn.modules.container", "operator.add")),
    ("torch.nn.modules.container.OrderedDict", lambda m: name("torch.nn.modules.container.OrderedDict")),
    ("torch.nn.modules.linear.torch", lambda m: name("torch.nn.modules.linear.torch")),
    ("torch.nn.parallel.DataParallel", lambda m: name("torch.nn.parallel.DataParallel")),
    ("foo.bar", lambda m: call(name("foo.bar"))),
    ("foo.bar.Baz", lambda m: name("foo.bar.Baz") + b")\x81"),
    ("cacexyz.Model", lambda m: name("cacexyz.Model") + b")\x81"),
    # The same through other instructions.
    ("os.system", lambda m: b"(" + touch(m) + b"ios\nsystem\n"),
    ("os.system", lambda m: b"(" + name("os.system") + touch(m) + b"o"),
    ("os.system", lambda m: stack_name("os", "system") + b"(" + touch(m) + b"t\x81"),
    ("subprocess.Popen", lambda m: name("subprocess.Popen") + b"(" + touch(m) + b"t\x81"),
    ("subprocess.Popen", lambda m: name("subprocess.Popen") + b"(" + touch(m) + b"t}\x92"),
    # A hostile call inside a harmless one, inside a state, as a key, as the id of a storage.
    ("os.system", lambda m: call(name("collections.OrderedDict"), call(name("os.system"), touch(m)))),
    ("os.system", lambda m: LINEAR + b")\x81}" + text("x") + call(name("os.system"), touch(m)) + b"sb"),
    ("os.system", lambda m: b"}" + call(name("os.system"), touch(m)) + b"Ns"),
    ("os.system", lambda m: call(name("os.system"), touch(m)) + b"Q"),
    # Classes and values that may be stored are not to be called.
    ("torch.nn.modules.linear.Linear", lambda m: call(LINEAR, b"K\x02", b"K\x02")),
    ("torch.nn.modules.linear.Linear", lambda m: b"(K\x02K\x02itorch.nn.modules.linear\nLinear\n"),
    ("torch.nn.modules.linear.Linear", lambda m: LINEAR + b"(K\x02K\x02t\x81"),
    ("torch.nn.functional.silu", lambda m: call(name("torch.nn.functional.silu"), b"K\x02")),
    ("builtins.str", lambda m: call(name("builtins.str"), b"K\x02")),
    ("builtins.type", lambda m: call(name("builtins.type"), text("X"), b")", b"}")),
    ("les.les.Les", lambda m: call(name("les.les.Les"), b"K\x02")),
    # What getattr would have fetched is never there to be called.
    ("getattr", lambda m: call(call(GETATTR, LINEAR, text("__init__")), b"N")),
    ("getattr", lambda m: call(call(GETATTR, name("torch._C._VariableFunctionsClass"), text("from_file")), b"N")),
    # State of things other than modules.
    ("builtins.type", lambda m: name("builtins.str") + b"}" + text("x") + b"Nsb"),
    ("builtins.function", lambda m: name("torch.nn.functional.silu") + b"}" + text("__code__") + b"Nsb"),
    ("builtins.list", lambda m: b"]}" + text("x") + b"Nsb"),
    # Items of things other than containers.
    ("torch.nn.modules.container.ModuleList", lambda m: name("torch.nn.modules.container.ModuleList") + b")\x81Na"),
    ("torch.nn.modules.linear.Linear", lambda m: LINEAR + b")\x81" + text("x") + b"Ns"),
    ("encoding", lambda m: call(name("_codecs.encode"), text("x"), text("rot13"))),
    ("instructions", lambda m: b"\x82\x01"),
    ("instructions", lambda m: b"P0\n"),
    ("instructions", lambda m: b"\x83\x01\x00"),
    ("instructions", lambda m: b"\x84\x01\x00\x00\x00"),
    ("instructions", lambda m: b"\x97"),
    ("instructions", lambda m: b"C\x01x\x98"),
    # An OrderedDict has attributes, and methods that reading calls: a class in their place, and its constructor runs.
    ("update of an OrderedDict", lambda m: with_attribute(ORDERED, "update", IDENTITY) + b"(NNu"),
    ("keys of an OrderedDict", lambda m: LINEAR + b")\x81" + with_attribute(ORDERED, "keys", IDENTITY) + b"b"),
    ("items of an OrderedDict", lambda m: LINEAR + b")\x81}" + text("_modules")
     + with_attribute(ORDERED + text("x") + b"Ns", "items", name("collections.OrderedDict")) + b"sb"),
    ("__qualname__ of an OrderedDict", lambda m: call(with_attribute(ORDERED, "__qualname__", b"N"))),
    ("__class__ of an OrderedDict", lambda m: with_attribute(ORDERED, "__class__", LINEAR)),
    # Names next to those in the tables.
    ("collections.defaultdict", lambda m: call(name("collections.defaultdict"), name("os.getcwd"))),
    ("collections.UserDict", lambda m: name("collections.UserDict") + b")\x81"),
    ("functools.partial", lambda m: name("functools.partial") + name("os.system") + b"\x85\x81"),
    ("operator.attrgetter", lambda m: name("operator.attrgetter") + text("x") + b"\x85}\x92"),
    ("copyreg.add_extension", lambda m: call(name("copyreg.add_extension"), text("os"), text("system"), b"K\x01")),
    ("copyreg.__newobj__", lambda m: call(name("copyreg.__newobj__"), LINEAR)),
    ("types.CodeType", lambda m: call(name("types.CodeType"))),
    ("ctypes.CDLL", lambda m: call(name("ctypes.CDLL"), text("libc.so.6"))),
    ("torch._utils._rebuild_tensor_v3", lambda m: call(name("torch._utils._rebuild_tensor_v3"))),
    ("torch._utils._rebuild_sparse_tensor", lambda m: call(name("torch._utils._rebuild_sparse_tensor"))),
    ("torch._utils._rebuild_qtensor", lambda m: name("torch._utils._rebuild_qtensor")),
    ("torch.UntypedStorage.from_file", lambda m: call(stack_name("torch", "UntypedStorage.from_file"), text(str(m)))),
    ("torch.fx.graph_module._forward_from_src",
     lambda m: call(name("torch.fx.graph_module._forward_from_src"), python(m), b"}")),
    ("torch.utils.cpp_extension.load", lambda m: call(name("torch.utils.cpp_extension.load"))),
    ("numpy.memmap", lambda m: call(name("numpy.memmap"), text(str(m)))),
    ("numpy.ndarray", lambda m: call(name("numpy.ndarray"), b"K\x01\x85")),
    ("numpy.ndarray", lambda m: name("numpy.ndarray") + b"K\x01\x85\x85\x81"),
    ("builtins.bytes", lambda m: call(name("builtins.bytes"), b"K\x01")),
    ("torch.nn.modules.linear.Linear.__init__", lambda m: stack_name("torch.nn.modules.linear", "Linear.__init__")),
    ("torch.nn.modules.linear.__builtins__", lambda m: stack_name("torch.nn.modules.linear", "__builtins__")),
    ("les..x", lambda m: stack_name("les.", "x")),
    ("e3nn.o3...os.x", lambda m: stack_name("e3nn.o3...os", "x")),
    # What is asked for is shown as one short line.
    (r"'os\x1b[2J\n.x'", lambda m: stack_name("os\x1b[2J\n", "x")),
    ("xxx' …", lambda m: name("os." + 1_000_000 * "x")),
    ("xxx' …", lambda m: call(name("les." + 1_000_000 * "x"))),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("asked", "body"), HOSTILE, ids=[f"{i}-{case[0]}" for i, case in enumerate(HOSTILE)])
def test_hostile_pickles_are_refused_by_name(asked, body, protocol, tmp_path):
    marker = tmp_path / "marker"
    path = write_archive(tmp_path / "model.pth", program(body(marker), protocol))
    with pytest.raises(UnsafeCheckpointError) as refusal:
        read_checkpoint(path)
    assert asked in str(refusal.value)
    assert "nothing was run" in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert not marker.exists()


def numpy_objects(depth: int) -> bytes:
    """An array that contains an array that contains an array …"""
    dtype = call(name("numpy.dtype"), text("O8"), b"\x89", b"\x88")
    dtype += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    array = call(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"(K\x00t", b"C\x01b")
    return dtype + b"q\x000N" + depth * (b"q\x010" + array + b"(K\x01(K\x01th\x00\x89]h\x01atb")


DEEP, WIDE = b"N" + b"\x85" * 1_000_000, b"N" + b"2\x86" * 60
RANGE = call(name("__builtin__.range"), integer(10**15))
IRREP = name("e3nn.o3._irreps.Irrep")
NUMPY_ARRAY = call(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"K\x00\x85", b"C\x01b")
NUMPY_OBJECTS = (
    call(name("numpy.dtype"), text("O8")) + b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
)


def nested(count: int, outer: bytes, *given: bytes) -> bytes:
    """A value in a value in a value: ``outer`` takes the inner one from the memo at 0, those ``given`` at 1, 2, ..."""
    stored = b"".join(content + b"q" + bytes([number]) + b"0" for number, content in enumerate(given, 1))
    return stored + b"N" + count * (b"q\x000" + outer)


#: What overflows the stack of C, never ends, or fills the memory, if Python is left to do it.
OVERFLOWS = {
    "key": (b"}" + DEEP + b"Ns", "a tuple of too many parts"),
    "keys": (b"}(" + DEEP + b"Nu", "a tuple of too many parts"),
    "dictionary at once": (b"(" + DEEP + b"Nd", "a tuple of too many parts"),
    "items of a set": (b"\x8f(" + DEEP + b"\x90", "a tuple of too many parts"),
    "frozen set": (b"(" + DEEP + b"\x91", "a tuple of too many parts"),
    "called set": (call(name("__builtin__.set"), b"]" + DEEP + b"a"), "a tuple of too many parts"),
    "ordered dictionary": (
        call(name("collections.OrderedDict"), b"]" + DEEP + b"N\x86a"),
        "a tuple of too many parts",
    ),
    "no pairs": (call(name("collections.OrderedDict"), b"]K\x01a"), "not made of pairs"),
    "key of 2^60 parts": (b"}" + WIDE + b"Ns", "a tuple of too many parts"),
    "nested arrays": (numpy_objects(200_000), "contains other arrays"),
    "bytearray of 2^40 bytes": (b"\x96" + struct.pack("<Q", 1 << 40), "longer than the file"),
    "encoding of 2^60 parts": (call(name("_codecs.encode"), text("x"), WIDE), "asks for the encoding a tuple"),
    "numpy type of 2^60 parts": (call(name("numpy.dtype"), WIDE, b"\x89", b"\x88"), "numpy type a tuple"),
    "name of 2^60 parts": (call(with_attribute(ORDERED, "__module__", WIDE)), "__module__ of an OrderedDict"),
    "Irrep of 2^60 parts": (IRREP + WIDE + b"K\x01\x86\x81", "a tuple of a named class is made of too many parts"),
    "Irreps of 10^15 parts": (name("e3nn.o3._irreps.Irreps") + RANGE + b"\x85\x81", "made of a range"),
    "10^15 arguments": (LINEAR + RANGE + b"\x81", "without a tuple of arguments"),
    "10^15 arguments, named": (LINEAR + RANGE + b"}\x92", "without a tuple of arguments"),
    "size of 10^15 parts": (call(name("torch._utils._rebuild_tensor"), b"N", b"K\x00", RANGE, RANGE), "is no tuple"),
    "10^15 compiled functions": (with_attribute(LINEAR + b")\x81", "__codegen__", RANGE), "the compiled code of"),
    "storage of 10^15 parts": (RANGE + b"Q", "a storage has an unexpected form"),
    "array of 10^15 bytes": (
        call(
            name("numpy.core.numeric._frombuffer"), integer(10**15), call(name("numpy.dtype"), text("f8")), b"K\x01\x85"
        ),
        "something that is no bytes",
    ),
    "array without a size of item": (
        NUMPY_ARRAY
        + b"(K\x01"
        + 2 * integer(1 << 40)
        + b"\x86"
        + call(name("numpy.dtype"), text("S0"))
        + b"\x89C\x00tb",
        "no proper type or shape",
    ),
    "equal sets": (b"\x8f(" + 2 * nested(50_000, b"(h\x00\x91") + b"\x90", "maximum recursion depth"),
    # These are no different from what a file may hold, but for their depth; made, and taken down again.
    "deep lists": (nested(100_000, b"]h\x00a"), ""),
    "deep frozen sets": (nested(100_000, b"(h\x00\x91"), ""),
    "deep attributes": (nested(50_000, with_attribute(b"h\x01)R", "x", b"h\x00"), name("collections.OrderedDict")), ""),
    "deep modules": (nested(30_000, with_attribute(b"h\x01)\x81", "x", b"h\x00"), LINEAR), ""),
    "deep arguments": (nested(30_000, b"h\x01h\x00\x85\x81", name("cuequivariance.irreps.Irreps")), ""),
    "deep arrays": (
        nested(
            30_000,
            b"h\x01(h\x02K\x00\x85C\x01btR(K\x01K\x01\x85h\x03\x89]]h\x00aatb",
            name("numpy.core.multiarray._reconstruct"),
            name("numpy.ndarray"),
            NUMPY_OBJECTS,
        ),
        "",
    ),
}


@pytest.fixture(scope="module")
def overflow_results(tmp_path_factory):
    """Of every case, in a process of its own with 4 GB and 60 s of the processor: its exit status, and the message."""
    script = (
        "import os, resource, sys; from les_md.checkpoint import read_checkpoint\n"
        "from les_md.checkpoint_errors import CheckpointError\n"
        "def read(path):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "    try: read_checkpoint(path)\n"
        "    except CheckpointError as error: return str(error)\n"
        "    return ''\n"
        "for path in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        open(path + '.message', 'w').write(read(path))\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(child, 0)[1])"
    )
    folder = tmp_path_factory.mktemp("overflows")
    paths = [
        write_archive(folder / f"{number}.pth", program(body)) for number, (body, _) in enumerate(OVERFLOWS.values())
    ]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    messages = [Path(f"{path}.message") for path in paths]
    texts = [message.read_text() if message.exists() else done.stderr[-2000:] for message in messages]
    return dict(zip(OVERFLOWS, zip(map(int, done.stdout.split()), texts, strict=True), strict=True))


@pytest.mark.parametrize("case", OVERFLOWS)
def test_overflows(case, overflow_results):
    if b"e3nn" in OVERFLOWS[case][0]:
        pytest.importorskip("e3nn", reason="e3nn is not installed")
    status, message = overflow_results[case]
    assert status == 0, message
    expected = OVERFLOWS[case][1]
    assert expected in message if expected else not message
    assert len(message) < 1000


def test_keys_of_e3nn(tmp_path):
    """Whose irreps are tuples without a len()."""
    pytest.importorskip("e3nn", reason="e3nn is not installed")
    body = b"}" + IRREP + b"K\x01J\xff\xff\xff\xff\x86\x81K\x02\x86" + text("value") + b"s"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert [(str(irrep), number) for irrep, number in read] == [("1o", 2)]


def test_keys_of_real_files(tmp_path):
    contents = {(1, ("a", (2.5, None))): 1, frozenset({(1, 2)}): 2, (): 3}
    ordered = collections.OrderedDict([((0, 1), "pair"), ("text", 2)])
    read = read_checkpoint(save(tmp_path / "model.pth", [contents, ordered, {(1, 2), (3,)}]))
    assert read == [contents, ordered, {(1, 2), (3,)}]


class Reduces:
    """Pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle(protocol, tmp_path):
    marker = tmp_path / "marker"
    data = pickle.dumps({"weights": [1, Reduces(os.system, f"touch {marker}")]}, protocol)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        read_checkpoint(write_archive(tmp_path / "model.pth", data))
    assert not marker.exists()


def test_hostile_file_made_by_torch_save(tmp_path):
    marker = tmp_path / "marker"
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.hook = Reduces(eval, f"open({str(marker)!r}, 'w')")
    with pytest.raises(UnsafeCheckpointError, match=r"builtins\.eval"):
        read_checkpoint(save(tmp_path / "model.pth", model))
    assert not marker.exists()


def test_source_of_graph_modules_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w')\ndef forward(self, x):\n    return x\n"
    body = call(name("torch.fx.graph_module.reduce_graph_module"), b"}" + text("_code") + text(source) + b"s", text(""))
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert isinstance(read, StandIn)
    assert not marker.exists()


class WritesWhenLoaded(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.data = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.data = torch.from_file(state[0], True, 4)


def test_torchscript_inside_a_checkpoint_is_not_loaded(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(WritesWhenLoaded(str(marker))), buffer)
    stored = {"__codegen__": {"_compiled_main": buffer.getvalue()}, "weight_numel": 4}
    body = name("e3nn.o3._linear.Linear") + b")\x81" + pickle.dumps(stored, 2)[2:-1] + b"b"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert type(read).__module__ == "e3nn.o3._linear"
    assert read.weight_numel == 4
    assert "_compiled_main" not in read._modules
    assert not marker.exists()
    buffer.seek(0)
    torch.jit.load(buffer)
    assert marker.exists(), "the test file was harmless after all"


def test_stand_ins_are_used_even_if_the_package_is_installed(tmp_path, monkeypatch):
    (tmp_path / "les").mkdir()
    (tmp_path / "les" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    body = name("les.les.Les") + b")\x81}" + text("sigma") + b"G" + struct.pack(">d", 1.5) + b"sb"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert (read.class_path, read.sigma, read.get("dl"), read.get("dl", 2.0)) == ("les.les.Les", 1.5, None, 2.0)
    assert "les" not in sys.modules


# ---- memory


def tensor_program(offset=0, size=(2,), stride=(1,), numel=2, kind="FloatStorage") -> bytes:
    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    storage = b"(" + text("storage") + name(f"torch.{kind}") + text("0") + text("cpu") + numbers([numel])[1:-1] + b"tQ"
    return call(
        name("torch._utils._rebuild_tensor_v2"),
        storage,
        numbers([offset])[1:-1],
        numbers(size),
        numbers(stride),
        b"\x89",
        call(name("collections.OrderedDict")),
    )


def test_tensor(tmp_path):
    content = struct.pack("<2f", 1.0, 2.0)
    path = write_archive(tmp_path / "model.pth", program(tensor_program()), {"0": content})
    assert read_checkpoint(path).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "changes",
    [{"size": (3,)}, {"offset": 1}, {"stride": (2,)}, {"offset": -1}, {"size": (-2,)}, {"numel": 3}, {"numel": 1},
     {"numel": 1 << 30}, {"kind": "DoubleStorage"}, {"size": (1 << 30, 1 << 30), "stride": (1, 0)}],
)  # fmt: skip
def test_tensors_beyond_their_storage_are_refused(changes, tmp_path):
    content = struct.pack("<2f", 1.0, 2.0)
    path = write_archive(tmp_path / "model.pth", program(tensor_program(**changes)), {"0": content})
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_numpy_types_cannot_turn_bytes_into_pointers(tmp_path):
    dtype = call(name("numpy.dtype"), text("O8"), b"\x89", b"\x88")
    # Without the flags of an object type, numpy would take bytes for the array's content.
    state = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    array = call(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"(K\x00t", b"C\x01b")
    body = array + b"(K\x01(K\x01t" + dtype + state + b"b\x89C\x08AAAAAAAAtb"
    with pytest.raises(CheckpointError, match="length of its shape"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))


@pytest.mark.parametrize(
    "saved_id",
    [text("0"), b"]", b"}", tensor_program(), b"(NNNNt", b"(NNNNNNt", b"(NNNNNt",
     b"(" + text("storage") + name("torch.float32") + text("0") + text("cpu") + b"K\x02t",
     b"(" + text("storage") + name("torch.FloatStorage") + b"K\x00" + text("cpu") + b"K\x02t",
     b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"J\xff\xff\xff\xfft"],
)  # fmt: skip
def test_storages_of_unexpected_form(saved_id, tmp_path):
    path = write_archive(tmp_path / "model.pth", program(saved_id + b"Q"), {"0": bytes(8)})
    with pytest.raises(CheckpointError, match="a storage has an unexpected form"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["../data.pkl", "../../../etc/passwd", "/etc/passwd", ""])
def test_storages_are_members_of_the_archive(key, tmp_path):
    saved_id = b"(" + text("storage") + name("torch.ByteStorage") + text(key) + text("cpu") + b"K\x02tQ"
    path = write_archive(tmp_path / "model.pth", program(saved_id), {"0": bytes(8)})
    with pytest.raises(CheckpointError, match="no item named"):
        read_checkpoint(path)


def test_storage_of_two_types(tmp_path):
    body = tensor_program() + b"0" + tensor_program(kind="IntStorage")
    with pytest.raises(CheckpointError, match="with two types"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body), {"0": bytes(8)}))


@pytest.mark.parametrize(("offset", "size"), [(1000, 1), (0, 1000)])
def test_views_do_not_enlarge_their_storage(offset, size, tmp_path):
    """A view of 2^30 elements of one number, in place of a storage."""
    view = tensor_program(size=(1 << 30,), stride=(0,))
    body = call(name("torch._utils._rebuild_tensor"), view, integer(offset), integer(size) + b"\x85", b"K\x01\x85")
    with pytest.raises(CheckpointError, match="out of bounds for storage"):
        read_checkpoint(write_archive(tmp_path / "model.pth", program(body), {"0": bytes(8)}))


# ---- archives


def test_compressed_archive(tmp_path):
    """Which torch.save does not write, but who saves space might."""
    source = save(tmp_path / "model.pth", {"weights": torch.arange(10_000)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert (tmp_path / "small.pth").stat().st_size < source.stat().st_size / 2
    assert torch.equal(read_checkpoint(tmp_path / "small.pth")["weights"], torch.arange(10_000))


def test_compressed_a_thousandfold(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", program(tensor_program(numel=1 << 22)))
        archive.writestr("a/data/0", bytes(1 << 24))
    with pytest.raises(CheckpointError, match="larger than the file can hold"):
        read_checkpoint(path)


def nested_archive(path: Path, count: int) -> Path:
    """Uncompressed members, each of which is the next one with its header."""
    content, entries = b"x", []
    for number in range(count):
        member = f"a/data/{number}".encode() if number < count - 1 else b"a/data.pkl"
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(member), 0
        )
        content = b"PK\3\4" + common + member + content
        entries.append((common, member, len(content)))
    directory = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(content) - length) + member
        for common, member, length in entries
    )
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(content), 0)
    path.write_bytes(content + directory + b"PK\5\6" + end)
    return path


def test_members_inside_one_another(tmp_path):
    """A file of n bytes whose members have n^2 / 200."""
    path = nested_archive(tmp_path / "model.pth", 200)
    with zipfile.ZipFile(path) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 25 * path.stat().st_size
    with pytest.raises(CheckpointError, match="larger than the file can hold"):
        read_checkpoint(path)


def patched(path: Path, place: int, value: bytes) -> Path:
    """An archive with one entry of its directory changed, ``place`` bytes from the signature."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (24, struct.pack("<I", 0xFFFFFFF0), "larger than the file can hold"),  # size
        (24, struct.pack("<I", 0xFFFFFFFF), "damaged|not a file written"),  # size in a zip64 field that is not there
        (20, struct.pack("<I", 2), "damaged"),  # compressed size
        (8, b"\x01\x00", "damaged: RuntimeError"),  # encrypted
        (10, b"\x63\x00", "damaged: NotImplementedError"),  # method of compression
        (42, struct.pack("<I", 1 << 30), "damaged"),  # place of the member
        (16, b"\x00\x00", "damaged: BadZipFile"),  # checksum
        (8, b"\x00\x08" + bytes(36) + b"\xff\xfe", "damaged"),  # a name that says it is UTF-8, and is not
        (46, b"../", "damaged|not one written"),  # the first member has another name than its header says
    ],
)
def test_directory_that_lies(place, value, message, tmp_path):
    path = patched(write_archive(tmp_path / "model.pth", program(b"N")), place, value)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_members_of_the_same_name_or_role(tmp_path):
    path = write_archive(tmp_path / "model.pth", program(b"N"))
    for member in ("archive/data.pkl", "other/data.pkl"):
        with zipfile.ZipFile(write_archive(path, program(b"N")), "a") as archive:
            if member in archive.namelist():
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(member, program(b"N"))
            else:
                archive.writestr(member, program(b"N"))
        with pytest.raises(CheckpointError, match="several members of its archive have the same role"):
            read_checkpoint(path)


def test_description_of_a_folder_that_nests_deeply(tmp_path):
    for member in ("model.pt", "state.pt"):
        save(tmp_path / member, {})
    (tmp_path / "model.json").write_text(100_000 * "[")
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        read_checkpoint(tmp_path)


# ---- honest files


def test_protection_of_torch_stays_on(shared):
    """MACE switches it off for the whole process when it is imported."""
    script = (
        "import os, sys; from les_md.checkpoint import read_checkpoint; read_checkpoint(sys.argv[1]); "
        "assert 'mace' in sys.modules and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ"
    )
    pytest.importorskip("mace", reason="mace-torch is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"}
    path = shared / "models" / "maceles_water_nl1_l0.model"
    subprocess.run([sys.executable, "-c", script, path], check=True, env=environment)


def test_published_checkpoints_load(shared):
    paths = sorted((shared / "models").iterdir())
    assert len(paths) >= 6
    for path in paths:
        if path.suffix == ".model":
            pytest.importorskip("mace", reason="mace-torch is not installed")
        contents = read_checkpoint(path)
        if path.name.startswith("cace"):
            assert contents.class_path == "cace.models.atomistic.NeuralNetworkPotential"
            weights = contents.tensor("representation.radial_transform.weights.0")
            assert weights.shape[:2] == (6, 12)
            assert not weights.requires_grad
            assert contents.submodule("output_modules.0.les.ewald").norm_factor == 90.0474
            assert "representation.node_embedding_sender.embedding_weights" in contents.state_dict()
            with pytest.raises(AttributeError, match=r"radial_transform\.nothing"):
                contents.tensor("representation.radial_transform.nothing")
        elif path.name.startswith("mace"):
            assert type(contents).__name__ == "MACELES"
            assert contents.les.ewald.class_path == "les.module.ewald.Ewald"
        else:
            assert isinstance(contents, dict)
            assert "hyper_parameters" in contents


def test_plain_contents(tmp_path):
    shared_tensor = torch.arange(6.0).reshape(2, 3)
    contents = {
        "tensors": [shared_tensor, shared_tensor.T, torch.tensor(3), torch.empty(0, 4), torch.tensor([True])],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
        "numbers": (1, 2.5, 1 + 2j, None, True, 2**100),
        "containers": [{1, 2}, frozenset({3}), collections.OrderedDict(a=1), b"bytes", bytearray(b"array"), range(3)],
        "numpy": [np.float64(1.5), np.int32(4), np.arange(4.0).reshape(2, 2), np.array(["a", None], dtype=object)],
        "types": [torch.float32, torch.device("cuda", 1), torch.Size([2, 3]), float],
        "functions": [torch.nn.functional.silu, torch.tanh, torch.nn.functional.softplus],
    }
    read = read_checkpoint(save(tmp_path / "contents.pth", contents))
    for key in ("numbers", "containers", "types", "functions"):
        assert read[key] == contents[key]
    for got, want in zip(read["tensors"], contents["tensors"], strict=True):
        assert torch.equal(got, want)
        assert got.dtype == want.dtype
    read["tensors"][0][0, 1] = 7.0
    assert read["tensors"][1][1, 0] == 7.0
    assert isinstance(read["parameter"], torch.nn.Parameter)
    assert read["parameter"].requires_grad
    for got, want in zip(read["numpy"], contents["numpy"], strict=True):
        np.testing.assert_array_equal(got, want)
        assert type(got) is type(want)


def test_torch_modules_work(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.LayerNorm(4))
    model.extra = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2))])
    read = read_checkpoint(save(tmp_path / "model.pth", model))
    x = torch.ones(2, 3)
    assert torch.equal(read[:3](x), model[:3](x))
    assert len(read.extra) == 1
    assert read.state_dict().keys() == model.state_dict().keys()


def test_bound_methods_become_inert(tmp_path):
    body = b"}" + text("operation") + call(name("__builtin__.getattr"), b"N", text("add")) + b"s"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body, 2)))
    assert not callable(read["operation"])
    assert "add" in repr(read["operation"])


# ---- files that are no checkpoints


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder, but not one that matgl's save wrote"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"H 0.0 0.0 0.0\n", "not a file written by torch.save"),
        (b"PK\x03\x04" + bytes(50), "truncated"),
    ],
)
def test_foreign_files(content, message, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_file(share, tmp_path):
    path = save(tmp_path / "model.pth", {"weights": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated|not a file written"):
        read_checkpoint(path)


def test_changed_bytes(tmp_path):
    path = save(tmp_path / "model.pth", {"weights": torch.randn(1000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_truncated_pickle(tmp_path):
    data = pickle.dumps({"a": [1, 2, 3]}, 2)
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            read_checkpoint(write_archive(tmp_path / "model.pth", data[:end]))


def test_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one written by torch\.save"):
        read_checkpoint(tmp_path / "a.zip")


def test_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match=r"TorchScript.*already exported"):
        read_checkpoint(tmp_path / "model.pt")


def test_old_format(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_checkpoint(tmp_path / "old.pth")


def test_big_endian(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(tmp_path / "model.pth")


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    class NotInstalled:
        @staticmethod
        def find_spec(module, path=None, target=None):
            if module.split(".")[0] == "mace":
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    for module in [module for module in sys.modules if module.split(".")[0] == "mace"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.models.ScaleShiftMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace.*pip install 'les_md\[mace\]'"):
        read_checkpoint(path)


def test_class_that_the_installed_package_lacks(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.models.NewMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace\.modules\.models\.NewMACE.*installed mace does not have"):
        read_checkpoint(path)
    path = write_archive(tmp_path / "model.pth", program(name("mace.modules.novel.NewMACE") + b")\x81"))
    with pytest.raises(CheckpointError, match=r"mace\.modules\.novel"):
        read_checkpoint(path)


def test_functions_and_reexports_of_listed_packages_are_refused(tmp_path):
    pytest.importorskip("mace", reason="mace-torch is not installed")
    for path in (
        "mace.modules.utils.compute_forces",
        "mace.modules.models.AtomicEnergiesBlock",
        "mace.tools.utils.tensor_dict_to_device",
    ):
        with pytest.raises(UnsafeCheckpointError, match=path):
            read_checkpoint(write_archive(tmp_path / "model.pth", program(name(path) + b")\x81")))
