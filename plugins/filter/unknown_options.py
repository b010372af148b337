"""Filter `unknown_options`."""

from __future__ import annotations

import difflib
import fnmatch


def names(settings, prefix=""):
    """Yield the full name of each value; a mapping without anything in it is one."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from names(value, name + ".")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                yield from names(item, name + ".")
        else:
            yield name


def unknown_options(settings, known, gone=None):
    """Return a sentence for each option that a product of this major version does not have.

    Elasticsearch, Logstash, Kibana and Filebeat stop at one. settings: nested or with dots; known: patterns of a shell;
    gone: options of earlier versions, and what is to be written for them.
    """
    found = []
    for name in dict.fromkeys(names(settings)):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in known):
            continue
        there = next((old for old in gone or {} if fnmatch.fnmatchcase(name, old)), None)
        if there is not None:
            found.append(f"{name} is gone: {gone[there]}")
            continue
        near = difflib.get_close_matches(name, [pattern for pattern in known if "*" not in pattern], n=1, cutoff=0.8)
        found.append(f"there is no option {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    return found


class FilterModule:
    def filters(self):
        return {"unknown_options": unknown_options}
