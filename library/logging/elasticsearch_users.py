#!/usr/bin/python
# Elasticsearch's users that are files.
"""Keep the files of Elasticsearch's file realm: users with bcrypt hashes, and their roles."""

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticsearch_users
short_description: Keep the users of Elasticsearch's file realm
description:
  - Writes the complete C(users) (a bcrypt hash each) and C(users_roles). A hash that still matches is kept, so nothing
    changes without reason. Elasticsearch reads both by itself some seconds after a change.
  - Users that are files are there before the cluster is, and when it has lost its index of users.
options:
  directory: {description: The directory of Elasticsearch's configuration., type: path, default: /etc/elasticsearch}
  group: {description: "The group of the files, Elasticsearch's own.", type: str, default: elasticsearch}
  users:
    description: The users; others go.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The user., type: str, required: true}
      password: {description: "The password, 72 bytes at the most.", type: str, required: true}
      roles: {description: The user's roles., type: list, elements: str, default: []}
  cost: {description: bcrypt's cost., type: int, default: 10}
attributes:
  check_mode: {support: full}
  diff_mode: {description: Names and roles; never a hash., support: partial}
"""

EXAMPLES = r"""
- name: Configure | Configure the users
  elasticsearch_users:
    users:
      - {name: shiftmaster_writer, password: "{{ elasticsearch_writer_password }}", roles: [shiftmaster_writer]}
"""

RETURN = r"""
files: {description: Files that were (in check mode would be) written., returned: always, type: list, elements: str}
"""

import os
import re

from ansible.module_utils.shiftmaster.host import webconfig
from ansible.module_utils.shiftmaster.host.configuration import FileSet, Rejected, read_text
from ansible.module_utils.shiftmaster.host.quiet import SECRET, TEXT, QuietModule, given, list_of

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,506}\Z")
# Elasticsearch knows bcrypt by this beginning alone. libcrypt's $2b$ is the same for passwords of this length.
OWN, LIBRARYS = "$2a$", "$2b$"


def hashes_of(text):
    """Return {user: hash} of a file `users`, as libcrypt writes hashes."""
    found = {}
    for line in text.splitlines():
        name, mark, hashed = line.partition(":")
        if mark and not line.startswith("#"):
            found[name] = hashed.strip().replace(OWN, LIBRARYS, 1)
    return found


def users_text(users, before, cost):
    """Return the file `users`; a hash of the text before is kept while it has this cost and matches."""
    had, lines = hashes_of(before), []
    for user in users:
        old = had.get(user["name"], "")
        kept = old[4:6] == "%02d" % cost and webconfig.HASH.fullmatch(old) and webconfig.matches(user["password"], old)
        hashed = old if kept else webconfig.hash_password(user["password"], cost)
        lines.append("%s:%s\n" % (user["name"], hashed.replace(LIBRARYS, OWN, 1)))
    return "".join(lines)


def roles_text(users):
    """Return the file `users_roles`: the users of each role."""
    roles = {}
    for user in users:
        for role in user["roles"]:
            roles.setdefault(role, []).append(user["name"])
    return "".join("%s:%s\n" % (role, ",".join(names)) for role, names in sorted(roles.items()))


def main():
    module = QuietModule(
        argument_spec={
            "directory": {"type": "path", "default": "/etc/elasticsearch"},
            "group": given("elasticsearch"),
            "users": list_of(True, name=TEXT, password=SECRET, roles=given([], elements="str")),
            "cost": given(10),
        },
        supports_check_mode=True,
    )
    p = module.params
    invalid = [user["name"] for user in p["users"] if not NAME.match(user["name"])]
    if invalid:
        module.fail_json(msg="no names of users: %s" % ", ".join(invalid))
    users, roles = (os.path.join(p["directory"], name) for name in ("users", "users_roles"))
    files, common = FileSet(module.check_mode), {"owner": "root", "group": p["group"], "mode": "0640"}
    try:
        before, old_roles = read_text(users), read_text(roles)
        wanted = users_text(p["users"], before, p["cost"])
        files.add({"path": users, "content": wanted, **common})
        files.add({"path": roles, "content": roles_text(p["users"]), **common})
        files.compare()
        if not module.check_mode:
            files.swap()
    except webconfig.PasswordError as error:
        module.fail_json(msg="a password of the file realm: %s" % error)
    except (Rejected, OSError) as error:
        module.fail_json(msg="the files of the file realm: %s" % error)
    names = ["".join("%s\n" % name for name in sorted(hashes_of(text))) for text in (before, wanted)]
    diff = {"before": names[0] + old_roles, "after": names[1] + roles_text(p["users"])}
    module.exit_json(changed=bool(files.changes), files=list(files.changes), diff=diff)


if __name__ == "__main__":
    main()
