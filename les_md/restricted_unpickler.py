r"""The interpreter that reads the pickle of a checkpoint without running anything that is in it.

``torch.save`` of a whole module is a pickle, and a pickle is a program: ``torch.load`` of a hostile one runs whatever
its author liked. ``checkpoint.read_checkpoint`` reads the same files with the interpreter of this file, which can do
little:

* **Names.** A name is looked up as the pair (module, attribute) in the tables of this file, never by walking
  attributes: dotted names (``torch`` / ``hub.load``) are in no table. What is in no table is refused, and nothing is
  imported for it.
* **Calls.** REDUCE, INST and OBJ call only the functions in a table of this file, defined here and in
  ``unpickled_values.py``. They stand for what real checkpoints call (rebuilding tensors, parameters, sets, numpy
  arrays) and check their arguments. Whatever else a name stands for – a class, an activation function, a dtype – can be
  stored in the result but not called. No constructor of a class runs.
* **Objects.** NEWOBJ makes empty modules (subclasses of ``torch.nn.Module`` defined in torch.nn.modules, e3nn or
  mace.modules under their own name), stand-ins, and a few tuples. BUILD fills the ``__dict__`` of a module and never
  calls the ``__setstate__`` of its class. An OrderedDict may have attributes, but none that hides a method: reading it
  would call what the file put there.
* **Code.** Real MACE files carry two kinds of it, both left out here: the Python source of ``torch.fx`` graph modules
  (``reduce_graph_module`` would execute it) and the TorchScript of e3nn's compiled functions (loading TorchScript
  runs its ``__setstate__``, and TorchScript can write files). ``architectures.e3nn_code`` makes both again from the
  stored sizes.
* **Containers.** APPEND, SETITEM and their plurals act on exact lists, dicts, sets and OrderedDicts only. Keys are
  tuples of few parts at most: Python hashes nested tuples by recursion in C, which would overflow its stack.
* **Sizes.** Where something is iterated over or printed, its type is checked first: a range of 10^15 numbers and a
  tuple of 2^60 parts are short in a file.
* **Storages** are read by this file and their length is checked, so that no tensor reaches beyond its memory; so is
  that of numpy arrays (the ``__setstate__`` of a dtype could let raw bytes pass as pointers). Nested ``torch.load`` is
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
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, ClassVar

import numpy
import torch

from les_md import unpickled_values as values
from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from les_md.stand_in import NotCalled, StandIn, stand_in_class

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

# ---- calls


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
    return NotCalled(f"builtins.getattr(…, {values.shown(name)})")


def _graph_module(body: Any = None, source: Any = None, *rest: Any) -> StandIn:
    """A torch.fx graph module without its source."""
    return _new_object(stand_in_class("torch.fx.graph_module", "GraphModule"), ())


#: Functions that a pickle may call.
_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): values.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): values.rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): values.rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): values.rebuild_parameter,
    ("torch", "device"): values.make_device,
    ("torch", "Size"): values.constructor(torch.Size, tuple, list),
    ("torch.fx.graph_module", "reduce_graph_module"): _graph_module,
    ("_codecs", "encode"): values.encode,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("collections", "OrderedDict"): values.make_ordered_dict,
    ("builtins", "set"): values.constructor(set, list, tuple),
    ("builtins", "frozenset"): values.constructor(frozenset, list, tuple),
    ("builtins", "bytearray"): values.make_bytearray,
    ("builtins", "complex"): values.number_constructor(complex),
    ("builtins", "slice"): values.number_constructor(slice),
    ("builtins", "range"): values.number_constructor(range),
    ("builtins", "getattr"): _get_attribute,
}
for _package in ("numpy.core", "numpy._core"):
    _FUNCTIONS[_package + ".multiarray", "_reconstruct"] = values.numpy_array
    _FUNCTIONS[_package + ".multiarray", "scalar"] = values.numpy_scalar
    _FUNCTIONS[_package + ".numeric", "_frombuffer"] = values.numpy_from_buffer
_FUNCTIONS["numpy", "dtype"] = values.numpy_dtype
_CALLABLE = {id(function) for function in _FUNCTIONS.values()}

#: Things that a pickle may store but not call.
_VALUES: dict[tuple[str, str], Any] = {
    ("torch", name): values.StorageType(dtype) for name, dtype in values.STORAGE_DTYPES.items()
}
_VALUES["torch._C", "_VariableFunctionsClass"] = _TORCH_FUNCTIONS
_VALUES["torch._C", "_VariableFunctions"] = _TORCH_FUNCTIONS
_VALUES["numpy", "ndarray"] = numpy.ndarray
for _dtype in values.STORAGE_DTYPES.values():
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
        return stand_in_class(module, name)
    module, name = _MOVED.get(key, key)
    asked = values.shortened(f"{module}.{name}")
    is_tuple = (module, name) in _TUPLE_CLASSES
    hint = _HINTS.get(f"{module}.{name}", _HINTS.get(package))
    if hint:
        raise CheckpointError(f"it needs {asked}: {hint}")
    listed = any(module.startswith(entry) if entry.endswith(".") else module == entry for entry in _MODULE_CLASSES)
    if not plain or not (is_tuple or listed):
        real = _UNSAFE_BUT_REAL.get(f"{module}.{name}", "")
        raise UnsafeCheckpointError(f"it asks for {asked}, which no known checkpoint needs{real}; nothing was run")
    try:
        found = vars(_import(module)).get(name)
    except ImportError as error:
        if package in ("mace", "e3nn") and error.name is not None and error.name.split(".")[0] == package:
            if error.name == package:
                raise CheckpointError(f"it needs {package}, which is not installed: {_INSTALL}") from error
            raise CheckpointError(f"it needs {asked}, which the installed {package} does not have") from error
        raise CheckpointError(f"it needs {asked}, which cannot be imported: {error}") from error
    if not isinstance(found, type) or found.__module__ != module or found.__name__ != name:
        if found is None:
            raise CheckpointError(f"it needs {asked}, which the installed {package} does not have")
        raise UnsafeCheckpointError(f"it asks for {asked}, which is no class of that module; nothing was run")
    if not (is_tuple or issubclass(found, torch.nn.Module)):
        raise UnsafeCheckpointError(f"it asks for {asked}, which is not a torch module; nothing was run")
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


# ---- objects


def _describe(thing: Any) -> str:
    if isinstance(thing, NotCalled):
        return thing.call
    if isinstance(thing, type) and issubclass(thing, StandIn):
        return values.shortened(thing.class_path)
    if isinstance(thing, (torch.nn.Module, OrderedDict)):  # whose attributes come from the file
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
            values.check_arguments(arguments)
            return cls.__new__(cls, *arguments)
    raise UnsafeCheckpointError(f"it asks to make an object of {_describe(cls)} with arguments; nothing was run")


def _set_state(instance: Any, state: Any) -> None:
    if isinstance(instance, numpy.ndarray):
        values.set_array(instance, state)
        return
    if isinstance(instance, numpy.dtype):
        # The constructor already got all of it but the byte order, and only the machine's own is supported.
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("|", "<", "="):
            raise CheckpointError("a numpy type has an unexpected state")
        return
    if type(state) is tuple and len(state) == 2 and (state[1] is None or (type(state[1]) is dict and not state[1])):
        state = state[0]
    if type(state) not in (dict, OrderedDict) or not all(type(key) is str for key in state):
        raise CheckpointError(f"the state of {_describe(type(instance))} is not a dictionary of attributes")
    if type(instance) is OrderedDict:
        # What is called on it below, and by those who use it, must stay its own: update, items, ...
        hidden = [key for key in state if hasattr(OrderedDict, key)]
        if hidden:
            asked = f"{hidden[0]} of an OrderedDict"
            raise UnsafeCheckpointError(f"it asks to replace {asked}; nothing was run")
        instance.__dict__.update(state)
        return
    if not isinstance(instance, torch.nn.Module):
        raise UnsafeCheckpointError(f"it asks to set the state of {_describe(type(instance))}; nothing was run")
    state = dict(state)
    compiled = state.pop("__codegen__", None)
    if compiled is not None:  # Compiled code is left out, its names stay.
        if type(compiled) not in (dict, list):
            raise CheckpointError(f"the compiled code of {_describe(type(instance))} is damaged")
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


class RestrictedUnpickler(pickle._Unpickler):
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
        if type(saved_id) is not tuple or len(saved_id) != 5:
            raise CheckpointError("a storage has an unexpected form")
        kind, storage_type, key, _location, numel = saved_id
        is_storage = (kind, type(storage_type), type(key)) == ("storage", values.StorageType, str)
        if not is_storage or not values.are_natural((numel,)):
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
        if type(arguments) is not tuple:
            raise CheckpointError("an object is made without a tuple of arguments")
        self.stack[-1] = _new_object(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        if type(named) is not dict or named:
            raise CheckpointError("an object is made with named arguments, which is not supported")
        self.load_newobj()

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
        values.check_keys([key])
        self._container(dict, OrderedDict)[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        values.check_keys(items[::2])
        self._container(dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        values.check_keys(items)
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
        values.check_keys(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        values.check_keys(items)
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
