"""Lookup `controller_files`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: controller_files
short_description: The files of a directory of the controller, its private keys encrypted
description:
  - Returns what a backup needs of the controller. A file that holds a private key, or is no text, is encrypted with the
    vault password of the run, so C(ansible-vault decrypt) reads it. What a vault has encrypted already stays so.
  - Without a vault password these files are left out, and a warning names them.
  - The salt depends on the content and the password, so a second run returns the same text.
options:
  _terms:
    description: Directories of the controller. One that does not exist holds nothing.
    required: true
  prefix:
    description: Put before each path, e.g. the directory they go to.
    default: ""
"""

EXAMPLES = r"""
- name: Show what would be saved
  ansible.builtin.debug:
    var: lookup('controller_files', '/srv/operations/.secrets/production', prefix='/etc/shiftmaster-backup/controller/')
"""

RETURN = r"""
_raw:
  description: For each directory a dict of path to text.
  type: list
  elements: dict
"""

import hashlib
import hmac
import re
from pathlib import Path

from ansible.parsing.vault import VaultLib, is_encrypted, match_encrypt_secret
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display

display = Display()
# A key, in a file of its own or in a value; not a pattern or a sentence about one.
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(\s|\\r|\\n)+(Proc-Type:|[A-Za-z0-9+/=]{16})")


def is_secret(content):
    """Whether a file must not lie on another host as it is."""
    if is_encrypted(content):
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return PRIVATE_KEY.search(content) is not None


def encrypted(content, secret):
    salt = hmac.new(secret.bytes, content, hashlib.sha256).hexdigest()
    return VaultLib().encrypt(content, secret=secret, salt=salt).decode("ascii")


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        prefix = self.get_option("prefix")
        # What --vault-password-file and its like have given to this run.
        secrets = getattr(getattr(self._loader, "_vault", None), "secrets", None)
        secret = match_encrypt_secret(secrets)[1] if secrets else None
        trees = []
        for term in terms:
            directory, found, left_out = Path(term), {}, []
            for path in sorted(directory.rglob("*")) if directory.is_dir() else []:
                if not path.is_file() or {"__pycache__", ".git"} & set(path.parts):
                    continue
                name, content = str(path.relative_to(directory)), path.read_bytes()
                if not is_secret(content):
                    found[prefix + name] = content.decode("utf-8")
                elif secret:
                    found[prefix + name] = encrypted(content, secret)
                else:
                    left_out.append(name)
            if left_out:
                display.warning(
                    "These files of %s are not saved: they hold private keys, and this run has no vault password to "
                    "encrypt them with: %s" % (directory, ", ".join(left_out))
                )
            trees.append(found)
        return trees
