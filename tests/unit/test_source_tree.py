"""The lookup source_tree: a whole package, or what a program needs of it, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("source_tree", ROOT / "plugins/lookup/source_tree.py")
source_tree = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(source_tree)


def test_what_is_imported_by_way_of_others_is_needed_too():
    texts = {
        "__init__.py": "", "a.py": "from . import b\n", "b.py": "def f():\n    from .c import x\n",
        "c.py": "import json\nfrom .d.e import y\n", "d.py": "", "unused.py": "from . import a\n", "sub/a.py": "",
    }  # fmt: skip
    assert list(source_tree.needed("from engine import a\n", "engine", texts)) == [
        "__init__.py", "a.py", "b.py", "c.py", "d.py",
    ]  # fmt: skip
    assert list(source_tree.needed("from engine.c import x\n", "engine", texts)) == ["__init__.py", "c.py", "d.py"]
    assert list(source_tree.needed("from other import a\nimport engine\n", "engine", texts)) == ["__init__.py"]


@pytest.mark.parametrize(
    "program",
    ["roles/shiftmaster/files/shiftmasterctl", "roles/backup/files/shiftmaster-backup"],
    ids=lambda path: Path(path).name,
)
def test_a_program_starts_with_what_it_is_given(program, tmp_path):
    """Every module is imported, also those that are imported late; what belongs to the controller is not there."""
    folder = ROOT / "module_utils/shiftmaster"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    taken = source_tree.needed((ROOT / program).read_text(encoding="utf-8"), "engine", texts)
    (tmp_path / "engine").mkdir()
    for name, text in taken.items():
        (tmp_path / "engine" / name).write_text(text, encoding="utf-8")
    code = "import importlib, sys; [importlib.import_module('engine.' + name[:-3]) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", code, *(name for name in taken if name != "__init__.py")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not {name for name in taken if name.startswith(("diagnose_", "findings", "checklist", "health_", "rrules"))}
