#!/usr/bin/env python3
"""Packs the example application into a bare git repository, the way a deploy meets one.

    pack.py DEST.git             build or refresh the repository (same files, same revisions)
    pack.py --list               each tag, its revision and what it is for
    pack.py --export TAG DIRECTORY  the files of one version, without git

The application's files beside this script are version 2.0.0. `versions/<tag>/` holds what a later version changes:
files that replace or add; `name.append`, whose text goes to the end of `name`; and `REMOVED`, a list of paths.
Message catalogues (.mo) are compiled here, so no host needs gettext. Only Python and git are used.
"""

from __future__ import annotations

import argparse
import ast
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("VERSION", "manage.py", "requirements.in", "requirements.txt")
DIRECTORIES = ("health", "locale", "roster", "shiftmaster", "static", "templates")
AUTHOR = "ShiftMaster Example <example@shiftmaster.invalid>"
FIRST_DATE = 1767229200  # 2026-01-01 10:00 in Tokyo; each version is a day later than the one before it
MAIN = "2.1.0"
# tag: (the version it is built on, what it is)
VERSIONS = {
    "2.0.0": (None, "First version"),
    "2.1.0": ("2.0.0", "Minimum staff, holidays and summaries: an expand migration"),
    "2.2.0": ("2.1.0", "Remove the night column: a contract migration"),
    "broken-import": ("2.1.0", "Import a module that does not exist"),
    "broken-health": ("2.1.0", "Health answers 503"),
    "broken-hang": ("2.1.0", "Never finish to start"),
    "broken-migration": ("2.1.0", "A migration that fails half way"),
    "broken-requirement": ("2.1.0", "A requirement that nobody can install"),
    "broken-template": ("2.1.0", "The roster's page fails, health does not"),
    "broken-worker": ("2.1.0", "The Celery worker does not start"),
    "2.1.1": ("2.1.0", "Two indexes built while people work: a migration that is not one transaction"),
}


def parse_po(text: str) -> dict[str, str]:
    """Translated messages of a .po file, in the form of a .mo file: context, plural forms joined as gettext does."""
    messages: dict[str, str] = {}
    entry: dict[str, str] = {}
    field, fuzzy = "", False

    def finish():
        if "msgid" in entry and not fuzzy:
            key = entry["msgid"]
            if "msgctxt" in entry:
                key = entry["msgctxt"] + "\x04" + key
            if "msgid_plural" in entry:
                key += "\0" + entry["msgid_plural"]
            forms = [entry[name] for name in sorted(entry) if name.startswith("msgstr")]
            if key in messages:
                raise ValueError(f"the message {key!r} stands twice in a catalogue")
            if all(forms):
                messages[key] = "\0".join(forms)
        entry.clear()

    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            if field.startswith("msgstr"):
                finish()
                field, fuzzy = "", False
            if line.startswith("#,") and "fuzzy" in line:
                fuzzy = True
            continue
        if not line.startswith('"'):
            name, line = line.split(None, 1)
            if name in ("msgctxt", "msgid") and field.startswith("msgstr"):
                finish()
                fuzzy = False
            field = name
            entry[field] = ""
        entry[field] += ast.literal_eval(line)
    finish()
    return messages


def compile_po(text: str) -> bytes:
    """The .mo file of a .po file."""
    messages = sorted((key.encode(), value.encode()) for key, value in parse_po(text).items())
    head, strings = 7 * 4, 7 * 4 + 16 * len(messages)
    tables, blob = ([], []), b""
    for index in (0, 1):
        for pair in messages:
            tables[index].append(struct.pack("<II", len(pair[index]), strings + len(blob)))
            blob += pair[index] + b"\0"
    start = struct.pack("<7I", 0x950412DE, 0, len(messages), head, head + 8 * len(messages), 0, strings)
    return start + b"".join(tables[0]) + b"".join(tables[1]) + blob


def read_dir(root: Path, names=None) -> dict[str, bytes]:
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or "__pycache__" in name or name.endswith((".pyc", ".mo")):
            continue
        if names is None or name in names or name.split("/")[0] in names:
            files[name] = path.read_bytes()
    return files


def sources(tag: str) -> dict[str, bytes]:
    """The files of a version as they are written by hand."""
    base = VERSIONS[tag][0]
    if base is None:
        return read_dir(HERE, SOURCES + DIRECTORIES)
    files = sources(base)
    overlay = read_dir(HERE / "versions" / tag)
    for name in overlay.pop("REMOVED", b"").decode().split():
        del files[name]
    for name, content in overlay.items():
        if name.endswith(".append"):
            files[name[: -len(".append")]] += content
        else:
            files[name] = content
    return files


def tree(tag: str) -> dict[str, bytes]:
    """The files of a version as they are delivered."""
    files = sources(tag)
    for name in [name for name in files if name.endswith(".po")]:
        files[name[:-3] + ".mo"] = compile_po(files[name].decode())
    return files


def commands() -> bytes:
    """What git fast-import is told."""
    out: list[bytes] = []
    marks: dict[str, int] = {}

    def data(content: bytes):
        out.append(b"data %d\n%s\n" % (len(content), content))

    for number, (tag, (base, subject)) in enumerate(VERSIONS.items(), start=1):
        marks[tag] = number
        who = f"{AUTHOR} {FIRST_DATE + number * 86400} +0900"
        # A lightweight tag for the broken ones, an annotated one for releases: a deploy meets both.
        released = not tag.startswith("broken-")
        ref = "refs/heads/main" if tag == MAIN else f"refs/tags/{tag}" if not released else "refs/heads/packing"
        out.append(f"commit {ref}\nmark :{number}\nauthor {who}\ncommitter {who}\n".encode())
        data(f"{tag}: {subject}\n".encode())
        if base:
            out.append(f"from :{marks[base]}\n".encode())
        out.append(b"deleteall\n")
        for name, content in sorted(tree(tag).items()):
            out.append(f"M {100755 if name == 'manage.py' else 100644} inline {name}\n".encode())
            data(content)
        if released:
            out.append(f"tag {tag}\nfrom :{number}\ntagger {who}\n".encode())
            data(f"ShiftMaster {tag}\n".encode())
    # The name under which commits without a branch of their own were written.
    out.append(b"reset refs/heads/packing\nfrom 0000000000000000000000000000000000000000\n\ndone\n")
    return b"".join(out)


def git(repository: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    # Neither the caller's repository nor a newer git's default may change what is packed.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_DEFAULT_HASH": "sha1",
    }
    done = subprocess.run(
        ["git", "--git-dir", str(repository), *arguments], input=stdin, capture_output=True, env=environment
    )
    if done.returncode:
        sys.exit(f"pack.py: git {arguments[0]} failed: {done.stderr.decode().strip()}")
    return done.stdout


def pack(destination: Path) -> None:
    if destination.exists() and any(destination.iterdir()) and not (destination / "HEAD").is_file():
        sys.exit(f"pack.py: {destination} exists and is no bare git repository; it is left as it is.")
    git(destination, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")
    git(destination, "fast-import", "--quiet", "--done", "--force", stdin=commands())


def revisions(repository: Path) -> dict[str, str]:
    lines = git(repository, "show-ref", "--tags", "--dereference").decode().splitlines()
    found: dict[str, str] = {}
    for line in lines:
        revision, ref = line.split()
        # `tag^{}`, the commit of an annotated tag, comes after the tag itself.
        found[ref[len("refs/tags/") :].replace("^{}", "")] = revision
    return {tag: found[tag] for tag in VERSIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the example application into a bare git repository.")
    parser.add_argument("destination", nargs="?", type=Path, help="the repository, such as shiftmaster.git")
    parser.add_argument("--list", action="store_true", help="print tags and revisions; packs nothing")
    parser.add_argument("--export", nargs=2, metavar=("TAG", "DIRECTORY"), help="write the files of one version")
    options = parser.parse_args()
    if options.export:
        tag, directory = options.export
        if tag not in VERSIONS:
            parser.error(f"there is no version {tag}; there are {', '.join(VERSIONS)}")
        for name, content in tree(tag).items():
            path = Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if options.list:
        with tempfile.TemporaryDirectory() as directory:
            repository = options.destination or Path(directory, "list.git")
            if not options.destination:
                pack(repository)
            for tag, revision in revisions(repository).items():
                print(f"{tag:<20}{revision}  {VERSIONS[tag][1]}")
    elif options.destination:
        pack(options.destination)
    elif not options.export:
        parser.error("name the repository to build, or ask for --list or --export")


if __name__ == "__main__":
    main()
