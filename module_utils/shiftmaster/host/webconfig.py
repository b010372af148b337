"""The web configuration of what uses Prometheus' exporter-toolkit: TLS, and users with bcrypt hashes.

Python's own module crypt is gone since 3.13; the library behind it is on every Debian host, since logins need it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re

HASH = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}")
USER = re.compile(r"^\s+(?P<name>\S.*?)\s*:\s*['\"]?(?P<hash>%s)['\"]?\s*$" % HASH.pattern, re.M)
# bcrypt looks at no more, so that a longer one would be shorter than its owner expects.
LONGEST_PASSWORD_BYTES = 72


class PasswordError(Exception):
    """A password that cannot be hashed; str() shows why, without the password."""


def library():
    try:
        found = ctypes.CDLL("libcrypt.so.1", use_errno=True)
        found.crypt_gensalt.restype = ctypes.c_char_p
        found.crypt_gensalt.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int]
        found.crypt.restype = ctypes.c_char_p
        found.crypt.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        return found
    except (OSError, AttributeError) as error:
        raise PasswordError("passwords cannot be hashed here: %s" % error)


def encoded(password: str) -> bytes:
    data = password.encode("utf-8")
    if not data:
        raise PasswordError("it is empty")
    if b"\0" in data:
        raise PasswordError("it holds a zero byte")
    if len(data) > LONGEST_PASSWORD_BYTES:
        raise PasswordError("it has %d bytes, bcrypt takes %d" % (len(data), LONGEST_PASSWORD_BYTES))
    return data


def hash_password(password: str, cost: int) -> str:
    """Return a new bcrypt hash."""
    crypt = library()
    salt = crypt.crypt_gensalt(b"$2b$", cost, os.urandom(16), 16)
    found = crypt.crypt(encoded(password), salt) if salt else None
    if not found or not HASH.fullmatch(found.decode("ascii", "replace")):
        raise PasswordError("libcrypt makes no bcrypt hash of cost %d" % cost)
    return found.decode("ascii")


def matches(password: str, hashed: str) -> bool:
    found = library().crypt(encoded(password), hashed.encode("ascii"))
    return found is not None and found.decode("ascii", "replace") == hashed


def users_of(text: str) -> dict:
    """Return {name: hash} of a web configuration."""
    found = {}
    for match in USER.finditer(text):
        name = match["name"]
        if name.startswith('"'):
            try:
                name = json.loads(name)
            except ValueError:
                continue
        found[name] = match["hash"]
    return found


def hashes(users, before: str, cost: int) -> dict:
    """Return {name: hash}; a hash of the text before is kept while it has this cost and matches the password."""
    had = users_of(before)
    found = {}
    for user in users:
        name, old = user["name"], had.get(user["name"], "")
        try:
            if old[4:6] == "%02d" % cost and matches(user["password"], old):
                found[name] = old
            else:
                found[name] = hash_password(user["password"], cost)
        except PasswordError as error:
            raise PasswordError("the password of user %s: %s" % (name, error))
    return found


def block(value: dict, indent: str = "") -> list:
    """A mapping as lines of YAML; everything inside a mapping is JSON, which YAML is a superset of."""
    lines = []
    for name, inner in value.items():
        key = name if re.fullmatch(r"[A-Za-z_][\w-]*", str(name)) else json.dumps(name)
        if isinstance(inner, dict) and inner:
            lines.append("%s%s:" % (indent, key))
            lines.extend(block(inner, indent + "  "))
        else:
            lines.append("%s%s: %s" % (indent, key, json.dumps(inner)))
    return lines


def render(certificate, key, users: dict, settings: dict) -> str:
    """Return the text of a web configuration. `settings` wins over the values here, key by key."""
    merged = {}
    if certificate:
        merged["tls_server_config"] = {"cert_file": certificate, "key_file": key, "min_version": "TLS12"}
    for name, value in settings.items():
        merged[name] = dict(merged.get(name, {}), **value) if isinstance(value, dict) else value
    if users:
        # Quoted, whatever the name: `on` would be a boolean.
        merged["basic_auth_users"] = {}
    lines = block({name: value for name, value in merged.items() if name != "basic_auth_users"})
    if users:
        lines.append("basic_auth_users:")
        lines.extend("  %s: %s" % (json.dumps(name), json.dumps(users[name])) for name in sorted(users))
    return "# Ansible managed\n" + "\n".join(lines) + "\n"


def without_hashes(text: str) -> str:
    """The text as a diff may show it."""
    return HASH.sub("(hash of a password)", text)
