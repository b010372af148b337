#!/usr/bin/env python3
"""Writes roles/<role>/README.md from meta/argument_specs.yml and defaults/main.yml.

With --check, lists those that are not up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import generated
import yaml
from generated import ROOT

# A default that is longer than this is shown in defaults/main.yml only.
LONGEST_DEFAULT = 70


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def sentences(description: str | list[str] | None) -> list[str]:
    lines = [description] if isinstance(description, str) else description or []
    return [re.sub(r"\bC\(([^)]*)\)", r"`\1`", " ".join(str(line).split())) for line in lines]


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def type_of(option: dict[str, Any]) -> str:
    name = option.get("type", "str")
    return f"list of {option['elements']}" if name == "list" and "elements" in option else name


def default_of(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "**required**"
    value = option.get("default")
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    text = " ".join(str(text).split())
    return f"`{cell(text)}`" if len(text) <= LONGEST_DEFAULT else "see `defaults/main.yml`"


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, option in options.items():
        text = " ".join(sentences(option.get("description")))
        if "choices" in option:
            text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        full = f"{prefix}{name}"
        lines.append(f"| `{full}` | {type_of(option)} | {default_of(option)} | {cell(text)} |")
        if "options" in option:
            lines += rows(option["options"], f"{full}{'[]' if option.get('type') == 'list' else ''}.")
    return lines


def example(role: str, entry: str, options: dict[str, Any]) -> list[str]:
    required = [name for name, option in options.items() if option.get("required")]
    lines = ["```yaml", "- hosts: all", "  become: true", "  roles:", f"    - role: {role}"]
    if entry != "main":
        lines = ["```yaml", "- ansible.builtin.import_role:", f"    name: {role}", f"    tasks_from: {entry}"]
    indent = " " * 6 if entry == "main" else "  "
    lines += [f"{indent}vars:"] if required else []
    for name in required:
        kind = options[name].get("type", "str")
        shape = {"list": "[…]", "dict": "{…}"}.get(kind, "…")
        lines.append(f"{indent}  {name}: {shape}")
    return [*lines, "```"]


def with_defaults(role: Path) -> dict[str, Any]:
    """Return a role's specification; an option's default is the one that applies, of defaults/main.yml."""
    specs = load(role / "meta/argument_specs.yml")
    path = role / "defaults/main.yml"
    defaults = load(path) if path.exists() else {}
    for spec in specs["argument_specs"].values():
        for name, option in (spec.get("options") or {}).items():
            option.update({"default": defaults[name]} if name in defaults else {})
    return specs


def render(role: str, specs: dict[str, Any]) -> str:
    lines = [
        f"# Role `{role}`",
        "",
        "<!-- Written by scripts/role_readme.py from meta/argument_specs.yml and defaults/main.yml: `make readme`. -->",
    ]
    for number, (entry, spec) in enumerate(specs["argument_specs"].items()):
        options = spec.get("options") or {}
        if number == 0:
            lines += ["", *(f"{line}\n" for line in sentences(spec["short_description"]))]
        else:
            lines += ["", f"## Tasks `{entry}`", "", *(f"{line}\n" for line in sentences(spec["short_description"]))]
        lines += [f"{line}\n" for line in sentences(spec.get("description"))]
        if number == 0:
            lines += ["## Example", "", *example(role, entry, options), ""]
        if options:
            lines += ["## Variables" if number == 0 else "Variables:", ""]
            lines += ["| variable | type | default | what it is for |", "|---|---|---|---|", *rows(options)]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    roles = [specs.parent.parent for specs in (ROOT / "roles").glob("*/meta/argument_specs.yml")]
    wanted = {role / "README.md": render(role.name, with_defaults(role)) for role in roles}
    sys.exit(generated.main(wanted, [], "`make readme`"))
