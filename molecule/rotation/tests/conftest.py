"""The secrets of the scenario as its vault would hold them: what is in use, and what was before."""

from __future__ import annotations

import json
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
    """Kept on the host it belongs to: another run of the tests goes on with it."""

    FILE = "/root/vault.json"

    def __init__(self, operations):
        self.operations, folder = operations, SCENARIO_HOME / "secrets"
        self.current = {name: (folder / file).read_text().split()[0] for name, file in FILES.items()}
        self.previous = {name: [] for name in FILES}
        kept = operations.shell(f"cat {self.FILE} 2>/dev/null || true")
        if kept:
            self.current, self.previous = json.loads(kept)

    def keep(self) -> None:
        self.operations.shell(f"umask 077; cat > {self.FILE}", stdin=json.dumps([self.current, self.previous]))

    def renew(self, *names: str) -> None:
        """Put new values in and keep those of before, as an administrator edits the vault."""
        for name in names or FILES:
            # Some of before, too: where runs have failed since, one of them is what the release uses.
            self.previous[name] = [self.current[name], *self.previous[name]][:3]
            # With what a URL, a shell and an environment file would stumble over.
            self.current[name] = secrets.token_hex(16) + "/+@%: '\"$"
        self.keep()

    def forget(self, *names: str) -> None:
        for name in names or FILES:
            self.previous[name] = []
        self.keep()

    @property
    def variables(self) -> dict:
        return {**self.current, **{f"{name}_previous": values for name, values in self.previous.items()}}


@pytest.fixture(scope="session")
def vault(operations):
    return Vault(operations)
