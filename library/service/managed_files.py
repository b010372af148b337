#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Install directories and small text files in one call
description:
  - One remote call instead of one for each directory and file; a run that changes nothing on an installation with
    several hosts is mostly made of such calls.
  - Each file is replaced atomically, by a rename. Nothing is changed before all of the input has been checked.
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
    description: Text files with their complete content.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file's absolute path., type: path, required: true}
      content: {description: The complete text., type: str, required: true}
      owner: {description: Its user., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: "Its mode in octal, as text.", type: str, default: "0644"}
  absent: {type: list, elements: path, default: [], description: "Files, and directories with all that they contain,
    that must not be there."}
  purge: {type: list, elements: path, default: [], description: Directories below which every file that is not in
    O(files) is removed.}
  needs:
    description: What the host must have first. Where it lacks some of it, nothing is installed and RV(lacking) names
      it, so that the caller brings it and calls again.
    type: dict
    suboptions:
      packages: {description: Debian packages., type: list, elements: str, default: []}
      programs:
        description: Programs that another task installs; root's, with mode 0755.
        type: list
        elements: dict
        default: []
        suboptions:
          path: {description: The program's absolute path., type: path, required: true}
          sha256: {description: The SHA-256 of its content in hexadecimal., type: str, required: true}
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
  check_mode: {description: Reports the changes and makes none., support: full}
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
changed_paths: {returned: always, type: list, elements: str, description: "What was, or in check mode would be, created,
  changed or removed."}
lacking: {returned: always, type: list, elements: str, description: "Names of the packages and users, and paths of the
  programs of O(needs) that the host lacks or has otherwise."}
"""

import grp
import os
import pwd
import shutil
import stat
import subprocess

from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.configuration import FileSet, Rejected
from ansible.module_utils.shiftmaster.host.quiet import QuietModule, list_of


def is_installed(program):
    """Return whether a program is there with its content, owner and mode."""
    try:
        found = os.lstat(program["path"])
        as_wanted = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o755)
        return as_wanted and safe_files.sha256(program["path"]) == program["sha256"]
    except OSError:
        return False


def lacking(needs):
    """Return the names of packages that are not installed, and of users and programs that are missing or different."""
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
    return missing + [program["path"] for program in needs["programs"] if not is_installed(program)]


def unwanted(params):
    """Return what is there of O(absent), and every file below O(purge) that is not in O(files)."""
    wanted = {entry["path"] for entry in params["files"]}
    found = [path for path in params["absent"] if os.path.lexists(path)]
    for directory in params["purge"]:
        for parent, _directories, names in os.walk(directory):
            found.extend(path for path in (os.path.join(parent, name) for name in names) if path not in wanted)
    return found


def apply(params, check_mode):
    """Return (changed paths, diffs)."""
    files = FileSet(check_mode)
    for entry in params["directories"]:
        files.add_directory(entry)
    for entry in params["files"]:
        files.add(entry)
    files.compare()
    changed, diffs = [*files.directory_changes, *files.changes], files.diff()
    if not check_mode:
        files.make_directories()
        files.swap()
    for path in unwanted(params):
        changed.append(path)
        directory = stat.S_ISDIR(os.lstat(path).st_mode)
        before = "(a directory)\n" if directory else "(a file)\n"
        diffs.append({"before_header": path, "after_header": path, "before": before, "after": ""})
        if not check_mode:
            (shutil.rmtree if directory else os.unlink)(path)
    return changed, diffs


def main():
    text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
    owner = {name: {"type": "str", "default": "root"} for name in ("owner", "group")}
    paths = {"type": "list", "elements": "path", "default": []}
    needs = {
        "packages": {"type": "list", "elements": "str", "default": []},
        "users": list_of(name=text, group=text, home=text, shell=text),
        "programs": list_of(path=path, sha256=text),
    }
    module = QuietModule(
        argument_spec={
            "directories": list_of(path=path, **owner, mode={"type": "str", "default": "0755"}),
            "files": list_of(path=path, content=text, **owner, mode={"type": "str", "default": "0644"}),
            "absent": paths,
            "purge": paths,
            "needs": {"type": "dict", "options": needs},
        },
        supports_check_mode=True,
    )
    try:
        missing = lacking(module.params["needs"]) if module.params["needs"] else []
        changed, diffs = apply(module.params, module.check_mode) if not missing else ([], [])
    except (OSError, Rejected, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diffs, lacking=missing)


if __name__ == "__main__":
    main()
