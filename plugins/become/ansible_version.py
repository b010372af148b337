import ansible.release
from ansible.plugins.become.sudo import BecomeModule as BecomeModule  # noqa: PLC0414 - Ansible loads a class of this name

# Ansible imports every plugin of this kind before it reads a playbook. Later an older one ends in errors that name no
# cause.
if tuple(map(int, ansible.release.__version__.split(".")[:2])) < (2, 19):
    raise SystemExit(
        f"ERROR: This is ansible-core {ansible.release.__version__}; 2.19 or later is needed. Run `make bootstrap`, "
        "then ./shiftmaster or .venv/bin/ansible-playbook."
    )

DOCUMENTATION = """
name: ansible_version
short_description: Reject a version of Ansible that is too old
description:
  - No task uses it. It is here because Ansible loads it before the playbooks.
"""
