"""Runs of a few steps, trained again from their checkpoints: equal as they are, different where they were changed."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from xxhash import xxh3_128_hexdigest

import data.operations
import trainer.signals
from data.errors import DataError
from data.plugins import VARIABLE
from services.cli_verify import verify
from teacher_server.library import TeacherLibrary
from teacher_server.roster.roster import Roster
from trainer.checkpoint import CheckpointFacts
from trainer.collective import Collective
from trainer.config import ConfigError
from trainer.fingerprint import Machine, this_machine
from trainer.loop import Trainer
from trainer.signals import SignalMaker
from trainer.verify_run import VerifyOptions, choose_windows, verify_run


@pytest.fixture
def kd(config):
    """3 steps an epoch, 6 in all; checkpoints at 2, 3, 4 and 6; the learning rate is validation's business."""
    return dataclasses.replace(
        config,
        teacher="alpha",
        batch_size=5,
        schedule="plateau",
        plateau_patience=0,
        lr=0.1,
        grad_clip=1.0,
        checkpoint_every=2,
        keep_checkpoints=10,
    )


@pytest.fixture
def train(bench):
    """Trains a run from beginning to end, as the training command would; `wrap` may change its teacher."""

    def trained(config, wrap=lambda signal: signal):
        run, plan = bench.folder("run"), bench.plan(config)
        run.write_json(run.config, {**config.to_json(), "identity": plan.identity})
        teacher = wrap(SignalMaker(plan, run.run_id, "pixels", None).make())
        try:
            Trainer(plan, run, collective=Collective(), teacher=teacher, should_stop=lambda: False).run()
        finally:
            if teacher is not None:
                teacher.close()
        return run

    return trained


def check(run, said=None, **options):
    return verify_run(run, VerifyOptions(**options), (said if said is not None else []).append)


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rewrite_line(run, step, **fields):
    """Changes the record of a step."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in lines:
        if (line["kind"], line["step"]) == ("step", step):
            line.update(fields)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rewrite_checkpoint(run, step, change):
    """Applies `change` to state.json's content and to the tensors, and makes the checkpoint whole again."""
    folder = run.checkpoints / f"step-{step:09d}"
    content = json.loads((folder / "state.json").read_bytes())
    tensors = load_safetensors((folder / "state.safetensors").read_bytes())
    change(content, tensors)
    blob = save_safetensors(tensors)
    content["tensors_xxh3_128"] = xxh3_128_hexdigest(blob)
    (folder / "state.safetensors").write_bytes(blob)
    (folder / "state.json").write_text(json.dumps(content))


def test_every_step_of_a_run_has_its_bits_again_and_nothing_is_touched(bench, kd, train):
    run = train(kd)
    before, roster = files_of(bench.home), Roster(TeacherLibrary(bench.home / "teachers")).state()
    said = []
    found = check(run, said)
    assert found.chosen == (1, 2, 3, 4, 5, 6)
    assert [step.step for step in found.compared] == [1, 2, 3, 4, 5, 6]
    assert found.first_difference is None
    assert files_of(bench.home) == before
    assert Roster(TeacherLibrary(bench.home / "teachers")).state() == roster
    assert [line for line in said if "again, from" in line] == [
        "steps 1 to 2 again, from the beginning",
        "steps 3 to 3 again, from checkpoint step-000000002",
        "steps 4 to 4 again, from checkpoint step-000000003",
        "steps 5 to 6 again, from checkpoint step-000000004",
    ]


@pytest.mark.parametrize("field", ["loss_bits", "weights"])
def test_the_first_step_with_another_record_is_named_and_later_windows_are_still_compared(kd, train, field):
    run = train(kd)
    rewrite_line(run, 1, **{field: (0.5).hex() if field == "loss_bits" else "0" * 16})
    found = check(run)
    assert found.first_difference.step == 1
    assert [(step.step, step.is_equal) for step in found.compared] == [
        (1, False),  # and step 2 of the same window is not compared any more
        (3, True),
        (4, True),
        (5, True),
        (6, True),
    ]


def test_momentum_that_was_changed_in_a_checkpoint_shows_in_the_step_after_it(kd, train):
    """The weights themselves are as recorded: only the next update differs."""
    run = train(kd)

    def change(_content, tensors):
        name = next(name for name in tensors if name.startswith("momentum.") and "pretext_head" in name)
        tensors[name] = tensors[name] * 1.001

    rewrite_checkpoint(run, 4, change)
    assert check(run).first_difference.step == 5


class Gaps:
    """A signal whose steps of the second block of two got no answer."""

    def __init__(self, signal):
        self._signal, self._answers = signal, 0

    def __getattr__(self, name):
        return getattr(self._signal, name)

    def get(self):
        answer = self._signal.get()
        self._answers += 1
        if self._answers not in (3, 4):
            return answer
        nothing = np.zeros_like(answer.logits)
        return dataclasses.replace(answer, logits=nothing, mask=np.zeros(len(nothing), dtype=np.bool_))


def test_steps_that_went_without_an_answer_go_without_it_again(kd, train):
    run = train(kd, Gaps)
    assert check(run).first_difference is None
    rewrite_line(run, 3, kd_skipped=0)  # as if it had been answered
    assert check(run).first_difference.step == 3


def test_recorded_answers_stand_in_for_the_teacher(kd, train, monkeypatch):
    run = train(dataclasses.replace(kd, ledger="record"))

    def away(*_args, **_options):
        raise AssertionError("no teacher may be asked")

    monkeypatch.setattr(trainer.signals, "InProcessTeacherClient", away)
    assert check(run, ledger=True).first_difference is None


def test_a_run_without_a_teacher_is_verified_with_what_it_has_kept(config, train):
    """Checkpoints 4 and 6 of 6 are kept, and the best; reach 1: the steps right after a start."""
    run = train(dataclasses.replace(config, epochs=3, batch_size=6, keep_checkpoints=2))
    starts = [0, *sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))][:-1]
    said = []
    found = check(run, said, reach=1)
    assert found.chosen == tuple(start + 1 for start in starts)
    assert found.first_difference is None
    assert f"{len(starts)} of 6 recorded steps lie within 1 steps of a kept checkpoint or step 0" in said
    assert any("--keep-checkpoints" in line for line in said)


def facts(step):
    return CheckpointFacts(path=None, step=step, fixed={}, machine=this_machine(), timeline=())


def test_steps_are_drawn_within_reach_and_done_from_the_nearest_start_before():
    checkpoints, recorded = [facts(10), facts(14), facts(30)], range(1, 31)
    windows = choose_windows(checkpoints, recorded, VerifyOptions(steps=100, reach=5))
    assert [(window.first, window.chosen) for window in windows] == [
        (0, (1, 2, 3, 4, 5)),
        (10, (11, 12, 13, 14)),
        (14, (15, 16, 17, 18, 19)),
    ]
    drawn = [
        [step for window in choose_windows(checkpoints, recorded, VerifyOptions(steps=6, seed=seed, reach=5))
         for step in window.chosen]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(steps) == 6 and set(steps) <= {*range(1, 6), *range(11, 20)} for steps in drawn)


def notes_of(run):
    said = []
    check(run, said)
    return [line for line in said if line.startswith("note:")]


def test_another_machine_and_fewer_cpus_than_threads_are_said(config, train, monkeypatch):
    run = train(dataclasses.replace(config, max_steps=1))
    assert notes_of(run) == []

    def change(content, _tensors):
        content["machine"] = dataclasses.asdict(Machine("Abacus 3000", "1.0"))
        content["fixed"]["threads"] = 3

    rewrite_checkpoint(run, 1, change)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    machine, threads = notes_of(run)
    assert machine.startswith("note: trained on Abacus 3000 with torch 1.0, this is ")
    assert threads.startswith("note: trained with 3 threads, this machine has 2 CPUs: ")


@pytest.mark.parametrize(
    ("fixed", "sentence"),
    [
        ({"device": "cuda"}, "run run was trained on cuda: bits repeat on the CPU only"),
        ({"workers": 2}, "run run was trained by 2 workers, whose batch-norm statistics are their own"),
    ],
)
def test_a_run_whose_bits_do_not_repeat_in_one_process_is_refused(config, train, fixed, sentence):
    run = train(dataclasses.replace(config, max_steps=1))
    rewrite_checkpoint(run, 1, lambda content, _tensors: content["fixed"].update(fixed))
    with pytest.raises(ConfigError, match=sentence):
        check(run)


def test_a_run_without_digests_or_without_checkpoints_is_refused_in_one_sentence(config, train):
    run = train(dataclasses.replace(config, max_steps=1))
    rewrite_line(run, 1, weights=None)
    with pytest.raises(ConfigError, match=r"run run has no digests of its weights in metrics\.jsonl"):
        check(run)
    (run.checkpoints / "step-000000001" / "state.json").unlink()
    with pytest.raises(ConfigError, match="run run has no whole checkpoint"):
        check(run)


@pytest.mark.parametrize("options", [{"steps": 0}, {"reach": 0}])
def test_nothing_to_compare_is_no_wish(options):
    with pytest.raises(ConfigError, match="--steps and --reach must be at least 1"):
        VerifyOptions(**options)


def test_the_command_prints_a_table_and_its_exit_code_tells(config, train, capsys):
    run = train(dataclasses.replace(config, max_steps=3))
    assert verify(run.run_id, steps=2) == verify(str(run.path), steps=2) == 0
    printed = capsys.readouterr().out
    assert "2 of them drawn: every bit is equal" in printed
    rewrite_line(run, 2, weights="f" * 16)
    assert verify(run.run_id) == 1
    printed = capsys.readouterr().out
    assert "differs first at step 2: the run cannot be repeated from there" in printed
    assert "not reached" in printed
    with pytest.raises(ConfigError, match="no run 'nobody' under"):
        verify("nobody")


PLUGIN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.feature_size = 8
        self.conv = nn.Conv3d(3, 8, 3, stride=2)
    def forward(self, clip):
        return self.conv(clip).relu().mean(dim=(2, 3, 4))

def loss(output, batch):
    return output.pretext_logits.square().mean()

def mirror(clip):
    return clip[:, :, ::-1]
"""


@pytest.mark.parametrize(
    ("setting", "function"), [("student", "Net"), ("extra_loss", "loss"), ("pretext_operation", "mirror")]
)
def test_code_that_a_run_s_settings_name_runs_again_only_where_somebody_allows_it(
    config, train, tmp_path, monkeypatch, setting, function
):
    (tmp_path / "preceptor_verify_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    name = f"preceptor_verify_plugin:{function}"
    run = train(dataclasses.replace(config, max_steps=2, **{setting: name}))  # typed, so nobody has to allow it
    monkeypatch.setattr(data.operations, "_loaded", {})  # as in another process
    sys.modules.pop("preceptor_verify_plugin")
    with pytest.raises(DataError, match=f"{VARIABLE}={name}"):
        check(run)
    assert "preceptor_verify_plugin" not in sys.modules
    monkeypatch.setenv(VARIABLE, name)
    found = check(run)
    assert (found.chosen, found.first_difference) == ((1, 2), None)
    sys.modules.pop("preceptor_verify_plugin")
