"""shiftmaster_credentials: which secrets an environment uses, and its messages about a rotation's values."""

from __future__ import annotations

import json

import pytest
import shiftmaster_credentials as credentials
from ansible.module_utils.shiftmaster.host import probe

ENVIRONMENT = {
    "DJANGO_SECRET_KEY": "key-2",
    "DB_PASSWORD": "p/w",
    "CACHE_URL": "redis://shiftmaster:a%2Fb%40@localhost:6379/1",
    "SHIFTMASTER_SECRET_KEY_FALLBACKS": json.dumps(["key-1"]),
}


def value(current, *previous, **more):
    return {
        "name": "vault_x",
        "current": current,
        "previous": list(previous),
        "secret": "x",
        "in_environment": True,
        **more,
    }


@pytest.mark.parametrize(
    ("current", "previous", "expected"),
    [
        ("key-2", ["key-1"], "current"),
        ("key-3", ["key-0", "key-2"], "previous 1"),
        ("p/w", [], "current"),
        ("a/b@", [], "current"),
        ("new", ["a/b@"], "previous 0"),
        ("new", [], "other"),
        # A part of a value is not the value, and a key that is only accepted is not the one in use.
        ("key", ["shiftmaster", "6379"], "other"),
        ("key-1", [], "other"),
    ],
)
def test_secrets_in_use(current, previous, expected):
    assert credentials.in_use(ENVIRONMENT, value(current, *previous)) == expected


def test_without_an_environment_nothing_is_in_use():
    assert credentials.in_use(None, value("a")) == "absent"
    assert credentials.problems(None, value("a"), ["x"]) == []


@pytest.mark.parametrize(
    ("entry", "selected", "words"),
    [
        (value("new", "key-2"), ["x"], None),
        (value("key-2", "key-1"), ["y"], None),
        (value("new", "key-2"), ["y"], "vault_x is new, too: name x in secrets"),
        (value("new", "key-1"), ["x"], "vault_x_previous does not hold that either"),
        (value("key-2", "key-2"), ["x"], "vault_x_previous holds the value of vault_x itself"),
        (value("key-2", ""), ["x"], "vault_x_previous holds an empty value"),
        (value("key-2", previous="key-1"), ["x"], "vault_x_previous is not a list"),
        (value("key-2", 7), ["x"], "vault_x_previous is not a list"),
        (value("new", in_environment=False), ["y"], None),
    ],
)
def test_problems_of_a_rotation(entry, selected, words):
    found = credentials.problems(ENVIRONMENT, entry, selected)
    if words is None:
        assert found == []
    else:
        assert len(found) == 1 and words in found[0] and "key-2" not in found[0]


def test_a_release_that_would_restore_earlier_secrets():
    names = ["DJANGO_SECRET_KEY", "SHIFTMASTER_SECRET_KEY_FALLBACKS", "NOT_THERE"]
    assert credentials.differing(ENVIRONMENT, ENVIRONMENT, names) == []
    later = {"DJANGO_SECRET_KEY": "key-3"}
    assert credentials.differing(ENVIRONMENT, later, names) == [
        "its DJANGO_SECRET_KEY is not the one in use",
        "it accepts an earlier secret key of Django",
    ]
    assert credentials.differing(later, ENVIRONMENT, names) == ["its DJANGO_SECRET_KEY is not the one in use"]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("auth", ["Redis rejects the password of its CACHE_URL"]),
        ("hba", ["Redis rejects the password of its CACHE_URL"]),
        ("refused", []),
    ],
)
def test_only_a_rejected_login_is_a_rejection(monkeypatch, reason, expected):
    def ping(_target, _timeout):
        raise probe.ProbeError("unhealthy", reason, "no")

    monkeypatch.setattr(probe, "redis_ping", ping)
    context = credentials.checks.Context()
    assert credentials.refused({"CACHE_URL": ENVIRONMENT["CACHE_URL"]}, context, 1) == expected


def test_a_login_without_a_server_is_no_response(monkeypatch):
    def ping(_target, _timeout):
        raise probe.ProbeError("down", "refused", "nobody there")

    monkeypatch.setattr(probe, "redis_ping", ping)
    entry = {"kind": "redis", "host": "localhost", "port": 1, "user": "admin", "password": "x/y", "ca_file": ""}
    with pytest.raises(probe.ProbeError):
        credentials.accepted(credentials.login(entry, 1))


@pytest.mark.parametrize("authority", ["", "/etc/ssl/shiftmaster/ca.crt"])
def test_a_server_of_another_host_is_queried_by_verified_tls(monkeypatch, authority):
    requested = []
    monkeypatch.setattr(probe, "redis_ping", lambda target, _timeout: requested.append(target))
    monkeypatch.setattr(probe, "postgres_ping", lambda target, _timeout: requested.append(target))
    common = {"host": "10.20.0.22", "port": 6379, "user": "x", "password": "y", "database": "d", "ca_file": authority}
    for kind in ("redis", "postgresql"):
        credentials.login({"kind": kind, "sslmode": "verify-full", **common}, 1)()
    redis, postgresql = requested
    assert (redis.tls, redis.verify, redis.ca_file or "") == (bool(authority), True, authority)
    assert (postgresql.sslmode, postgresql.sslrootcert or "") == ("verify-full", authority)
