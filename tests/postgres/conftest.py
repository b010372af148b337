"""Requirements of the tests against a real PostgreSQL.

SHIFTMASTER_TEST_DSN     postgresql://user:password@host:port/database of a role that may create databases
SHIFTMASTER_TEST_PYTHON  an interpreter that has Django and psycopg (by default the one that runs pytest)

Where one of them is missing the tests fail and report it; they are never skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


@pytest.fixture(scope="session")
def dsn():
    value = os.environ.get("SHIFTMASTER_TEST_DSN")
    if not value:
        pytest.fail(
            "SHIFTMASTER_TEST_DSN is not set: these tests need a real PostgreSQL, as"
            " postgresql://user:password@host:port/database of a role that may create databases",
            pytrace=False,
        )
    return value


@pytest.fixture(scope="session")
def django_venv():
    """The virtual environment that replaces a release's own."""
    python = os.environ.get("SHIFTMASTER_TEST_PYTHON") or sys.executable
    done = subprocess.run(
        [python, "-c", "import django, psycopg, sys; print(sys.prefix)"], text=True, capture_output=True, timeout=60
    )
    if done.returncode:
        pytest.fail(
            "%s has no Django and psycopg; name an interpreter that has them in SHIFTMASTER_TEST_PYTHON: %s"
            % (python, done.stderr.strip().splitlines()[-1]),
            pytrace=False,
        )
    return Path(done.stdout.strip())
