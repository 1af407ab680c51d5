"""The names that the source defines, found without importing it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = {"appliance": ROOT / "appliance", "appliance_kernels": ROOT / "kernels"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the project by its full name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


@cache
def members(module: str) -> dict[str, set[str]]:
    """What a module defines or imports at its top, each with its members if it is a class defined there."""
    found: dict[str, set[str]] = {}
    for node in modules()[module].body:
        for name in _defined(node):
            found[name] = _class_members(node) if isinstance(node, ast.ClassDef) else set()
    return found


@cache
def classes() -> dict[str, set[str]]:
    """The members of every class by its name; of classes with the same name, all members."""
    found: dict[str, set[str]] = {}
    for module in modules():
        for node in ast.walk(modules()[module]):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(_class_members(node))
    return found


def exists(name: str) -> bool:
    """Whether `appliance.package.module`, with a function, class or member of a class after it or not, is there."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:cut]), parts[cut:]
        if module in modules():
            if not rest:
                return True
            found = members(module)
            return rest[0] in found and (len(rest) == 1 or (len(rest) == 2 and rest[1] in found[rest[0]]))
    folder = FOLDERS.get(parts[0])
    return folder is not None and folder.joinpath(*parts[1:]).is_dir()


def _defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom() | ast.Import():
            return [alias.asname or alias.name for alias in node.names]
    return []


def _class_members(node: ast.ClassDef) -> set[str]:
    """Methods, fields, and attributes that methods set on `self`."""
    found = {name for statement in node.body for name in _defined(statement)}
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found
