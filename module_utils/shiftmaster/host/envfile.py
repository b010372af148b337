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
        if _NAME.match(name):
            environment[name] = value
    return environment


def _value(text: str, position: int):
    """Return (value, position after its line), as systemd reads it.

    Quotes may span lines. They count where the value begins and after another quoted part, not within bare text; only
    around bare text is white space dropped.
    """
    parts, quote, bare, blank = [], "", False, 0
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
            bare, blank = bare or not quote, 0
        elif quote == '"':
            if char == '"':
                quote = ""
            else:
                parts.append(char)
        elif char == "\n":
            break
        elif char in "\"'" and not bare:
            quote = char
        elif char in " \t\r":
            if bare:
                parts.append(char)
                blank += 1
        else:
            parts.append(char)
            bare, blank = True, 0
    return "".join(parts[: len(parts) - blank]), position
