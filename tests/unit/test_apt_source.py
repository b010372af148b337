"""library/service/apt_source.py: fingerprints, and that a source which apt cannot use leaves no trace."""

from __future__ import annotations

import base64
import hashlib
import os

import apt_source as module
import pytest

# What a key of version 4 begins with: version, time, algorithm, material. Enough for its fingerprint.
BODY = b"\x04" + (1700000000).to_bytes(4, "big") + b"\x16" + bytes(range(40))
FINGERPRINT = hashlib.sha1(b"\x99" + len(BODY).to_bytes(2, "big") + BODY).hexdigest().upper()


def packet(tag, body):
    return bytes([0xC0 | tag, len(body)]) + body


def old_packet(tag, body):
    return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body


def armoured(data, head="Version: test\n"):
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{head}\n{text}=AbC+\n-----END PGP PUBLIC KEY BLOCK-----\n"


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [packet, old_packet])
@pytest.mark.parametrize("head", ["", "Version: test\n"])
def test_the_fingerprint_is_computed_from_the_key(make, head):
    # With a name (13) and a signature (2) behind it, as every key has.
    data = make(6, BODY) + make(13, b"somebody") + make(2, b"signature")
    assert module.fingerprints(armoured(data, head)) == [FINGERPRINT]


def test_each_key_of_a_text_has_its_own():
    other = BODY[:-1] + b"!"
    assert len(set(module.fingerprints(armoured(packet(6, BODY) + packet(6, other))))) == 2


def test_a_subkey_has_none():
    assert module.fingerprints(armoured(packet(6, BODY) + packet(14, BODY[:-1] + b"!"))) == [FINGERPRINT]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ssh-ed25519 AAAA", "no ASCII-armoured public key"),
        (armoured(packet(13, b"somebody")), "no public key"),
        (armoured(packet(6, BODY)[:-3]), "cut off"),
        (armoured(b"\x01" + BODY), "no packet"),
        (armoured(b"\xc6"), "cut off"),
    ],
)
def test_what_is_no_key_is_refused(text, complaint):
    with pytest.raises(module.Refused, match=complaint):
        module.fingerprints(text)


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("https://mirror.example.org/grafana/", "mirror.example.org_grafana_dists_stable_"),
        ("http://me:word@mirror.example.org:8080/a_b", "mirror.example.org:8080_a%5fb_dists_stable_"),
        ("file:///srv/grafana", "_srv_grafana_dists_stable_"),
        ("file:/srv/grafana", "_srv_grafana_dists_stable_"),
    ],
)
def test_the_index_is_called_as_apt_calls_it(url, prefix):
    assert module.index_prefix(url, "stable") == prefix


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def add(run_module, tmp_path, monkeypatch):
    """Run the module; apt is played by a function that answers None or what it complains of."""
    root, lists = tmp_path / "apt", tmp_path / "lists"
    lists.mkdir()
    asked = []

    def add(error=None, check_mode=False, **more):
        def update(source, timeout):
            asked.append(source)
            if error is None:
                (lists / "mirror.example.org_g_dists_stable_InRelease").touch()
            return error

        monkeypatch.setattr(module, "update", update)
        parameters = {
            "name": "g",
            "url": "https://mirror.example.org/g",
            "suite": "stable",
            "signing_key": armoured(packet(6, BODY)),
            "root": str(root),
            "lists": str(lists),
        }
        return run_module(module, check_mode, **{**parameters, **more})

    add.files = lambda: {
        str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()
    }
    add.asked, add.lists = asked, lists
    return add


def test_it_is_added_once(add):
    result = add(fingerprint=f"{FINGERPRINT[:20]} {FINGERPRINT[20:].lower()}")
    assert result["changed"] and result["known"] and result["fingerprints"] == [FINGERPRINT]
    assert list(add.files()) == ["keyrings/g.asc", "sources.list.d/g.sources"]
    source = add.files()["sources.list.d/g.sources"]
    assert "Suites: stable\n" in source and "Signed-By: " in source and "rusted" not in source
    again = add()
    assert not again["changed"] and again["known"] and len(add.asked) == 1


def test_one_that_apt_cannot_use_leaves_no_trace(add):
    result = add("Could not connect")
    assert result["failed"] and "https://mirror.example.org/g: Could not connect" in result["msg"]
    assert add.files() == {}


def test_a_change_that_apt_cannot_use_leaves_the_one_before(add):
    add()
    before = add.files()
    assert add("no signature", url="https://other.example.org/g")["failed"]
    assert add.files() == before
    assert not add()["changed"]


def test_an_index_that_is_gone_is_read_again(add):
    add()
    for path in add.lists.iterdir():
        path.unlink()
    assert add()["changed"] and len(add.asked) == 2


def test_a_version_that_the_index_does_not_have_is_looked_for(add, monkeypatch):
    """A version that came since is an update by one variable, which waits for nobody's daily apt-get update."""
    add()
    monkeypatch.setattr(module, "knows", lambda packages: set(packages) <= {"a=1"})
    assert not add(packages=["a=1"])["changed"] and len(add.asked) == 1
    assert not add(packages=["a=1", "b=2"], check_mode=True)["changed"] and len(add.asked) == 1
    # What it had stays what it had, so that a run that changes nothing says so.
    assert not add(packages=["a=1", "b=2"])["changed"] and len(add.asked) == 2
    assert add("Could not connect", packages=["b=2"])["failed"] and len(add.files()) == 2


@pytest.mark.parametrize(
    ("shown", "packages", "known"),
    [
        ("", [], True), ("Package: a\n\nPackage: b\n", ["a=1", "b=2"], True), ("Package: a\n", ["a=1", "b=2"], False),
        ("", ["a=1"], False), ("Package: a\nDescription: b\n Package: b\n", ["a=1", "b=2"], False),
    ],
)  # fmt: skip
def test_apt_is_asked_once_for_all_packages(tmp_path, monkeypatch, shown, packages, known):
    program = tmp_path / "apt-cache"
    program.write_text(f"#!/bin/sh\necho \"$*\" >>{tmp_path}/asked\ncat <<'END'\n{shown}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert module.knows(packages) is known
    asked = [f"show --no-all-versions {' '.join(packages)}"] if packages else []
    assert ((tmp_path / "asked").read_text().splitlines() if packages else []) == asked


def test_another_fingerprint_is_refused_before_anything_is_written(add):
    result = add(fingerprint="0" * 40)
    assert result["failed"] and FINGERPRINT in result["msg"]
    assert add.files() == {} and add.asked == []


def test_check_mode_writes_and_asks_nothing(add):
    result = add(check_mode=True)
    assert result["changed"] and not result["known"] and len(result["diff"]) == 2
    assert add.files() == {} and add.asked == []
