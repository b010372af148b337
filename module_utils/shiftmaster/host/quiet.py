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


# Options that have to be there.
TEXT, PATH = {"type": "str", "required": True}, {"type": "path", "required": True}
SECRET = dict(TEXT, no_log=True)


def given(default, **more):
    """Return the specification of an option with a default, whose type it has."""
    return {"type": type(default).__name__, "default": default, **more}


def dict_of(**options):
    """Return the specification of an option that is a mapping."""
    return {"type": "dict", "options": options}


def list_of(required=False, **options):
    """Return the specification of an option that is a list of mappings."""
    least = {"required": True} if required else {"default": []}
    return {"type": "list", "elements": "dict", "options": options, **least}
