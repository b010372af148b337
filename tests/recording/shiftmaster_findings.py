"""Action `shiftmaster_findings` that keeps its arguments in a file, for tests/diagnosing.py."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

_path = Path(__file__).resolve().parents[2] / "plugins/action/shiftmaster_findings.py"
_spec = importlib.util.spec_from_file_location("shiftmaster_findings_of_the_product", _path)
product = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(product)


class ActionModule(product.ActionModule):
    def perform(self, parameters):
        Path(os.environ["SHIFTMASTER_KEEP_ARGUMENTS"]).write_text(json.dumps(parameters), encoding="utf-8")
        return super().perform(parameters)
