"""Ctrl-C, once, twice at a time, and again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trainer import stopping
from trainer.stopping import stop_on_signals


def test_a_signal_asks_for_a_stop_and_one_that_comes_with_it_is_the_same_press(tmp_path: Path) -> None:
    request = tmp_path / "stop"
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(request):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert request.read_text() == "SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_later_signal_ends_at_once_and_the_request_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, now = tmp_path / "stop", [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(request):
        signal.raise_signal(signal.SIGINT)
        now[0] += 5.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert request.read_text() == "SIGINT\n"
    assert signal.getsignal(signal.SIGINT) == before
