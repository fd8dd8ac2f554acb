"""The functions that a pickle may call: they make what real checkpoints hold, and check their arguments.

Tensors, parameters and devices of torch, arrays of numpy, containers and numbers. The names by which a pickle asks for
them, and the rules, are in ``restricted_unpickler.py``.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any

import numpy
import torch

from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError


class StorageType:
    """Stands for torch.FloatStorage and its like in persistent ids."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


STORAGE_DTYPES = {
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


def shown(thing: Any) -> str:
    """For messages; of a text itself, of anything else, which may be huge when printed, only its type."""
    return repr(thing) if type(thing) is str and len(thing) < 200 else f"a {type(thing).__name__}"


def shortened(text: str) -> str:
    """A text of a file for messages: not longer than a line or two, nothing in it that a terminal would obey."""
    return text if len(text) < 200 and text.isprintable() else f"{text[:150]!r} …"


#: Parts of a key of a dictionary or a set, nested ones included.
_MAX_KEY_PARTS = 1000


def check_keys(keys: Any) -> None:
    """That hashing does not recurse deeply: hash() of nested tuples overflows the stack of C, or takes for ever."""
    for key in keys:
        if not isinstance(key, tuple):
            continue
        parts, count = [key], 0
        while parts:
            part = parts.pop()
            count += tuple.__len__(part)  # e3nn's Irrep has no len()
            if count > _MAX_KEY_PARTS:
                raise CheckpointError("a key of a dictionary or set is a tuple of too many parts")
            parts.extend(inner for inner in tuple.__iter__(part) if isinstance(inner, tuple))


#: Parts of the arguments of a tuple class, nested ones included; the longest of published models has 21.
_MAX_ARGUMENT_PARTS = 5_000


def check_arguments(arguments: tuple) -> None:
    """That a class which puts its arguments into its messages can print them, and iterate over them in time."""
    parts, count = list(arguments), len(arguments)
    while parts:
        part = parts.pop()
        if isinstance(part, tuple):
            count += tuple.__len__(part)
            if count > _MAX_ARGUMENT_PARTS:
                raise CheckpointError("a tuple of a named class is made of too many parts")
            parts.extend(tuple.__iter__(part))
        elif type(part) not in (int, float, bool, str, type(None)):
            raise CheckpointError(f"a tuple of a named class is made of a {type(part).__name__}, not of numbers")


def are_natural(numbers: Any) -> bool:
    """Whether they are a tuple of integers that are not negative."""
    return type(numbers) is tuple and all(type(n) is int and n >= 0 for n in numbers)


def rebuild_tensor(
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    """torch._utils._rebuild_tensor_v2 with its bounds checked."""
    if not all(type(numbers) in (tuple, list, torch.Size) for numbers in (size, stride)):
        raise CheckpointError("a tensor has a size or stride that is no tuple")
    size, stride = tuple(size), tuple(stride)
    if not isinstance(storage, torch.Tensor) or len(size) != len(stride):
        raise CheckpointError("a tensor has no storage")
    if not are_natural((offset, *size, *stride)):
        raise CheckpointError("a tensor has a size, stride or offset that is not a natural number")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= storage.numel():
        raise CheckpointError("a tensor is larger than its storage")
    if metadata is not None and not (type(metadata) is dict and not metadata):
        raise CheckpointError("a tensor has a conjugate or negative bit, which is not supported")
    if type(requires_grad) is not bool:
        raise CheckpointError("a tensor does not say whether it has a gradient")
    tensor = torch.as_strided(storage, size, stride, offset)
    if requires_grad and (tensor.is_floating_point() or tensor.is_complex()):
        tensor.requires_grad_(True)
    return tensor


def rebuild_parameter(
    data: torch.Tensor, requires_grad: bool, hooks: Any = None, state: Any = None
) -> torch.nn.Parameter:
    """torch._utils._rebuild_parameter, and the one with a state, which is left out."""
    if not isinstance(data, torch.Tensor) or type(requires_grad) is not bool:
        raise CheckpointError("a parameter is not a tensor")
    return torch.nn.Parameter(data.detach(), requires_grad and data.is_floating_point())


def make_device(kind: Any = "cpu", index: Any = None) -> torch.device:
    """torch.device of a name and an index."""
    if type(kind) is not str or not (index is None or type(index) is int):
        raise CheckpointError("a device has no name")
    return torch.device(kind) if index is None else torch.device(kind, index)


def encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """_codecs.encode, which is how protocols before 3 store bytes."""
    # Any other encoding would be imported by name.
    known = type(encoding) is str and encoding in ("latin1", "latin-1", "ascii", "utf-8")
    if type(text) is not str or not known:
        raise UnsafeCheckpointError(f"it asks for the encoding {shown(encoding)}; nothing was run")
    return text.encode(encoding)


def numpy_dtype(kind: Any = None, align: Any = False, copy: Any = True) -> numpy.dtype:
    """numpy.dtype of numbers, strings and objects; no structures."""
    if type(kind) is not str or not re.fullmatch(r"[<>=|]?[biufcSUO]\d+", kind):
        raise CheckpointError(f"numpy type {shown(kind)} is not supported")
    return numpy.dtype(kind)


def numpy_scalar(dtype: Any = None, data: Any = None) -> Any:
    """numpy.core.multiarray.scalar."""
    if not isinstance(dtype, numpy.dtype) or dtype.hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
        raise CheckpointError("a numpy number has no proper type or length")
    return numpy.frombuffer(data, dtype)[0]


def numpy_array(cls: Any = None, shape: Any = None, kind: Any = None) -> numpy.ndarray:
    """numpy.core.multiarray._reconstruct: an empty array, whose contents ``set_array`` sets."""
    if cls is not numpy.ndarray:
        raise CheckpointError("a numpy array is of a class that is not supported")
    return numpy.empty((0,), numpy.int8)


def numpy_from_buffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> numpy.ndarray:
    """numpy.core.numeric._frombuffer."""
    if type(data) not in (bytes, bytearray):  # bytes() of a number makes room for as many
        raise CheckpointError("a numpy array is made of something that is no bytes")
    array = numpy.empty((0,), numpy.int8)
    set_array(array, (1, shape, dtype, order == "F", bytes(data)))
    return array


def set_array(array: numpy.ndarray, state: Any) -> None:
    """ndarray.__setstate__, with types and lengths checked."""
    if type(state) is not tuple or len(state) != 5 or type(state[4]) not in (bytes, list):
        raise CheckpointError("a numpy array has an unexpected state")
    _, shape, dtype, fortran, data = state
    # Without a size (S0), no length of the data would bound the shape.
    if not isinstance(dtype, numpy.dtype) or dtype.itemsize == 0 or not are_natural(shape):
        raise CheckpointError("a numpy array has no proper type or shape")
    count = math.prod(shape)
    proper = type(data) is list and len(data) == count if dtype.hasobject else len(data) == count * dtype.itemsize
    if not proper or (not dtype.hasobject and type(data) is not bytes):
        raise CheckpointError("a numpy array does not have the length of its shape")
    if dtype.hasobject and any(isinstance(entry, numpy.ndarray) for entry in data):
        # numpy frees nested arrays by recursion in C.
        raise CheckpointError("a numpy array contains other arrays, which is not supported")
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def constructor(kind: type, *types: type) -> Any:
    """A constructor of a harmless builtin that takes at most one argument of the given types."""

    def construct(*arguments: Any) -> Any:
        if len(arguments) > 1 or (arguments and type(arguments[0]) not in types):
            raise CheckpointError(f"a {kind.__name__} is made of something that is not supported")
        if arguments and kind in (set, frozenset):
            check_keys(arguments[0])
        return kind(*arguments)

    return construct


def make_bytearray(*arguments: Any) -> bytearray:
    """bytearray of bytes, or of a text and its encoding."""
    if arguments and type(arguments[0]) is str:
        return bytearray(encode(*arguments))
    return constructor(bytearray, bytes, bytearray)(*arguments)


def make_ordered_dict(*arguments: Any) -> OrderedDict:
    """collections.OrderedDict of pairs or a dictionary."""
    if arguments and type(arguments[0]) is list:
        if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in arguments[0]):
            raise CheckpointError("an OrderedDict is not made of pairs")
        check_keys(pair[0] for pair in arguments[0])
    return constructor(OrderedDict, list, dict)(*arguments)


def number_constructor(kind: type) -> Any:
    """A constructor of a builtin that takes at most three numbers."""

    def construct(*arguments: Any) -> Any:
        if len(arguments) > 3 or not all(type(x) in (int, float, type(None)) for x in arguments):
            raise CheckpointError(f"a {kind.__name__} is not made of numbers")
        return kind(*arguments)

    return construct
