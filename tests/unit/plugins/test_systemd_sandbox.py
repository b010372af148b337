from systemd_sandbox import RESTRICTIONS, systemd_sandbox


def test_a_unit_has_every_restriction_except_those_that_it_changes():
    lines = systemd_sandbox({"ProtectHome": "read-only", "PrivateTmp": None, "CapabilityBoundingSet": "CAP_KILL"})
    found = dict(line.split("=", 1) for line in lines.split("\n"))
    expected = {**RESTRICTIONS, "ProtectHome": "read-only", "CapabilityBoundingSet": "CAP_KILL"}
    del expected["PrivateTmp"]
    assert found == expected
