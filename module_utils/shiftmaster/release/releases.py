"""Build, list and prune releases.

A release is immutable once built: the source at one revision, its own virtual environment at its final path, its own
environment file, its own static root and a manifest. It belongs to root; the application may only read it.

What a build leaves is hostile: the source, its dependencies and their build backends ran as the build's user, manage.py
as the application's. Root writes only to directories of its own (the release itself, site/), changes source/, venv/ and
static/ only by descriptors, and never follows a link in them.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from typing import Optional

from ..host import envfile, points, safe_files
from ..host.printable import printable
from . import celery_driver
from .layout import Layout
from .releasecode import ReleaseCode, ReleaseCodeError, run_as, tail
from .state import State, audit, now, write_json

SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|KEY|URL|DSN|CREDENTIAL", re.IGNORECASE)
# What a build adds to the environment that it was given.
OWN_ENVIRONMENT = ("SHIFTMASTER_RELEASE", "SHIFTMASTER_VERSION", "PYTHONPATH", "STATIC_ROOT")
_KEPT_LOGS = 30
_BLOCK = 1 << 20
# What root copies of a release's static files at most; a sparse file costs the application nothing, its copy does.
STATIC_BYTES, STATIC_FILES = 2 << 30, 50_000
REQUIREMENTS_BYTES = 4 << 20
# Files of a virtual environment that root writes again at most, and the size of one, to link it into another release.
_SCRIPTS, _SCRIPT_BYTES = 1000, 1 << 20
# A requirement with hashes: pip takes nothing of the source for it. Or an index.
_HASHED = re.compile(
    r"[\w.-]+(\[[\w., -]*\])? ?== ?[\w.!+-]+( ?;((?! -)[^#])*)?( --hash=sha(256|384|512):[0-9a-f]+)+"
    r"|--(extra-)?index-url[ =]\S+",
    re.ASCII,
)
# What pip is given besides, where it leads to nothing of the source either: requirements by name, and these variables.
_BY_NAME = re.compile(
    r"(?!.*\.(whl|zip|t[a-z]z|tar(\.\w+)?)$)[A-Za-z0-9][\w.-]*(\[[\w., -]*\])? ?([<>=!~][^/@]*)?", re.ASCII
)
_INDEX_VARIABLES = re.compile(
    r"PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|CERT|CLIENT_CERT|PROXY|TIMEOUT|RETRIES)|(HTTPS?|ALL|NO)_PROXY",
    re.IGNORECASE,
)
MAX_QUEUES, MAX_TASKS = 100, 10_000
# What a manifest has of what a build was given.
_NOTED = ("version", "revision", "config_sha256", "celery_application", "who", "run_id")
# pip's attempts that another one follows.
_RETRIES = re.compile(r"(?m)^ *WARNING: Retrying \(.*\n(?= *WARNING: Retrying \()")
# Run by the build's user in its own tree: links in it lead root nowhere.
_LINK_DIRECTORIES = """
import os, shutil, sys
for inside, outside in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.path.islink(inside):
        os.unlink(inside)
    elif os.path.isdir(inside):
        shutil.rmtree(inside)
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    os.symlink(outside, inside)
"""
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class BuildError(Exception):
    """A release could not be built; str() names the step, the cause and the log."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def config_hash(settings: dict) -> str:
    """Return the hash of everything but the source that goes into a release; two equal ones need no new release."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def manifest(layout: Layout, name: str) -> dict:
    """Return a release's manifest, {} where it has none."""
    try:
        with open(os.path.join(layout.release(name), "manifest.json"), encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


def fingerprint(directory: str) -> str:
    """Return a checksum of the names, modes, sizes and times of the files of a release, but not of its manifest's.

    It costs a tenth of a second where the contents would cost seconds, and survives a copy that keeps the times.
    """
    facts, left = [], [directory]
    while left:
        for entry in os.scandir(left.pop()):
            status, path = entry.stat(follow_symlinks=False), os.path.relpath(entry.path, directory)
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
                facts.append((path, status.st_mode))
            elif path != "manifest.json":
                facts.append((path, status.st_mode, status.st_size, int(status.st_mtime)))
    return hashlib.sha256(repr(sorted(facts)).encode("utf-8", "surrogateescape")).hexdigest()


def is_edited(layout: Layout, name: str) -> bool:
    """Return whether files of a release were changed since its build, as far as its manifest can tell."""
    built = manifest(layout, name).get("files_sha256")
    return bool(built) and built != fingerprint(layout.release(name))


def lacks_interpreter(layout: Layout, name: str) -> bool:
    """Return whether a release's Python is gone, or is another one than its packages are for: Debian was upgraded."""
    venv = os.path.join(layout.release(name), "venv")
    link = os.path.join(venv, "bin", "python")
    interpreter = os.path.realpath(link)
    version = os.path.basename(interpreter)
    if not os.path.islink(link):
        return False  # Its files were edited, then (is_edited).
    other = re.fullmatch(r"python3\.\d+", version) and not os.path.isdir(os.path.join(venv, "lib", version))
    return bool(other) or not os.path.isfile(interpreter)


def amend_manifest(layout: Layout, name: str, **fields) -> None:
    """Add what is only known once a release has gone live."""
    write_json(os.path.join(layout.release(name), "manifest.json"), dict(manifest(layout, name), **fields), mode=0o644)


def environment(layout: Layout, name: Optional[str]) -> dict:
    """Return a release's environment, {} where it has none."""
    if name is None:
        return {}
    try:
        with open(os.path.join(layout.release(name), "env"), encoding="utf-8") as stream:
            return envfile.parse(stream.read())
    except (OSError, ValueError):
        return {}


def read_files(layout: Layout, name: Optional[str], paths) -> dict:
    """Return the texts of files of a release, those that it has."""
    texts = {}
    for path in paths if name else ():
        with contextlib.suppress(OSError), open(os.path.join(layout.release(name), path), encoding="utf-8") as stream:
            texts[path] = stream.read()
    return texts


def masked(environ: dict, secret=()) -> dict:
    """Return an environment that may be shown: a secret's place is taken by a few digits of its hash."""
    shown = {}
    for key, value in environ.items():
        if key in secret or SECRET.search(key):
            value = "(secret, %s)" % hashlib.sha256(value.encode()).hexdigest()[:8] if value else "(empty)"
        shown[key] = value
    return shown


def describe(layout: Layout, state: State) -> list:
    """Return the releases, oldest first: name, version, revision, status, since, reason, current."""
    current, listed = layout.current(), []
    for name in layout.names():
        data, known = manifest(layout, name), state.releases.get(name, {})
        entry = {key: data.get(key, "") for key in ("version", "revision", "config_sha256", "created")}
        entry.update(name=name, status=state.status(name) or "building", was_live=state.was_live(name))
        entry.update(reason=known.get("reason", ""), since=known.get("since", ""), current=name == current)
        listed.append(entry)
    return listed


def find(layout: Layout, state: State, revision: str, config: str) -> Optional[str]:
    """Return the newest finished release of this revision and configuration that is neither bad nor suspect, the
    current one first. One whose files were edited, or that lacks its interpreter, is none: a run builds it again,
    under another name.
    """
    matching = []
    for name in layout.names():
        data = manifest(layout, name)
        same = data.get("revision") == revision and data.get("config_sha256") == config
        sound = state.status(name) in ("ready", "live") and not state.is_suspect(name)
        if same and sound and not is_edited(layout, name) and not lacks_interpreter(layout, name):
            matching.append(name)
    current = layout.current()
    return current if current in matching else next(reversed(matching), None)


def resolve(layout: Layout, wanted: str) -> list:
    """Return the names of releases that a person may mean by a name, a version or the start of a revision."""
    if wanted in layout.names():
        return [wanted]
    found = []
    for name in layout.names():
        data = manifest(layout, name)
        revision = data.get("revision", "")
        if data.get("version") == wanted or (len(wanted) >= 7 and revision.startswith(wanted)):
            found.append(name)
    return found


def choose(layout: Layout, state: State, wanted: str) -> Optional[str]:
    """Return the one release that a person means, of several the newest that was live and is not bad."""
    found = resolve(layout, wanted)
    live = [name for name in found if state.was_live(name) and state.status(name) != "bad"]
    return next(reversed(live or found), None)


class Build:
    """One build. spec holds, all required:

    revision (40 hex digits), stamp ("" for now), version, archive (tar of the source), environment {name: value},
    files {path below the release: text}, requirements_file (below source, "" for none), extra_requirements [lines],
    linked_directories [below source], python (path), pip_environment {}, wheels_dir (directory that pip takes
    everything from, "" for its index), build_user, user, collectstatic, check,
    celery_application, config_sha256, classify (callable: source directory to the list of its migrations), hooks
    [{name, phase, command, timeout_seconds, user}], timeout_seconds, run_id, who, log_dir.
    """

    def __init__(self, layout: Layout, state: State, spec: dict):
        self.layout, self.state, self.spec = layout, state, spec
        stamp = spec["stamp"] or datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        self.name = "%s-%s" % (stamp, spec["revision"][:10])
        self.path = layout.release(self.name)
        self.log = os.path.join(spec["log_dir"], "builds", "%s.log" % self.name)
        self._venv = os.path.join(self.path, "venv")
        self._built = [os.path.join(self.path, "source"), self._venv]
        self.timings = {}

    def run(self) -> str:
        """Build and return the release's name; what a failed build leaves is its log only. Raises BuildError."""
        os.makedirs(self.path, mode=0o755)
        self.state.set_status(self.name, "building")
        try:
            for step in (
                self.unpack,
                self.virtual_environment,
                self.requirements,
                self.configuration,
                self.links,
                self.bytecode,
                self.hooks,
                self.take,
                self.static_files,
                self.background,
                self.finish,
            ):
                started = time.monotonic()
                step()
                self.timings[step.__name__] = round(time.monotonic() - started, 2)
        except BaseException as error:
            discard(self.layout, self.state, self.name)
            audit(self.layout, "build_failed", release=self.name, version=self.spec["version"], reason=str(error))
            raise
        points.reach("built")
        self.state.set_status(self.name, "ready")
        facts = {key: self.spec[key] for key in ("version", "revision", "run_id", "who")}
        audit(self.layout, "built", release=self.name, **facts)
        return self.name

    def _build(self, argv, env=None, cwd=None, stdin=subprocess.DEVNULL):
        """Run one command of the build, niced, as the build user, which can write to what it builds alone."""
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
        where = (dict(base, **env or {}), cwd, stdin, self.spec["timeout_seconds"])
        return run_as(self.spec["build_user"], argv, *where, nice=True, kind="build", writable=list(self._built))

    def _command(self, what: str, argv, env=None, cwd=None):
        """Run one command of the build, its output in the build's log."""
        self._check(what, self._build(argv, env, cwd))

    def _note(self, text: str) -> None:
        safe_files.append(self.log, text.encode(), beneath=self.spec["log_dir"])

    def _check(self, what: str, done) -> None:
        self._note("== %s\n%s%s\n" % (what, done.stdout, done.stderr))
        if done.rc != 0:
            output, hint = done.stderr or done.stdout, ""
            if "CERTIFICATE_VERIFY_FAILED" in output:
                hint = "\nA proxy's own certificate authority is trusted through base_extra_ca_certificates."
            words = (what, self.spec["version"], self.log, tail(_RETRIES.sub("", output)), hint)
            raise BuildError("%s failed for version %s (the complete output is in %s):\n%s%s" % words)

    def _code(self, what: str, commands) -> None:
        # The application's code runs as the application's user here too: it may open logs in linked directories.
        code = ReleaseCode(self.path, self.spec["user"])
        writable = (os.path.join(self.path, "static"),)
        self._check(what, code.manage(commands, timeout=self.spec["timeout_seconds"], nice=True, writable=writable))

    def unpack(self) -> None:
        _log_file(self.log, self.spec["log_dir"])
        source = os.path.join(self.path, "source")
        for name, owner in (("source", "build_user"), ("venv", ""), ("site", ""), ("static", "user")):
            path = os.path.join(self.path, name)
            os.mkdir(path, 0o755)
            if owner:
                self._give(path, owner)
        # Opened here, since the archive is root's: the build user gets it as its standard input.
        with open(self.spec["archive"], "rb") as archive:
            done = self._build(
                ["tar", "-x", "-f", "-", "-C", source, "--no-same-owner", "--no-same-permissions"], stdin=archive
            )
        if done.rc != 0:
            raise BuildError("the source archive cannot be unpacked: %s" % tail(done.stderr))

    def _give(self, path: str, owner: str) -> None:
        entry = pwd.getpwnam(self.spec[owner])
        os.chown(path, entry.pw_uid, entry.pw_gid)

    def _requirements(self) -> bytes:
        """Return the content of the requirements file, its first REQUIREMENTS_BYTES and one more."""
        source = os.path.join(self.path, "source")
        path = os.path.join(source, self.spec["requirements_file"])
        return safe_files.read_bytes(path, REQUIREMENTS_BYTES + 1, beneath=source)

    def _environment_key(self) -> str:
        """Return the hash of all that the virtual environment depends on; "" where it may depend on the source, too."""
        hooks = any(hook["phase"] == "after_build" for hook in self.spec["hooks"])
        plain = all(map(_BY_NAME.fullmatch, self.spec["extra_requirements"])) and all(
            map(_INDEX_VARIABLES.fullmatch, self.spec["pip_environment"])
        )
        if hooks or not plain or not self.spec["requirements_file"]:
            return ""
        try:
            text = self._requirements().decode()
            python = os.stat(self.spec["python"])
        except (OSError, ValueError):
            return ""  # pip and venv report it.
        if len(text) > REQUIREMENTS_BYTES or not is_hashed(text):
            return ""
        names = ("python", "extra_requirements", "pip_environment")
        facts = [text, os.path.realpath(self.spec["python"]), python.st_size, python.st_mtime_ns]
        return config_hash(
            dict({name: self.spec[name] for name in names}, facts=facts, wheels=bool(self.spec["wheels_dir"]))
        )

    def virtual_environment(self) -> None:
        self._key = self._environment_key()
        release = find_environment(self.layout, self.state, self._key)
        if release:
            try:
                link_environment(self.layout.release(release), self.path)
                self._built = self._built[:1]
                return
            except (OSError, ValueError) as error:
                self._note("== the environment of %s cannot be used again: %s\n" % (release, error))
                safe_files.remove_tree(self._venv)
                os.mkdir(self._venv, 0o755)
        self._give(self._venv, "build_user")
        self._command(
            "create the virtual environment", [self.spec["python"], "-m", "venv", "--without-pip", self._venv]
        )

    def requirements(self) -> None:
        if self._venv in self._built:
            self._install()
            if self._key:
                # What other releases use as well: from here on nothing that reads this source can write to it.
                self._seal_built(self._venv)
        points.reach("build")

    def _install(self) -> None:
        env = {
            # What one release's build could write to, another one would install.
            "PIP_NO_CACHE_DIR": "1",
            "PIP_CERT": _CA_BUNDLE,
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_PYTHON_VERSION_WARNING": "1",
        }
        # Isolated: nothing of the source stands for a module of pip.
        interpreter = os.path.join(self._venv, "bin", "python")
        pip = [self.spec["python"], "-I", "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-compile"]
        if self.spec["wheels_dir"]:
            # No other place, whatever the host's own configuration is, and nothing is compiled.
            env["PIP_CONFIG_FILE"] = os.devnull
            pip += ["--no-index", "--find-links", self.spec["wheels_dir"], "--only-binary", ":all:"]
        else:
            env.update(self.spec["pip_environment"])
        source = os.path.join(self.path, "source")
        # What other releases may use as well depends on no setup.cfg of this one; requirements by a path are below it.
        directory = None if self._key else source
        if self.spec["requirements_file"]:
            self._command(
                "install the requirements (%s)" % self.spec["requirements_file"],
                pip + ["--requirement", os.path.join(source, self.spec["requirements_file"])],
                env,
                directory,
            )
        if self.spec["extra_requirements"]:
            self._command("install the extra requirements", pip + list(self.spec["extra_requirements"]), env, directory)
        # On all processors that are idle; pip would use one. What does not compile is as for the source (bytecode).
        self._build([self.spec["python"], "-I", "-m", "compileall", "-q", "-j", "0", os.path.join(self._venv, "lib")])

    def configuration(self) -> None:
        for relative, text in self.spec["files"].items():
            path, site = os.path.join(self.path, relative), os.path.join(self.path, "site")
            os.close(safe_files.open_directory(os.path.dirname(path), 0o755, beneath=site))
            safe_files.write(path, text.encode(), 0o644, beneath=site)
        own = (self.name, self.spec["version"], os.path.join(self.path, "site"), os.path.join(self.path, "static"))
        environ = {**self.spec["environment"], **dict(zip(OWN_ENVIRONMENT, own))}
        descriptor = os.open(os.path.join(self.path, "env"), os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(envfile.render(environ))

    def links(self) -> None:
        pairs = []
        for relative in self.spec["linked_directories"]:
            pairs += [os.path.join(self.path, "source", relative), os.path.join(self.layout.shared, relative)]
        if pairs:
            self._command("link the directories", [self.spec["python"], "-I", "-c", _LINK_DIRECTORIES, *pairs])

    def bytecode(self) -> None:
        # Source that does not compile (a template, a file for another Python) is the application's business: the
        # gate decides whether it starts. So this command's exit code is no result.
        words = [self.spec["python"], "-I", "-m", "compileall", "-q"]
        self._build([*words, "source"], cwd=self.path)
        run_as(None, [*words, "site"], {"PATH": "/usr/bin:/bin"}, self.path, timeout=self.spec["timeout_seconds"])

    def background(self) -> None:
        """Load the Celery application and note which tasks it knows: a handover must know what the other does not."""
        self.celery = {"tasks": [], "queues": []}
        name = self.spec["celery_application"]
        if name:
            code = ReleaseCode(self.path, self.spec["user"])
            try:
                more = {"SHIFTMASTER_CELERY_APPLICATION": name}
                self.celery = code.driver(celery_driver, {"op": "tasks"}, 120, more)
            except ReleaseCodeError as error:
                words = (name, self.spec["version"], error)
                raise BuildError("the Celery application %s of version %s cannot be loaded: %s" % words) from error
            # A rollback from this release needs each.
            if len(self.celery["queues"]) > MAX_QUEUES or len(self.celery["tasks"]) > MAX_TASKS:
                words = (name, MAX_QUEUES, MAX_TASKS)
                raise BuildError("the Celery application %s has more than %d queues or %d tasks" % words)

    def static_files(self) -> None:
        commands = [["check"]] if self.spec["check"] else []
        commands += [["collectstatic", "--no-input", "-v", "0"]] if self.spec["collectstatic"] else []
        if commands:
            self._code("manage.py " + " and ".join(words[0] for words in commands), commands)
        static = os.path.join(self.path, "static")
        _seal(static, self.spec["user"])
        take_static(static)

    def hooks(self) -> None:
        run_hooks(self.path, self.spec["hooks"], "after_build", self.spec["build_user"], "build", self._built)

    def take(self) -> None:
        """Take source and environment from the build before the release's own code runs: its processes have ended."""
        for path in list(self._built):
            self._seal_built(path)

    def _seal_built(self, path: str) -> None:
        _seal(path, self.spec["build_user"])
        self._built.remove(path)

    def finish(self) -> None:
        requirements = self._requirements() if self.spec["requirements_file"] else b""
        if len(requirements) > REQUIREMENTS_BYTES:
            raise BuildError("%s is larger than %d MiB" % (self.spec["requirements_file"], REQUIREMENTS_BYTES >> 20))
        os.sync()
        # The last step: with its manifest it is a release, also where this run is killed at once.
        write_json(
            os.path.join(self.path, "manifest.json"),
            {
                "format": 1,
                "release": self.name,
                "created": now(),
                "requirements_sha256": hashlib.sha256(requirements).hexdigest() if requirements else "",
                "environment_sha256": self._key,
                "files_sha256": fingerprint(self.path),
                "migrations": self.spec["classify"](os.path.join(self.path, "source")),
                "tasks": self.celery["tasks"],
                "queues": self.celery["queues"],
                **{key: self.spec[key] for key in _NOTED},
            },
            mode=0o644,
        )


def _log_file(path: str, top: str) -> None:
    with safe_files.closing(safe_files.open_directory(os.path.dirname(path), 0o750, beneath=top)) as directory:
        for old in [os.path.basename(path)] + sorted(os.listdir(directory))[: 1 - _KEPT_LOGS]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old, dir_fd=directory)
        os.close(safe_files.open_in(directory, os.path.basename(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))


def _seal(path: str, owner: str) -> None:
    """Take a tree of a release from the user who wrote it. Raises BuildError for what a release cannot hold."""
    try:
        safe_files.change_owner(path, 0, 0, of=pwd.getpwnam(owner).pw_uid, beneath=path, seal=True)
    except safe_files.UnsafePathError as error:
        raise BuildError("%s cannot be part of a release: %s" % (error.filename, error.strerror)) from error


def is_hashed(requirements: str) -> bool:
    """Whether the text of a requirements file names distributions by their hashes alone, as pip reads it."""
    lines = requirements.splitlines()
    if any("coding" in line for line in lines[:2]):
        return False  # pip would decode it by another encoding.
    text = "\n".join(line for line in lines if not re.match(r"\s*#", line)).replace("\\\n", " ")
    found = [" ".join(re.sub(r"\s#.*", "", line).split()) for line in text.split("\n")]
    return any(found) and all(_HASHED.fullmatch(line) for line in found if line)


def find_environment(layout: Layout, state: State, key: str) -> Optional[str]:
    """Return the newest release whose virtual environment has this key and has served; None where there is none.

    A later one that is bad or suspect may have damaged files, of which the others then are links.
    """
    for name in reversed(layout.names()) if key else ():
        if manifest(layout, name).get("environment_sha256") == key:
            if state.status(name) == "bad" or state.is_suspect(name) or is_edited(layout, name):
                return None
            if state.was_live(name):
                return name
    return None


def link_environment(source: str, target: str) -> None:
    """Fill the virtual environment of a release with hard links to the files of another one's, which is sealed.

    Files that name their own place (scripts, pyvenv.cfg) are written again. Raises OSError or ValueError where that
    cannot be done.
    """
    old, new = os.path.join(source, "venv"), os.path.join(target, "venv")
    before, after = (os.path.basename(path).encode() for path in (source, target))
    _tool("cp", "--archive", "--link", "--no-target-directory", "--", old, new)
    if _tool("find", new, "-type", "l", "-lname", "*%s*" % before.decode(), "-print", "-quit"):
        raise ValueError("a link in it leads to itself")
    # The interpreter gives bytecode its place itself.
    found = _tool("grep", "-rlZF", "--exclude=*.pyc", "-e", before, "--", new, none=1).split("\0")[:-1]
    if len(found) > _SCRIPTS or len(before) != len(after):
        raise ValueError("%d of its files name their place" % len(found))
    for path in found:
        content = safe_files.read_bytes(path, _SCRIPT_BYTES + 1, beneath=new)
        if len(content) > _SCRIPT_BYTES:
            raise ValueError("%s names its place and is too large" % path)
        mode = stat.S_IMODE(os.stat(path, follow_symlinks=False).st_mode)
        safe_files.write(path, content.replace(before, after), mode, beneath=new)


def _tool(*argv, none: int = 0) -> str:
    """Return the output of a tool of the host, for files of root; none: its code where it has found nothing."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise ValueError("%s took longer than %d s" % (argv[0], error.timeout)) from None
    if done.returncode not in (0, none):
        raise ValueError("%s: %s" % (argv[0], tail(done.stderr.decode(errors="replace"))))
    return os.fsdecode(done.stdout)


def take_static(top: str) -> None:
    """Make a release's static files new files of root: the application may have those that it wrote still open.

    Raises BuildError for a link, since the web server would serve what it leads to, and beyond STATIC_BYTES and
    STATIC_FILES.
    """
    size = count = 0
    for relative, directories, files, descriptor in safe_files.walk(top, beneath=top):
        for name in directories + files:
            if stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                raise BuildError("static file %s is a symbolic link" % os.path.normpath(os.path.join(relative, name)))
        for name in files:
            path = os.path.normpath(os.path.join(relative, name))
            with os.fdopen(safe_files.open_in(descriptor, name), "rb") as stream:
                size, count = size + os.fstat(stream.fileno()).st_size, count + 1
                if size > STATIC_BYTES or count > STATIC_FILES:
                    raise BuildError(
                        "more than %d MiB or %d files are no static files of an application; the last one counted is %s"
                        " (collectstatic gathers STATICFILES_DIRS and each application's static/)"
                        % (STATIC_BYTES >> 20, STATIC_FILES, path)
                    )
                # finish() syncs.
                with safe_files.replacing(os.path.join(top, path), 0o644, beneath=top, sync=False) as fresh:
                    shutil.copyfileobj(stream, fresh, _BLOCK)


def publish_static(layout: Layout, state: State, target: Optional[str] = None) -> None:
    """Have the published tree hold the static files of the releases that have served, and of target, and nothing else.

    Pages that were loaded before a switch request files of the release that rendered them. nginx looks in the active
    release first, so that here the newest release's file stands for a name that several have. The manifest of hashed
    names (staticfiles.json) stays with its release.
    """
    wanted, directories = {}, set()
    for name in reversed(layout.names()):
        if not state.was_live(name) and name not in (layout.current(), target):
            continue
        top = os.path.join(layout.release(name), "static")
        with contextlib.suppress(FileNotFoundError):
            for relative, _directories, files, _descriptor in safe_files.walk(top, beneath=top):
                for file in files:
                    path = os.path.normpath(os.path.join(relative, file))
                    parents = {path[: at.start()] for at in re.finditer("/", path)}
                    # What is a directory in one release and a file in another is what it is in the newest.
                    if file != "staticfiles.json" and path not in directories and not parents & wanted.keys():
                        wanted.setdefault(path, top)
                        directories |= parents
    for parent, _directories, files in os.walk(layout.union, topdown=False):
        for file in files:
            if os.path.relpath(os.path.join(parent, file), layout.union) not in wanted:
                os.unlink(os.path.join(parent, file))
        if parent != layout.union and not os.listdir(parent):
            os.rmdir(parent)
    for path, top in sorted(wanted.items()):
        there = os.path.join(layout.union, path)
        os.close(safe_files.open_directory(os.path.dirname(there), 0o755, beneath=layout.union))
        try:
            stream = os.fdopen(safe_files.open_file(os.path.join(top, path), beneath=top), "rb")
        except safe_files.UnsafePathError:
            continue  # A link in a release that was built before links were rejected.
        with stream:
            if not _is_content(stream, there, layout.union):
                stream.seek(0)
                with safe_files.replacing(there, 0o644, beneath=layout.union) as fresh:
                    shutil.copyfileobj(stream, fresh, _BLOCK)


def _is_content(stream, path: str, beneath: str) -> bool:
    """Whether a file is there and has a stream's content."""
    try:
        with os.fdopen(safe_files.open_file(path, beneath=beneath), "rb") as other:
            if os.fstat(other.fileno()).st_size != os.fstat(stream.fileno()).st_size:
                return False
            return all(block == other.read(_BLOCK) for block in iter(lambda: stream.read(_BLOCK), b""))
    except FileNotFoundError:
        return False


def run_hooks(release_path: str, hooks, phase: str, user: str, kind: str = "code", writable=()) -> list:
    """Run the hooks of a phase in order, in the release, with its environment; returns [{name, output}].

    A hook that fails or takes too long raises BuildError with its output; the phase fails as if it had itself.
    """
    outputs = []
    for hook in hooks:
        if hook["phase"] != phase:
            continue
        code = ReleaseCode(release_path, hook.get("user") or user)
        # Another user's hook, root's for example, runs no program of the release by its bare name.
        own = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} if hook.get("user") else {}
        place = {"kind": kind, "writable": writable} if code.user == user else {"kind": "hook", "writable": ()}
        try:
            done = code.shell(hook["command"], timeout=hook.get("timeout_seconds") or 300, extra_env=own, **place)
        except ReleaseCodeError as error:
            raise BuildError("hook %s (%s): %s" % (hook["name"], phase, error)) from error
        if done.rc != 0:
            words = (hook["name"], phase, done.rc, tail(done.stderr or done.stdout))
            raise BuildError("hook %s (%s) ended with code %d:\n%s" % words)
        outputs.append({"name": hook["name"], "output": printable(tail(done.stdout + done.stderr))})
    return outputs


def discard(layout: Layout, state: State, name: str) -> None:
    """Remove a complete release directory."""
    path = layout.release(name)
    removed = path + ".removing"
    if os.path.lexists(path):
        try:
            os.rename(path, removed)  # From here on the rest is no release.
        except OSError as error:
            # Overlay file systems cannot rename a directory of a lower layer; without a manifest it is no release
            # either.
            if error.errno != errno.EXDEV:
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, "manifest.json"))
            safe_files.remove_tree(path)
    points.reach("prune")
    safe_files.remove_tree(removed)
    state.forget(name)


def unfinished(layout: Layout, state: State) -> list:
    """Return what killed builds and prunes left, as names of directories below releases/."""
    left = [name for name in layout.names() if state.status(name) in (None, "building")]
    directories = os.listdir(layout.releases) if os.path.isdir(layout.releases) else []
    return left + [entry for entry in directories if entry.endswith(".removing")]


def remove_unfinished(layout: Layout, state: State) -> list:
    """Remove what killed builds and prunes left; returns the names."""
    removed = []
    for entry in unfinished(layout, state):
        if entry.endswith(".removing"):
            safe_files.remove_tree(os.path.join(layout.releases, entry))
            state.forget(entry[: -len(".removing")])
        elif manifest(layout, entry):
            state.set_status(entry, "ready")  # Killed between its manifest and its status.
            continue
        else:
            discard(layout, state, entry)
        removed.append(entry)
    return removed


def prune_plan(layout: Layout, state: State, keep: int, applied=None) -> list:
    """Return the releases that may go, oldest first.

    Kept: the newest `keep` that were live and are not bad, the newest that is ready to be, the current one, both
    slots' (a worker may still be finishing its tasks), the rollback target, and the only retained release that holds
    the file of an applied migration. applied is a set of "app.name"; None means that the database could not be queried,
    and then no holder of migrations goes at all.
    """
    names = layout.names()
    good = [name for name in names if state.status(name) != "bad" and manifest(layout, name)]
    live = [name for name in good if state.was_live(name)]
    kept = set(live[-keep:] + [name for name in good if name not in live][-1:]) if keep > 0 else set()
    kept.update((layout.release_of("blue"), layout.release_of("green")))
    kept.add(state.rollback_target(layout.current()))
    files = {
        name: {"%s.%s" % (item["app"], item["name"]) for item in manifest(layout, name).get("migrations", [])}
        for name in names
    }
    allowed = []
    for name in [name for name in names if name not in kept]:
        rest = set().union(*(files[other] for other in names if other != name and other not in allowed))
        alone = files[name] - rest
        if alone if applied is None else alone & set(applied):
            continue
        allowed.append(name)
    return allowed
