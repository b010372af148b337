"""Input that is refused, a full disk, pruning, and secrets in the output of a verbose run."""

import json

from support import APP


def test_all_problems_are_found_before_anything_changes(operations):
    """A full disk, a repository that is not there, a hook of an unknown phase: one run names them all."""
    before = operations.live_version(10), operations.shell(f"readlink -f {APP}/current")
    operations.shell("mount -t tmpfs -o size=8m tmpfs /var/backups")
    try:
        run = operations.deploy(
            "2.1.0",
            shiftmaster_git_url="file:///there/is/no/repository.git",
            shiftmaster_hooks=[{"name": "eat", "phase": "after_lunch", "command": "true"}],
        )
    finally:
        operations.shell("umount /var/backups")
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    named = ("/var/backups", "repository.git", "after_lunch")
    assert run.prints("Nothing was changed. What is wrong:", *named), run.output[-4000:]
    assert (operations.live_version(10), operations.shell(f"readlink -f {APP}/current")) == before


def test_no_secret_in_the_output_of_a_verbose_run(operations):
    values = [
        line.split("=", 1)[1].strip().strip('"')
        for line in operations.shell(f"cat {APP}/active/release/env").splitlines()
        if line.startswith(("DJANGO_SECRET_KEY=", "DB_PASSWORD=", "CACHE_URL="))
    ]
    values = [value.split(":", 2)[2].split("@")[0] if value.startswith("redis://") else value for value in values]
    assert len(values) == 3
    # A changed setting: the release is built, its environment compared, the cutover done.
    run = operations.run(
        "deploy.yml", "-vvv", "--diff", shiftmaster_version="2.1.0", shiftmaster_watch_seconds=2,
        shiftmaster_web_threads=3,
    )  # fmt: skip
    assert run.code == 0, run.output[-4000:]
    assert [value for value in values if value in run.output] == []


def test_pruning_keeps_required_releases(operations):
    """With the smallest number kept, the current and the previous one stay, and a directory that is not ours."""
    operations.shell(f"mkdir -p {APP}/releases/notes-of-somebody")
    for threads in (5, 6):
        run = operations.deploy(
            "2.0.0", shiftmaster_web_threads=threads, shiftmaster_keep_releases=1, shiftmaster_watch_seconds=1
        )
        assert run.code == 0, run.output[-4000:]
    names = operations.shell(f"ls {APP}/releases").split()
    state = operations.state()["releases"]
    assert "notes-of-somebody" in names
    current = operations.shell(f"basename $(readlink -f {APP}/current)").strip()
    live = sorted(name for name, entry in state.items() if entry.get("live_at"))
    assert current in names and live[-2] in names
    assert len([name for name in names if name in state]) <= 4, json.dumps(state, indent=1)
    operations.shell(f"rmdir {APP}/releases/notes-of-somebody")
