"""Joins lines to events as Filebeat's filestream documents it: a model of Filebeat, with the role's own configuration.

Known are the line terminator (LF, and CR before it), bytes that are no UTF-8 (replaced when the event is encoded), an
unfinished last line (which waits), and the parser `multiline` of type pattern with negate and match: after. Results are
labelled as of a model.
"""

from __future__ import annotations

import re


class Input:
    """One file of one input; feed() takes what was appended, and returns the complete events."""

    def __init__(self, options: dict):
        self.rest = b""
        self.event = None
        self.begins, self.max_lines = None, 500
        for parser in options.get("parsers") or []:
            ((name, given),) = parser.items()
            assert name == "multiline" and given["type"] == "pattern" and given["negate"] is True
            assert given["match"] == "after"
            # Go's expressions; what the role uses of them means the same here.
            self.begins, self.max_lines = re.compile(given["pattern"]), given["max_lines"]

    def feed(self, data: bytes) -> list:
        *complete, self.rest = (self.rest + data).split(b"\n")
        found = []
        for line in complete:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if self.begins is None:
                found.append(text)
            elif self.event is None or self.begins.search(text):
                found += self.timeout()
                self.event = [text]
            else:
                self.event.append(text)
        # An empty line alone is no event.
        return [text for text in found if text]

    def timeout(self) -> list:
        """Return events that are complete because nothing has followed for a while."""
        event, self.event = self.event, None
        if event is None:
            return []
        text = "\n".join(event[: self.max_lines])
        return [text] if text else []


def events(options: dict, data: bytes) -> list:
    """Return the events of a complete file."""
    found = Input(options)
    return found.feed(data) + found.timeout()
