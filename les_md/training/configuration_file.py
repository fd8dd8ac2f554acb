"""Strict reading of a YAML file into dataclasses: whatever is not understood is an error that says where.

The nodes of the file are read, not the values PyYAML makes of them: they know their line, a key given twice is seen, a
number such as 1e-3 is a number (for YAML 1.1 it is text), and an element such as No is not a truth value.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path

import yaml

from les_md.training.configuration import ConfigurationError, TrainingConfiguration

_TAG = "tag:yaml.org,2002:"
_EXPECTED = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def read_configuration(path: str | Path) -> TrainingConfiguration:
    """Read the configuration of a training.

    Raises
    ------
    FileNotFoundError : no such file.
    ConfigurationError : not YAML, an unknown or missing key, a value of a wrong type or out of range. The message
        names file, line and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path} (les-train --template prints one)")
    return parse_configuration(path.read_text(encoding="utf-8"), path.name)


def parse_configuration(text: str, source: str) -> TrainingConfiguration:
    """As ``read_configuration``, of a text; ``source`` names it in errors."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{source}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None:
        raise ConfigurationError(f"{source} is empty (les-train --template prints a configuration)")
    return _Reader(source).section(root, TrainingConfiguration, "")


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, node: yaml.Node, message: str) -> ConfigurationError:
        return ConfigurationError(f"{self.source}, line {node.start_mark.line + 1}: {message}")

    def section(self, node: yaml.Node, kind: type, place: str):
        """A dataclass of a mapping; ``place`` is its dotted name with a dot at the end, or empty."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{place[:-1] or 'the file'} must be a mapping of keys to values")
        annotations = typing.get_type_hints(kind)
        fields = {each.name: each for each in dataclasses.fields(kind)}
        values = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, "a key must be a word")
            name = key.value
            if name not in fields:
                raise self.error(key, f"unknown key '{place}{name}'{self._nearest(name, fields)}")
            if name in values:
                raise self.error(key, f"'{place}{name}' is given twice")
            values[name] = self.value(value, annotations[name], f"{place}{name}")
        for name, each in fields.items():
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise self.error(node, f"'{place}{name}' is missing")
        try:
            return kind(**values)
        except ValueError as error:
            raise self.error(node, f"{place[:-1] + ': ' if place else ''}{error}") from error

    @staticmethod
    def _nearest(name: str, fields: dict) -> str:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(fields)}"

    def value(self, node: yaml.Node, annotation: object, place: str):
        """A value of the annotated type."""
        kinds = typing.get_args(annotation) if typing.get_origin(annotation) is types.UnionType else (annotation,)
        if node.tag == _TAG + "null":
            if type(None) in kinds:
                return None
            raise self.error(node, f"'{place}' has no value")
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        if isinstance(node, yaml.MappingNode):
            kind = self._kind_of_mapping(node, kinds, place)
            if kind is None:
                raise self.error(node, f"'{place}' must be {self._expected(kinds)}, not a mapping")
            return (
                self.section(node, kind, place + ".")
                if dataclasses.is_dataclass(kind)
                else self._dict(node, kind, place)
            )
        sequence = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
        if isinstance(node, yaml.SequenceNode):
            if sequence is None:
                raise self.error(node, f"'{place}' must be {self._expected(kinds)}, not a list")
            (item, _) = typing.get_args(sequence)
            return tuple(self.value(each, item, f"{place}[{i}]") for i, each in enumerate(node.value))
        scalars = [kind for kind in kinds if kind in _EXPECTED]
        for kind in scalars:
            number = self._scalar(node, kind)
            if number is not None:
                return number
        if sequence is not None and typing.get_args(sequence)[0] in _EXPECTED:
            item = self._scalar(node, typing.get_args(sequence)[0])  # a list of one may be written without brackets
            if item is not None:
                return (item,)
        raise self.error(node, f"'{place}' must be {self._expected(kinds)}, got '{node.value}'")

    def _kind_of_mapping(self, node: yaml.MappingNode, kinds: tuple, place: str) -> object:
        """What a mapping is read as; of several sections that named by its key ``architecture``, or else the first."""
        found = [kind for kind in kinds if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict]
        if len(found) > 1:
            named = {kind.architecture: kind for kind in found}
            for key, value in node.value:
                if key.value == "architecture":
                    if value.value not in named:
                        known = ", ".join(named)
                        raise self.error(value, f"unknown '{place}.architecture' '{value.value}'; known: {known}")
                    return named[value.value]
        return found[0] if found else None

    def _dict(self, node: yaml.MappingNode, kind: object, place: str) -> dict:
        key_kind, value_kind = typing.get_args(kind)
        values: dict = {}
        for key, value in node.value:
            name = self._scalar(key, key_kind) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                raise self.error(key, f"the keys of '{place}' must be {_EXPECTED[key_kind]}, got '{key.value}'")
            if name in values:
                raise self.error(key, f"'{place}.{name}' is given twice")
            values[name] = self.value(value, value_kind, f"{place}.{name}")
        if not values:
            raise self.error(node, f"'{place}' is empty")
        return values

    @staticmethod
    def _scalar(node: yaml.ScalarNode, kind: type):
        """The value of a scalar as bool, int, float or str; None if it is none."""
        if kind is bool:
            return node.value.lower() == "true" if node.value.lower() in ("true", "false") else None
        if kind is str:
            return node.value
        if node.style is not None:  # in quotes: text
            return None
        try:
            number = kind(node.value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    @staticmethod
    def _expected(kinds: tuple) -> str:
        names = []
        for kind in kinds:
            if typing.get_origin(kind) is tuple:
                names.append(f"a list, each {_EXPECTED.get(typing.get_args(kind)[0], 'a mapping')}")
            elif kind in _EXPECTED:
                names.append(_EXPECTED[kind])
            else:
                names.append("a mapping")
        return " or ".join(names)
