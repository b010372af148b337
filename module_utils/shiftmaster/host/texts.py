"""Texts in English and Japanese: one form of catalogue for all that operators read, and the language of the reader."""

from __future__ import annotations

LANGUAGES = ("en", "ja")


def pick(language: str, texts: tuple) -> str:
    """Return one of (English, Japanese)."""
    return texts[LANGUAGES.index(language)]


class Texts(dict):
    """{key: (English, Japanese)}. Both have the same fields, those of str.format()."""

    def say(self, language: str, key: str, **fields) -> str:
        return pick(language, self[key]).format(**fields)


def language_of(environment: dict) -> str:
    """Return en or ja: $SHIFTMASTER_LANGUAGE, else the locale's."""
    names = ("SHIFTMASTER_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    found = next((environment[name] for name in names if environment.get(name)), "")
    return "ja" if found.startswith("ja") else "en"
