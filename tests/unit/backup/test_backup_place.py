"""Restored files are written where they belong, regardless of existing files and of the archive."""

from __future__ import annotations

import io
import os
import resource
import stat
import tarfile
from pathlib import Path

import pytest
import shiftmaster_restored_files
from ansible.module_utils.shiftmaster.backup import place as backup_place
from ansible.module_utils.shiftmaster.backup.place import PlaceError, check, of_archive, of_directory, place
from ansible.module_utils.shiftmaster.host.safe_files import UnsafePathError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
THEIRS = 1234


@pytest.fixture
def site(tmp_path):
    """The application's directory, where it can create any file, and a file of root elsewhere."""
    os.chmod(tmp_path, 0o755)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("root's")
    (tmp_path / "media").mkdir()
    os.chown(tmp_path / "media", THEIRS, THEIRS)
    return tmp_path


def packed(path, *members):
    """An archive of (name, content or link target, type, mode)."""
    with tarfile.open(path, "w") as archive:
        for name, content, kind, mode in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, mode, 0, 0
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content or ""
                archive.addfile(member)
    return path


def unpack(path, paths, owners):
    with tarfile.open(path) as archive:
        check(of_archive(archive), paths)
    with tarfile.open(path) as archive:
        return place(of_archive(archive), paths, owners)


def test_files_below_a_directory_of_the_application_belong_to_it(site):
    media = str(site / "media")
    archive = packed(
        site / "x.tar",
        (f".{site}", None, tarfile.DIRTYPE, 0o755),
        (f".{media}/a", None, tarfile.DIRTYPE, 0o2750),
        (f".{media}/a/plan.pdf", b"plan", tarfile.REGTYPE, 0o4640),
        (f".{media}/a/link", "plan.pdf", tarfile.SYMTYPE, 0o777),
        (f".{media}/a/again", f".{media}/a/plan.pdf", tarfile.LNKTYPE, 0o640),
    )
    assert unpack(archive, [media], {media: (THEIRS, THEIRS)}) == 3
    found = os.stat(site / "media/a/plan.pdf")
    assert (site / "media/a/plan.pdf").read_bytes() == (site / "media/a/again").read_bytes() == b"plan"
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), found.st_mtime) == (THEIRS, THEIRS, 0o640, 0)
    assert stat.S_IMODE(os.stat(site / "media/a").st_mode) == 0o750
    assert os.readlink(site / "media/a/link") == "plan.pdf"
    assert os.lstat(site / "media/a/link").st_uid == THEIRS
    assert os.stat(site).st_uid == 0


def test_links_in_the_path_do_not_lead_outside(site):
    media = str(site / "media")
    (site / "media/directory").symlink_to(site / "outside")
    (site / "media/plan.pdf").symlink_to(site / "outside/file")
    archive = packed(
        site / "x.tar",
        (f".{media}/directory", None, tarfile.DIRTYPE, 0o755),
        (f".{media}/directory/file", b"new", tarfile.REGTYPE, 0o644),
        (f".{media}/plan.pdf", b"plan", tarfile.REGTYPE, 0o644),
    )
    unpack(archive, [media], {media: (THEIRS, THEIRS)})
    assert (site / "outside/file").read_text() == "root's" and os.listdir(site / "outside") == ["file"]
    assert os.stat(site / "outside").st_uid == os.stat(site / "outside/file").st_uid == 0
    assert (site / "media/directory/file").read_text() == "new"


def test_a_link_that_appears_meanwhile_is_rejected(site):
    media = str(site / "media")
    (site / "media/directory").symlink_to(site / "outside")
    archive = packed(site / "x.tar", (f".{media}/directory/file", b"new", tarfile.REGTYPE, 0o644))
    with pytest.raises(UnsafePathError):
        unpack(archive, [media], {})
    assert (site / "outside/file").read_text() == "root's"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("./etc/cron.d/x", tarfile.REGTYPE),
        ("{media}x", tarfile.REGTYPE),
        ("{media}/../outside/file", tarfile.REGTYPE),
        ("{media}/tty", tarfile.CHRTYPE),
        ("{media}/fifo", tarfile.FIFOTYPE),
        ("./etc", tarfile.SYMTYPE),
    ],
)
def test_an_archive_of_an_attacker_is_rejected_before_anything_is_written(site, name, kind):
    media = str(site / "media")
    archive = packed(
        site / "x.tar",
        (f".{media}/good", b"x", tarfile.REGTYPE, 0o644),
        (name.format(media="." + media), b"", kind, 0o644),
    )
    with pytest.raises(PlaceError):
        unpack(archive, [media], {})
    assert os.listdir(site / "media") == []


def test_a_tree_restored_by_restic_is_placed_in_the_same_way(site):
    staged = site / "staged"
    place_of = str(site / "media")
    (staged / place_of[1:] / "a").mkdir(parents=True)
    (staged / place_of[1:] / "a/plan.pdf").write_text("plan")
    (staged / place_of[1:] / "a/link").symlink_to("/nowhere")
    check(of_directory(str(staged)), [place_of])
    assert place(of_directory(str(staged)), [place_of], {place_of: (THEIRS, THEIRS)}) == 2
    assert (site / "media/a/plan.pdf").read_text() == "plan" and os.readlink(site / "media/a/link") == "/nowhere"
    # One that the application has put among its files keeps none of them from being restored.
    os.mkfifo(staged / place_of[1:] / "a/fifo")
    check(of_directory(str(staged)), [place_of], count=2)
    assert place(of_directory(str(staged)), [place_of], {place_of: (THEIRS, THEIRS)}) == 2
    assert sorted(os.listdir(site / "media/a")) == ["link", "plan.pdf"]
    assert backup_place.is_below("/a/b", ["/a"]) and not backup_place.is_below("/ab", ["/a"])


def test_obstacles_of_the_application_do_not_prevent_the_restore_of_its_files(site):
    staged, media, name = site / "staged", site / "media", "病" * 84 + ".p"
    (staged / str(media)[1:] / "wards").mkdir(parents=True)
    for path in ("wards/plan.pdf", "plan.pdf", name):
        (staged / str(media)[1:] / path).write_text("restored")
    (staged / str(media)[1:] / "link").symlink_to("plan.pdf")
    (media / "wards").write_text("a file")
    for path in ("plan.pdf/below", ".plan.pdf.new/below", "link/below", ".link.new/below"):
        (media / path).mkdir(parents=True)
    check(of_directory(str(staged)), [str(media)], count=4)
    assert place(of_directory(str(staged)), [str(media)], {str(media): (THEIRS, THEIRS)}) == 4
    assert all((media / path).read_text() == "restored" for path in ("wards/plan.pdf", "plan.pdf", name, "link"))
    # Nothing is lost: what was there has other names.
    renamed = [path for path in media.iterdir() if path.name.startswith("replaced-")]
    assert sorted(path.is_dir() for path in renamed) == [False, True, True, True, True]


@pytest.mark.parametrize("kind", ["sparse", "owner", "time"])
def test_types_that_no_file_of_a_backup_has_are_rejected(site, kind):
    media = str(site / "media")
    member = tarfile.TarInfo(f".{media}/x")
    if kind == "sparse":
        # A terabyte in no byte.
        member.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"{1 << 40},0"}
    elif kind == "owner":
        member.pax_headers = {"uid": "-5"}
    else:
        member.pax_headers = {"mtime": "1e300"}
    with tarfile.open(site / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO())
    with pytest.raises(PlaceError):
        unpack(site / "x.tar", [media], {})
    assert os.listdir(site / "media") == []


def test_more_than_there_is_room_for_is_rejected(site):
    media = str(site / "media")
    archive = packed(site / "x.tar", *((f".{media}/{n}", b"x" * 600, tarfile.REGTYPE, 0o644) for n in range(2)))
    with tarfile.open(archive) as opened:
        check(of_archive(opened), [media], free=1200)
    with tarfile.open(archive) as opened, pytest.raises(PlaceError, match="room"):
        check(of_archive(opened), [media], free=1199)


@pytest.fixture
def trusted(site):
    """A directory of root's that is restored, next to one that is not."""
    (site / "nginx").mkdir(mode=0o755)
    return site


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("between", ["", "/between"])
def test_nothing_is_written_below_a_link_of_the_same_archive(trusted, order, between):
    requested = str(trusted / "nginx/nope.conf")
    (trusted / "outside/between").mkdir()
    members = [
        (f".{requested}", str(trusted / "outside"), tarfile.SYMTYPE, 0o777),
        (f".{requested}{between}/evil", b"x", tarfile.REGTYPE, 0o644),
    ]
    archive = packed(trusted / "x.tar", *[members[number] for number in order])
    with tarfile.open(archive) as opened, pytest.raises(PlaceError):
        check(of_archive(opened), [requested])
    # Were it accepted, it would not be written either.
    with tarfile.open(archive) as opened, pytest.raises(OSError):
        place(of_archive(opened), [requested], {})
    assert sorted(os.listdir(trusted / "outside")) == ["between", "file"]
    assert os.listdir(trusted / "outside/between") == []


def test_a_path_that_sorts_in_between_hides_no_link(trusted):
    requested = str(trusted / "nginx")
    archive = packed(
        trusted / "x.tar",
        (f".{requested}/a", str(trusted / "outside"), tarfile.SYMTYPE, 0o777),
        (f".{requested}/a-b", b"x", tarfile.REGTYPE, 0o644),
        (f".{requested}/a/evil", b"x", tarfile.REGTYPE, 0o644),
    )
    with tarfile.open(archive) as opened, pytest.raises(PlaceError):
        check(of_archive(opened), [requested])


def test_a_link_in_the_place_of_a_directory_is_rejected_before_a_file_is_written(trusted):
    top = str(trusted / "nginx")
    (trusted / "nginx/sites").symlink_to(trusted / "outside")
    archive = packed(
        trusted / "x.tar",
        (f".{top}/a", b"x", tarfile.REGTYPE, 0o644),
        (f".{top}/sites", None, tarfile.DIRTYPE, 0o755),
    )
    with pytest.raises(UnsafePathError):
        unpack(archive, [top], {})
    assert os.listdir(trusted / "nginx") == ["sites"] and (trusted / "nginx/sites").is_symlink()


def test_nothing_is_written_below_a_link_of_the_same_directory(trusted):
    staged, requested = trusted / "staged", str(trusted / "nginx")
    (staged / requested[1:]).mkdir(parents=True)
    (staged / requested[1:] / "a").symlink_to(trusted / "outside")
    (staged / requested[1:] / "a.conf").write_text("x")
    check(of_directory(str(staged)), [requested])
    assert place(of_directory(str(staged)), [requested], {}) == 2
    assert os.listdir(trusted / "outside") == ["file"]


@pytest.mark.parametrize(
    "second", [("file", b"x", tarfile.REGTYPE), ("dir", None, tarfile.DIRTYPE), ("link", "/", tarfile.SYMTYPE)]
)
@pytest.mark.parametrize("name", ["./{}", "/{}", "//{}", "././/{}"])
def test_a_path_that_appears_twice_is_rejected(trusted, name, second):
    requested = str(trusted / "nginx")
    archive = packed(
        trusted / "x.tar",
        (f".{requested}/a", "/nowhere", tarfile.SYMTYPE, 0o777),
        (f".{requested}/b", b"x", tarfile.REGTYPE, 0o644),
        (name.format(f"{requested[1:]}/a"), *second[1:], 0o755),
    )
    with tarfile.open(archive) as opened, pytest.raises(PlaceError, match="twice"):
        check(of_archive(opened), [requested])
    with tarfile.open(archive) as opened, pytest.raises(PlaceError, match="twice"):
        check(of_archive(opened), ["/"])


def test_links_of_an_earlier_restore_are_not_followed(trusted):
    """It belongs to root, and so does its directory."""
    requested = str(trusted / "nginx/nope.conf")
    assert unpack(
        packed(trusted / "1.tar", (f".{requested}", str(trusted / "outside"), tarfile.SYMTYPE, 0o777)), [requested], {}
    )
    members = [
        (f".{requested}", None, tarfile.DIRTYPE, 0o755),
        (f".{requested}/evil", b"x", tarfile.REGTYPE, 0o644),
        (f".{requested}/evil-link", "/nowhere", tarfile.SYMTYPE, 0o777),
        (f".{requested}/evil-directory", None, tarfile.DIRTYPE, 0o777),
    ]
    for number, chosen in enumerate([members, members[1:2], members[2:3], members[3:]]):
        with tarfile.open(packed(trusted / f"{number}.tar", *chosen)) as archive, pytest.raises(UnsafePathError):
            place(of_archive(archive), [str(trusted / "nginx"), requested], {})
    assert os.listdir(trusted / "outside") == ["file"]


def test_a_link_to_the_restored_directory_is_accepted(trusted):
    (trusted / "disk").mkdir()
    (trusted / "nginx").rmdir()
    (trusted / "nginx").symlink_to("disk")
    top = str(trusted / "nginx")
    archive = packed(
        trusted / "x.tar",
        (f".{top}", None, tarfile.DIRTYPE, 0o755),
        (f".{top}/sites", None, tarfile.DIRTYPE, 0o755),
        (f".{top}/link", "sites/a", tarfile.SYMTYPE, 0o777),
        (f".{top}/sites/a", b"x", tarfile.REGTYPE, 0o644),
    )
    assert unpack(archive, [top], {}) == 2
    assert (trusted / "disk/link").read_text() == "x" and (trusted / "nginx").is_symlink()


def test_further_names_of_a_file_count(site):
    media = str(site / "media")
    archive = packed(
        site / "x.tar",
        (f".{media}/0", b"x" * 600, tarfile.REGTYPE, 0o644),
        *((f".{media}/{n}", f".{media}/0", tarfile.LNKTYPE, 0o644) for n in (1, 2)),
    )
    with tarfile.open(archive) as opened:
        check(of_archive(opened), [media], free=1800)
    with tarfile.open(archive) as opened, pytest.raises(PlaceError, match="room"):
        check(of_archive(opened), [media], free=1799)


@pytest.mark.parametrize("target", ["loop", "missing", "later", "itself", "directory"])
def test_a_further_name_of_no_file_is_rejected_before_anything_is_written(site, target):
    media = str(site / "media")
    archive = packed(
        site / "x.tar",
        (f".{media}/a", b"x", tarfile.REGTYPE, 0o644),
        (f".{media}/directory", None, tarfile.DIRTYPE, 0o755),
        (f".{media}/loop", "loop2", tarfile.SYMTYPE, 0o777),
        (f".{media}/loop2", "loop", tarfile.SYMTYPE, 0o777),
        (f".{media}/itself", f".{media}/{target}", tarfile.LNKTYPE, 0o644),
        (f".{media}/later", b"x", tarfile.REGTYPE, 0o644),
    )
    with pytest.raises(PlaceError):
        unpack(archive, [media], {})
    assert os.listdir(site / "media") == []


def test_a_negative_size_makes_no_room():
    # As Python 3.11 reads it from an archive; later versions reject the header.
    member = tarfile.TarInfo("media/x")
    member.size = -1000
    with pytest.raises(PlaceError):
        check(of_archive([member]), ["/media"])


def test_the_module_rejects_headers_that_are_nested_without_an_end(site, run_module):
    # Each header of a long name is read within the one before.
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    (site / "x.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 3000 + bytes(1024))
    response = run_module(shiftmaster_restored_files, src=str(site / "x.tar"), paths=[str(site / "media")])
    assert response["failed"] and response["msg"].startswith("The files were not restored")
    assert os.listdir(site / "media") == []


def test_the_module_rejects_a_header_that_uses_up_the_memory(site, run_module, monkeypatch):
    """The kernel would end another program for it, as the application."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 600 << 20
    with open(site / "x.tar", "wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(header.size + 2048)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) + (200 << 20) // resource.getpagesize()
    sizes = {"SC_PHYS_PAGES": 2 * pages, "SC_PAGE_SIZE": resource.getpagesize()}
    monkeypatch.setattr(os, "sysconf", sizes.get)
    limits, before = resource.getrlimit(resource.RLIMIT_AS), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    response = run_module(shiftmaster_restored_files, src=str(site / "x.tar"), paths=[str(site / "media")])
    assert response["failed"] and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_the_module_follows_no_link_below_the_configured_directories(trusted, run_module):
    requested = str(trusted / "nginx/nope.conf")
    os.symlink(trusted / "outside", requested)
    archive = packed(
        trusted / "x.tar",
        (f".{requested}", None, tarfile.DIRTYPE, 0o755),
        (f".{requested}/evil", b"x", tarfile.REGTYPE, 0o644),
    )
    response = run_module(
        shiftmaster_restored_files, src=str(archive), paths=[requested], tops=[str(trusted / "nginx")]
    )
    assert response["failed"] and os.listdir(trusted / "outside") == ["file"]


@pytest.mark.parametrize("damage", ["end", "file", "header", "content", "half an end"])
def test_the_module_restores_nothing_of_an_archive_that_is_cut_off_or_damaged(site, run_module, damage):
    media = str(site / "media")
    path = packed(site / "x.tar", *((f".{media}/{name}", b"x" * 600, tarfile.REGTYPE, 0o644) for name in "abc"))
    size = 3 * (512 + 1024)
    content = bytearray(path.read_bytes()[: size + 1024])
    if damage == "header":
        content[1536 + 148 : 1536 + 156] = b"00000000"
    left = {"end": size, "file": 1536, "content": size - 600, "half an end": size + 512}
    path.write_bytes(content[: left.get(damage, len(content))])
    response = run_module(shiftmaster_restored_files, src=str(path), paths=[media])
    assert response["failed"] and os.listdir(media) == []


def test_the_module_restores_nothing_of_an_archive_with_fewer_files_than_the_backup(site, run_module):
    media = str(site / "media")
    path = packed(
        site / "x.tar", (f".{media}/a", b"x", tarfile.REGTYPE, 0o644), (f".{media}/b", "a", tarfile.SYMTYPE, 0o777)
    )
    response = run_module(shiftmaster_restored_files, src=str(path), paths=[media], count=3)
    assert response["failed"] and os.listdir(media) == []
    assert run_module(shiftmaster_restored_files, src=str(path), paths=[media], count=2)["files"] == 2


def test_a_configured_directory_does_not_become_a_link_that_the_next_restore_follows(trusted, run_module):
    (trusted / "outside/sites").mkdir()
    top = str(trusted / "missing")

    def restored(*members):
        archive = packed(trusted / "x.tar", *members)
        return run_module(shiftmaster_restored_files, src=str(archive), paths=[top], tops=[top])

    link = (f".{top}", str(trusted / "outside"), tarfile.SYMTYPE, 0o777)
    response = restored(link)
    assert response["failed"] and not os.path.lexists(top)
    restored((f".{top}/evil", b"x", tarfile.REGTYPE, 0o644))
    assert not (trusted / "outside/evil").exists()
    # One that the host has is an administrator's.
    os.symlink(trusted / "outside", top)
    assert restored(link)["files"] == 1
    response = restored((f".{top}", str(trusted / "elsewhere"), tarfile.SYMTYPE, 0o777))
    assert response["failed"] and os.readlink(top) == str(trusted / "outside")


def test_a_directory_of_the_application_does_not_become_a_link(site):
    media = str(site / "media")
    (site / "media").rmdir()
    archive = packed(site / "x.tar", (f".{media}", str(site / "outside"), tarfile.SYMTYPE, 0o777))
    with pytest.raises(PlaceError):
        unpack(archive, [media], {media: (THEIRS, THEIRS)})
    assert not os.path.lexists(media)
