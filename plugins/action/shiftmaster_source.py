"""Action `shiftmaster_source`: resolves a version of the application in its git repository, and packs it.

Hosts need no git and no way to the repository: a bare mirror is kept on the controller. User name and password of the
address reach git by its environment only: no process's arguments, file, output or log has them. Two runs at once wait
for each other; what a killed run left is removed by the next one, and a damaged mirror is made again. Git checks
objects as they arrive, runs no hook, filter or remote helper, and fetches no submodule. A version is rejected whose
tree has a name of git's own, a path twice, or a symbolic link that leads out of the tree. Needs git 2.31. Options:

    repository         address or path, as `git fetch` takes it, also of a `git bundle`; may belong to another user
    version            a tag, a branch or a commit (7 digits or more), looked up in this order; refs/tags/x and
                       refs/heads/x name one of the two
    published          whether a commit is rejected that no branch or tag leads to: for a version that another host has
                       named, since many servers of git have everybody's commits (pull requests) under their address
    cache_dir          mirrors and archives; each repository has a directory of its own in it
    archive            whether to pack the source, too
    exclude            git pathspec patterns of what stays out of the archive
    requirements_file  the application's requirements, for hashed; empty for none
    timeout_seconds    of all of it, waiting for another run included

Returns revision (40 digits), version (of a commit its first 10 digits), kind (tag, branch, commit), subject, committed
(UTC), problems (what a build would meet, by the text alone; with `application`, options of source_checks.check()),
archive and archive_sha256 (empty where none was requested), migrations (classified by their files alone), hashed
(whether the requirements have hashes; null without a file), fetched (whether the repository had something new), notes
(sentences; submodules and Git LFS are not packed) and repository (without user and password).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import posixpath
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host import action
from ansible.module_utils.shiftmaster.host.bounded import Bounded, die_with_parent
from ansible.module_utils.shiftmaster.host.printable import printable
from ansible.module_utils.shiftmaster.release import migrations, source_checks
from ansible.module_utils.shiftmaster.release.state import held

OLDEST_GIT = (2, 31)  # The first that reads GIT_CONFIG_COUNT.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # Every git knows it.
KEEP_ARCHIVES = 10
# Of git's output (a list of files, texts of migrations), of its messages, and of all files of a version.
OUTPUT_BYTES, MESSAGE_BYTES, SOURCE_BYTES = 128 << 20, 1 << 20, 2 << 30
FULL_COMMIT = re.compile(r"^[0-9a-f]{40}\Z")
SOME_COMMIT = re.compile(r"^[0-9a-f]{7,40}\Z")
# A name that git takes for its own directory somewhere (".git " and "git~1" on Windows), or that leads elsewhere.
GITS_OWN = re.compile(r"^(?:\.{1,2}|\.git[. ]*|git~1)\Z", re.IGNORECASE)
# Left out of a name by some file systems: ".g\u200cit" is ".git" there.
IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
MAX_LINKS = 40
# Requirements may name others; what is beyond is not searched for hashes.
REQUIREMENTS_FILES = 100
ARGUMENTS = {
    "repository": {"type": "str", "required": True, "no_log": True},
    "version": {"type": "str", "required": True},
    "published": {"type": "bool", "default": False},
    "cache_dir": {"type": "path", "default": "~/.cache/shiftmaster-ops"},
    "archive": {"type": "bool", "default": False},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "requirements_file": {"type": "str", "default": "requirements.txt"},
    "application": {"type": "dict", "default": {}},
    "timeout_seconds": {"type": "int", "default": 300},
}
# Sentences of git that add nothing to the line before them.
FILLER = (
    "please make sure you have the correct access rights",
    "and the repository exists",
    "could not read from remote repository",
    "the remote end hung up unexpectedly",
    "early eof",
)
HINTS = (
    ("terminal prompts disabled", "it requires a user name and a password; give them in the address"),
    ("authentication failed", "the user name or the token is wrong or has expired"),
    ("host key verification failed", "connect to the host once by hand, as this user, to accept its key"),
    ("permission denied (publickey", "this user's ssh key is not known there"),
)
# The helper's words name variables only; the values stay in the environment.
CREDENTIAL_HELPER = (
    "!f() { test \"$1\" = get || exit 0; printf 'username=%s\\npassword=%s\\n'"
    ' "$SHIFTMASTER_GIT_USER" "$SHIFTMASTER_GIT_PASSWORD"; }; f'
)
# Variables that would point git at another repository than ours (as within a git hook).
FOREIGN = tuple(
    "GIT_DIR GIT_WORK_TREE GIT_COMMON_DIR GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES "
    "GIT_NAMESPACE GIT_CONFIG GIT_CONFIG_PARAMETERS GIT_PREFIX GIT_CEILING_DIRECTORIES GIT_ATTR_SOURCE "
    "GIT_LITERAL_PATHSPECS GIT_GLOB_PATHSPECS GIT_NOGLOB_PATHSPECS GIT_ICASE_PATHSPECS SSH_ASKPASS".split()
)


class SourceError(action.Failed):
    """The version cannot be had; str() shows why in a sentence."""


class Damaged(Exception):
    """Git could not read its own mirror; str() is its reason."""


class Failed(Exception):
    """Git ended with an error; str() is its reason."""


class Address:
    """A repository's address, its credentials taken apart from it. A relative path is below `base`."""

    def __init__(self, text, base="."):
        if not text.strip() or text.startswith("-") or re.search(r"[\x00-\x1f]", text):
            raise SourceError("the repository is neither an address nor a path")  # It may hold a password.
        self.user = self.password = ""
        self.written = ()  # The secret as in the address, percent-encoded.
        self.path = None  # Of a repository on this machine.
        self.url = text
        if "://" in text:
            self._split(urllib.parse.urlsplit(text))
        elif not re.match(r"^[^/]+:", text):
            self.path = self.url = os.path.abspath(os.path.join(base, os.path.expanduser(text)))
        if self.url.startswith("file://"):
            self.path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)

    def _split(self, parts):
        userinfo, at, host = parts.netloc.rpartition("@")
        user, _colon, password = userinfo.partition(":")
        if not at:
            return
        if parts.scheme in ("http", "https"):
            self.user, self.password = urllib.parse.unquote(user), urllib.parse.unquote(password)
            self.written = {userinfo, password} if password or len(user) >= 8 else ()
            netloc = host
        else:
            # ssh takes no password from an address; the user is part of it.
            self.written = {password}
            netloc = "%s@%s" % (user, host)
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=netloc))

    def secrets(self):
        """Return what must not be seen. A user name alone is a token, unless it is too short for one."""
        found = set(self.written) | {self.password or (self.user if len(self.user) >= 8 else "")}
        return {one for one in found if one}

    def scope(self):
        """Return the part of the address that the credentials are for: a redirect elsewhere gets none."""
        parts = urllib.parse.urlsplit(self.url)
        return "%s://%s" % (parts.scheme, parts.netloc)

    def directory(self):
        """Return the name of the repository's directory in the cache."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.url.rstrip("/").rsplit("/", 1)[-1])[:40]
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        return "%s-%s" % (re.sub(r"\.git$", "", name) or "repository", digest)


def reason(stderr):
    """Return git's own words for a failure, without its filler, as one line."""
    lines = [re.sub(r"^(fatal|error|remote|ssh): ", "", line).strip(" .") for line in stderr.splitlines()]
    lines = [line for line in lines if line]
    relevant = [line for line in lines if not any(word in line.lower() for word in FILLER)]
    text = printable("; ".join((relevant or lines or ["no reason given"])[-3:]))
    hints = [hint for sign, hint in HINTS if sign in text.lower()]
    return text + (" (%s)" % hints[0] if hints else "")


def environment(address, base, protected=""):
    """Return git's environment. protected is a configuration file that replaces the user's global one."""
    env = {name: value for name, value in base.items() if name not in FOREIGN}
    settings = [
        ("remote.origin.url", address.url),
        ("remote.origin.fetch", "+refs/heads/*:refs/heads/*"),
        ("remote.origin.fetch", "+refs/tags/*:refs/tags/*"),
        ("gc.autoDetach", "false"),
        ("maintenance.autoDetach", "false"),
        ("http.lowSpeedLimit", "1000"),
        ("http.lowSpeedTime", "30"),
        # What is packed depends on the commit alone, not on this machine's configuration.
        ("tar.umask", "0022"),
        ("core.autocrlf", "false"),
        ("i18n.logOutputEncoding", "UTF-8"),
        ("log.showSignature", "false"),
        # Damaged and malicious objects are rejected as they arrive, also out of a bundle.
        ("fetch.fsckObjects", "true"),
        ("transfer.fsckObjects", "true"),
        ("fetch.recurseSubmodules", "false"),
        ("core.hooksPath", os.devnull),
        ("core.fsmonitor", "false"),
    ]
    if address.user or address.password:
        scope = address.scope()
        settings += [("credential.%s.helper" % scope, ""), ("credential.%s.helper" % scope, CREDENTIAL_HELPER)]
        env.update(SHIFTMASTER_GIT_USER=address.user, SHIFTMASTER_GIT_PASSWORD=address.password)
    first = int(env.get("GIT_CONFIG_COUNT") or 0)
    for number, (name, value) in enumerate(settings, first):
        env["GIT_CONFIG_KEY_%d" % number], env["GIT_CONFIG_VALUE_%d" % number] = name, value
    env.update(
        GIT_CONFIG_COUNT=str(first + len(settings)),
        GIT_TERMINAL_PROMPT="0",
        SSH_ASKPASS_REQUIRE="never",
        LC_ALL="C.UTF-8",
        LANGUAGE="C",
        GIT_PAGER="cat",
        GIT_OPTIONAL_LOCKS="0",
        # A repository on this machine cannot make git fetch from a place, or by a program, of its own choice.
        GIT_NO_LAZY_FETCH="1",
    )
    # Without ext:: and remote helpers, which are programs. An administrator's own list is obeyed.
    env.setdefault("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh")
    if protected:
        env["GIT_CONFIG_GLOBAL"] = protected
    return env


def protected_configuration(path, base):
    """Return a git configuration that trusts one repository on this machine, whoever owns it.

    The repository was named by the operator. Git reads safe.directory from a file only, once it starts its
    upload-pack; so a file replaces the user's own and includes it.
    """
    home = base.get("HOME") or os.path.expanduser("~")
    directory = base.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    own = [os.path.join(directory, "git", "config"), os.path.join(home, ".gitconfig")]
    if base.get("GIT_CONFIG_GLOBAL"):
        own = [base["GIT_CONFIG_GLOBAL"]]

    def quoted(text):
        return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')

    places = (path, os.path.realpath(path))
    trusted = dict.fromkeys(name for one in places for name in (one, os.path.join(one, ".git"), one + ".git"))
    lines = ["[include]\n\tpath = %s\n" % quoted(name) for name in own]
    return "".join([*lines, "[safe]\n", *("\tdirectory = %s\n" % quoted(name) for name in trusted)])


def names_of(listing):
    """Return ({tag: object}, {branch: object}) of the lines of for-each-ref."""
    tags, branches = {}, {}
    for line in listing.splitlines():
        found, _space, name = line.partition(" ")
        if name.startswith("refs/tags/"):
            tags[name[len("refs/tags/") :]] = found
        elif name.startswith("refs/heads/"):
            branches[name[len("refs/heads/") :]] = found
    return tags, branches


def closest(wanted, names, limit=5):
    """Return the names that a person may have meant, best first."""
    folded = {}
    for name in names:
        folded.setdefault(name.lower(), name)
    found = difflib.get_close_matches(wanted.lower(), list(folded), n=limit, cutoff=0.5)
    inside = [name for name in sorted(folded) if wanted.lower() in name and name not in found]
    return [folded[name] for name in (found + inside)[:limit]]


def choose(version, tags, branches, commits):
    """Return (kind, object, notes). commits is a callable: the commits that start with these digits.

    Raises SourceError where nothing, or more than one commit, has the name.
    """
    for prefix, kind, table in (("refs/tags/", "tag", tags), ("refs/heads/", "branch", branches)):
        if version.startswith(prefix) and version[len(prefix) :] in table:
            return kind, table[version[len(prefix) :]], []
    digits = version.lower()
    found = commits(digits) if SOME_COMMIT.match(digits) else []
    candidates = [(kind, table[version]) for kind, table in (("tag", tags), ("branch", branches)) if version in table]
    candidates += [("commit", one) for one in found]
    if not candidates:
        raise SourceError(unknown(version, tags, branches))
    kind, chosen = candidates[0]
    if kind == "commit" and len(found) > 1:
        some = ", ".join(one[:12] for one in found[:5])
        raise SourceError("%s is the start of %d commits (%s); give more digits" % (version, len(found), some))
    others = sorted({other for other, _object in candidates[1:] if other != kind})
    note = "%s is a %s and also a %s; the %s is taken" % (version, kind, " and a ".join(others), kind)
    return kind, chosen, [note] if others else []


def unknown(version, tags, branches):
    """Return the sentence for a name that the repository does not have."""
    if not tags and not branches:
        return "there is no version %s: the repository is empty" % version

    def count(number, word):
        return "%d %s" % (number, word if number == 1 else word + ("es" if word.endswith("h") else "s"))

    near = closest(version, list(tags) + list(branches))
    names = list(tags) + list(branches)
    if near:
        more = "the closest: %s" % ", ".join(near)
    elif len(names) <= 8:
        more = "there are: %s" % ", ".join(names)
    else:
        more = "the name resembles none of them"
    there = (count(len(tags), "tag"), count(len(branches), "branch"))
    return "there is no tag, branch or commit %s in the repository (%s, %s); %s" % (version, *there, more)


class Git:
    """Runs git in one mirror, until a deadline; its children die with us and keep the lock as long as they live."""

    def __init__(self, directory, env, deadline, lock=None):
        self.directory, self.env, self.deadline, self.lock = directory, env, deadline, lock

    def run(self, *arguments, stdin=b"", stdout=subprocess.PIPE):
        """Return git's output as bytes. Raises Failed, and SourceError when the time is over."""
        try:
            child = subprocess.Popen(
                ("git", "--git-dir", self.directory) + arguments,
                env=self.env,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=die_with_parent,
                pass_fds=() if self.lock is None else (self.lock,),
            )
        except FileNotFoundError:
            raise SourceError("git is not installed on the controller")
        output = Bounded(child, child.stdout, OUTPUT_BYTES) if stdout == subprocess.PIPE else None
        errors = Bounded(child, child.stderr, MESSAGE_BYTES)
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(stdin)
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            child.wait(timeout=max(1, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            why = "git %s did not end in time; raise timeout_seconds, or see what keeps the repository"
            raise SourceError(why % arguments[0])
        printed = errors.end()
        data = output.end() if output else b""
        if errors.full or output and output.full:
            limit = (OUTPUT_BYTES if output and output.full else MESSAGE_BYTES) >> 20
            why = "git %s wrote more than %d MiB, more than any version of an application needs"
            raise SourceError(why % (arguments[0], limit))
        if child.returncode != 0:
            raise Failed(reason(printed.decode(errors="replace")))
        return data

    def text(self, *arguments):
        return self.run(*arguments).decode(errors="replace")


class Mirror:
    """The bare copy of one repository in the cache."""

    def __init__(self, address, cache_dir, deadline):
        self.address, self.deadline = address, deadline
        self.root = os.path.join(cache_dir, address.directory())
        self.directory = os.path.join(self.root, "mirror.git")
        self.archives = os.path.join(self.root, "archives")
        os.makedirs(self.archives, mode=0o700, exist_ok=True)
        os.chmod(cache_dir, 0o700)
        protected = ""
        if address.path is not None:
            protected = os.path.join(self.root, "git.config")
            _write(protected, protected_configuration(address.path, os.environ).encode())
        self.git = Git(self.directory, environment(address, os.environ, protected), deadline)
        self.git.env.update(_ssh(self.git))

    @contextlib.contextmanager
    def exclusive(self):
        """Keep other runs out, also those whose git outlived them."""
        busy = SourceError("another run is still at work on the copy of the repository in %s" % self.root)
        with held(os.path.join(self.root, "lock"), self.deadline, busy) as descriptor:
            self.git.lock = descriptor
            yield

    def prepare(self):
        """Make the mirror where there is none, and remove what a killed git left in it."""
        if os.path.isfile(os.path.join(self.directory, "HEAD")):
            self._ignore_filters(self.directory)
            for parent, _directories, names in os.walk(self.directory):
                for name in names:
                    if name.endswith(".lock") or name.startswith(("tmp_", ".tmp-")):
                        os.unlink(os.path.join(parent, name))
            return
        self.remove()
        fresh = self.directory + ".new"
        Git(fresh, self.git.env, self.deadline, self.git.lock).run("init", "--quiet", "--bare", "--template=")
        self._ignore_filters(fresh)
        os.rename(fresh, self.directory)

    @staticmethod
    def _ignore_filters(directory):
        """Let no file of a repository choose a filter (a program) of this machine's configuration; LFS is one."""
        os.makedirs(os.path.join(directory, "info"), exist_ok=True)
        _write(os.path.join(directory, "info", "attributes"), b"* -filter\n")

    def remove(self):
        for path in (self.directory, self.directory + ".new"):
            shutil.rmtree(path, ignore_errors=True)

    def listing(self):
        return self.git.text("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags")

    def commits(self, digits):
        """Return the commits that start with these digits."""
        found = "".join(one + "\n" for one in self.git.text("rev-parse", "--disambiguate=" + digits).split())
        kinds = self.git.run("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=found.encode())
        return [line.split()[0] for line in kinds.decode().splitlines() if line.endswith(" commit")]

    def fetch(self):
        """Refresh the mirror; returns whether something was new."""
        before = self.listing()
        try:
            self.git.run("fetch", "--quiet", "--prune", "--force", "--no-tags", "--no-write-fetch-head", "origin")
        except Failed as error:
            if "fsck error" in str(error):
                why = (
                    "the repository %s is rejected, it holds a damaged or malicious object (%s); where that is known to"
                )
                why += " be harmless, `git config --global fetch.fsck.<name of the fault> ignore` accepts it"
                raise SourceError(why % (self.address.url, error))
            try:
                self.git.run("ls-remote", "--quiet", "origin", "HEAD")
            except Failed as second:
                raise SourceError("the repository %s cannot be read: %s" % (self.address.url, second))
            raise Damaged(str(error))  # The repository responds, so the local copy is damaged.
        return self.listing() != before

    def resolve(self, version):
        """Return (kind, revision, notes, fetched)."""
        digits = version.lower()
        fetched, is_full = False, FULL_COMMIT.match(digits)
        if not (is_full and self.commits(digits)):
            fetched = self.fetch()
            names = {name for table in names_of(self.listing()) for name in table}
            if is_full and version not in names and not self.commits(digits) and not self.published:
                # No branch or tag leads to it; many servers give it all the same.
                with contextlib.suppress(Failed):
                    self.git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "origin", digits)
        kind, found, notes = choose(version, *names_of(self.listing()), self.commits)
        if self.published and not self.git.text("for-each-ref", "--count=1", "--contains", found):
            raise SourceError("no branch or tag of the repository leads to the commit %s" % version)
        try:
            return kind, self.git.text("rev-parse", "--verify", "--quiet", found + "^{commit}").strip(), notes, fetched
        except Failed:
            raise SourceError("the %s %s does not lead to a commit" % (kind, version))

    def files(self, revision, exclude):
        """Return [(mode, object, path)] of what an archive of the revision holds."""
        words = ("diff-tree", "-r", "-z", "--no-renames", "--no-abbrev", "--raw", EMPTY_TREE, revision, "--")
        fields = self.git.run(*words, *pathspec(exclude)).split(b"\0")
        entries = []
        for head, path in zip(fields[::2], fields[1::2]):
            words = head.decode().split()
            entries.append((words[1], words[3], path.decode("utf-8", "surrogateescape")))
        return entries

    def texts(self, entries):
        """Return {path: text} of these files."""
        contents = self.contents([entry for entry in entries if entry[0].startswith("100")])
        return {path: migrations.decode(data) for path, data in contents.items()}

    def targets(self, entries):
        """Return {path: what it leads to} of the symbolic links."""
        contents = self.contents([entry for entry in entries if entry[0] == "120000"])
        return {path: data.decode("utf-8", "surrogateescape") for path, data in contents.items()}

    def contents(self, entries):
        """Return {path: bytes} of these objects, read by one git; without those that are too large."""
        sizes = self.sizes(entries)
        entries = [entry for entry, size in zip(entries, sizes) if size <= migrations.MAX_FILE_BYTES]
        data = self.git.run("cat-file", "--batch", stdin="".join(entry[1] + "\n" for entry in entries).encode())
        found, position = {}, 0
        for _mode, _object, path in entries:
            end = data.index(b"\n", position)
            size = int(data[position:end].split()[2])
            found[path] = data[end + 1 : end + 1 + size]
            position = end + size + 2
        return found

    def sizes(self, entries):
        """Return the size of each of these objects."""
        wanted_objects = "".join(entry[1] + "\n" for entry in entries).encode()
        return [
            int(line) for line in self.git.run("cat-file", "--batch-check=%(objectsize)", stdin=wanted_objects).split()
        ]

    def pack(self, revision, exclude):
        """Return (path, sha256) of the archive; an existing complete one is used again."""
        key = hashlib.sha256("\0".join(exclude).encode()).hexdigest()[:8]
        path = os.path.join(self.archives, "%s-%s.tar" % (revision, key))
        digest = _sha256(path)
        if digest is None or digest != _read(path + ".sha256"):
            fresh = path + ".new"
            with open(fresh, "wb") as stream:
                self.git.run("archive", "--format=tar", revision, "--", *pathspec(exclude), stdout=stream)
                stream.flush()
                os.fsync(stream.fileno())
            digest = _sha256(fresh)
            os.rename(fresh, path)
            _write(path + ".sha256", digest.encode())
        os.utime(path)
        self._prune(path)
        return path, digest

    def _prune(self, mine):
        """Remove old archives; one of the last day may still be on its way to a host."""
        paths = [os.path.join(self.archives, name) for name in os.listdir(self.archives) if name.endswith(".tar")]
        paths.sort(key=os.path.getmtime, reverse=True)
        for path in paths[KEEP_ARCHIVES:]:
            if path != mine and time.time() - os.path.getmtime(path) > 86400:
                os.unlink(path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + ".sha256")


def refuse_hostile_paths(version, entries, targets):
    """Raise SourceError for what an archive must not hold. targets: {path of a symbolic link: what it leads to}."""
    found, kinds = [], {}
    for mode, _object, path in entries:
        if any(GITS_OWN.match(IGNORED.sub("", part)) for part in path.split("/")):
            found.append("%r has a part that is git's own or leads elsewhere" % path)
        if path in kinds:
            found.append("%r is there twice" % path)
        kinds[path] = mode
    for path in kinds:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if "/".join(parts[:count]) in kinds:
                found.append("%r is a file and a directory" % "/".join(parts[:count]))
                break
    for path in (path for path, mode in kinds.items() if mode == "120000"):
        if path not in targets or leaves(path, targets):
            found.append("the symbolic link %r leads out of the tree" % path)
    if found:
        more = "; and %d more" % (len(found) - 5) if len(found) > 5 else ""
        what = printable("; ".join(found[:5])) + more
        raise SourceError("version %s is rejected, its tree is damaged or malicious: %s" % (version, what))


def leaves(path, targets):
    """Return whether a symbolic link leads out of the tree, by way of other links too; or nowhere, in a circle."""
    here, left, links = path.split("/")[:-1], targets[path].split("/"), 0
    if targets[path].startswith("/"):
        return True
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                return True
            here.pop()
            continue
        target = targets.get("/".join(here + [part]))
        if target is None:
            here.append(part)
            continue
        links += 1
        if target.startswith("/") or links > MAX_LINKS:
            return True
        left = target.split("/") + left
    return False


def hashed(mirror, entries, path):
    """Return whether a requirements file, or one that it names, has hashes; pip then requires one for each package."""
    left, seen = {path}, set()
    # Each may name the next one twice, and a chain of them may be long.
    while left and len(seen) < REQUIREMENTS_FILES:
        seen |= left
        texts, left = mirror.texts([entry for entry in entries if entry[2] in left]), set()
        for one, text in texts.items():
            if re.search(r"(?m)^[^#\n]*--(?:hash\b|require-hashes\b)", text):
                return True
            # Of one line: a pattern that crosses lines takes a day for a megabyte of empty ones.
            named = re.findall(r"(?m)^[^\S\n]*(?:-r|--requirement)[ =]*(\S+)", text)
            left |= {posixpath.normpath(posixpath.join(posixpath.dirname(one), name)) for name in named} - seen
    return False


def pathspec(exclude):
    return ["."] + [":(exclude)" + pattern for pattern in exclude]


def _ssh(git):
    """Return the variable that makes ssh non-interactive. Its check of the host's key stays as it is set."""
    if "GIT_SSH" in git.env and "GIT_SSH_COMMAND" not in git.env:
        return {}
    command = git.env.get("GIT_SSH_COMMAND")
    if not command:
        try:
            command = git.text("config", "--get", "core.sshCommand").strip()
        except Failed:
            command = "ssh"
    if os.path.basename(command.split()[0]) != "ssh":
        return {}
    return {"GIT_SSH_COMMAND": command + " -o BatchMode=yes -o ConnectTimeout=20"}


def _read(path):
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read().strip()
    except OSError:
        return None


def _write(path, data):
    descriptor, fresh = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path))
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    os.rename(fresh, path)


def _sha256(path):
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def check_git():
    try:
        printed = subprocess.run(("git", "--version"), stdout=subprocess.PIPE, check=False, timeout=20).stdout.decode()
    except FileNotFoundError:
        raise SourceError("git is not installed on the controller")
    numbers = re.search(r"(\d+)\.(\d+)", printed)
    if not numbers or tuple(int(one) for one in numbers.groups()) < OLDEST_GIT:
        raise SourceError("git on the controller is too old (%s); 2.31 is needed" % printed.strip())


def read_source(mirror, version, archive, exclude, requirements, application):
    """Return the action's result from a mirror that is ours alone."""
    mirror.prepare()
    kind, revision, notes, fetched = mirror.resolve(version)
    committed, _nul, subject = mirror.git.text("log", "-1", "--format=%ct%x00%s", revision).strip("\n").partition("\0")
    entries = mirror.files(revision, exclude)
    size = sum(mirror.sizes([entry for entry in entries if entry[0] != "160000"]))
    if size > SOURCE_BYTES:
        why = "version %s has %d MiB of files, and a release may have %d; leave some out (shiftmaster_source_exclude)"
        raise SourceError(why % (version, size >> 20, SOURCE_BYTES >> 20))
    refuse_hostile_paths(version, entries, mirror.targets(entries))
    texts = mirror.texts([entry for entry in entries if migrations.wanted(entry[2]) or entry[2] == ".gitattributes"])
    if any(mode == "160000" for mode, _object, _path in entries):
        notes.append("version %s has git submodules; they are not in the archive" % version)
    if "filter=lfs" in texts.pop(".gitattributes", ""):
        notes.append("version %s keeps files in Git LFS; the archive holds only their pointers" % version)
    records, problems = migrations.classify_files(texts), []
    if application:
        python = mirror.texts([entry for entry in entries if source_checks.wanted(entry[2])])
        problems, more = source_checks.check(python, records, application)
        notes += more
    path, digest = mirror.pack(revision, exclude) if archive else ("", "")
    return {
        "revision": revision,
        "kind": kind,
        "subject": printable(subject),
        "version": revision[:10] if kind == "commit" else re.sub(r"^refs/(tags|heads)/", "", version),
        "committed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(committed))),
        "archive": path,
        "archive_sha256": digest,
        "migrations": records,
        "problems": [printable(one) for one in problems],
        "hashed": hashed(mirror, entries, posixpath.normpath(requirements)) if requirements else None,
        "fetched": fetched,
        "notes": notes,
        "repository": mirror.address.url,
    }


def run(address, params):
    """Return the action's result. Raises SourceError."""
    version = params["version"].strip()
    if not version:
        raise SourceError("no version was given")
    check_git()
    mirror = Mirror(address, params["cache_dir"], time.monotonic() + params["timeout_seconds"])
    mirror.published = params["published"]
    wanted = [params[name] for name in ("archive", "exclude", "requirements_file", "application")]
    with mirror.exclusive():
        try:
            try:
                return read_source(mirror, version, *wanted)
            except (Damaged, Failed):
                mirror.remove()
                return read_source(mirror, version, *wanted)
        except (Damaged, Failed) as error:
            raise SourceError("git cannot work with the copy of the repository in %s: %s" % (mirror.root, error))


class ActionModule(action.ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        address = Address(parameters["repository"], self._loader.get_basedir())
        # Of the address only its secret part is hidden.
        self.secrets = address.secrets()
        try:
            return run(address, parameters)
        except OSError as error:
            raise SourceError("the cache %s cannot be used: %s" % (parameters["cache_dir"], error))
