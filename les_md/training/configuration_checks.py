"""What the sections of a training's configuration check their values with."""

from __future__ import annotations

from ase.data import atomic_numbers as number_of


class ConfigurationError(ValueError):
    """A configuration is wrong; the message says where and what to do."""


def positive(section: object, *names: str) -> None:
    """Raise ConfigurationError for the first of the attributes that is not greater than 0."""
    for name in names:
        if getattr(section, name) <= 0:
            raise ConfigurationError(f"{name} must be greater than 0, got {getattr(section, name)}")


def known_elements(symbols: tuple[str, ...], name: str, distinct: bool = True) -> None:
    """Raise ConfigurationError for a symbol of no element and, if they must be ``distinct``, for one given twice."""
    unknown = [symbol for symbol in symbols if number_of.get(symbol, 0) == 0]
    if unknown:
        raise ConfigurationError(f"{name}: '{unknown[0]}' is not an element")
    if distinct and len(set(symbols)) != len(symbols):
        raise ConfigurationError(f"{name}: an element is named twice")


def interval(section: object, *names: str) -> None:
    """Raise ConfigurationError unless each of the attributes is two numbers above 0, the smaller one first."""
    for name in names:
        value = getattr(section, name)
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            raise ConfigurationError(f"{name} must be two numbers greater than 0, the smaller one first")
