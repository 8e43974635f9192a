"""Both ways through REP's mathematics: that of a CPU, and that of devices whose host would have to wait."""

from __future__ import annotations

import pytest

from kedit.delta import waits


@pytest.fixture(autouse=True, params=[False, True], ids=["as_on_a_cpu", "as_on_a_device"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test of a file that imports this runs in both; whether it is the device's."""
    if request.param:
        monkeypatch.setattr(waits, "waiting_costs", lambda _: True)
    return request.param
