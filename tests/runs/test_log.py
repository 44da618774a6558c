"""The progress line in its three modes."""

import json
import sys

import pytest

from tutelage.runs import log
from tutelage.runs.log import Progress, clock


def test_lines_for_a_parent_are_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUTELAGE_PROGRESS", "json")
    progress = Progress("sft")
    progress.say("hello")
    progress.update(1.0, loss=2.5)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"stage": "sft", "say": "hello"}
    assert told[1] == {"stage": "sft", "fraction": 1.0, "shown": {"loss": 2.5}}


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUTELAGE_PROGRESS", "lines")
    progress = Progress("sft")
    progress.update(1.0, loss=2.51234567, epoch="1/3")
    progress.say("done")
    told = capsys.readouterr().err.splitlines()
    assert told == ["sft 100% | loss 2.512 | epoch 1/3 | 0:00 left", "done"]
    assert "\x1b" not in "".join(told)


def test_no_time_left_before_there_is_an_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first update has nothing to go by; the second has: 8 s for a fifth of the work, so 24 s for the rest."""
    monkeypatch.setenv("TUTELAGE_PROGRESS", "lines")
    progress = Progress("sft")
    monkeypatch.setitem(log.INTERVAL, "lines", 0.0)
    progress.update(0.2, loss=3.0)
    progress.begun -= 8.0
    progress.update(0.4, loss=2.5)
    told = capsys.readouterr().err.splitlines()
    assert told == ["sft  20% | loss 3 | -:-- left", "sft  40% | loss 2.5 | 0:24 left"]


def test_what_follows_a_progress_line_has_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTELAGE_PROGRESS", "bar")
    progress = Progress("sft")
    progress.close()
    progress.update(0.5)
    progress.close()
    progress.close()
    print("sft stopped at step 3", file=sys.stderr)
    assert capsys.readouterr().err == "\r\x1b[2Ksft  50% | -:-- left\nsft stopped at step 3\n"


def test_frequent_updates_are_thinned_but_the_last_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTELAGE_PROGRESS", "json")
    progress = Progress("sft")
    for step in range(1000):
        progress.update((step + 1) / 1000)
    told = [json.loads(line)["fraction"] for line in capsys.readouterr().out.splitlines()]
    assert len(told) < 20 and told[-1] == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (90, "1:30"), (3599, "59:59"), (3725, "1:02:05"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
