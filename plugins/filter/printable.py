"""Filter `printable`: a question mark for each control character in every text of the data of another host."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.printable import printable_tree


class FilterModule:
    def filters(self):
        return {"printable": printable_tree}
