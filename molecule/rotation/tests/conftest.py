"""The secrets of the scenario as its vault would hold them: what is in use, and what was before."""

from __future__ import annotations

import secrets

import pytest
from support import SCENARIO_HOME, operations_of, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

FILES = {
    "vault_shiftmaster_secret_key": "secret_key",
    "vault_shiftmaster_database_password": "database",
    "vault_shiftmaster_redis_password": "redis",
    "vault_redis_admin_password": "redis_admin",
}

operations = operations_of(__file__)


class Vault:
    def __init__(self):
        folder = SCENARIO_HOME / "secrets"
        self.current = {name: (folder / file).read_text().split()[0] for name, file in FILES.items()}
        self.previous = {name: [] for name in FILES}

    def renew(self, *names: str) -> None:
        """Put new values in and keep those of before, as an administrator edits the vault."""
        for name in names or FILES:
            self.previous[name] = [self.current[name], *self.previous[name]]
            # With what a URL, a shell and an environment file would stumble over.
            self.current[name] = secrets.token_hex(16) + "/+@%: '\"$"

    def forget(self, *names: str) -> None:
        for name in names or FILES:
            self.previous[name] = []

    @property
    def variables(self) -> dict:
        return {**self.current, **{f"{name}_previous": values for name, values in self.previous.items()}}


@pytest.fixture(scope="session")
def vault():
    return Vault()
