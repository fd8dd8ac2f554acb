r"""Reading checkpoints without running anything that is in them.

``torch.save`` of a whole module is a pickle, and a pickle is a program: ``torch.load`` of a hostile one runs whatever
its author liked. ``read_checkpoint`` reads the same files with an interpreter of its own that can do little:

* **Names.** A name is looked up as the pair (module, attribute) in the tables of this file, never by walking
  attributes: dotted names (``torch`` / ``hub.load``) are in no table. What is in no table is refused, and nothing is
  imported for it.
* **Calls.** REDUCE, INST and OBJ call only functions defined in this file. They stand for what real checkpoints call
  (rebuilding tensors, parameters, sets, numpy arrays) and check their arguments. Whatever else a name stands for – a
  class, an activation function, a dtype – can be stored in the result but not called. No constructor of a class runs.
* **Objects.** NEWOBJ makes empty modules (subclasses of ``torch.nn.Module`` defined in torch.nn.modules, e3nn or
  mace.modules under their own name), stand-ins, and a few tuples. BUILD fills the ``__dict__`` of a module and never
  calls the ``__setstate__`` of its class.
* **Code.** Real MACE files carry two kinds of it, both left out here: the Python source of ``torch.fx`` graph modules
  (``reduce_graph_module`` would execute it) and the TorchScript of e3nn's compiled functions (loading TorchScript
  runs its ``__setstate__``, and TorchScript can write files). ``architectures.e3nn_code`` makes both again from the
  stored sizes.
* **Containers.** APPEND, SETITEM and their plurals act on exact lists, dicts, sets and OrderedDicts only. Keys are
  tuples of few parts at most: Python hashes nested tuples by recursion in C, which would overflow its stack.
* **Storages** are read by this file and their length is checked, so that no tensor reaches beyond its memory; so are
  numpy arrays (the ``__setstate__`` of a dtype could let raw bytes pass as pointers). Nested ``torch.load`` is
  refused.

What is left to a hostile file: being wrong, large or slow, and storing unexpected attributes in modules of known
classes. Methods of these then work on strange values, but the only functions among such values are activation
functions.

Classes of packages that are not needed or not to be had (``cace``, ``cuequivariance``, ``les``, ``nequip_les``) become
a ``StandIn`` that stores their state; these packages are never imported, installed or not. Where a file calls something
of cuEquivariance, a stand-in stores the arguments.
"""

from __future__ import annotations

import _compat_pickle
import importlib
import io
import json
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch


class CheckpointError(ValueError):
    """A file cannot be read as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A file asks for something that reading a checkpoint does not need."""


class StandIn(torch.nn.Module):
    """State of an object whose class is not imported.

    Attributes, parameters, buffers and submodules are found as on the original; methods are not there.
    """

    #: Where the original class lives, as ``package.module.Class``.
    class_path: str = ""

    def __init__(self) -> None:
        raise TypeError("stand-ins come from checkpoints only")

    def __repr__(self) -> str:
        return f"StandIn({self.class_path})"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self.class_path} is only a stand-in for its stored state")

    def get(self, name: str, default: Any = None) -> Any:
        """Attribute, parameter, buffer or submodule ``name``, or the default."""
        return getattr(self, name, default)

    def find(self, path: str) -> Any:
        """What is at a dotted path; digits index lists and module lists. AttributeError if it is not there."""
        found: Any = self
        for part in path.split("."):
            if isinstance(found, (list, tuple)) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, torch.nn.Module) and hasattr(found, part):
                found = getattr(found, part)
            else:
                raise AttributeError(f"{self.class_path} has no {path!r} (nothing at {part!r})")
        return found

    def tensor(self, path: str) -> torch.Tensor:
        """The tensor at a dotted path, without gradient."""
        found = self.find(path)
        if not isinstance(found, torch.Tensor):
            raise AttributeError(f"{self.class_path}.{path} is not a tensor but {type(found).__name__}")
        return found.detach()

    def submodule(self, path: str) -> torch.nn.Module:
        """The module at a dotted path."""
        found = self.find(path)
        if not isinstance(found, torch.nn.Module):
            raise AttributeError(f"{self.class_path}.{path} is not a module but {type(found).__name__}")
        return found


@dataclass(frozen=True)
class SavedFolder:
    """A folder as matgl's ``save`` writes it: arguments of a constructor, weights, and a description as JSON."""

    arguments: dict
    state: dict
    description: dict

    @property
    def class_path(self) -> str:
        """What is saved, as ``module.Class``, and the class of the model in it."""
        model = self.arguments.get("model")
        inner = f" of a {model.get('@class')}" if isinstance(model, dict) else ""
        return f"{self.description.get('@module')}.{self.description.get('@class')}{inner}"


#: The files of a ``SavedFolder``.
FOLDER_FILES = ("model.pt", "state.pt", "model.json")


class NotCalled:
    """What a call was for that was not made, e.g. a bound method fetched with getattr."""

    def __init__(self, call: str) -> None:
        self.call = call

    def __repr__(self) -> str:
        return f"NotCalled({self.call})"


def read_checkpoint(path: str | os.PathLike) -> Any:
    """The object in a file written by ``torch.save``, tensors on the CPU; a ``SavedFolder`` for a folder of matgl.

    Raises
    ------
    UnsafeCheckpointError : it asks for something outside the tables of this file; nothing of it was run.
    CheckpointError : it is missing, damaged, TorchScript, in torch's format before 1.6, or no torch file at all.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file")
    if os.path.isdir(path):
        return _read_folder(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is not a file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: {_describe_foreign(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if not pickled:
                raise CheckpointError(f"{path} is a zip archive but not one written by torch.save")
            root = pickled[0].removesuffix("data.pkl")
            if root + "constants.pkl" in archive.namelist():
                raise CheckpointError(
                    f"{path} is TorchScript, not a checkpoint: perhaps it is already exported? "
                    "An exported model is used as it is; les-export needs the file that training wrote."
                )
            if len(pickled) > 1 or len(set(archive.namelist())) != len(archive.namelist()):
                raise CheckpointError(f"{path} is damaged: several members of its archive have the same role")
            return _RestrictedUnpickler(archive, root).load()
    except CheckpointError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error.__cause__
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # A damaged pickle can fail anywhere in the interpreter.
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read_folder(path: str) -> SavedFolder:
    """The three files of a folder that matgl wrote."""
    missing = [name for name in FOLDER_FILES if not os.path.isfile(os.path.join(path, name))]
    if missing:
        raise CheckpointError(
            f"{path} is a folder, but not one that matgl's save wrote: it lacks {', '.join(missing)}. Give the "
            "checkpoint file itself"
        )
    try:
        with open(os.path.join(path, "model.json"), encoding="utf-8") as file:
            description = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"{os.path.join(path, 'model.json')} is damaged: {error}") from error
    arguments, state = (read_checkpoint(os.path.join(path, name)) for name in FOLDER_FILES[:2])
    for name, content in zip(FOLDER_FILES, (arguments, state, description), strict=True):
        if not isinstance(content, dict):
            raise CheckpointError(f"{os.path.join(path, name)} holds no dictionary but a {type(content).__name__}")
    return SavedFolder(dict(arguments), dict(state), description)


def _describe_foreign(path: str) -> str:
    """What a file that is no zip archive may be, in words."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty"
    if start[:4] == b"PK\x03\x04":
        return "the file is truncated: it starts as torch.save writes it, but its end is missing"
    if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start:
        return (
            "the file is in torch's format before 1.6, which is not read here; load it with the program that wrote it, "
            "and save it again with a newer torch"
        )
    return "not a file written by torch.save"


# ---- names

#: Packages whose classes become stand-ins. Graph modules refer to classes of torch.fx that made them.
_STAND_IN_PACKAGES = ("cace", "cuequivariance", "cuequivariance_torch", "les", "nequip_les", "torch.fx")

#: Classes that become stand-ins, of modules whose other classes do not.
_STAND_IN_CLASSES = {
    # The long-range energy of MACE-LES models trained with les-mace-train, of which only the parameters are needed.
    ("les_md.les", "Les"),
    ("les_md.charge_head", "LatentChargeHead"),
    ("mace.modules.wrapper_ops", "CuEquivarianceConfig"),
    ("mace.tools.cg", "O3_e3nn"),
}

#: Stand-ins may be made with arguments, which they store, if their class is in these packages.
_STAND_INS_WITH_ARGUMENTS = ("cuequivariance.", "cuequivariance_torch.")

#: Modules, and prefixes of modules, whose torch.nn.Module subclasses are taken as they are.
_MODULE_CLASSES = (
    "torch.nn.modules.activation",
    "torch.nn.modules.container",
    "torch.nn.modules.dropout",
    "torch.nn.modules.linear",
    "torch.nn.modules.normalization",
    "torch.nn.modules.sparse",
    "e3nn.o3.",
    "e3nn.nn.",
    "e3nn.math.",
    "mace.modules.",
)

#: Tuple subclasses, made with their own __new__; these only parse numbers and strings.
_TUPLE_CLASSES = {
    ("e3nn.o3._irreps", "Irrep"),
    ("e3nn.o3._irreps", "_MulIr"),
    ("e3nn.o3._irreps", "Irreps"),
    ("e3nn.o3._linear", "Instruction"),
    ("e3nn.o3._tensor_product._instruction", "Instruction"),
}

#: Where a class moved since a file was written.
_MOVED = {("mace.modules.models", "MACELES"): ("mace.modules.extensions", "MACELES")}

_INSTALL = "pip install 'les_md[mace]'"

_OEQ = (
    "the model was made for OpenEquivariance, which is not supported; convert it back where it was trained with "
    "`python -m mace.cli.convert_oeq_e3nn MODEL --output_model e3nn.model --return_model`"
)

#: Why a package or class is not in the tables, where there is a way out.
_HINTS = {
    "openequivariance": _OEQ,
    "mace.modules.wrapper_ops.OEQConfig": _OEQ,
}


#: Where a real checkpoint may ask for what is refused as unsafe.
_UNSAFE_BUT_REAL = {
    "torch._tensor._rebuild_from_type_v2": (
        " (but a MACE model of an old cuEquivariance, such as 0.8, which gave tensors attributes: convert that where "
        "it was trained with `mace_cueq_to_e3nn MODEL --output_model e3nn.model --return_model`)"
    ),
}


class _StorageType:
    """Stands for torch.FloatStorage and its like in persistent ids."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def _shown(thing: Any) -> str:
    """For messages; of a text itself, of anything else, which may be huge when printed, only its type."""
    return repr(thing) if type(thing) is str and len(thing) < 200 else f"a {type(thing).__name__}"


#: Parts of a key of a dictionary or a set, nested ones included.
_MAX_KEY_PARTS = 1000


def _check_keys(keys: Any) -> None:
    """That hashing does not recurse deeply: hash() of nested tuples overflows the stack of C, or takes for ever."""
    for key in keys:
        if not isinstance(key, tuple):
            continue
        parts, count = [key], 0
        while parts:
            part = parts.pop()
            count += len(part)
            if count > _MAX_KEY_PARTS:
                raise CheckpointError("a key of a dictionary or set is a tuple of too many parts")
            parts.extend(inner for inner in part if isinstance(inner, tuple))


def _are_natural(numbers: Any) -> bool:
    return type(numbers) is tuple and all(type(n) is int and n >= 0 for n in numbers)


def _rebuild_tensor(
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    """torch._utils._rebuild_tensor_v2 with its bounds checked."""
    size, stride = tuple(size), tuple(stride)
    if not isinstance(storage, torch.Tensor) or len(size) != len(stride):
        raise CheckpointError("a tensor has no storage")
    if not _are_natural((offset, *size, *stride)):
        raise CheckpointError("a tensor has a size, stride or offset that is not a natural number")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= storage.numel():
        raise CheckpointError("a tensor is larger than its storage")
    if metadata:
        raise CheckpointError("a tensor has a conjugate or negative bit, which is not supported")
    tensor = torch.as_strided(storage, size, stride, offset)
    if requires_grad and (tensor.is_floating_point() or tensor.is_complex()):
        tensor.requires_grad_(True)
    return tensor


def _rebuild_parameter(
    data: torch.Tensor, requires_grad: bool, hooks: Any = None, state: Any = None
) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise CheckpointError("a parameter is not a tensor")
    return torch.nn.Parameter(data.detach(), bool(requires_grad) and data.is_floating_point())


def _device(kind: Any = "cpu", index: Any = None) -> torch.device:
    if type(kind) is not str or not (index is None or type(index) is int):
        raise CheckpointError("a device has no name")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    # Any other encoding would be imported by name.
    if type(text) is not str or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnsafeCheckpointError(f"it asks for the encoding {_shown(encoding)}; nothing was run")
    return text.encode(encoding)


def _reconstruct(cls: Any, base: Any, state: Any) -> Any:
    """copyreg._reconstructor, the NEWOBJ of pickle protocols 0 and 1."""
    if base is not object or state is not None:
        raise CheckpointError("an object is made of another one in a way that is not supported")
    return _new_object(cls, ())


#: getattr(torch._C._VariableFunctionsClass, name) is how torch.tanh and its like are pickled.
_TORCH_FUNCTIONS = object()
_ACTIVATIONS = ("tanh", "sigmoid", "relu", "abs", "sin", "cos", "exp", "square", "softmax", "selu", "celu", "erf")


def _get_attribute(owner: Any = None, name: Any = None, *default: Any) -> Any:
    if owner is _TORCH_FUNCTIONS and type(name) is str and name in _ACTIVATIONS:
        return getattr(torch, name)
    return NotCalled(f"builtins.getattr(…, {_shown(name)})")


def _graph_module(body: Any = None, source: Any = None, *rest: Any) -> StandIn:
    """A torch.fx graph module without its source."""
    return _new_object(_stand_in_class("torch.fx.graph_module", "GraphModule"), ())


def _numpy_dtype(kind: Any = None, align: Any = False, copy: Any = True) -> numpy.dtype:
    if type(kind) is not str or not re.fullmatch(r"[<>=|]?[biufcSUO]\d+", kind):
        raise CheckpointError(f"numpy type {_shown(kind)} is not supported")
    return numpy.dtype(kind)


def _numpy_scalar(dtype: Any = None, data: Any = None) -> Any:
    if not isinstance(dtype, numpy.dtype) or dtype.hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
        raise CheckpointError("a numpy number has no proper type or length")
    return numpy.frombuffer(data, dtype)[0]


def _numpy_array(cls: Any = None, shape: Any = None, kind: Any = None) -> numpy.ndarray:
    if cls is not numpy.ndarray:
        raise CheckpointError("a numpy array is of a class that is not supported")
    return numpy.empty((0,), numpy.int8)


def _numpy_from_buffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> numpy.ndarray:
    array = numpy.empty((0,), numpy.int8)
    _set_array(array, (1, shape, dtype, order == "F", bytes(data)))
    return array


def _set_array(array: numpy.ndarray, state: Any) -> None:
    """ndarray.__setstate__, with types and lengths checked."""
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, numpy.dtype) or not _are_natural(shape):
        raise CheckpointError("a numpy array has no proper type or shape")
    count = math.prod(shape)
    proper = type(data) is list and len(data) == count if dtype.hasobject else len(data) == count * dtype.itemsize
    if not proper or (not dtype.hasobject and type(data) is not bytes):
        raise CheckpointError("a numpy array does not have the length of its shape")
    if dtype.hasobject and any(isinstance(entry, numpy.ndarray) for entry in data):
        # numpy frees nested arrays by recursion in C.
        raise CheckpointError("a numpy array contains other arrays, which is not supported")
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _make(kind: type, *types: type) -> Any:
    """A constructor of a harmless builtin that takes at most one argument of the given types."""

    def construct(*arguments: Any) -> Any:
        if len(arguments) > 1 or (arguments and type(arguments[0]) not in types):
            raise CheckpointError(f"a {kind.__name__} is made of something that is not supported")
        if arguments and kind in (set, frozenset):
            _check_keys(arguments[0])
        return kind(*arguments)

    return construct


def _bytearray(*arguments: Any) -> bytearray:
    if arguments and type(arguments[0]) is str:
        return bytearray(_encode(*arguments))
    return _make(bytearray, bytes, bytearray)(*arguments)


def _ordered_dict(*arguments: Any) -> OrderedDict:
    if arguments and type(arguments[0]) is list:
        if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in arguments[0]):
            raise CheckpointError("an OrderedDict is not made of pairs")
        _check_keys(pair[0] for pair in arguments[0])
    return _make(OrderedDict, list, dict)(*arguments)


def _numbers(kind: type) -> Any:
    def construct(*arguments: Any) -> Any:
        if len(arguments) > 3 or not all(type(x) in (int, float, type(None)) for x in arguments):
            raise CheckpointError(f"a {kind.__name__} is not made of numbers")
        return kind(*arguments)

    return construct


#: Functions that a pickle may call.
_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "device"): _device,
    ("torch", "Size"): _make(torch.Size, tuple, list),
    ("torch.fx.graph_module", "reduce_graph_module"): _graph_module,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _make(set, list, tuple),
    ("builtins", "frozenset"): _make(frozenset, list, tuple),
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): _numbers(complex),
    ("builtins", "slice"): _numbers(slice),
    ("builtins", "range"): _numbers(range),
    ("builtins", "getattr"): _get_attribute,
}
for _package in ("numpy.core", "numpy._core"):
    _FUNCTIONS[_package + ".multiarray", "_reconstruct"] = _numpy_array
    _FUNCTIONS[_package + ".multiarray", "scalar"] = _numpy_scalar
    _FUNCTIONS[_package + ".numeric", "_frombuffer"] = _numpy_from_buffer
_FUNCTIONS["numpy", "dtype"] = _numpy_dtype
_CALLABLE = {id(function) for function in _FUNCTIONS.values()}

#: Things that a pickle may store but not call.
_VALUES: dict[tuple[str, str], Any] = {("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()}
_VALUES["torch._C", "_VariableFunctionsClass"] = _TORCH_FUNCTIONS
_VALUES["torch._C", "_VariableFunctions"] = _TORCH_FUNCTIONS
_VALUES["numpy", "ndarray"] = numpy.ndarray
for _dtype in _STORAGE_DTYPES.values():
    _VALUES["torch", str(_dtype).removeprefix("torch.")] = _dtype
for _type in (object, int, float, bool, str, bytes, list, dict, tuple):
    _VALUES["builtins", _type.__name__] = _type
for _name in ("silu", "relu", "gelu", "elu", "leaky_relu", "softplus", "sigmoid", "tanh", "mish", "selu", "celu"):
    _VALUES["torch.nn.functional", _name] = getattr(torch.nn.functional, _name)
for _name in ("gelu", "softplus", "silu"):
    _VALUES["torch._C._nn", _name] = getattr(torch._C._nn, _name)
for _name in _ACTIVATIONS:
    _VALUES["torch", _name] = getattr(torch, _name)


def _resolve(module: str, name: str) -> Any:
    """What a name in a pickle stands for; refuses what is in no table."""
    # Protocols before 3 use the names of Python 2.
    key = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
    module, name = key
    if key in _FUNCTIONS:
        return _FUNCTIONS[key]
    if key in _VALUES:
        return _VALUES[key]
    package = module.split(".")[0]
    plain = all(part.isidentifier() for part in (*module.split("."), name))
    stands_in = key in _STAND_IN_CLASSES or any(f"{module}.".startswith(f"{entry}.") for entry in _STAND_IN_PACKAGES)
    if plain and stands_in:
        return _stand_in_class(module, name)
    module, name = _MOVED.get(key, key)
    is_tuple = (module, name) in _TUPLE_CLASSES
    hint = _HINTS.get(f"{module}.{name}", _HINTS.get(package))
    if hint:
        raise CheckpointError(f"it needs {module}.{name}: {hint}")
    listed = any(module.startswith(entry) if entry.endswith(".") else module == entry for entry in _MODULE_CLASSES)
    if not plain or not (is_tuple or listed):
        real = _UNSAFE_BUT_REAL.get(f"{module}.{name}", "")
        raise UnsafeCheckpointError(
            f"it asks for {module}.{name}, which no known checkpoint needs{real}; nothing was run"
        )
    try:
        found = vars(_import(module)).get(name)
    except ImportError as error:
        if package in ("mace", "e3nn") and error.name is not None and error.name.split(".")[0] == package:
            if error.name == package:
                raise CheckpointError(f"it needs {package}, which is not installed: {_INSTALL}") from error
            raise CheckpointError(f"it needs {module}, which the installed {package} does not have") from error
        raise CheckpointError(f"it needs {module}, which cannot be imported: {error}") from error
    if not isinstance(found, type) or found.__module__ != module or found.__name__ != name:
        if found is None:
            raise CheckpointError(f"it needs {module}.{name}, which the installed {package} does not have")
        raise UnsafeCheckpointError(f"it asks for {module}.{name}, which is no class of that module; nothing was run")
    if not (is_tuple or issubclass(found, torch.nn.Module)):
        raise UnsafeCheckpointError(f"it asks for {module}.{name}, which is not a torch module; nothing was run")
    return found


def _import(module: str) -> Any:
    """Import a listed module, and leave torch's own protection against pickles as it is.

    At import, e3nn 0.4 loads a file of its own that torch refuses because of its slices; MACE switches the protection
    off for the whole process, and for those it starts, to get around that.
    """
    switch = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    try:
        with torch.serialization.safe_globals([slice]):
            return importlib.import_module(module)
    finally:
        if before is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = before


def _stand_in_class(module: str, name: str) -> type[StandIn]:
    return type(name, (StandIn,), {"class_path": f"{module}.{name}"})


# ---- objects


def _describe(thing: Any) -> str:
    if isinstance(thing, NotCalled):
        return thing.call
    if isinstance(thing, type) and issubclass(thing, StandIn):
        return thing.class_path
    if isinstance(thing, torch.nn.Module):  # whose attributes come from the file
        thing = type(thing)
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _takes_arguments(cls: Any) -> bool:
    """Whether a class is a stand-in that stores the arguments it is made with; no constructor runs."""
    return isinstance(cls, type) and issubclass(cls, StandIn) and cls.class_path.startswith(_STAND_INS_WITH_ARGUMENTS)


def _new_object(cls: Any, arguments: tuple) -> Any:
    if cls is _FUNCTIONS["collections", "OrderedDict"] and arguments == ():
        return OrderedDict()
    if isinstance(cls, type):
        if arguments and _takes_arguments(cls):
            made = _new_object(cls, ())
            made.arguments = arguments
            return made
        if issubclass(cls, torch.nn.Module) and arguments == ():
            made = object.__new__(cls)
            torch.nn.Module.__init__(made)
            return made
        if (cls.__module__, cls.__name__) in _TUPLE_CLASSES:
            return cls.__new__(cls, *arguments)
    raise UnsafeCheckpointError(f"it asks to make an object of {_describe(cls)} with arguments; nothing was run")


def _set_state(instance: Any, state: Any) -> None:
    if isinstance(instance, numpy.ndarray):
        _set_array(instance, state)
        return
    if isinstance(instance, numpy.dtype):
        # The constructor already got all of it but the byte order, and only the machine's own is supported.
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("|", "<", "="):
            raise CheckpointError("a numpy type has an unexpected state")
        return
    if isinstance(state, tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    if type(state) not in (dict, OrderedDict) or not all(type(key) is str for key in state):
        raise CheckpointError(f"the state of {_describe(type(instance))} is not a dictionary of attributes")
    if type(instance) is OrderedDict:
        instance.__dict__.update(state)
        return
    if not isinstance(instance, torch.nn.Module):
        raise UnsafeCheckpointError(f"it asks to set the state of {_describe(type(instance))}; nothing was run")
    state = dict(state)
    compiled = state.pop("__codegen__", None)
    if compiled is not None:  # Compiled code is left out, its names stay.
        state["__codegen__"] = [name for name in compiled if type(name) is str]
    for group in ("_parameters", "_buffers", "_modules"):
        entries = state.get(group, {})
        kind = torch.nn.Module if group == "_modules" else torch.Tensor
        if not isinstance(entries, dict) or not all(
            type(name) is str and (entry is None or isinstance(entry, kind)) for name, entry in entries.items()
        ):
            raise CheckpointError(f"{group} of {_describe(type(instance))} is damaged")
    torch.nn.Module.__setstate__(instance, state)
    if isinstance(instance, torch.nn.ParameterList) and "_size" not in instance.__dict__:
        instance._size = len(instance._parameters)  # absent in files of torch before 1.12


class _RestrictedUnpickler(pickle._Unpickler):
    """Pickle's own interpreter in Python, with every instruction that acts on objects replaced."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._storages: dict[str, torch.Tensor] = {}
        byteorder = root + "byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise CheckpointError("it was written on a big-endian machine, which is not supported")
        super().__init__(io.BytesIO(archive.read(root + "data.pkl")), encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        return _resolve(module, name)

    def persistent_load(self, saved_id: Any) -> torch.Tensor:
        """A storage, as a tensor of its elements."""
        kind, storage_type, key, _location, numel = saved_id
        if (kind, type(storage_type), type(key)) != ("storage", _StorageType, str) or not _are_natural((numel,)):
            raise CheckpointError("a storage has an unexpected form")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(data) != numel * storage_type.dtype.itemsize:
                raise CheckpointError(f"storage {key} does not have the length it claims")
            self._storages[key] = (
                torch.frombuffer(data, dtype=storage_type.dtype) if data else torch.empty(0, dtype=storage_type.dtype)
            )
        storage = self._storages[key]
        if storage.dtype != storage_type.dtype:
            raise CheckpointError(f"storage {key} is used with two types")
        return storage

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is tuple and _takes_arguments(function):
            return _new_object(function, arguments)
        if id(function) not in _CALLABLE:
            raise UnsafeCheckpointError(f"it asks to call {_describe(function)}; nothing was run")
        if type(arguments) is not tuple:
            raise CheckpointError("a call has no tuple of arguments")
        return function(*arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _instantiate(self, klass: Any, args: list) -> None:  # INST and OBJ
        made = _new_object(klass, ()) if isinstance(klass, type) and not args else self._call(klass, tuple(args))
        self.append(made)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _new_object(self.stack[-1], tuple(arguments))

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        arguments = self.stack.pop()
        if named:
            raise CheckpointError("an object is made with named arguments, which is not supported")
        self.stack[-1] = _new_object(self.stack[-1], tuple(arguments))

    def load_build(self) -> None:
        state = self.stack.pop()
        _set_state(self.stack[-1], state)

    def load_append(self) -> None:
        value = self.stack.pop()
        self._container(list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._container(list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _check_keys([key])
        self._container(dict, OrderedDict)[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self._container(dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        _check_keys(items)
        self._container(set).update(items)

    def load_bytearray8(self) -> None:
        # Read before it is stored: pickle's own makes room first, for as much as the file claims.
        length = int.from_bytes(self.read(8), "little")
        data = self.read(length)
        if len(data) != length:
            raise CheckpointError("a bytearray is longer than the file")
        self.append(bytearray(data))

    def load_dict(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        _check_keys(items)
        self.append(frozenset(items))

    def _container(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise UnsafeCheckpointError(f"it asks to put items into {_describe(type(self.stack[-1]))}; nothing was run")
        return self.stack[-1]

    def load_unsupported(self) -> None:
        raise UnsafeCheckpointError("it uses pickle instructions that no checkpoint needs; nothing was run")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    for _opcode in (
        pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER
    ):  # fmt: skip
        dispatch[_opcode[0]] = load_unsupported
