"""Trains random steps of a run again, from its own checkpoints, and compares the bits: `preceptor verify`.

    run's checkpoints (and step 0, which needs none) ──copy──► temporary run folder ──Trainer──► its metrics.jsonl
                                                                                                      │
    run's metrics.jsonl ── weights, loss_bits of the same steps ──────────────────────────────────────┴─► equal?

The steps are done by the training loop itself and not by a second one that resembles it. The teacher's versions are
those of the run's recorded timeline; nobody is told about it: no roster, no service, no file of the run is touched.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.views import ViewBatch
from trainer.checkpoint import CheckpointFacts, whole_checkpoints
from trainer.collective import Collective
from trainer.config import ConfigError, RunConfig
from trainer.fingerprint import this_machine
from trainer.loader import TeacherAnswer, TeacherSignal
from trainer.loop import Trainer
from trainer.plan import Plan, make_plan
from trainer.report_data import read_metrics
from trainer.runs import RunFolder
from trainer.signals import SignalMaker
from trainer.timeline import TimelineEntry

Say = Callable[[str], None]
_Lines = dict[int, dict[str, Any]]  # records of steps, by the number of steps done


@dataclass(frozen=True)
class VerifyOptions:
    """steps: how many to compare. seed: of their choice. reach: steps that are trained again after a checkpoint at
    most. ledger: answers come from the recorded ones instead of a teacher in this process."""

    steps: int = 20
    seed: int = 0
    reach: int = 64
    ledger: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.reach < 1:
            raise ConfigError(f"--steps and --reach must be at least 1, got {self.steps} and {self.reach}")


@dataclass(frozen=True)
class Bits:
    """What is compared of a step. weights: digest of the student's tensors after it; loss: float.hex."""

    weights: str
    loss: str


@dataclass(frozen=True)
class ComparedStep:
    """step counts from 1, as in metrics.jsonl."""

    step: int
    recorded: Bits
    recomputed: Bits

    @property
    def is_equal(self) -> bool:
        """Every bit."""
        return self.recorded == self.recomputed


@dataclass(frozen=True)
class Window:
    """Steps that are trained again in one piece. start: the checkpoint that they go on from, None for the beginning.
    chosen: the steps among them that were drawn, ascending."""

    start: CheckpointFacts | None
    chosen: tuple[int, ...]

    @property
    def first(self) -> int:
        """Steps done at the start."""
        return 0 if self.start is None else self.start.step


@dataclass(frozen=True)
class Verification:
    """chosen: the steps that were drawn; compared: they and all steps on the way to them, as far as a window was equal;
    its first difference ends it."""

    chosen: tuple[int, ...]
    compared: tuple[ComparedStep, ...]

    @property
    def first_difference(self) -> ComparedStep | None:
        """None when every compared step has the recorded bits."""
        return next((step for step in self.compared if not step.is_equal), None)


def verify_run(run: RunFolder, options: VerifyOptions, say: Say = print) -> Verification:
    """Trains the chosen steps again. say: called with what to know before the comparison.

    Raises ConfigError for a run whose bits cannot be compared, and what reading the store and the teachers raises.
    """
    config = run.read_config()
    checkpoints = _checked(run)
    recorded = _recorded(run, checkpoints[-1].step)
    windows = choose_windows(checkpoints, sorted(recorded), options)
    _say_limits(checkpoints, recorded, options, say)
    plan = _plan(config)
    unanswered = {step - 1 for step, line in recorded.items() if line["kd_skipped"]}
    compared: list[ComparedStep] = []
    for window in windows:
        last = window.chosen[-1]
        origin = "the beginning" if window.start is None else f"checkpoint {window.start.path.name}"
        say(f"steps {window.first + 1} to {last} again, from {origin}")
        signal = _signal(plan, run, checkpoints[-1].timeline, unanswered, ledger=options.ledger)
        try:
            again = _train_again(plan, run, window, signal)
        finally:
            if signal is not None:
                signal.close()
        compared += _compare(recorded, again)
    return Verification(tuple(step for window in windows for step in window.chosen), tuple(compared))


def choose_windows(
    checkpoints: Sequence[CheckpointFacts], recorded: Sequence[int], options: VerifyOptions
) -> list[Window]:
    """Draws the steps among those within reach of a start and groups them by it. recorded: the steps with bits."""
    by_step: dict[int, CheckpointFacts | None] = {0: None, **{facts.step: facts for facts in checkpoints}}
    starts = sorted(by_step)
    start_of = {step: max(start for start in starts if start < step) for step in recorded}
    within = [step for step in recorded if step - start_of[step] <= options.reach]
    chosen = sorted(random.Random(options.seed).sample(within, min(options.steps, len(within))))
    return [Window(by_step[start], tuple(steps)) for start, steps in itertools.groupby(chosen, start_of.__getitem__)]


def _checked(run: RunFolder) -> list[CheckpointFacts]:
    """The run's whole checkpoints, oldest first. Raises ConfigError unless its steps can be repeated here."""
    checkpoints = whole_checkpoints(run.checkpoints)
    if not checkpoints:
        raise ConfigError(f"run {run.run_id} has no whole checkpoint: there is nothing to verify yet")
    fixed = checkpoints[-1].fixed
    if fixed["device"] != "cpu":
        raise ConfigError(f"run {run.run_id} was trained on {fixed['device']}: bits repeat on the CPU only")
    if fixed["workers"] != 1:
        raise ConfigError(
            f"run {run.run_id} was trained by {fixed['workers']} workers, whose batch-norm statistics are their own: "
            "runs of one worker can be verified"
        )
    return checkpoints


def _recorded(run: RunFolder, newest: int) -> _Lines:
    """The steps up to the newest checkpoint whose bits are on record."""
    lines = {line["step"]: line for line in read_metrics(run.metrics).steps}
    recorded = {step: line for step, line in lines.items() if line.get("weights") and step <= newest}
    if not recorded:
        raise ConfigError(f"run {run.run_id} has no digests of its weights in metrics.jsonl: nothing can be compared")
    return recorded


def _say_limits(checkpoints: Sequence[CheckpointFacts], recorded: _Lines, options: VerifyOptions, say: Say) -> None:
    """What the comparison cannot tell: another machine, steps out of reach."""
    threads, cpus = checkpoints[-1].fixed["threads"], os.cpu_count() or 1
    machine, here = checkpoints[-1].machine, this_machine()
    if machine != here:
        say(
            f"note: trained on {machine.cpu} with torch {machine.torch}, this is {here.cpu} with torch {here.torch}: "
            "bits may differ for that reason alone"
        )
    if threads > cpus:
        say(
            f"note: trained with {threads} threads, this machine has {cpus} CPUs: bits may differ for that reason alone"
        )
    starts = [0, *(facts.step for facts in checkpoints)]
    within = sum(any(0 < step - start <= options.reach for start in starts) for step in recorded)
    say(f"{within} of {len(recorded)} recorded steps lie within {options.reach} steps of a kept checkpoint or step 0")
    if within < len(recorded):
        say("to reach more: --reach here, or train with more --keep-checkpoints and a smaller --checkpoint-every")


def _plan(config: RunConfig) -> Plan:
    """The run's own plan, so that its checkpoints fit, without what costs time and is not compared.

    The settings were read from the run's folder: nobody here typed the names of plug-ins among them.
    """
    plan = make_plan(config, trusted=False)
    quick = dataclasses.replace(config, checkpoint_every=0, keep_checkpoints=1, eval_every=0, log_views=False)
    return dataclasses.replace(plan, config=quick, device="cpu")


def _signal(
    plan: Plan, run: RunFolder, timeline: Sequence[TimelineEntry], unanswered: Collection[int], *, ledger: bool
) -> TeacherSignal | None:
    """Answers as the run got them; None for scratch."""
    if plan.config.teacher_ref is None:
        return None
    here = dataclasses.replace(
        plan.config,
        teacher_transport="in_process",
        gateway="",
        on_teacher_loss="wait",
        ledger="replay" if ledger else "off",
    )
    bound = dataclasses.replace(plan, config=here, timeline=tuple(timeline))
    signal = SignalMaker(bound, run.run_id, "pixels", None).make()
    return None if signal is None else _AsRecorded(signal, unanswered)


def _train_again(plan: Plan, run: RunFolder, window: Window, signal: TeacherSignal | None) -> _Lines:
    """The records of the steps up to the last chosen one, by the training loop, in a folder that is deleted."""
    done = itertools.count(window.first + 1)
    with tempfile.TemporaryDirectory(prefix="preceptor-verify-") as folder:
        copy = RunFolder(Path(folder) / run.run_id)
        copy.path.mkdir()
        if window.start is not None:
            shutil.copytree(window.start.path, copy.checkpoints / window.start.path.name)
        trainer = Trainer(
            plan,
            copy,
            collective=Collective(),
            teacher=signal,
            should_stop=lambda: next(done) >= window.chosen[-1],
        )
        outcome = trainer.run()
        if outcome.status not in ("stopped", "finished"):
            raise ConfigError(f"the steps cannot be trained again: {outcome.reason}")
        return {line["step"]: line for line in read_metrics(copy.metrics).steps}


def _compare(recorded: _Lines, again: _Lines) -> list[ComparedStep]:
    """Step by step, up to the first difference: after it nothing can be equal."""
    compared = []
    for step in sorted(again):
        if step not in recorded:
            continue
        compared.append(ComparedStep(step, _bits(recorded[step]), _bits(again[step])))
        if not compared[-1].is_equal:
            break
    return compared


def _bits(line: dict[str, Any]) -> Bits:
    return Bits(line["weights"], line["loss_bits"])


class _AsRecorded:
    """A teacher's signal that tells no roster anything, and without the answers that the run did not get."""

    def __init__(self, signal: TeacherSignal, unanswered: Collection[int]) -> None:
        self._signal = signal
        self._unanswered = unanswered
        self._asked: deque[int] = deque()

    def restore(self, timeline: Sequence[TimelineEntry], steps_done: int) -> None:
        """Nothing: the roster must not take this for a run."""

    def put(self, step: int, views: ViewBatch, pixels: NDArray[np.uint8]) -> None:
        """As TeacherSignal.put."""
        self._asked.append(step)
        self._signal.put(step, views, pixels)

    def get(self) -> TeacherAnswer:
        """As TeacherSignal.get; masked where no teacher answered the run. One worker's step is answered or not."""
        answer = self._signal.get()
        if self._asked.popleft() not in self._unanswered:
            return answer
        return dataclasses.replace(answer, mask=np.zeros(len(answer.logits), dtype=np.bool_))

    def flush(self) -> None:
        """Nothing: a comparison records no answers."""

    def ask_roster_again(self) -> None:
        """Nothing: one worker never differs from itself."""

    def stop(self) -> None:
        """As TeacherSignal.stop."""
        self._signal.stop()

    def close(self) -> None:
        """As TeacherSignal.close."""
        self._signal.close()
