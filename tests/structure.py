"""The structure of a package, read from its sources: which module imports which, and in which order they stand.

The docstring of every sub-package lists its modules in a line that begins with `Modules, lowest first:` and ends with a
period. A module may import those before it.
"""

import ast
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_MODULES = 14
"""Modules in one folder, `__init__` not counted. A folder of more has more than one idea."""

_ORDER = re.compile(r"^Modules, lowest first: ([\w\s]+)\.", re.MULTILINE)


def root_of(package: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def sources(package: str) -> dict[str, ast.Module]:
    """The syntax tree of every module of a package, by its name without the package's: `_core.trees`, `` for itself."""
    root = root_of(package)
    trees = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return trees


def imports(package: str) -> set[tuple[str, str]]:
    """Every import of one module of a package by another, as names without the package's; inside functions too."""
    trees = sources(package)
    found = set()
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if name == package or name.startswith(package + "."):
                    inside = name.removeprefix(package).removeprefix(".")
                    # The name that is imported may be a module, or something in one.
                    found.add((module, inside if inside in trees else inside.rpartition(".")[0]))
    return {(importer, imported) for importer, imported in found if importer != imported}


def forbidden(package: str, allowed: Mapping[str, Collection[str]]) -> list[str]:
    """The imports between parts of a package that are not allowed, as readable lines.

    Args:
      package: its name.
      allowed: for each part, a sub-package or a module at the top, the parts or modules of parts that it may import.
        Every part has to be in it. The package's own `__init__`, the part ``, may import all of them.
    """
    parts = {name.partition(".")[0] for name in sources(package)} - {""}
    assert parts == set(allowed), f"the table of parts and the package differ: {parts ^ set(allowed)}"
    lines = []
    for importer, imported in sorted(imports(package)):
        part, other = importer.partition(".")[0], imported.partition(".")[0]
        if part not in ("", other) and not {other, imported} & set(allowed[part]):
            lines.append(f"{importer} imports {imported}")
    return lines


def out_of_order(package: str) -> list[str]:
    """Where the modules of a sub-package are not those in its docstring, or do not import in that order."""
    trees = sources(package)
    lines = []
    for folder in sorted(name for name in trees if (root_of(package) / name.replace(".", "/")).is_dir() and name):
        prefix = folder + "."
        inside = {name.removeprefix(prefix) for name in trees if name.startswith(prefix)}
        folders = {name.partition(".")[0] for name in inside if "." in name}
        modules = {name for name in inside if "." not in name} - folders
        match = _ORDER.search(ast.get_docstring(trees[folder]) or "")
        order = match[1].split() if match else []
        if sorted(order) != sorted(modules):
            lines.append(f"{folder}: its docstring lists {order}, its modules are {sorted(modules)}")
            continue
        if len(modules) > MAX_MODULES:
            lines.append(f"{folder} has {len(modules)} modules, more than {MAX_MODULES}")
        for importer, imported in sorted(imports(package)):
            if importer.startswith(prefix) and imported.startswith(prefix):
                name, other = importer.removeprefix(prefix), imported.removeprefix(prefix)
                if {name, other} <= modules and order.index(other) >= order.index(name):
                    lines.append(f"{folder}: {name} imports {other}, which comes after it")
    return lines
