"""Action `shiftmaster_wheels`: collects, on the controller, the wheels that a host needs for a release.

The controller's own pip resolves the application's requirements for the host's interpreter, and puts exactly the
wheels that the host will install into a directory of the cache; the same requirements and interpreter use it again.
Only wheels count: a package without one is reported, and its code never runs here. Requirements that are no packages
(an address, a path, -e) are refused. Hashes are checked here, and again on the host. Needs pip 22.2. Options:

    source              directory takes wheels from `directory` alone; controller lets pip fetch them as
                        this machine does
    directory           a directory of the controller with wheels
    archive             the application's source, as shiftmaster_source packs it
    requirements_file   the application's requirements in it; empty for none
    extra_requirements  more requirements, as pip takes them
    interpreter         the host's, `facts.interpreter` of module shiftmaster_preflight
    environment         of pip, added to the controller's own; treated as secret
    cache_dir           collections; each has a directory of its own below it
    timeout_seconds     of all of it, waiting for another run included

Returns directory, wheels ([{name, sha256}]) and collected (whether by this call; otherwise they were there).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.action import ControllerAction, Failed
from ansible.module_utils.shiftmaster.release.state import held

KEEP = 10
MAX_MISSING = 40
REQUIREMENTS_BYTES = 4 << 20
REQUIREMENTS_FILES = 100
ARGUMENTS = {
    "source": {"type": "str", "choices": ["directory", "controller"], "required": True},
    "directory": {"type": "path"},
    "archive": {"type": "path", "required": True},
    "requirements_file": {"type": "str", "default": "requirements.txt"},
    "extra_requirements": {"type": "list", "elements": "str", "default": []},
    "interpreter": {"type": "dict", "required": True},
    "environment": {"type": "dict", "default": {}, "no_log": True},
    "cache_dir": {"type": "path", "default": "~/.cache/shiftmaster-ops"},
    "timeout_seconds": {"type": "int", "default": 900},
}
# pip distinguishes wheels by the options below, but evaluates markers ("; python_version < '3.12'") by the interpreter
# that runs it; so it runs with those of the host.
DRIVER = """
import json, os, sys
from pip._vendor.packaging import markers
found = json.loads(os.environ["SHIFTMASTER_MARKERS"])
markers.default_environment = lambda: dict(found)
from pip._internal.cli.main import main
sys.exit(main())
"""
# Lines of requirements that are no packages. -r and -c are read from the application's source alone.
OPTIONS = tuple(
    "-i --index-url --extra-index-url --no-index --only-binary --prefer-binary --pre --require-hashes "
    "--trusted-host".split()
)
# A name with extras, versions, a marker and hashes. An address or a path makes pip run a build backend here.
PACKAGE = re.compile(
    r"^[a-z0-9]([\w.-]*[a-z0-9])? ?(\[[\w ,.-]*\])? ?\(?( ?(===?|~=|!=|<=?|>=?) ?[\w.*+!-]+ ?,?)*\)?"
    r"( ?;[^@]*?)?( --hash[= ]\w+:[0-9a-f]+)*$",
    re.IGNORECASE | re.ASCII,
)
ARCHIVE = re.compile(r"\.(whl|zip|tar|t?gz|tgz|t?bz2?|t?xz|tlz|lzma)$", re.IGNORECASE)
MISSING = re.compile(r"(?m)^ERROR: No matching distribution found for (.+?)(?: \(from [^()]*\))?$")
UNREACHABLE = re.compile(r"(?m)(?:^WARNING: Retrying|connection broken by|Could not fetch URL).*$")


class WheelsError(Failed):
    """The wheels cannot be had; str() shows why."""


# -------------------------------------------------------------------------------------------------------- requirements


def logical_lines(text):
    """Return the lines of a requirements file as pip reads them: joined, without comments."""
    lines, joined = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            line = ""
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        joined += line
        lines.append(re.sub(r"(^|\s)#.*$", "", joined).strip())
        joined = ""
    lines.append(joined.strip())
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def flatten(read, path, seen=()):
    """Return (requirements, constraints), the lines of a file and of those that it names. read: path to text."""
    if path in seen:
        raise WheelsError("the requirements %s name themselves" % path)
    requirements, constraints = [], []
    for line in logical_lines(read(path)):
        found = re.match(r"^(?:-r|--requirement|-c|--constraint)[ =]*(\S+)$", line)
        if not found:
            requirements.append(line)
            continue
        inner = flatten(read, posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1])), seen + (path,))
        constraints += inner[1]
        if line.startswith(("-c", "--constraint")):
            constraints += inner[0]
        else:
            requirements += inner[0]
    return requirements, constraints


def canonical(line):
    """Return the normalized name of the package that a requirement is for, "" of an option."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def refuse_what_is_no_package(lines):
    names = [line.split(" --hash")[0] for line in lines if not line.startswith("-")]
    wrong = [line for line in names if not PACKAGE.match(line) or ARCHIVE.search(line)]
    wrong += [line for line in lines if re.match(r"-e|--e", line)]
    if wrong:
        why = "no wheel can stand for the requirement %s: name a package and its version"
        raise WheelsError(why % " and ".join(wrong))


def has_hashes(lines):
    return any("--hash" in line or line == "--require-hashes" for line in lines)


def refuse_hostile_options(lines, environment):
    """Reject what would make pip read files of this machine, run a package's code, or send its environment elsewhere.

    pip takes options at any place of a line, after a requirement too.
    """
    for line in lines:
        words = line.split()
        options = [number for number, word in enumerate(words) if word[0] == "-"]
        for word in words[options[0] :] if options else []:
            allowed = OPTIONS if options[0] == 0 else ("--hash",)
            if word[0] == "-" and word.partition("=")[0] not in allowed or re.search(r"[\"'\\]|:none:", word):
                why = "the requirements hold %s (in %s), which is not allowed on the controller"
                raise WheelsError(why % (word, line))
        for name in re.findall(r"\$\{([A-Z0-9_]+)\}", line):
            if name not in environment:
                raise WheelsError("the requirements read the controller's variable %s" % name)


def of_archive(archive, requirements_file):
    """Return (requirements, constraints) of the application's source."""
    if not requirements_file:
        return [], []
    with tarfile.open(archive) as source:
        count = itertools.count(1)

        def read(path):
            # Each may name the next one twice.
            if next(count) > REQUIREMENTS_FILES:
                raise WheelsError("the requirements name more than %d files" % REQUIREMENTS_FILES)
            try:
                text = source.extractfile(path).read(REQUIREMENTS_BYTES + 1)
            # Links in the source may form a loop.
            except (KeyError, AttributeError, RecursionError):
                raise WheelsError("the source has no file %s, where its requirements should be" % path)
            if len(text) > REQUIREMENTS_BYTES:
                raise WheelsError("the requirements %s are larger than %d MiB" % (path, REQUIREMENTS_BYTES >> 20))
            return text.decode("utf-8-sig")

        return flatten(read, posixpath.normpath(requirements_file))


# --------------------------------------------------------------------------------------------------------- the host's


# A host reports the values of its interpreter for pip.
PLAUSIBLE = {"machine": r"[a-z0-9_]{1,20}", "glibc": r"(\d{1,2}\.\d{1,3})?", "abi": r"\w{1,30}"}


def reject_unknown_interpreter(interpreter):
    unknown = [name for name, form in PLAUSIBLE.items() if not re.fullmatch(form, str(interpreter.get(name) or ""))]
    version = str(interpreter.get("markers", {}).get("python_full_version"))
    if not re.fullmatch(r"3\.\d{1,2}\.\d{1,2}[a-z0-9+]{0,10}", version):
        unknown.append("python_full_version")
    if unknown:
        raise WheelsError("the host describes its interpreter as no interpreter is: %s" % ", ".join(unknown))


def platforms(interpreter):
    """Return the platforms that the host's interpreter takes wheels of, best first."""
    machine, found = interpreter["machine"], []
    if interpreter["glibc"]:
        major, minor = (int(one) for one in interpreter["glibc"].split(".")[:2])
        older = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
        for number in range(minor, 4 if machine in ("x86_64", "i686") else 16, -1):
            found.append("manylinux_%d_%d_%s" % (major, number, machine))
            if number in older:
                found.append("%s_%s" % (older[number], machine))
    return found + ["linux_" + machine]


def called(interpreter):
    library = " (glibc %s)" % interpreter["glibc"] if interpreter["glibc"] else ""
    return "Python %s on %s%s" % (interpreter["markers"]["python_full_version"], interpreter["machine"], library)


def identity(interpreter):
    """Return what wheels are chosen by, without what changes with every kernel."""
    kernel = ("platform_release", "platform_version")
    markers = {name: value for name, value in interpreter["markers"].items() if name not in kernel}
    return dict(interpreter, markers=markers)


# ----------------------------------------------------------------------------------------------------------------- pip


class Pip:
    """The controller's pip, resolving for a host's interpreter."""

    def __init__(self, params, scratch, deadline):
        self.params, self.scratch, self.deadline = params, scratch, deadline
        self.found = os.path.join(scratch, "wheels")
        os.mkdir(self.found)
        self.env = dict(os.environ, PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", LC_ALL="C.UTF-8")
        self.offline = params["source"] == "directory"
        if self.offline:
            # Nothing but the directory: neither this machine's configuration nor its environment adds a place.
            self.env = {name: value for name, value in self.env.items() if not name.startswith("PIP_")}
            self.env.update(PIP_NO_INPUT="1", PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK="1")
            self.places = ["--no-index", "--find-links", params["directory"]]
        else:
            self.env.update({name: str(value) for name, value in params["environment"].items()})
            self.places = ["--retries", "2"]

    def run(self, program, arguments, **more):
        try:
            done = subprocess.run(
                [sys.executable] + program + arguments,
                env=dict(self.env, **more),
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=max(1, self.deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            raise WheelsError("pip on the controller did not end in time; see what keeps its index")
        output = done.stdout.decode(errors="replace")
        if "No module named 'pip'" in output or "No module named pip" in output:
            why = "{0}, which Ansible runs with on the controller, has no pip; `{0} -m ensurepip` installs it"
            raise WheelsError(why.format(sys.executable))
        return done.returncode, output

    def download(self, requirements, constraints):
        """Download the wheels of these lines for the host; returns (exit code, pip's words)."""
        interpreter = self.params["interpreter"]
        markers = interpreter["markers"]
        implementation = "cp" if markers["implementation_name"] == "cpython" else "py"
        arguments = ["download", "--quiet", "--dest", self.found, "--only-binary", ":all:"] + self.places
        arguments += ["--implementation", implementation, "--python-version", markers["python_full_version"]]
        arguments += ["--abi", interpreter["abi"]]
        for one in platforms(interpreter):
            arguments += ["--platform", one]
        if has_hashes(requirements):
            arguments.append("--require-hashes")
        arguments += ["--requirement", self.lines("requirements.txt", requirements)]
        if constraints:
            arguments += ["--constraint", self.lines("constraints.txt", constraints)]
        return self.run(["-c", DRIVER], arguments, SHIFTMASTER_MARKERS=json.dumps(markers))

    def lines(self, name, lines):
        path = os.path.join(self.scratch, name)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("".join(line + "\n" for line in lines))
        return path

    def collect(self, requirements, constraints):
        """Collect the wheels of these lines. Raises WheelsError that names every package without one."""
        missing = []
        while len(missing) < MAX_MISSING:
            code, output = self.download(requirements, constraints)
            if code == 0:
                break
            lost = UNREACHABLE.search(output)
            if lost:
                raise WheelsError("pip on the controller cannot reach its index: %s" % lost[0].strip())
            found = MISSING.search(output)
            if not found:
                raise WheelsError("pip on the controller cannot resolve the requirements:\n%s" % last_lines(output))
            wanted = found[1].split(";")[0].strip()
            missing.append(wanted)
            # The others may be missing, too; a package that another one requests cannot be left out.
            rest = [line for line in requirements if canonical(line) != canonical(wanted)]
            if len(rest) == len(requirements):
                break
            requirements = rest
        if missing:
            raise WheelsError(self.absent(missing))

    def absent(self, missing):
        place = "the directory %s of the controller" % self.params["directory"] if self.offline else "pip's index"
        text = "%s has no wheel for %s of: %s; " % (place, called(self.params["interpreter"]), ", ".join(missing))
        text += "put them there" if self.offline else (
            "build them once where their code may run, with the hosts' Debian (`pip wheel`), and give them by"
            " shiftmaster_wheels: directory, or let the hosts build them with shiftmaster_wheels: none"
        )  # fmt: skip
        return text + " (docs/guide/17-closed-network.md)"


def last_lines(text, count=12):
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


# --------------------------------------------------------------------------------------------------------------- cache


def sha256(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing(directory):
    """Return a fingerprint of a directory's content, without reading it."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".whl"))
    except OSError as error:
        why = "the directory of wheels %s cannot be read on the controller: %s"
        raise WheelsError(why % (directory, error.strerror))
    if not names:
        raise WheelsError("the directory %s of the controller holds no wheels (files *.whl)" % directory)
    found = (os.stat(os.path.join(directory, name)) for name in names)
    return [[name, one.st_size, one.st_mtime_ns] for name, one in zip(names, found)]


def complete(directory):
    """Return the wheels of a collection, None where it is not there or not as it was collected."""
    try:
        with open(os.path.join(directory, "wheels.json"), encoding="utf-8") as stream:
            wheels = json.load(stream)
        good = all(sha256(os.path.join(directory, "wheels", one["name"])) == one["sha256"] for one in wheels)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return wheels if good else None


def prune(root, mine):
    """Remove old collections; one of the last day may still be on its way to a host."""
    entries = [os.path.join(root, name) for name in os.listdir(root) if re.match(r"^[0-9a-f]{16}\Z", name)]
    entries.sort(key=os.path.getmtime, reverse=True)
    for path in entries[KEEP:]:
        if path != mine and time.time() - os.path.getmtime(path) > 86400:
            shutil.rmtree(path, ignore_errors=True)


def run(params):
    """Return the action's result. Raises WheelsError."""
    deadline = time.monotonic() + params["timeout_seconds"]
    requirements, constraints = of_archive(params["archive"], params["requirements_file"])
    extra = params["extra_requirements"]
    refuse_what_is_no_package(requirements + constraints + extra)
    reject_unknown_interpreter(params["interpreter"])
    refuse_hostile_options(requirements + constraints, params["environment"])
    offline = params["source"] == "directory"
    if offline and not params["directory"]:
        raise WheelsError("shiftmaster_wheels is directory, and shiftmaster_wheels_dir names none")
    there = listing(params["directory"]) if offline else []
    inputs = [params["source"], there, requirements, constraints, extra, identity(params["interpreter"])]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    root = os.path.join(params["cache_dir"], "wheels")
    directory = os.path.join(root, key)
    os.makedirs(root, mode=0o700, exist_ok=True)
    # Hosts alike wait for the first and find its collection.
    busy = WheelsError("another run is still collecting wheels in %s" % root)
    with held(os.path.join(root, "lock"), deadline, busy):
        wheels = complete(directory)
        collected = wheels is None
        if collected:
            wheels = collect(params, root, directory, requirements, constraints, deadline)
        os.utime(directory)
        prune(root, directory)
    return {"directory": os.path.join(directory, "wheels"), "wheels": wheels, "collected": collected}


def collect(params, root, directory, requirements, constraints, deadline):
    for name in os.listdir(root):
        if name.startswith("new."):  # What a killed run left.
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
    scratch = tempfile.mkdtemp(prefix="new.", dir=root)
    try:
        pip = Pip(params, scratch, deadline)
        if requirements:
            pip.collect(requirements, constraints)
        if params["extra_requirements"]:
            collect_extra(pip, params["extra_requirements"])
        names = sorted(os.listdir(pip.found))
        wheels = [{"name": name, "sha256": sha256(os.path.join(pip.found, name))} for name in names]
        with open(os.path.join(scratch, "wheels.json"), "w", encoding="utf-8") as stream:
            json.dump(wheels, stream)
        for name in os.listdir(scratch):
            if name not in ("wheels", "wheels.json"):
                path = os.path.join(scratch, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(scratch, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return wheels


def collect_extra(pip, extra):
    """As on the host, packages of the application's own requirements satisfy the extra ones, where it can."""
    held = []
    for name in os.listdir(pip.found):
        package, version = name.split("-")[:2]
        held.append("%s==%s" % (package, version))
    if pip.download(extra, held)[0] != 0:
        pip.collect(extra, [])


def secrets(environment):
    """Return the parts of pip's environment that must not be seen."""
    found = set()
    for name, value in environment.items():
        value = str(value)
        netloc = urllib.parse.urlsplit(value).netloc if "://" in value else ""
        userinfo = netloc.rpartition("@")[0]
        found.update((userinfo, userinfo.partition(":")[2], urllib.parse.unquote(userinfo.partition(":")[2])))
        if re.search(r"PASSWORD|TOKEN|SECRET|KEY", name, re.IGNORECASE):
            found.add(value)
    return {one for one in found if one}


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        # Of pip's environment only the secret parts are hidden.
        self.secrets = secrets(parameters["environment"])
        try:
            return run(parameters)
        except (OSError, tarfile.TarError) as error:
            raise WheelsError("the wheels cannot be collected on the controller: %s" % error)
