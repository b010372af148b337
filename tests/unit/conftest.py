"""Make module_utils/ importable as ansible.module_utils, as on a host."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import ansible.module_utils
import pytest
import yaml
from ansible._internal._templating._jinja_bits import AnsibleEnvironment, _TemplateCompileContext

ROOT = Path(__file__).resolve().parents[2]
# Tests read Ansible's own output.
os.environ.setdefault("ANSIBLE_STDOUT_CALLBACK", "ansible.builtin.default")
# With it, Python reads each module that Ansible pipes to it byte by byte, which takes half a second to two.
os.environ.pop("PYTHONUNBUFFERED", None)
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


class FastLoader(yaml.CSafeLoader):
    """libyaml's parser, which takes a tenth of the time. It takes no subclass of str, such as Ansible's tagged text."""

    def __init__(self, stream):
        super().__init__(str(stream) if isinstance(stream, str) else stream)


# For yaml.safe_load.
yaml.SafeLoader = FastLoader

compile_template, compiled = AnsibleEnvironment.compile, {}


def compile_once(environment, source, *arguments, **options):
    """Ansible compiles each template again for each host; a third of what the variables of an inventory cost."""
    if not isinstance(source, str) or environment.overlayed or arguments or options:
        return compile_template(environment, source, *arguments, **options)
    context = _TemplateCompileContext.current(optional=True)
    key = str(source), bool(context and context.escape_backslashes)
    if key not in compiled:
        compiled[key] = compile_template(environment, source)
    return compiled[key]


AnsibleEnvironment.compile = compile_once
# How often a server checks whether it was shut down; by default every half a second, and shutdown() waits for that.
socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """More than processors: some of the time passes while tests wait for a process or a timeout."""
    return 3 + (os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def without_systemd(monkeypatch, tmp_path_factory):
    """Root runs a release's code in transient units; the machine of the tests may have no systemd.

    And what a release or a restore has on disk is not waited for with all that others write to the machine's disks.
    """
    monkeypatch.setattr(os, "sync", lambda: None)
    from ansible.module_utils.shiftmaster.host import configuration

    stamp = tmp_path_factory.getbasetemp() / "ops" / str(time.monotonic_ns())
    monkeypatch.setattr(configuration, "STAMP", str(stamp))
    from ansible.module_utils.shiftmaster.host import units

    program = (sys.executable, "-I", "-S", str(ROOT / "tests/fake_systemd_run.py"))
    monkeypatch.setattr(units, "SYSTEMD_RUN", program)


@pytest.fixture
def short_pauses(monkeypatch):
    """A function that lets modules check twenty times as often for what they wait for."""
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(seconds / 20)})
    return lambda *modules: [monkeypatch.setattr(module, "time", quick) for module in modules]


@pytest.fixture
def run_module(capsys):
    """A function that runs a module or an action plugin as Ansible does, and returns its result."""
    from ansible.module_utils.testing import patch_module_args
    from ansible.parsing.dataloader import DataLoader

    def run_action(plugin, task):
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=""))
        return json.loads(json.dumps(plugin.ActionModule(task, connection, None, DataLoader(), None).run()))

    def run_module(module, check_mode=False, **parameters):
        if hasattr(module, "ActionModule"):
            return run_action(module, SimpleNamespace(args=parameters, check_mode=check_mode, async_val=0))
        with patch_module_args(dict(parameters, _ansible_check_mode=check_mode)), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run_module


@pytest.fixture
def public_dir():
    """A directory that other users can reach; those above tmp_path are closed to them by each start of pytest."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def in_tokyo():
    """The zone of this process; the C library keeps it until it is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()
