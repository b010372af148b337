import importlib.util
from pathlib import Path

import pytest
from support import ROOT, Operations, operations_of

_spec = importlib.util.spec_from_file_location("backup_conftest", ROOT / "molecule/backup/tests/conftest.py")
backup_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(backup_conftest)
backups, first = backup_conftest.backups, backup_conftest.first
operations = operations_of(__file__)


@pytest.fixture(scope="session")
def store():
    return Operations(Path(__file__).resolve().parents[1] / "inventory", "offsite-store")
