"""shiftmaster_source against real git repositories, one of them on a server that requires a password."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
import time

import offenders
import pytest
import shiftmaster_source as source

TOKEN = "t0p/s3cret+token"
MIGRATION = """\
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = []
    operations = [migrations.CreateModel("Ward", [("id", models.BigAutoField(primary_key=True))])]
"""


def git(directory, *arguments, stdin=None):
    env = dict(
        os.environ,
        GIT_CONFIG_GLOBAL="/dev/null",
        GIT_CONFIG_NOSYSTEM="1",
        GIT_AUTHOR_NAME="a",
        GIT_AUTHOR_EMAIL="a@example.invalid",
        GIT_COMMITTER_NAME="a",
        GIT_COMMITTER_EMAIL="a@example.invalid",
        GIT_AUTHOR_DATE="2026-01-02T03:04:05Z",
        GIT_COMMITTER_DATE="2026-01-02T03:04:05Z",
    )
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    command = ("git", "-C", str(directory)) + arguments
    return subprocess.run(command, env=env, check=True, capture_output=True, input=stdin).stdout.decode().strip()


def write(directory, path, content):
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    work = tmp_path_factory.mktemp("original")
    git(work, "init", "--quiet", "--template=", "--initial-branch=main")
    write(work, "manage.py", "x = 1\n")
    write(work, "病棟/シフト表.txt", "夜勤\n")
    write(work, "static/mark.bin", bytes(range(256)) * 300)
    write(work, "wards/migrations/0001_initial.py", MIGRATION)
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "最初の版")
    git(work, "tag", "2.0.0")
    write(work, "docs/guide.md", "x\n")
    write(work, "lab/migrations/0001_initial.py", MIGRATION)
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "Second")
    git(work, "tag", "-a", "-m", "annotated", "2.1.0")
    git(work, "branch", "both", "2.0.0")
    git(work, "tag", "both", "main")
    return work


@pytest.fixture
def repository(original, tmp_path):
    """A repository with a tag, an annotated one, and a name that is a tag and a branch."""
    return shutil.copytree(original, tmp_path / "work")


@pytest.fixture
def inspect_version(tmp_path, repository, monkeypatch):
    """Call the module's own run(); the cache stays the same within a test."""
    # Before this function runs the process of the tests is copied, which costs more than most of git's commands.
    monkeypatch.setattr(source, "die_with_parent", None)

    def inspect_version(version, where=None, **more):
        defaults = {name: option.get("default") for name, option in source.ARGUMENTS.items()}
        given = {"version": version, "cache_dir": str(tmp_path / "cache"), **more}
        return source.run(source.Address(str(where or repository)), {**defaults, **given})

    return inspect_version


def members(path):
    with tarfile.open(path) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive.getmembers() if one.isfile()}


# -------------------------------------------------------------------------------------------------------- the version


def test_tag_branch_and_commit_are_resolved_to_the_same_kind_of_result(inspect_version, repository):
    head = git(repository, "rev-parse", "main")
    for version, kind, shown in (
        ("2.1.0", "tag", "2.1.0"),
        ("main", "branch", "main"),
        (head, "commit", head[:10]),
        (head[:7].upper(), "commit", head[:10]),
        ("refs/heads/main", "branch", "main"),
    ):
        found = inspect_version(version)
        assert (found["revision"], found["kind"], found["version"]) == (head, kind, shown)
        assert (found["subject"], found["committed"]) == ("Second", "2026-01-02T03:04:05Z")
    assert inspect_version("2.0.0")["subject"] == "最初の版"


def test_a_tag_wins_over_a_branch_of_the_same_name_and_that_is_reported(inspect_version, repository):
    found = inspect_version("both")
    assert found["revision"] == git(repository, "rev-parse", "main")
    assert found["notes"] == ["both is a tag and also a branch; the tag is taken"]
    assert inspect_version("refs/heads/both")["revision"] == git(repository, "rev-parse", "2.0.0")


def test_an_unknown_version_is_one_sentence_with_the_closest_names(inspect_version):
    absent = "there is no tag, branch or commit "

    def check(case):
        with pytest.raises(source.SourceError) as error:
            inspect_version(case[0])
        assert case[1] in str(error.value) and "\n" not in str(error.value)

    offenders.check_each(
        [
            ("v2.1.0", f"{absent}v2.1.0 in the repository (3 tags, 2 branches); the closest: 2.1.0"),
            ("Main", "the closest: main"),
            ("zzz", "there are: "),
            ("deadbeef", f"{absent}deadbeef"),
            ("f" * 40, f"{absent}ffff"),
        ],
        check,
    )


# --------------------------------------------------------------------------------------------- a bundle as repository


def test_the_file_of_a_git_bundle_is_a_repository(inspect_version, repository, tmp_path):
    bundle = tmp_path / "shiftmaster.bundle"
    git(repository, "bundle", "create", "--quiet", str(bundle), "--all")
    for version in ("2.0.0", "2.1.0", "main", git(repository, "rev-parse", "2.0.0")[:10]):
        expected, found = inspect_version(version, archive=True), inspect_version(version, bundle, archive=True)
        assert members(found.pop("archive")) == members(expected.pop("archive"))
        names = ("revision", "kind", "subject", "migrations", "notes", "archive_sha256")
        assert [found[name] for name in names] == [expected[name] for name in names]
    with pytest.raises(source.SourceError, match="closest: 2.1.0"):
        inspect_version("2.1.1", bundle)


def test_a_newer_bundle_under_the_same_name_provides_its_versions(inspect_version, repository, tmp_path):
    bundle = tmp_path / "shiftmaster.bundle"
    git(repository, "bundle", "create", "--quiet", str(bundle), "--all")
    inspect_version("2.1.0", bundle)
    write(repository, "new.txt", "x\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "Third")
    git(repository, "tag", "2.2.0")
    git(repository, "bundle", "create", "--quiet", str(bundle), "--all")
    found = inspect_version("2.2.0", bundle)
    assert (found["revision"], found["fetched"]) == (git(repository, "rev-parse", "2.2.0"), True)
    assert inspect_version("2.0.0", bundle)["fetched"] is False


def test_an_incremental_bundle_is_reported_as_such(inspect_version, repository, tmp_path):
    bundle = tmp_path / "shiftmaster.bundle"
    git(repository, "bundle", "create", "--quiet", str(bundle), "2.0.0..2.1.0")
    with pytest.raises(source.SourceError, match="prerequisite"):
        inspect_version("2.1.0", bundle)


@pytest.mark.parametrize("damage", ["absent", "cut off"])
def test_a_bundle_that_cannot_be_read_is_one_sentence(inspect_version, repository, tmp_path, damage):
    bundle = tmp_path / "shiftmaster.bundle"
    if damage == "cut off":
        git(repository, "bundle", "create", "--quiet", str(bundle), "--all")
        bundle.write_bytes(bundle.read_bytes()[:-200])
    with pytest.raises(source.SourceError) as error:
        inspect_version("2.1.0", bundle)
    assert "\n" not in str(error.value) and "shiftmaster" in str(error.value)


def test_an_ambiguous_start_of_a_commit_is_refused():
    with pytest.raises(source.SourceError, match="1234567 is the start of 2 commits"):
        source.choose("1234567", {}, {}, lambda digits: [digits + "a" * 33, digits + "b" * 33])


def test_many_names_without_a_near_one_are_not_listed():
    tags = {"release-%d" % number: "x" for number in range(20)}
    assert source.unknown("zz", tags, {}).endswith("(20 tags, 0 branches); the name resembles none of them")


def test_an_empty_repository_is_reported(inspect_version, tmp_path):
    git(tmp_path, "init", "--quiet", "--bare", "empty.git")
    with pytest.raises(source.SourceError, match="the repository is empty"):
        inspect_version("main", tmp_path / "empty.git")


def test_a_moved_tag_and_a_removed_branch_are_followed(inspect_version, repository, tmp_path):
    inspect_version("both")
    marker = next((tmp_path / "cache").glob("*/mirror.git")) / "marker"
    marker.touch()
    git(repository, "tag", "--force", "2.1.0", "2.0.0")
    git(repository, "branch", "-D", "both")
    git(repository, "branch", "both/below", "main")  # Is at the place where the file of the old branch stood.
    assert inspect_version("2.1.0")["revision"] == git(repository, "rev-parse", "2.0.0")
    assert inspect_version("both/below")["kind"] == "branch"
    assert marker.exists(), "the mirror was made again"


def test_the_result_shows_whether_commits_were_fetched(inspect_version, repository):
    assert inspect_version("main")["fetched"] is True
    assert inspect_version("main")["fetched"] is False
    git(repository, "branch", "new")
    assert inspect_version("main")["fetched"] is True


def test_a_complete_commit_that_is_known_needs_no_repository(inspect_version, repository, tmp_path):
    head = inspect_version("main")["revision"]
    repository.rename(tmp_path / "away")
    assert inspect_version(head)["revision"] == head
    with pytest.raises(source.SourceError, match="cannot be read: .*does not appear to be a git repository"):
        inspect_version("main")


# -------------------------------------------------------------------------------------------------------- the archive


@pytest.mark.parametrize("known", [False, True])
def test_a_commit_that_another_host_has_named_must_be_on_a_branch(inspect_version, repository, known):
    """As of a pull request of anybody: its commit can be fetched from the address of the repository."""
    head = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "of somebody else")
    unexpected = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "update-ref", "refs/pull/1/head", unexpected)
    git(repository, "reset", "--quiet", "--hard", head)
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    if known:
        assert inspect_version(unexpected)["revision"] == unexpected, "the attack itself does not work"
    with pytest.raises(source.SourceError):
        inspect_version(unexpected, published=True)
    assert inspect_version(head, published=True)["revision"] == head


def test_archive_contains_every_file_byte_for_byte(inspect_version):
    found = inspect_version("2.1.0", archive=True)
    files = members(found["archive"])
    assert files["病棟/シフト表.txt"].decode() == "夜勤\n"
    assert files["static/mark.bin"] == bytes(range(256)) * 300
    assert set(files) == {
        "manage.py",
        "病棟/シフト表.txt",
        "static/mark.bin",
        "docs/guide.md",
        "wards/migrations/0001_initial.py",
        "lab/migrations/0001_initial.py",
    }
    assert source._sha256(found["archive"]) == found["archive_sha256"]
    assert [name for name in os.listdir(os.path.dirname(found["archive"])) if name.endswith(".new")] == []


def test_excluded_files_are_neither_packed_nor_evaluated(inspect_version):
    found = inspect_version("2.1.0", archive=True, exclude=["docs", "lab", "*.bin"])
    assert set(members(found["archive"])) == {"manage.py", "病棟/シフト表.txt", "wards/migrations/0001_initial.py"}
    assert [one["app"] for one in found["migrations"]] == ["wards"]
    assert [one["app"] for one in inspect_version("2.1.0")["migrations"]] == ["lab", "wards"]
    assert found["archive"] != inspect_version("2.1.0", archive=True)["archive"]


def test_migrations_are_evaluated_as_they_are_at_the_revision(inspect_version):
    assert [(one["app"], one["name"], one["class"]) for one in inspect_version("2.0.0")["migrations"]] == [
        ("wards", "0001_initial", "expand")
    ]


def test_an_archive_is_used_again_and_a_damaged_one_is_not(inspect_version):
    first = inspect_version("2.1.0", archive=True)
    node = os.stat(first["archive"]).st_ino
    assert os.stat(inspect_version("2.1.0", archive=True)["archive"]).st_ino == node
    with open(first["archive"], "r+b") as stream:
        stream.truncate(2000)
    again = inspect_version("2.1.0", archive=True)
    assert again == dict(first, fetched=False)
    assert source._sha256(again["archive"]) == first["archive_sha256"]


def test_old_archives_go_and_todays_stay(inspect_version, repository, monkeypatch):
    monkeypatch.setattr(source, "KEEP_ARCHIVES", 1)
    old, kept = (
        inspect_version("2.0.0", archive=True)["archive"],
        inspect_version("2.0.0", archive=True, exclude=["docs"])["archive"],
    )
    os.utime(old, (time.time() - 90000,) * 2)
    newest = inspect_version("2.1.0", archive=True)["archive"]
    assert [os.path.exists(path) for path in (old, kept, newest)] == [False, True, True]


def test_attributes_of_this_machine_do_not_change_the_archive(inspect_version, tmp_path, monkeypatch):
    wanted = inspect_version("2.1.0", archive=True)["archive_sha256"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[tar]\n\tumask = 0077\n[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert inspect_version("2.1.0", archive=True, cache_dir=str(tmp_path / "other"))["archive_sha256"] == wanted


def test_submodules_and_large_files_are_named(inspect_version, repository):
    write(repository, ".gitattributes", "*.psd filter=lfs diff=lfs -text\n")
    write(repository, "big.psd", "version https://git-lfs.github.com/spec/v1\n")
    git(repository, "add", ".")
    git(repository, "update-index", "--add", "--cacheinfo", "160000," + "1" * 40 + ",vendor/thing")
    git(repository, "commit", "--quiet", "-m", "x")
    notes = " ".join(inspect_version("main", archive=True)["notes"])
    assert "submodules" in notes and "Git LFS" in notes


# ----------------------------------------------------------------------------------------------- what can go wrong


def test_files_of_a_killed_git_do_not_disturb_the_next_run(inspect_version, repository, tmp_path):
    inspect_version("main")
    mirror = next((tmp_path / "cache").iterdir()) / "mirror.git"
    for name in (
        "marker",
        "packed-refs.lock",
        "config.lock",
        "refs/heads/main.lock",
        "refs/tags/3.0.0.lock",
        "shallow.lock",
        "objects/pack/tmp_pack_x",
    ):
        write(mirror, name, "")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "more")
    git(repository, "tag", "3.0.0")
    assert inspect_version("3.0.0")["subject"] == "more"
    assert not (mirror / "objects/pack/tmp_pack_x").exists()
    assert (mirror / "marker").exists(), "the mirror was made again"


@pytest.mark.parametrize("damage", ["objects", "HEAD", "empty"])
def test_a_damaged_mirror_is_made_again(inspect_version, repository, tmp_path, damage):
    wanted = inspect_version("main", archive=True)
    mirror = next((tmp_path / "cache").iterdir()) / "mirror.git"
    if damage == "HEAD":
        (mirror / "HEAD").write_text("")
    else:
        for path in (mirror / "objects").rglob("*"):
            if path.is_file():
                path.chmod(0o600)
                path.write_bytes(b"" if damage == "empty" else b"rubbish")
    os.unlink(wanted["archive"])
    assert inspect_version("main", archive=True)["archive_sha256"] == wanted["archive_sha256"]


def test_two_runs_at_once_both_get_their_version(inspect_version):
    found, failed = {}, []

    def one(version, number):
        try:
            found[version, number] = inspect_version(version, archive=True)["subject"]
        except Exception as error:  # noqa: BLE001 - it is checked below
            failed.append(error)

    threads = [
        threading.Thread(target=one, args=(version, number)) for version in ("2.0.0", "2.1.0") for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == [] and len(found) == 4


def test_a_run_that_holds_the_mirror_is_waited_for_up_to_a_limit(inspect_version, repository, tmp_path):
    inspect_version("main")
    mirror = source.Mirror(source.Address(str(repository)), str(tmp_path / "cache"), time.monotonic() + 60)
    with mirror.exclusive(), pytest.raises(source.SourceError, match="another run is still at work"):
        inspect_version("main", timeout_seconds=0)


def test_variables_of_a_git_hook_have_no_effect(inspect_version, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    inspect_version("2.0.0")
    monkeypatch.delenv("GIT_OBJECT_DIRECTORY")
    monkeypatch.delenv("GIT_DIR")
    (tmp_path / "objects").mkdir(exist_ok=True)
    assert os.listdir(tmp_path / "objects") == []
    assert inspect_version("2.0.0")["kind"] == "tag"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to another user")
@pytest.mark.parametrize("bare", [True, False])
def test_a_repository_of_another_user_is_read(inspect_version, repository, tmp_path, bare, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    foreign = repository
    if bare:
        foreign = tmp_path / "foreign.git"
        git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(foreign))
    subprocess.run(("chown", "-R", "65534:65534", str(foreign)), check=True)
    assert inspect_version("2.1.0", foreign)["kind"] == "tag"


@pytest.mark.parametrize(
    "stderr, wanted",
    [
        (
            "fatal: unable to access 'https://h.invalid/x/': Could not resolve host: h.invalid\n",
            "unable to access 'https://h.invalid/x/': Could not resolve host: h.invalid",
        ),
        (
            "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.\n\nPlease make sure "
            "you have the correct access rights\nand the repository exists.\n",
            "git@h: Permission denied (publickey) (this user's ssh key is not known there)",
        ),
        (
            "fatal: could not read Username for 'https://h': terminal prompts disabled\n",
            "could not read Username for 'https://h': terminal prompts disabled (it requires a user name and a "
            "password; give them in the address)",
        ),
        ("", "no reason given"),
    ],
)
def test_gits_reason_is_one_line_without_filler(stderr, wanted):
    assert source.reason(stderr) == wanted


# ------------------------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize(
    "text, url, user, password, secrets",
    [
        ("https://u:p%2Fw@h.jp/x.git", "https://h.jp/x.git", "u", "p/w", {"u:p%2Fw", "p%2Fw", "p/w"}),
        ("https://ghp_0123456789@h.jp:8443/x", "https://h.jp:8443/x", "ghp_0123456789", "", {"ghp_0123456789"}),
        ("https://git@h.jp/x", "https://h.jp/x", "git", "", set()),
        ("ssh://git:pw123@h.jp/x", "ssh://git@h.jp/x", "", "", {"pw123"}),
        ("git@h.jp:x/y.git", "git@h.jp:x/y.git", "", "", set()),
        ("/srv/a:b.git", "/srv/a:b.git", "", "", set()),
        ("file:///srv/x%20y.git", "file:///srv/x%20y.git", "", "", set()),
    ],
)
def test_credentials_are_removed_from_the_address(text, url, user, password, secrets):
    address = source.Address(text)
    assert (address.url, address.user, address.password, address.secrets()) == (url, user, password, secrets)


def test_addresses_of_one_repository_share_a_directory_and_others_do_not():
    directories = [
        source.Address(text).directory()
        for text in ("https://a:b@h.jp/x/shift.git", "https://h.jp/x/shift.git", "https://h.jp/y/shift.git")
    ]
    assert directories[0] == directories[1] != directories[2]
    assert directories[0].startswith("shift-")


@pytest.mark.parametrize("text", ["", "  ", "--upload-pack=x", "/srv/a\nb"])
def test_an_invalid_address_is_rejected(text):
    with pytest.raises(source.SourceError):
        source.Address(text)


def test_ssh_shows_no_prompt_and_verifies_host_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i /k")
    mirror = source.Mirror(source.Address("git@h.jp:x.git"), str(tmp_path), time.monotonic() + 9)
    command = mirror.git.env["GIT_SSH_COMMAND"]
    assert command.startswith("ssh -i /k ") and "BatchMode=yes" in command
    assert "StrictHostKeyChecking" not in command


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves a repository's files to clients with the password, and inspects every process while git waits."""

    seen = []
    given = []

    def do_GET(self):
        wanted = "Basic " + base64.b64encode(("deploy:" + TOKEN).encode()).decode()
        self.given.append(self.headers.get("Authorization"))
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as stream:
                    self.seen.append(stream.read())
            except OSError:
                continue
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server(repository, tmp_path):
    git(tmp_path, "clone", "--quiet", "--mirror", str(repository), "served.git")
    git(tmp_path / "served.git", "update-server-info")
    Guarded.seen, Guarded.given = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Guarded, directory=str(tmp_path))) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield "127.0.0.1:%d/served.git" % one.server_port
        one.shutdown()
        thread.join()


def test_a_token_is_sent_to_the_server_and_shown_nowhere_else(server, tmp_path, monkeypatch, run_module):
    monkeypatch.setenv("HOME", str(tmp_path))
    address = "http://deploy:%s@%s" % (TOKEN.replace("/", "%2F").replace("+", "%2B"), server)
    cache = str(tmp_path / "cache")
    response = run_module(source, repository=address, version="2.1.0", archive=True, cache_dir=cache)
    assert response["kind"] == "tag" and response["repository"] == "http://" + server
    assert any(one for one in Guarded.given), "the password was never sent"
    for secret in (TOKEN, TOKEN.replace("/", "%2F").replace("+", "%2B")):
        assert secret not in str(response)
        assert not any(secret.encode() in line for line in Guarded.seen)
        assert any(b"remote-http" in line for line in Guarded.seen)
        for directory, _directories, names in os.walk(tmp_path / "cache"):
            for name in names:
                with open(os.path.join(directory, name), "rb") as stream:
                    assert secret.encode() not in stream.read(), name


def test_a_wrong_token_is_one_sentence_without_it(server, tmp_path, monkeypatch, run_module):
    monkeypatch.setenv("HOME", str(tmp_path))
    address, cache = "http://deploy:wrong-token@" + server, str(tmp_path / "cache")
    response = run_module(source, repository=address, version="main", cache_dir=cache)
    assert response["failed"] and any(Guarded.given), "the password was never sent: " + response["msg"]
    assert (
        "Authentication failed" in response["msg"] and "has expired" in response["msg"] and "\n" not in response["msg"]
    )
    assert "wrong-token" not in str(response)


def test_a_token_in_the_output_of_git_is_masked(monkeypatch, run_module):
    def leak(address, _params):
        raise source.SourceError("git output: %s and %s" % (address.password, address.written))

    monkeypatch.setattr(source, "run", leak)
    response = run_module(source, repository="https://deploy:a%2Fsecret@h.jp/x", version="main")
    assert "secret" not in str(response) and "git output" in response["msg"]


def test_an_invalid_address_is_not_shown(run_module):
    response = run_module(source, repository="https://deploy:secret@h.jp/x\n", version="main")
    assert response["failed"] and "secret" not in str(response)


def test_a_relative_path_starts_at_the_playbook(repository, tmp_path):
    assert source.Address("work", str(tmp_path)).path == str(repository)
    assert source.Address("https://h.jp/x", str(tmp_path)).path is None


def test_credentials_are_for_their_host_only():
    env = source.environment(
        source.Address("https://u:p@h.jp/x.git"),
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.proxy", "GIT_CONFIG_VALUE_0": "http://proxy.invalid"},
    )
    assert env["GIT_CONFIG_KEY_0"] == "http.proxy"
    pairs = [
        (env["GIT_CONFIG_KEY_%d" % number], env["GIT_CONFIG_VALUE_%d" % number])
        for number in range(1, int(env["GIT_CONFIG_COUNT"]))
    ]
    helpers = [value for name, value in pairs if name == "credential.https://h.jp.helper"]
    assert helpers == ["", source.CREDENTIAL_HELPER]
    assert not any("credential.helper" == name for name, _value in pairs)
    assert "p" not in [value for _name, value in pairs]


def test_the_users_own_configuration_is_still_read(tmp_path):
    text = source.protected_configuration("/srv/x", {"HOME": str(tmp_path)})
    (tmp_path / "config").write_text(text)
    (tmp_path / ".gitconfig").write_text("[http]\n\tproxy = http://proxy.invalid\n")
    env = dict(os.environ, GIT_CONFIG_GLOBAL=str(tmp_path / "config"))
    out = subprocess.run(("git", "config", "--get-all", "http.proxy"), env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "http://proxy.invalid"
    listed = subprocess.run(("git", "config", "--get-all", "safe.directory"), env=env, capture_output=True, text=True)
    assert io.StringIO(listed.stdout).readline().strip() == "/srv/x"


# ------------------------------------------------------------------------------------------------- hostile repositories


def tree_of(repository, *entries):
    """Write a tree object without git's validation; returns its name. entries: (mode, name, object)."""
    data = b"".join(b"%s %s\0%s" % (mode, name, bytes.fromhex(one)) for mode, name, one in entries)
    return git(repository, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=data).strip()


def blob_of(repository, data):
    return git(repository, "hash-object", "-w", "--stdin", stdin=data).strip()


def hostile(repository, *entries):
    """Let the branch `hostile` hold exactly these entries."""
    commit = git(repository, "commit-tree", "-m", "x", tree_of(repository, *entries)).strip()
    git(repository, "update-ref", "refs/heads/hostile", commit)


FILE, LINK, TREE = b"100644", b"120000", b"40000"
HOSTILE_TREES = {
    "a file twice": lambda work, blob, tree: [(FILE, b"a.py", blob), (FILE, b"a.py", blob)],
    "a link and a directory": lambda work, blob, tree: [(LINK, b"a", blob_of(work, b"/etc")), (TREE, b"a", tree)],
    "git's own directory": lambda work, blob, tree: [(TREE, b".git", tree)],
    "git's own directory, below": lambda work, blob, tree: [(TREE, b"x", tree_of(work, (TREE, b".GIT", tree)))],
    "the directory above": lambda work, blob, tree: [(TREE, b"..", tree)],
    "a path in a name": lambda work, blob, tree: [(FILE, b"../../etc/cron.d/x", blob)],
    "a link to a file of the host": lambda work, blob, tree: [(LINK, b"a", blob_of(work, b"/etc/shadow"))],
    "a link to the directory above": lambda work, blob, tree: [(LINK, b"a", blob_of(work, b"x/../../shared"))],
    "links that lead out together": lambda work, blob, tree: [
        (LINK, b"c", blob_of(work, b"d/e/up/../x")),
        (TREE, b"d", tree_of(work, (TREE, b"e", tree_of(work, (LINK, b"up", blob_of(work, b"../..")))))),
    ],
    "links in a circle": lambda work, blob, tree: [
        (LINK, b"a", blob_of(work, b"b")),
        (LINK, b"b", blob_of(work, b"a")),
    ],
    "a link without an end": lambda work, blob, tree: [
        (LINK, b"a", blob_of(work, b"x" * (source.migrations.MAX_FILE_BYTES + 1)))
    ],
}


def test_a_small_repository_that_unpacks_to_many_files_is_refused(inspect_version, repository, monkeypatch):
    """Each level names the one below ten times."""
    monkeypatch.setattr(source, "OUTPUT_BYTES", 1 << 20, raising=False)
    tree = tree_of(repository, (FILE, b"f", blob_of(repository, b"x")))
    for _level in range(5):
        tree = tree_of(repository, *((TREE, b"%d" % number, tree) for number in range(10)))
    hostile(repository, (TREE, b"a", tree))
    with pytest.raises(source.SourceError, match="1 MiB"):
        inspect_version("hostile")
    assert inspect_version("2.0.0")["kind"] == "tag"


def test_a_small_repository_that_unpacks_to_large_files_is_refused(inspect_version, repository, monkeypatch, tmp_path):
    monkeypatch.setattr(source, "SOURCE_BYTES", 3 << 20, raising=False)
    blob = blob_of(repository, bytes(2 << 20))
    hostile(repository, (FILE, b"a", blob), (FILE, b"b", blob))
    with pytest.raises(source.SourceError, match="4 MiB"):
        inspect_version("hostile", archive=True)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert inspect_version("hostile", archive=True, exclude=["b"])["archive"]


@pytest.mark.parametrize("checked", [True, False], ids=["as it arrives", "in an old copy"])
def test_a_hostile_tree_is_rejected(inspect_version, repository, monkeypatch, checked):
    blob = blob_of(repository, b"x = 1\n")
    tree = tree_of(repository, (FILE, b"f", blob))
    if not checked:
        environment = source.environment

        def unchecked(*arguments):
            return {
                name: "false" if before in ("fetch.fsckObjects", "transfer.fsckObjects") else value
                for (name, value), before in with_keys(environment(*arguments))
            }

        monkeypatch.setattr(source, "environment", unchecked)

    def check(name):
        hostile(repository, *HOSTILE_TREES[name](repository, blob, tree))
        with pytest.raises(source.SourceError, match="rejected"):
            inspect_version("hostile", archive=True)

    offenders.check_each(HOSTILE_TREES, check)


def with_keys(env):
    """Yield each variable with the name of the setting that it is the value of."""
    for name, value in env.items():
        yield (name, value), env.get(name.replace("_VALUE_", "_KEY_"), "") if "_VALUE_" in name else ""


def test_links_within_the_tree_are_packed(inspect_version, repository):
    (repository / "docs" / "up.txt").symlink_to("../病棟/シフト表.txt")
    (repository / "wards" / "again").symlink_to("../docs")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "links")
    assert inspect_version("main", archive=True)["archive"]


def test_a_repository_runs_no_program_of_this_machine(inspect_version, repository, tmp_path, monkeypatch):
    """Filters, hooks, remote helpers, a file monitor: of the user's configuration, of the repository's own."""
    ran = tmp_path / "ran"
    hook = tmp_path / "hooks" / "reference-transaction"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\ntouch %s\n" % ran)
    hook.chmod(0o755)
    (tmp_path / "home").mkdir()
    touch = "touch %s; cat" % ran
    configuration = (
        '[filter "evil"]\n\tsmudge = {0}\n\tclean = {0}\n\trequired = true\n'
        "[core]\n\thooksPath = {1}\n\tfsmonitor = {0}\n"
        "[log]\n\tshowSignature = true\n"
    )
    (tmp_path / "home" / ".gitconfig").write_text(configuration.format('"%s"' % touch, hook.parent))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(repository, ".gitattributes", "*.evil filter=evil\n")
    write(repository, "x.evil", "x\n")
    write(repository, ".gitmodules", '[submodule "a"]\n\tpath = a\n\turl = ext::sh -c "touch %s"\n' % ran)
    monkeypatch.delenv("HOME")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "x")
    with (repository / ".git" / "config").open("a") as stream:
        stream.write('[core]\n\tfsmonitor = "%s"\n\tsshCommand = "%s"\n' % (touch, touch))
        stream.write('[uploadpack]\n\tpackObjectsHook = "%s"\n' % touch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert members(inspect_version("main", archive=True)["archive"])["x.evil"] == b"x\n"
    assert not ran.exists()


def test_an_address_is_no_command(inspect_version, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text('[protocol "ext"]\n\tallow = always\n')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(source.SourceError):
        inspect_version("main", where="ext::sh -c touch%% %s" % (tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_messages_of_commits_and_the_server_reach_no_terminal_unescaped(inspect_version, repository):
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "x\x1b]0;owned\x07\x9b31m")
    assert inspect_version("main")["subject"] == "x?]0;owned??31m"
    assert source.reason("remote: \x1b[2Jgone\n") == "?[2Jgone"


def test_the_result_shows_whether_requirements_have_hashes(inspect_version, repository):
    def check(case):
        for path in ("requirements.txt", "a/b.txt", "other.txt"):
            (repository / path).unlink(missing_ok=True)
        for path, text in case[0].items():
            write(repository, path, text)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "-m", "x")
        assert inspect_version("main")["hashed"] is case[1]

    offenders.check_each(
        [
            ({"requirements.txt": "django==5.2\n"}, False),
            ({"requirements.txt": "# --hash=sha256:00\ndjango==5.2\n"}, False),
            ({"requirements.txt": "django==5.2 \\\n    --hash=sha256:00\n"}, True),
            ({"requirements.txt": "-r a/b.txt\n", "a/b.txt": "-r ../requirements.txt\na --hash=sha256:0\n"}, True),
            ({"other.txt": "a --hash=sha256:0\n"}, False),
        ],
        check,
    )
    assert inspect_version("main", requirements_file="")["hashed"] is None


@pytest.mark.parametrize(
    "files",
    [
        {"r.txt": "\n" * 50_000},
        {"%d.txt" % number: "-r %d.txt\n" % (number + 1) * 2 for number in range(30)} | {"r.txt": "-r 0.txt\n"},
        {"%d.txt" % number: "-r %d.txt\n" % (number + 1) for number in range(1000)} | {"r.txt": "-r 0.txt\n"},
    ],
    ids=["empty lines", "each names the next one twice", "a long chain"],
)
def test_requirements_that_would_block_the_controller_for_days(files):
    class Mirror:
        calls = 0

        def texts(self, entries):
            self.calls += 1
            assert self.calls < 200
            return {path: files[path] for _mode, _object, path in entries}

    began = time.process_time()
    assert source.hashed(Mirror(), [("100644", "", path) for path in files], "r.txt") is False
    assert time.process_time() - began < 2


def test_problems_of_a_build_are_known_before_it(inspect_version):
    """Without the options nothing is checked: a recovery requests only the source."""
    options = {"environment": [], "site_settings": "", "linked_directories": [], "collectstatic": False}
    assert inspect_version("main")["problems"] == []
    (problem,) = inspect_version("main", application={**options, "settings_module": "gone.settings"})["problems"]
    assert "gone.settings" in problem
