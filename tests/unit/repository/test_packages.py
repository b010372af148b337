"""module_utils/shiftmaster consists of packages whose imports go in one direction."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3] / "module_utils/shiftmaster"
NAME = "ansible.module_utils.shiftmaster."
# Each may import those after it.
ORDER = ["awx", "reports", "diagnosis", "health", "backup", "release", "notify", "logging", "monitoring", "host"]


def imported(node):
    """The packages from which a statement imports something."""
    if not isinstance(node, ast.ImportFrom) or node.level == 1:
        return []
    name = node.module or ""
    if node.level == 2:
        return [name.split(".")[0]] if name else [alias.name for alias in node.names]
    return [name[len(NAME) :].split(".")[0]] if name.startswith(NAME) else []


def edges():
    """Return {(package, imported package): a file with the import}."""
    return {
        (path.parent.name, name): str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("*/*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported(node)
    }


def test_every_module_is_in_a_known_package():
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == set(ORDER)
    assert {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")} == {
        "__init__.py",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("*/*.py")),
    }
    # AnsiballZ ships each package's __init__ with each module imported from it.
    assert not [path for path in ROOT.rglob("__init__.py") if path.stat().st_size]


def test_no_import_goes_upward():
    found = edges()
    assert found
    assert not {edge: path for edge, path in found.items() if ORDER.index(edge[1]) <= ORDER.index(edge[0])}
