"""Masks personal data and secrets in what is about to be logged.

The patterns are settings (SHIFTMASTER_LOG_MASKS), the same that the second wall of the log pipeline has. Each is
bounded: what it costs grows with the length of a line and with nothing else. This module needs neither Django nor
settings, so that gunicorn's configuration can use it before either is there.
"""

from __future__ import annotations

import logging
import re


class Masks:
    """[{"pattern":, "replace":, "only_with": [texts]}], applied in that order."""

    def __init__(self, masks=()):
        self._masks = [
            (re.compile(mask["pattern"]).sub, mask["replace"], tuple(mask.get("only_with") or ())) for mask in masks
        ]

    def __call__(self, text: str) -> str:
        for substitute, replacement, only_with in self._masks:
            # Looking for a text costs a hundredth of what a pattern costs.
            if not only_with or any(found in text for found in only_with):
                text = substitute(replacement, text)
        return text


class PlainFormatter(logging.Formatter):
    """The guide's format, 2026-01-01 12:00:00,123 [LEVEL] logger: message, masked; a traceback follows."""

    def __init__(self, masks: Masks = None, fmt: str = "%(asctime)s [%(levelname)s] %(name)s: %(message)s"):
        super().__init__(fmt)
        self._masks = masks or Masks()

    def format(self, record) -> str:
        return self._masks(super().format(record))
