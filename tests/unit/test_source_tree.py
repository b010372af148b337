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
        "__init__.py": "", "p/__init__.py": "",
        "p/a.py": "from . import b\n", "p/b.py": "def f():\n    from ..q.c import x\n",
        "q/__init__.py": "", "q/c.py": "import json\nfrom .d import y\nfrom .. import e\n", "q/d.py": "", "e.py": "",
        "q/unused.py": "from ..p import a\n", "sub/a.py": "",
    }  # fmt: skip
    assert list(source_tree.needed("from engine.p import a\n", "engine", texts)) == [
        "__init__.py", "e.py", "p/__init__.py", "p/a.py", "p/b.py", "q/__init__.py", "q/c.py", "q/d.py",
    ]  # fmt: skip
    assert list(source_tree.needed("from engine.q.d import x\n", "engine", texts)) == [
        "__init__.py", "q/__init__.py", "q/d.py",
    ]  # fmt: skip
    assert list(source_tree.needed("from other import a\nimport engine\n", "engine", texts)) == ["__init__.py"]


@pytest.mark.parametrize(
    "program",
    [
        "roles/shiftmaster/files/shiftmasterctl",
        "roles/backup/files/shiftmaster-backup",
        "roles/backup/files/shiftmaster-backup-read",
        "roles/log_watch/files/shiftmaster-log-watch",
    ],  # fmt: skip
    ids=lambda path: Path(path).name,
)
def test_a_program_starts_with_what_it_is_given(program, tmp_path):
    """Every module is imported, also those that are imported late; what belongs to the controller is not there."""
    directory = ROOT / "module_utils/shiftmaster"
    texts = {str(path.relative_to(directory)): path.read_text(encoding="utf-8") for path in directory.rglob("*.py")}
    taken = source_tree.needed((ROOT / program).read_text(encoding="utf-8"), "engine", texts)
    for name, text in taken.items():
        (tmp_path / "engine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "engine" / name).write_text(text, encoding="utf-8")
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    modules = [f"engine.{name[:-3].replace('/', '.')}" for name in taken if not name.endswith("__init__.py")]
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not {name.split("/")[0] for name in taken} & {"diagnosis", "reports", "health", "awx"}
