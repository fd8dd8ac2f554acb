"""Files of ``torch.save`` written by hand: pickles of single instructions, hostile ones, archives around them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import torch


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


class Reduces:
    """Pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


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
