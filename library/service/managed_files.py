#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: managed_files
short_description: Install directories and small text files in one call
description:
  - One remote call instead of one for each directory and file; a run that changes nothing on an installation with
    several hosts is mostly made of such calls.
  - Each file is replaced as a whole, by a rename. Nothing is changed before all of the input has been checked.
options:
  directories:
    description: Directories, parents first.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory's absolute path., type: path, required: true}
      owner: {description: Its user., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: "Its mode in octal, as text.", type: str, default: "0755"}
  files:
    description: Text files with their whole content.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file's absolute path., type: path, required: true}
      content: {description: The whole text., type: str, required: true}
      owner: {description: Its user., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: "Its mode in octal, as text.", type: str, default: "0644"}
  absent:
    description: Files, and directories with all that they contain, that must not be there.
    type: list
    elements: path
    default: []
  purge:
    description: Directories below which every file that is not in O(files) is removed.
    type: list
    elements: path
    default: []
  needs:
    description:
      - What the host must have first. Where it lacks some of it, nothing is laid down and RV(lacking) names it, so that
        the caller brings it and calls again.
    type: dict
    suboptions:
      packages: {description: Debian packages., type: list, elements: str, default: []}
      users:
        description: Users with their group, home and shell.
        type: list
        elements: dict
        default: []
        suboptions:
          name: {description: The user., type: str, required: true}
          group: {description: The user's own group., type: str, required: true}
          home: {description: The home directory., type: str, required: true}
          shell: {description: The login shell., type: str, required: true}
attributes:
  check_mode: {description: Says what would change and changes nothing., support: full}
  diff_mode: {description: Shows the text before and after., support: full}
"""

EXAMPLES = r"""
- name: Install a unit
  managed_files:
    files:
      - path: /etc/systemd/system/shiftmaster.service
        content: "{{ lookup('ansible.builtin.template', 'shiftmaster.service.j2') }}"
"""

RETURN = r"""
changed_paths:
  description: What was, or in check mode would be, created, changed or removed.
  type: list
  elements: str
  returned: always
lacking:
  description: Names of the packages and users of O(needs) that the host lacks.
  type: list
  elements: str
  returned: always
"""

import grp
import os
import pwd
import shutil
import stat
import subprocess

from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.quiet import QuietModule


def identity(entry, missing_ok):
    """Return (uid, gid) of an entry; None for one that does not exist yet and may be missing (check mode)."""
    found = []
    for kind, table, key in (("user", pwd.getpwnam, "owner"), ("group", grp.getgrnam, "group")):
        try:
            found.append(table(entry[key])[2])
        except KeyError:
            if not missing_ok:
                raise ValueError("%s: there is no %s %s" % (entry["path"], kind, entry[key]))
            found.append(None)
    return tuple(found)


def needs(path, entry, ids):
    """Return what of mode and owner differs, as text; "" where all is as asked or the path is not there."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    different = []
    if mode != int(entry["mode"], 8):
        different.append("mode %04o -> %s" % (mode, entry["mode"]))
    if (found.st_uid, found.st_gid) != ids:
        different.append("owner %d:%d -> %s:%s" % (found.st_uid, found.st_gid, entry["owner"], entry["group"]))
    return ", ".join(different)


def read(path):
    try:
        return safe_files.read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def lacking(needs):
    """Return the names of packages that are not installed and of users that are missing or different."""
    installed = ""
    if needs["packages"]:
        command = [
            "dpkg-query",
            "--show",
            "--showformat",
            "${Package} ${db:Status-Status}\\n",
            "--",
            *needs["packages"],
        ]
        # It ends with 1 where it does not know one of them.
        installed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout
    missing = [name for name in needs["packages"] if "%s installed" % name not in installed.splitlines()]
    for user in needs["users"]:
        try:
            found = pwd.getpwnam(user["name"])
            there = {"group": grp.getgrgid(found.pw_gid).gr_name, "home": found.pw_dir, "shell": found.pw_shell}
            same = dict(there, name=user["name"]) == user
        except KeyError:
            same = False
        if not same:
            missing.append(user["name"])
    return missing


def apply(params, check_mode):
    """Return (changed paths, diffs)."""
    changed, diffs = [], []
    files = params["files"]
    for entry in params["directories"] + files:
        int(entry["mode"], 8)
        identity(entry, check_mode)
        if not os.path.isabs(entry["path"]):
            raise ValueError("%s is not an absolute path" % entry["path"])
    for entry in params["directories"]:
        path, ids = entry["path"], identity(entry, check_mode)
        exists = os.path.isdir(path)
        difference = needs(path, entry, ids)
        if exists and not difference:
            continue
        changed.append(path)
        diffs.append(
            {
                "before_header": path,
                "after_header": path,
                "before": "%s\n" % difference if exists else "",
                "after": "directory %s %s:%s\n" % (entry["mode"], entry["owner"], entry["group"]),
            }
        )
        if not check_mode:
            descriptor = safe_files.open_directory(path, 0o755)
            try:
                os.fchown(descriptor, *ids)
                os.fchmod(descriptor, int(entry["mode"], 8))
            finally:
                os.close(descriptor)
    for entry in files:
        path, ids = entry["path"], identity(entry, check_mode)
        before = read(path)
        difference = needs(path, entry, ids)
        if before == entry["content"] and not difference:
            continue
        changed.append(path)
        diffs.append(
            {"before_header": path, "after_header": path, "before": before or "", "after": entry["content"]}
            if before != entry["content"]
            else {"prepared": "%s: %s\n" % (path, difference)}
        )
        if not check_mode:
            replace(path, entry, ids)
    wanted = {entry["path"] for entry in files}
    unwanted = [path for path in params["absent"] if os.path.lexists(path)]
    for directory in params["purge"]:
        for parent, _directories, names in os.walk(directory):
            unwanted.extend(path for path in (os.path.join(parent, name) for name in names) if path not in wanted)
    for path in unwanted:
        changed.append(path)
        directory = stat.S_ISDIR(os.lstat(path).st_mode)
        before = "(a directory)\n" if directory else "(a file)\n"
        diffs.append({"before_header": path, "after_header": path, "before": before, "after": ""})
        if not check_mode:
            (shutil.rmtree if directory else os.unlink)(path)
    return changed, diffs


def replace(path, entry, ids):
    os.close(safe_files.open_directory(os.path.dirname(path), 0o755))
    safe_files.write(path, entry["content"].encode(), int(entry["mode"], 8), *ids)


def main():
    common = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    module = QuietModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": dict(common, mode={"type": "str", "default": "0755"}),
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": dict(
                    common, content={"type": "str", "required": True}, mode={"type": "str", "default": "0644"}
                ),
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "purge": {"type": "list", "elements": "path", "default": []},
            "needs": {
                "type": "dict",
                "options": {
                    "packages": {"type": "list", "elements": "str", "default": []},
                    "users": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "name": {"type": "str", "required": True},
                            "group": {"type": "str", "required": True},
                            "home": {"type": "str", "required": True},
                            "shell": {"type": "str", "required": True},
                        },
                    },
                },
            },
        },
        supports_check_mode=True,
    )
    try:
        missing = lacking(module.params["needs"]) if module.params["needs"] else []
        changed, diffs = apply(module.params, module.check_mode) if not missing else ([], [])
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diffs, lacking=missing)


if __name__ == "__main__":
    main()
