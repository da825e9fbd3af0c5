"""How work reports itself."""

from __future__ import annotations

import pytest

from lmloop.progress import Progress, Silent


def test_silence_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = Silent()
    progress.say("a line")
    with progress.task("training", total=10, unit="steps") as task:
        task.update(5, note="loss 2.0")
    with progress.task("reading", total=None, unit="files") as task:
        task.update(1)
    assert capfd.readouterr() == ("", "")


def test_silence_lets_errors_through() -> None:
    with pytest.raises(ValueError, match="broken"), Silent().task("a", total=1, unit="steps"):
        raise ValueError("broken")
