"""The recorded options of awx.awx, and the validation of its modules by them."""

from __future__ import annotations

import json
from pathlib import Path

TABLE = json.loads((Path(__file__).resolve().parents[1] / "unit/recorded/awx_options.json").read_text())["modules"]


def table_faults(kind, options):
    """The result of awx.awx's own validation for one object."""
    known, faults = TABLE[kind], []
    kinds = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict, "float": (int, float)}
    for name, value in options.items():
        if name not in known:
            faults.append(f"{kind} has no option {name}")
            continue
        if (
            not isinstance(value, kinds[known[name]["type"]])
            or known[name]["type"] == "int"
            and isinstance(value, bool)
        ):
            faults.append(f"{kind}.{name} is no {known[name]['type']}")
        if "choices" in known[name] and value not in known[name]["choices"]:
            faults.append(f"{kind}.{name}={value} is none of {known[name]['choices']}")
        for element in value if known[name].get("elements") else []:
            if not isinstance(element, kinds[known[name]["elements"]]):
                faults.append(f"{kind}.{name} holds {element!r}")
    return faults + [
        f"{kind} lacks {name}" for name, option in known.items() if option.get("required") and name not in options
    ]
