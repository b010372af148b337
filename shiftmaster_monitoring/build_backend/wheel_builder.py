"""The few lines of PEP 517 that a package of plain Python files needs.

The same files give the same wheel, byte for byte, so that pip and the release's cache know it again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
_EPOCH = (1980, 1, 1, 0, 0, 0)


def _field(name: str) -> str:
    """Return a quoted value of [project]; tomllib is younger than the oldest Python that is served."""
    return re.search(r'(?m)^%s = "([^"]*)"$' % name, (HERE / "pyproject.toml").read_text(encoding="utf-8")).group(1)


def _dependencies() -> list:
    line = re.search(r"(?m)^dependencies = \[(.*)\]$", (HERE / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    return re.findall(r'"([^"]*)"', line)


def _name() -> str:
    return "%s-%s" % (_field("name"), _field("version"))


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: " + _field("name"),
        "Version: " + _field("version"),
        "Summary: " + _field("description"),
        "Requires-Python: " + _field("requires-python"),
    ]
    return "\n".join(lines + ["Requires-Dist: " + dependency for dependency in _dependencies()]) + "\n"


def _files() -> list:
    package = HERE / _field("name")
    return sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    info = _name() + ".dist-info"
    content = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in _files()}
    content[info + "/METADATA"] = _metadata().encode()
    content[info + "/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: wheel_builder\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [
        "%s,sha256=%s,%d"
        % (path, base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode(), len(data))
        for path, data in content.items()
    ]
    content[info + "/RECORD"] = ("\n".join(record + [info + "/RECORD,,"]) + "\n").encode()
    wheel = _name() + "-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in content.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    root = _name()
    wanted = [*_files(), HERE / "pyproject.toml", HERE / "build_backend" / "wheel_builder.py"]
    with tarfile.open(Path(sdist_directory) / (root + ".tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in wanted:
            archive.add(path, "%s/%s" % (root, path.relative_to(HERE).as_posix()), recursive=False)
        metadata = _metadata().encode()
        entry = tarfile.TarInfo(root + "/PKG-INFO")
        entry.size = len(metadata)
        archive.addfile(entry, io.BytesIO(metadata))
    return root + ".tar.gz"


def get_requires_for_build_wheel(config_settings=None):
    return []


def get_requires_for_build_sdist(config_settings=None):
    return []
