"""Filter `openpgp_fingerprints`."""

from __future__ import annotations

import base64
import hashlib
import re

from ansible.errors import AnsibleFilterError

ARMOUR = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*\n(?:[\w-]+:.*\n)*\s*\n(.*?)\n?(?:=[\w+/]{4}\s*\n)?"
    r"-----END PGP PUBLIC KEY BLOCK-----",
    re.S,
)


def packets(data):
    """Yield (tag, body) of each OpenPGP packet (RFC 9580, 4.2)."""
    at = 0
    while at < len(data):
        head, first = data[at], data[at + 1]
        if head & 0x40:
            # A public key has no partial lengths, which are 224 to 254.
            tag, width = head & 0x3F, 1 if first < 192 else 2 if first < 224 else 5
            size = first if width == 1 else ((first - 192) << 8) + data[at + 2] + 192
            if width == 5:
                size = int.from_bytes(data[at + 2 : at + 6], "big")
        else:
            tag, width = (head >> 2) & 0x0F, 1 << (head & 3)
            size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        at += 1 + width
        if not head & 0x80 or at + size > len(data):
            raise ValueError
        yield tag, data[at : at + size]
        at += size


def openpgp_fingerprints(text):
    """Return the fingerprints (capitals) of the primary keys in an ASCII-armoured public key.

    The controller computes them, so that neither it nor a host needs GnuPG.
    """
    found = []
    try:
        match = ARMOUR.search(text.replace("\r\n", "\n"))
        for tag, body in packets(base64.b64decode("".join(match.group(1).split()), validate=True)):
            # 6 is a public key; version 4 hashes it by SHA-1, version 6 by SHA-256 (RFC 9580, 5.5.4).
            if tag == 6 and body[0] == 4:
                digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            elif tag == 6 and body[0] == 6:
                digest = hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body)
            else:
                continue
            found.append(digest.hexdigest().upper())
    except (AttributeError, IndexError, ValueError):
        found = []
    if not found:
        raise AnsibleFilterError("the key is no ASCII-armoured public key (BEGIN PGP PUBLIC KEY BLOCK), or is damaged")
    return found


class FilterModule:
    def filters(self):
        return {"openpgp_fingerprints": openpgp_fingerprints}
