"""Which code a function reaches, as digits that change with it and with nothing else.

A result that was computed is kept as long as the code behind it stays. That is the definition of
its function, of all that this names in the checkout, and so on: a class counts whole, a constant by
the expression that makes it. Comments, docstrings and code that is not reached do not count.
"""

__all__ = ["digest"]

import ast
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from studies.record import ROOT


class Module(NamedTuple):
    """A file's statements.

    Attributes:
        definitions: those that define a name, by name.
        imports: the module that a name comes from, and its name there; None for a module itself.
        others: those that run when it is imported.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str | None]]
    others: list[ast.stmt]


def digest(function: Callable, *values: object) -> str:
    """Return hexadecimal digits for plain values, the code that a function reaches, and torch."""
    found = sorted(_reached(Path(inspect.getfile(function)), function.__qualname__.split(".")[0]))
    everything = json.dumps([found, metadata.version("torch"), values], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()


@cache
def _reached(file: Path, name: str) -> list[tuple[str, str, str]]:
    """Return file, name and code of every definition that is reached from one."""
    waiting, seen, found = [(file, name)], {(file, name)}, []
    while waiting:
        file, name = waiting.pop()
        module = _module(file)
        for statement in module.definitions.get(name, module.others):
            found.append((file.name, name, ast.dump(statement)))
            for chain in _chains(statement):
                for each in {*_resolve(file, chain)}:
                    for one in (each, (each[0], "")):  # and what its module does when imported
                        if one not in seen:
                            seen.add(one)
                            waiting.append(one)
    return found


def _resolve(file: Path, chain: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield the definitions that ``a.b.c`` stands for in a file; none if it is not ours."""
    first, *more = chain
    module = _module(file)
    if first in module.definitions:
        yield file, first
    elif first in module.imports:
        source, name = module.imports[first]
        yield from _within(source, [*([name] if name else []), *more])


def _within(name: str, chain: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield the definitions that ``chain`` stands for in a module; for none, all."""
    file = _file(name)
    if file is None:
        return
    if chain and (_file(f"{name}.{chain[0]}")):
        yield from _within(f"{name}.{chain[0]}", chain[1:])
    elif chain and (found := [*_resolve(file, chain)]):
        yield from found
    elif not chain:
        yield from ((file, each) for each in _module(file).definitions)


@cache
def _file(name: str) -> Path | None:
    """Return a module's file, if it is neither Python's nor an installed package's."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or not spec.origin:
        return None
    file = Path(spec.origin)
    ours = file.is_relative_to(ROOT) and ".venv" not in file.parts
    return file if file.suffix == ".py" and (ours or ("." not in name and _is_own(file))) else None


def _is_own(file: Path) -> bool:
    """Say whether a file outside the checkout is a reader's own: in no library's folder."""
    return not {"site-packages", "dist-packages"} & {*file.parts} and not file.is_relative_to(
        Path(json.__file__).parent.parent
    )


@cache
def _module(file: Path) -> Module:
    """Read a file, without docstrings, whose wording changes no result."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [s for s in node.body if not _is_text(s)]
    definitions: dict[str, list[ast.stmt]] = {}
    others = []
    for statement in tree.body:
        names = _defined(statement)
        for name in names:
            definitions.setdefault(name, []).append(statement)
        if not names and not isinstance(statement, ast.Import | ast.ImportFrom):
            others.append(statement)
    imports: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                whole = each.name if each.asname else each.name.partition(".")[0]
                imports[each.asname or whole] = whole, None
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {each.asname or each.name: (node.module, each.name) for each in node.names}
    return Module(definitions, imports, others)


def _defined(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign():
            targets = statement.targets
        case ast.AnnAssign() | ast.AugAssign():
            targets = [statement.target]
        case _:
            return []
    nodes = [node for target in targets for node in ast.walk(target)]
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _chains(node: ast.AST) -> Iterator[list[str]]:
    """Yield every name that a statement uses, with the attributes behind it."""
    chain, inner = [], node
    while isinstance(inner, ast.Attribute):
        chain.append(inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *reversed(chain)]
        return
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
