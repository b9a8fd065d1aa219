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
    assert said.startswith("scale demo, students of width 0.125 for 16 epochs: 3 teachers and 234 cells; ")
    assert (
        "; fractions 100, 50, 25, 2 %, seeds 0, 1, 2, controls on 100 % (untrained, smoothed, shuffled, same, " in said
    )
    assert "hours with 2 at a time (step times stated" in said
    assert "clip store paper-demo2 is not there yet" in said
    assert list(home.iterdir()) == []


def test_the_demo_scale_is_said_to_fit_into_four_hours_on_two_cores(capsys):
    paper(dry_run=True, measure=False, jobs=2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " hours with " in line]
    hours = float(line.split(" hours with ")[0].split()[-1])
    assert 1 < hours < 4


def test_a_part_of_the_grid_can_be_asked_for(capsys):
    paper(dry_run=True, measure=False, jobs=2, fractions="50", seeds="3,4", controls="none")
    assert "3 teachers and 30 cells; fractions 50 %, seeds 3, 4, no controls" in capsys.readouterr().out


def test_students_of_another_size_and_some_controls_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("trainer.paper.run.measure_step_times", lambda scale, _names: dict(scale.step_times))
    said = []
    for width, epochs in ((0.0, 0), (0.25, 48)):
        more = {"controls": "smoothed,smoothed_mean", "fractions": "100", "jobs": 2, "dry_run": True}
        assert paper(student_width=width, student_epochs=epochs, **more) == 0
        said.append(capsys.readouterr().out)
    assert said[1].startswith("scale demo, students of width 0.25 for 48 epochs: 3 teachers and 63 cells; ")
    assert "controls on 100 % (smoothed, smoothed_mean)" in said[1]
    steps = [int(text.split("about ")[1].split(" steps")[0]) for text in said]
    teachers = 3 * 96 * 34
    assert steps[1] - teachers == 3 * (steps[0] - teachers)
    with pytest.raises(ConfigError, match=r"the stated step times are of width 0\.125: leave --no-measure out"):
        paper(student_width=0.25, measure=False, dry_run=True)


@pytest.mark.parametrize(
    "wrong", [{"controls": "smooth"}, {"controls": "same,same"}, {"student_width": -1.0}, {"student_epochs": -1}]
)
def test_controls_and_sizes_that_cannot_be_are_refused_in_a_sentence(wrong):
    with pytest.raises(ConfigError, match=r"controls are different ones of|must be positive"):
        paper(dry_run=True, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"fractions": "a"}, {"fractions": "0"}, {"seeds": "0.5"}, {"seeds": ""}, {"seeds": "inf"}, {"seeds": "nan"}],
)
def test_lists_that_cannot_be_are_refused_in_a_sentence(wrong):
    with pytest.raises(ConfigError):
        paper(dry_run=True, **wrong)


def test_a_dry_run_refuses_a_folder_that_the_run_would_refuse(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"name": "demo"}}')
    with pytest.raises(ConfigError, match="was begun with other settings"):
        paper(dry_run=True, measure=False, jobs=1, out=tmp_path)


def test_a_negative_number_of_jobs_is_refused_with_its_own_flag(home):
    with pytest.raises(ConfigError, match=r"--jobs must be at least 1, or 0 .*, got -1"):
        paper(dry_run=True, jobs=-1)
    assert list(home.iterdir()) == []


def test_the_full_scale_asks_for_stores_that_only_the_user_can_make():
    with pytest.raises(ConfigError, match="needs the clip store ucf101 and hmdb51, with frames of 128x171"):
        paper(scale="full", jobs=1, measure=False)


def test_a_report_of_nothing_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="there is no folder `cells`"):
        paper(report_only=True)
