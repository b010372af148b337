"""The lookup zipapp: a program for hosts and what it imports in one file, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("zipapp_lookup", ROOT / "plugins/lookup/zipapp.py")
zipapp = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(zipapp)
# Those of Debian 12 and 13, and that of the controller.
PYTHONS = [found for found in (shutil.which("python3.11"), shutil.which("python3.13")) if found] or [sys.executable]
PROGRAMS = [
    "roles/shiftmaster/files/shiftmasterctl",
    "roles/backup/files/shiftmaster-backup",
    "roles/backup/files/shiftmaster-backup-read",
    "roles/log_watch/files/shiftmaster-log-watch",
]


def packed(program):
    stream = io.BytesIO()
    zipapp.pack(ROOT / program, stream)
    return stream.getvalue()


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write {path: text} as the modules that programs may import; returns what a program's archive contains."""
    monkeypatch.setattr(zipapp, "MODULE_UTILS", tmp_path / "utils")

    def modules(texts, program):
        for path, text in {**texts, "../program": "#!/usr/bin/python3 -I\n" + program}.items():
            (tmp_path / "utils/shiftmaster" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "utils/shiftmaster" / path).write_text(text)
        stream = io.BytesIO()
        zipapp.pack(tmp_path / "utils/program", stream)
        with zipfile.ZipFile(stream) as archive:
            return [name.removeprefix("shiftmaster/") for name in archive.namelist()]

    return modules


def test_modules_that_are_imported_indirectly_are_contained(modules):
    texts = {
        "__init__.py": "", "p/__init__.py": "",
        "p/a.py": "from . import b\n", "p/b.py": "def f():\n    from ..q.c import x\n",
        "q/__init__.py": "", "q/c.py": "import json\nfrom .d import y\nfrom .. import e\n", "q/d.py": "", "e.py": "",
        "q/unused.py": "from ..p import a\n", "sub/a.py": "",
    }  # fmt: skip
    assert modules(texts, "from shiftmaster.p import a\n") == [
        "__main__.py", "__init__.py", "e.py", "p/__init__.py", "p/a.py", "p/b.py", "q/__init__.py", "q/c.py", "q/d.py",
    ]  # fmt: skip
    assert modules(texts, "import shiftmaster.q.d\n") == ["__main__.py", "__init__.py", "q/__init__.py", "q/d.py"]
    assert modules(texts, "import json, logging\n") == ["__main__.py"]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: Path(path).name)
def test_a_program_starts_with_its_archive_alone(program, python, tmp_path):
    """Every module is imported, in isolated mode and without site-packages; none belongs to the controller."""
    path = tmp_path / "program"
    path.write_bytes(packed(program))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    wanted = [name[:-3].replace("/", ".") for name in names if not name.endswith(("__init__.py", "__main__.py"))]
    code = f"import sys; sys.path.insert(0, {str(path)!r}); import {', '.join(wanted)}"
    done = subprocess.run([python, "-ISc", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([python, "-IS", path], capture_output=True, text=True, check=False)
    assert "ImportError" not in done.stderr and "ModuleNotFoundError" not in done.stderr, done.stderr
    # The Japanese of reasons is for both.
    both = {"shiftmaster/reports/__init__.py", "shiftmaster/reports/causes.py"}
    assert not {name.split("/")[1] for name in set(names[1:]) - both} & {"diagnosis", "reports", "health", "awx"}
    assert path.read_bytes().startswith((ROOT / program).read_bytes().splitlines()[0] + b"\n")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: Path(path).name)
def test_no_module_is_imported_late(program):
    """A program may be replaced while it runs, and its archive is then another one."""
    with zipfile.ZipFile(io.BytesIO(packed(program))) as archive:
        for name in archive.namelist():
            text = archive.read(name).decode()
            assert not re.search(r"^[ \t]+(from \.|(from|import) shiftmaster)", text, re.M), name


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)
def test_drivers_survive_that_their_program_is_replaced(python, tmp_path):
    path = tmp_path / "program"
    path.write_bytes(packed(PROGRAMS[0]))
    code = (
        f"import json, os, sys; sys.path.insert(0, {str(path)!r})\n"
        "from shiftmaster.release import celery_driver, releasecode\n"
        f"open({str(path)!r}, 'wb').close()\n"
        "releasecode.Process = type('Process', (), {'__init__': lambda self, *_: setattr(self, 'child', self),"
        " 'stdin': open(os.pipe()[1], 'wb')})\n"
        "releasecode.Driver._send = lambda _self, source: print(json.dumps(source))\n"
        "code = type('Code', (), {'user': '', 'python': '', 'path': '', 'environ': lambda *_: {}})()\n"
        "releasecode.Driver(code, celery_driver)\n"
    )
    done = subprocess.run([python, "-ISc", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == (ROOT / "module_utils/shiftmaster/release/celery_driver.py").read_text()


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)
def test_an_unexpected_error_is_shown_after_the_program_was_replaced(python, tmp_path):
    path = tmp_path / "program"
    path.write_bytes(packed(PROGRAMS[1]))
    code = (
        f"import runpy, sys; program = runpy.run_path({str(path)!r})\n"
        f"open({str(path)!r}, 'wb').close()\n"
        "sys.argv[1:] = ['list']\n"
        "program['main'].__globals__['Host'] = lambda _options: 1 / 0\n"
        "program['main'].__globals__['load_options'] = lambda: {}\n"
        "sys.exit(program['main']())\n"
    )
    done = subprocess.run([python, "-ISc", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "ZeroDivisionError" in done.stderr, done.stderr


def test_the_same_source_gives_the_same_bytes(tmp_path):
    """Regardless of the times and modes of its files and the path of the repository."""
    for name in ("plugins/lookup", "module_utils"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in tmp_path.rglob("*.py"):
        os.utime(path, (1700000000, 1700000000))
        path.chmod(0o600)
    shutil.copy(ROOT / PROGRAMS[1], tmp_path / "program")
    spec = importlib.util.spec_from_file_location("copied", tmp_path / "plugins/lookup/zipapp.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    stream = io.BytesIO()
    copied.pack(tmp_path / "program", stream)
    assert stream.getvalue() == packed(PROGRAMS[1])


def test_the_lookup_returns_a_file_for_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(zipapp.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    lookup = zipapp.LookupModule(loader=DataLoader())
    assert lookup.run([str(ROOT / PROGRAMS[0])], {}) == [str(tmp_path / "shiftmasterctl")]
    assert lookup.run([str(ROOT / PROGRAMS[0])], {}) == [str(tmp_path / "shiftmasterctl")]
    assert [path.name for path in tmp_path.iterdir()] == ["shiftmasterctl"]
    assert (tmp_path / "shiftmasterctl").read_bytes() == packed(PROGRAMS[0])
    digest = hashlib.sha256(packed(PROGRAMS[0])).hexdigest()
    assert lookup.run([str(ROOT / PROGRAMS[0])], {}, digest=True) == [digest]
    with pytest.raises(AnsibleError):
        lookup.run(["no-such-program"], {})
