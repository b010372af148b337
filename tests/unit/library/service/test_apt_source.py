"""Role base, apt_source.yml: the fingerprint of the key, the name of the index, and what apt validates."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[4]
spec = importlib.util.spec_from_file_location("fingerprints", ROOT / "plugins/filter/openpgp_fingerprints.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

# The beginning of a key of version 4: version, time, algorithm, material. Enough for its fingerprint.
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
    # With a name (13) and a signature (2) after it, as every key has.
    data = make(6, BODY) + make(13, b"somebody") + make(2, b"signature")
    assert module.openpgp_fingerprints(armoured(data, head)) == [FINGERPRINT]


def test_each_key_of_a_text_has_its_own():
    other = BODY[:-1] + b"!"
    assert len(set(module.openpgp_fingerprints(armoured(packet(6, BODY) + packet(6, other))))) == 2


def test_a_subkey_has_none():
    assert module.openpgp_fingerprints(armoured(packet(6, BODY) + packet(14, BODY[:-1] + b"!"))) == [FINGERPRINT]


@pytest.mark.parametrize(
    "text",
    [
        "ssh-ed25519 AAAA",
        armoured(packet(13, b"somebody")),
        armoured(packet(6, BODY)[:-3]),
        armoured(packet(6, BODY)[:1]),
        armoured(b"\x01" + BODY),
        armoured(b"\xc6"),
        armoured(bytes([0xC6, 224]) + bytes(300)),
        armoured(bytes([0x9B]) + BODY),
        armoured(packet(6, BODY)).replace("/", "!").replace("A", "!"),
    ],
)
def test_an_invalid_key_is_rejected(text):
    with pytest.raises(AnsibleFilterError):
        module.openpgp_fingerprints(text)


@pytest.mark.parametrize("size", [191, 192, 300, 9000])
def test_a_key_of_any_length_has_its_fingerprint(size):
    body = BODY + bytes(size - len(BODY))
    length = (
        bytes([size])
        if size < 192
        else bytes([(size - 192 >> 8) + 192, size - 192 & 255])
        if size < 8384
        else b"\xff" + size.to_bytes(4, "big")
    )
    expected = hashlib.sha1(b"\x99" + size.to_bytes(2, "big") + body).hexdigest().upper()
    assert module.openpgp_fingerprints(armoured(b"\xc6" + length + body)) == [expected]


def render(text, **source):
    variables = yaml.safe_load((ROOT / "roles/base/vars/main.yml").read_text(encoding="utf-8"))
    known = {
        name: trust_as_template(value) for name, value in variables.items() if name.startswith("__base_apt_source")
    }
    given = {"name": "g", "url": "https://mirror.example.org/g", "suite": "stable", "key": armoured(packet(6, BODY))}
    known |= {"ansible_managed": "managed", "base_apt_source": {**given, **source}}
    return Templar(DataLoader(), variables=known).template(trust_as_template(text))


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
    assert render("{{ __base_apt_source_index }}", url=url) == prefix


def test_apt_reads_this_source_alone_and_fails_where_it_does_not_respond():
    command = render("{{ __base_apt_source_update }}%s")
    assert command.endswith(" -o Dir::Etc::SourceList=%s") and "Dir::Etc::SourceParts=/dev/null" in command
    assert "APT::Get::List-Cleanup=false" in command and "APT::Update::Error-Mode=any" in command


def test_the_file_is_validated_before_it_is_replaced_and_contains_the_key():
    tasks = yaml.safe_load((ROOT / "roles/base/tasks/apt_source.yml").read_text(encoding="utf-8"))
    (block,) = (task["block"] for task in tasks if "block" in task)
    assert block[0]["ansible.builtin.template"]["validate"] == "{{ __base_apt_source_update }}%s"
    text = render((ROOT / "roles/base/templates/apt_source.sources.j2").read_text(encoding="utf-8"))
    fields, key = text.split("Signed-By:\n")
    assert "URIs: https://mirror.example.org/g\nSuites: stable\nComponents: main\n" in fields and "rusted" not in text
    # As deb822 has it: each line indented, an empty one is a full stop.
    plain = "\n".join("" if line == " ." else line[1:] for line in key.splitlines())
    assert all(line.startswith(" ") for line in key.splitlines())
    assert module.openpgp_fingerprints(plain) == [FINGERPRINT]
