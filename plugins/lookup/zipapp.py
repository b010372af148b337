"""Lookup `zipapp`."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: zipapp
short_description: Pack a program for hosts into one executable file
description:
  - Returns the path of a Python zip application on the controller, for M(ansible.builtin.copy). It contains the program
    and the modules of C(module_utils/shiftmaster) that it imports, also indirectly, as the package C(shiftmaster). The
    first line of the program names the interpreter.
  - The same source gives the same bytes. The file is removed at the end of the run.
author: ShiftMaster operations (@shiftmaster-operations)
options:
  _terms:
    description: Programs, in the directory C(files) of the role or by absolute path.
    required: true
  digest:
    description: Whether the SHA-256 of each file is returned instead of its path, in hexadecimal.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Install a program
  ansible.builtin.copy:
    src: "{{ lookup('zipapp', 'shiftmasterctl') }}"
    dest: /usr/local/sbin/shiftmasterctl
    mode: "0755"
"""

RETURN = r"""
_raw:
  description: The path of each file, or its SHA-256.
  type: list
  elements: str
"""

import hashlib
import os
import tempfile
import zipfile
from modulefinder import ModuleFinder
from pathlib import Path

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

MODULE_UTILS = Path(__file__).resolve().parents[2] / "module_utils"


def pack(program, stream):
    """Write a program with what it imports of MODULE_UTILS to a stream."""
    finder = ModuleFinder([str(MODULE_UTILS)])
    finder.run_script(str(program))
    paths = [Path(module.__file__) for module in finder.modules.values() if module.__file__]
    files = {"__main__.py" if path == program else str(path.relative_to(MODULE_UTILS)): path for path in paths}
    stream.write(program.read_bytes().splitlines(keepends=True)[0])
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            # Its time is 1980, and nothing is compressed: zlib's output depends on its version.
            archive.writestr(zipfile.ZipInfo(name), files[name].read_bytes())


class LookupModule(LookupBase):
    def run(self, terms, variables=None, digest=False, **kwargs):
        packed = []
        for term in terms:
            program = self.find_file_in_search_path(variables, "files", term)
            if not program:
                raise AnsibleError(f"zipapp: there is no program {term}")
            path = Path(constants.DEFAULT_LOCAL_TMP, os.path.basename(program))
            # Once in a run, also for many hosts.
            if not path.exists():
                with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
                    pack(Path(program), stream)
                os.replace(stream.name, path)
            packed.append(hashlib.sha256(path.read_bytes()).hexdigest() if digest else str(path))
        return packed
