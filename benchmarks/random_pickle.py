"""Pickles made at random of whole expressions: what a fuzzer that changes bytes rarely finds.

For ``fuzz_reader.py``. Every expression leaves one value on the stack of the unpickler: numbers, texts, containers,
tensors, named things, calls by every instruction there is, objects with a state; often of a kind that does not belong
where it stands.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from les_md import restricted_unpickler

CLASSES = [
    ("torch.nn.modules.linear", "Linear"), ("torch.nn.modules.linear", "Identity"),
    ("torch.nn.modules.container", "Sequential"), ("torch.nn.modules.container", "ModuleList"),
    ("torch.nn.modules.container", "ModuleDict"), ("torch.nn.modules.container", "ParameterList"),
    ("torch.nn.modules.activation", "SiLU"), ("e3nn.o3._linear", "Linear"), ("mace.modules.models", "MACE"),
    ("les.les", "Les"), ("cace.models", "Model"), ("cuequivariance.irreps", "Irreps"), ("torch.fx.graph", "Graph"),
    *sorted(restricted_unpickler._TUPLE_CLASSES),
]  # fmt: skip
FORBIDDEN = [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("functools", "partial"), ("operator", "add")]
FUNCTIONS = list(restricted_unpickler._FUNCTIONS)
NAMES = [*FUNCTIONS, *restricted_unpickler._VALUES]

#: Keys of states and dictionaries: attributes of modules, of containers, of every object.
KEYS = [
    "_modules", "_parameters", "_buffers", "_forward_hooks", "training", "__codegen__", "weight", "_size", "forward",
    "update", "items", "keys", "values", "get", "pop", "move_to_end", "__class__", "__dict__", "__module__",
    "__qualname__", "__len__", "__setstate__", "__reduce__", "call", "class_path", "arguments", "dtype", "shape", "0",
]  # fmt: skip
TEXTS = [*KEYS, "storage", "cpu", "cuda", "meta", "1", "f8", "<f4", "O8", "U2", "S0", "b1", "|", "<", "=", "latin1",
         "utf-8", "rot13", "tanh", "from_file", "2x0e+1o", "1e", "0y", "C", "F", "", "\ud800"]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 4, 5, 16, 64, -1, -2, 255, 65536, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63, -(2**63),
           2**64, 10**30, 10**400]  # fmt: skip


class RandomPickle:
    """Expressions drawn from a source of random numbers."""

    def __init__(self, source: random.Random) -> None:
        self.random = source.random
        self.stored = 0  # values in the memo

    def below(self, number: int) -> int:
        return int(self.random() * number)

    def pick(self, values: Sequence) -> Any:
        """A value of a sequence; random.choice takes four times as long, and half of a fuzzer's time."""
        return values[int(self.random() * len(values))]

    def expression(self, depth: int) -> bytes:
        """Instructions that leave one value; ``depth`` bounds how far expressions nest."""
        simple = (self.number, self.number, self.text, self.constant, self.name, self.remembered)
        nested = (self.container, self.call, self.call, self.tensor, self.made, self.array, self.doubled)
        made = self.pick(simple if depth <= 0 else (*simple, *nested, *nested))(depth - 1)
        if self.random() < 0.15 and self.stored < 250:
            made += b"q" + bytes([self.stored])
            self.stored += 1
        return made

    def several(self, depth: int, most: int = 4) -> bytes:
        return b"".join(self.expression(depth) for _ in range(self.below(most)))

    # ---- values without others in them

    def integer(self, value: int) -> bytes:
        if 0 <= value < 256:
            return b"K" + bytes([value])
        content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content

    def number(self, depth: int) -> bytes:
        if self.random() < 0.1:
            return b"G" + struct.pack(">d", self.pick((0.0, -1.5, 1e308, float("nan"), float("inf"))))
        return self.integer(self.pick(NUMBERS if self.random() < 0.5 else NUMBERS[:8]))

    def written(self, text: str) -> bytes:
        content = text.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(content)) + content

    def text(self, depth: int) -> bytes:
        return self.written(self.pick(TEXTS))

    def constant(self, depth: int) -> bytes:
        content = bytes(self.pick((0, 1, 4, 8, 16)))
        values = (b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"C" + bytes([len(content)]) + content,
                  b"\x96" + struct.pack("<Q", len(content)) + content)  # fmt: skip
        return self.pick(values)

    def name(self, depth: int) -> bytes:
        draw = self.random()
        module, name = self.pick(CLASSES if draw < 0.4 else NAMES if draw < 0.97 else FORBIDDEN)
        if self.random() < 0.5:
            return f"c{module}\n{name}\n".encode()
        return self.written(module) + self.written(name) + b"\x93"

    def remembered(self, depth: int) -> bytes:
        if not self.stored:
            return b"N"
        return b"h" + bytes([self.below(self.stored)])

    # ---- values made of others

    def tuple_of(self, *parts: bytes) -> bytes:
        return b"(" + b"".join(parts) + b"t"

    def pairs(self, depth: int) -> bytes:
        return b"".join(
            (self.text(depth) if self.random() < 0.8 else self.expression(depth)) + self.expression(depth)
            for _ in range(self.below(4))
        )

    def ordered(self) -> bytes:
        return b"ccollections\nOrderedDict\n)" + self.pick((b"R", b"\x81"))

    def container(self, depth: int) -> bytes:
        several, pairs = self.several(depth), self.pairs(depth)
        makers = (
            b"(" + several + b"t", b"(" + several + b"l", b"(" + several + b"\x91", b"(" + pairs + b"d",
            b"](" + several + b"e", b"\x8f(" + several + b"\x90", b"}(" + pairs + b"u",
            self.ordered() + b"(" + pairs + b"u", self.ordered() + b"}(" + pairs + b"ub",
            self.expression(depth) + self.expression(depth) + b"\x86",
            self.expression(depth) + self.text(depth) + self.expression(depth) + b"s",
            self.expression(depth) + self.expression(depth) + b"a", self.expression(depth) + b"(" + pairs + b"u",
        )  # fmt: skip
        return self.pick(makers)

    def call(self, depth: int) -> bytes:
        module, name = self.pick(FUNCTIONS)
        function = f"c{module}\n{name}\n".encode() if self.random() < 0.9 else self.expression(depth)
        arguments = self.several(depth, 6)
        forms = (
            function + b"(" + arguments + b"tR", function + b"(" + arguments + b"tR",
            b"(" + function + arguments + b"o", b"(" + arguments + f"i{module}\n{name}\n".encode(),
            function + self.expression(depth) + b"R",
        )  # fmt: skip
        return self.pick(forms)

    def made(self, depth: int) -> bytes:
        """An object of a class, with arguments or a state."""
        module, name = self.pick(CLASSES)
        cls = f"c{module}\n{name}\n".encode() if self.random() < 0.95 else self.expression(depth)
        arguments = b")" if self.random() < 0.6 else b"(" + self.several(depth) + b"t"
        made = cls + arguments + (b"\x81" if self.random() < 0.9 else b"}\x92")
        draw = self.random()
        if draw < 0.5:
            made += b"}(" + self.pairs(depth) + b"ub"
        elif draw < 0.6:
            made += self.expression(depth) + b"b"
        elif draw < 0.7:
            made += self.ordered() + b"(" + self.pairs(depth) + b"ub"
        elif draw < 0.75:
            made += b"}(" + self.pairs(depth) + b"uN\x86b"
        return made

    def numbers(self, depth: int) -> bytes:
        """A tuple of a few numbers, rarely of anything."""
        if self.random() < 0.05:
            return self.expression(depth)
        return self.tuple_of(*(self.number(depth) for _ in range(self.below(3))))

    def storage(self, depth: int) -> bytes:
        key, kind, length = self.pick(
            (("0", "FloatStorage", 4), ("0", "IntStorage", 4), ("1", "DoubleStorage", 8), ("1", "BoolStorage", 64),
             ("1", "ComplexDoubleStorage", 4), ("1", "HalfStorage", 32))
        )  # fmt: skip
        parts = [
            self.written("storage"),
            f"ctorch\n{kind}\n".encode(),
            self.written(key),
            self.written("cpu"),
            self.integer(length),
        ]
        if self.random() < 0.1:
            parts[self.below(5)] = self.expression(depth)
        return self.tuple_of(*parts) + b"Q"

    def tensor(self, depth: int) -> bytes:
        storage = self.storage(depth) if self.random() < 0.9 else self.expression(depth)
        version = self.pick(("", "_v2"))
        offset = self.number(depth)
        parts = [storage, offset, self.numbers(depth), self.numbers(depth)]
        if version:
            parts += [self.pick((b"\x88", b"\x89")), self.ordered()]
        if self.random() < 0.1:
            parts.append(self.expression(depth))
        tensor = f"ctorch._utils\n_rebuild_tensor{version}\n".encode() + self.tuple_of(*parts) + b"R"
        if self.random() < 0.2:
            tensor = b"ctorch._utils\n_rebuild_parameter\n" + self.tuple_of(tensor, b"\x88", self.ordered()) + b"R"
        return tensor

    def array(self, depth: int) -> bytes:
        """An array or a scalar of numpy."""
        kind = self.pick(("f8", "i4", "U2", "S3", "S0", "O8", "b1", "c16", "f2"))
        dtype = b"cnumpy\ndtype\n" + self.tuple_of(self.written(kind), b"\x89", b"\x88") + b"R"
        if self.random() < 0.5:
            state = (b"K\x03", self.written(self.pick("|<>=")), b"NNN", b"J\xff\xff\xff\xff" * 2, b"K\x3f")
            dtype += self.tuple_of(*state) + b"b"
        content = bytes(self.below(256) for _ in range(self.pick((0, 4, 8, 16, 24))))
        data = b"C" + bytes([len(content)]) + content
        if kind == "O8" or self.random() < 0.05:
            data = b"](" + self.several(depth) + b"e"
        draw = self.random()
        if draw < 0.3:
            return b"cnumpy.core.multiarray\nscalar\n" + self.tuple_of(dtype, data) + b"R"
        shape = self.numbers(depth)
        if draw < 0.5:
            return b"cnumpy.core.numeric\n_frombuffer\n" + self.tuple_of(data, dtype, shape, self.written("C")) + b"R"
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\n"
            + self.tuple_of(b"cnumpy\nndarray\n", b"(K\x00t", b"C\x01b")
            + b"R"
        )
        return array + self.tuple_of(b"K\x01", shape, dtype, self.pick((b"\x88", b"\x89")), data) + b"b"

    def doubled(self, depth: int) -> bytes:
        """A value in a tuple of itself and itself, again and again: 2^n parts in n instructions."""
        return self.expression(depth) + b"2\x86" * self.pick((1, 1, 1, 1, 2, 2, 5, 60))
