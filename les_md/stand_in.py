"""What stands in a checkpoint for an object whose class is not imported, and for a call that is not made."""

from __future__ import annotations

from typing import Any

import torch


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


class NotCalled:
    """What a call was for that was not made, e.g. a bound method fetched with getattr."""

    def __init__(self, call: str) -> None:
        self.call = call

    def __repr__(self) -> str:
        return f"NotCalled({self.call})"


def stand_in_class(module: str, name: str) -> type[StandIn]:
    """A stand-in for the objects of one class."""
    return type(name, (StandIn,), {"class_path": f"{module}.{name}"})
