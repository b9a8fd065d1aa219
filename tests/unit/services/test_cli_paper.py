"""What `preceptor paper` takes and says before anything is started."""

import pytest

from services.cli_paper import paper
from trainer.config import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEPTOR_HOME", str(tmp_path))
    return tmp_path


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(home, capsys):
    assert paper(dry_run=True, measure=False, jobs=2) == 0
    said = capsys.readouterr().out
    assert "scale demo: 3 teachers and 234 cells; fractions 100, 50, 25, 2 %, seeds 0, 1, 2, controls on 100 %" in said
    assert "hours with 2 at a time (step times stated" in said
    assert "clip store paper-demo2 is not there yet" in said
    assert list(home.iterdir()) == []


def test_the_demo_scale_is_said_to_fit_into_four_hours_on_two_cores(capsys):
    paper(dry_run=True, measure=False, jobs=2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " hours with " in line]
    hours = float(line.split(" hours with ")[0].split()[-1])
    assert 1 < hours < 4


def test_a_part_of_the_grid_can_be_asked_for(capsys):
    paper(dry_run=True, measure=False, jobs=2, fractions="50", seeds="3,4", controls=False)
    assert "3 teachers and 30 cells; fractions 50 %, seeds 3, 4, no controls" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"fractions": "a"}, {"fractions": "0"}, {"seeds": "0.5"}, {"seeds": ""}])
def test_lists_that_cannot_be_are_refused_in_a_sentence(wrong):
    with pytest.raises(ConfigError):
        paper(dry_run=True, **wrong)


def test_the_full_scale_asks_for_stores_that_only_the_user_can_make():
    with pytest.raises(ConfigError, match="needs the clip store ucf101 and hmdb51, with frames of 128x171"):
        paper(scale="full", jobs=1, measure=False)


def test_a_report_of_nothing_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="there is no folder `cells`"):
        paper(report_only=True)
