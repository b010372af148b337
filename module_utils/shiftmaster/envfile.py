"""Read and write systemd's EnvironmentFile= format (systemd.exec(5))."""

from __future__ import annotations

import re

_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_NEEDS_ESCAPE = re.compile(r'(["\\`$])')


def render(environment: dict) -> str:
    """Return the file's text: one quoted assignment a line, sorted by name.

    Raises ValueError for a name that no shell would take, or a value with a NUL byte.
    """
    lines = []
    for name in sorted(environment):
        value = environment[name]
        if not _NAME.match(str(name)):
            raise ValueError("%r is not a valid name of an environment variable" % (name,))
        if not isinstance(value, str):
            raise ValueError("the value of %s is a %s, not text" % (name, type(value).__name__))
        if "\0" in value:
            raise ValueError("the value of %s holds a NUL byte" % (name,))
        lines.append('%s="%s"\n' % (name, _NEEDS_ESCAPE.sub(r"\\\1", value)))
    return "".join(lines)


def parse(text: str) -> dict:
    """Return the assignments of a file that render() wrote, or that a person wrote in the same format."""
    environment = {}
    position, length = 0, len(text)
    while position < length:
        end = text.find("\n", position)
        end = length if end < 0 else end
        line = text[position:end].lstrip()
        if not line or line[0] in "#;" or "=" not in line:
            position = end + 1
            continue
        equals = text.index("=", position)
        name = text[position:equals].strip()
        value, position = _value(text, equals + 1)
        environment[name] = value
    return environment


def _value(text: str, position: int):
    """Return (value, position behind its line); quotes may span lines."""
    parts, quote = [], ""
    while position < len(text):
        char = text[position]
        position += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                parts.append(char)
        elif char == "\\" and position < len(text):
            following = text[position]
            position += 1
            if quote == '"' and following not in '"\\`$\n':
                parts.append(char)
            if following != "\n":
                parts.append(following)
        elif quote == '"':
            if char == '"':
                quote = ""
            else:
                parts.append(char)
        elif char in "\"'":
            quote = char
        elif char == "\n":
            break
        else:
            parts.append(char)
    return "".join(parts).strip() if not quote else "".join(parts), position
