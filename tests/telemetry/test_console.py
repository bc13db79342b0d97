"""Truth: golden values. A run's own lines are logged, those of the packages that fetch shards only where they warn."""

from __future__ import annotations

import logging

import pytest

from cogvideox.telemetry.console import log_to_console


@pytest.mark.parametrize("speaks", [True, False])
def test_who_is_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, speaks: bool
) -> None:
    caplog.set_level(logging.getLogger().level)  # what it is now, put back at the end
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_console(speaks)
    for name in ("cogvideox.run", "botocore.credentials"):
        logging.getLogger(name).info("%s tells", name)
        logging.getLogger(name).warning("%s warns", name)
    said = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()]
    own = ["cogvideox.run tells"] if speaks else []
    assert said == [*own, "cogvideox.run warns", "botocore.credentials warns"]
