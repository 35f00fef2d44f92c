"""An extension of Griffe: signatures show the shapes that the names of types stand for.

A module that has `Map = Float[Array, "batch height width channels"]` writes `Map` in its signatures; the reference
shows what it is.
"""

import dataclasses
from typing import Any

import griffe

SHAPED = ("Bool[", "Float[", "Int[", "Key[", "Num[", "UInt8[")


class Shapes(griffe.Extension):
    """Puts the value of names such as `Map` in their place, in the annotations of all functions."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go through a package once it is read."""
        del kwargs
        self._visit(pkg, pkg)

    def _visit(self, parent: griffe.Module | griffe.Class, package: griffe.Module) -> None:
        for member in parent.members.values():
            if isinstance(member, griffe.Module | griffe.Class):
                self._visit(member, package)
            elif isinstance(member, griffe.Function):
                for parameter in member.parameters:
                    parameter.annotation = _unfold(parameter.annotation, package)
                member.returns = _unfold(member.returns, package)


def _unfold(node: Any, package: griffe.Module) -> Any:
    """The same annotation with the values of names."""
    if isinstance(node, griffe.ExprName):
        return _shape(node, package) or node
    if isinstance(node, griffe.Expr):  # Valid | None, tuple[Map, ...]
        for field in dataclasses.fields(node):
            setattr(node, field.name, _unfold(getattr(node, field.name), package))
    if isinstance(node, list):
        return [_unfold(value, package) for value in node]
    return node


def _shape(name: griffe.ExprName, package: griffe.Module) -> griffe.Expr | None:
    """What a name stands for, if it is an array of a shape."""
    path = name.canonical_path.removeprefix(f"{package.name}.")
    try:
        value = getattr(package[path], "value", None)
    except (KeyError, griffe.AliasResolutionError):
        return None
    return value if isinstance(value, griffe.Expr) and str(value).startswith(SHAPED) else None
