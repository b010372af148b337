#!/usr/bin/python
# To be removed with version 2, with module_utils/shiftmaster/release/legacy.py.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_legacy
short_description: Give directories that a version before 1.0.0 made today's names
description:
  - Makes C(slots/) of C(colours/) and lets C(active) name it, in one C(rename()) that no request sees; renames
    C(shared/parked) and C(shared/set-aside).
  - C(colours/) stays, for units that still name it. The caller removes it when they do not.
options:
  root: {description: The application's directory., type: path, required: true}
attributes:
  check_mode:
    support: full
    description: Reports whether something would be renamed.
  diff_mode:
    support: none
    description: It shows no difference.
"""

EXAMPLES = r"""
- name: Rename files of a version before 1.0.0
  shiftmaster_legacy:
    root: /var/www/shiftmaster
"""

RETURN = r"""
renamed:
  description: Directories that have an old name, or had one.
  type: list
  elements: path
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.shiftmaster.release import legacy, state
from ansible.module_utils.shiftmaster.release.layout import Layout


def main():
    module = AnsibleModule(argument_spec={"root": {"type": "path", "required": True}}, supports_check_mode=True)
    layout = Layout(module.params["root"])
    renamed = legacy.old_directories(layout)
    if renamed and not module.check_mode:
        try:
            with state.exclusive(layout):
                legacy.directories(layout.shared)
                legacy.slots(layout.root)
        except (OSError, state.StateError) as error:
            module.fail_json(msg="%s cannot be renamed: %s" % (layout.root, error))
    module.exit_json(changed=bool(renamed), renamed=renamed)


if __name__ == "__main__":
    main()
