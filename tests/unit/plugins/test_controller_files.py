"""Saved files of the controller: private keys are readable with the vault password only."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.plugins.loader import lookup_loader

lookup_loader.add_directory(str(Path(__file__).resolve().parents[3] / "plugins/lookup"))
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/ca.key").write_text(KEY)
    (tmp_path / "site/ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "store.p12").write_bytes(b"\x30\x82\xff\xfe")
    (tmp_path / "masking.yml").write_text("pattern: '-----BEGIN [A-Z ]*PRIVATE KEY-----.*'\n")
    (tmp_path / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    return tmp_path


def files_of(directory, password=""):
    secrets = [("default", VaultSecret(password.encode()))] if password else []
    loader = types.SimpleNamespace(_vault=VaultLib(secrets))
    return lookup_loader.get("controller_files", loader=loader).run([str(directory)], {}, prefix="/c/")[0]


def test_private_keys_are_encrypted_with_the_vault_password(directory):
    found = files_of(directory, "password")
    assert set(found) == {
        "/c/site/ca.key", "/c/site/ca.crt", "/c/store.p12", "/c/vault.yml", "/c/masking.yml",
    }  # fmt: skip
    assert [name for name, text in found.items() if "PRIVATE KEY" in text] == ["/c/masking.yml"]
    vault = VaultLib([("default", VaultSecret(b"password"))])
    assert vault.decrypt(found["/c/site/ca.key"]) == KEY.encode()
    assert vault.decrypt(found["/c/store.p12"]) == b"\x30\x82\xff\xfe"
    assert found["/c/site/ca.crt"].startswith("-----BEGIN CERT") and found["/c/vault.yml"].endswith("6162\n")


def test_a_second_run_returns_the_same_and_another_password_or_key_something_else(directory):
    first = files_of(directory, "password")
    assert files_of(directory, "password") == first
    assert files_of(directory, "another")["/c/site/ca.key"] != first["/c/site/ca.key"]
    salt = first["/c/site/ca.key"].splitlines()[1]
    (directory / "site/ca.key").write_text(KEY.replace("MC4", "MC5"))
    assert files_of(directory, "password")["/c/site/ca.key"].splitlines()[1] != salt


@pytest.mark.parametrize(
    "text",
    [
        KEY.replace("PRIVATE", "RSA PRIVATE"),
        "key: |\n  " + KEY.replace("\n", "\n  "),
        '{"key": "%s"}' % KEY.replace("\n", "\\n"),
        KEY.replace("MC4C", "Proc-Type: 4,ENCRYPTED\n\nMC4C"),
    ],
)
def test_a_key_is_found_in_every_form(directory, text):
    (directory / "key").write_text(text)
    assert "/c/key" not in files_of(directory)


def test_without_a_vault_password_they_are_omitted(directory):
    assert set(files_of(directory)) == {"/c/site/ca.crt", "/c/vault.yml", "/c/masking.yml"}


def test_a_directory_that_does_not_exist_is_empty(tmp_path):
    assert files_of(tmp_path / "absent", "password") == {}
