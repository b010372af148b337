"""An AnsibleModule whose arguments are not written to the host's log."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule


class QuietModule(AnsibleModule):
    """For modules with secrets inside of lists or dictionaries.

    Ansible logs every argument as Python would print it, and takes a secret out only where it stands there as it is:
    one with a quote, a backslash or an end of line is printed otherwise, and would be read in the journal (tried).
    AnsibleModule's own argument no_log does not help: the task's own setting replaces it.
    """

    def _log_invocation(self):
        self.log("Invoked")


def list_of(required=False, **options):
    """Return the specification of an option that is a list of mappings."""
    return {
        "type": "list", "elements": "dict", "options": options, **({"required": True} if required else {"default": []})
    }  # fmt: skip
