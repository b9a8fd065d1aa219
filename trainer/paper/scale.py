"""How large the paper's experiments are run: every setting that all cells of one grid share.

    demo    the built-in sets, small networks: all of it within hours on two cores
    full    the paper's setting, for those who have UCF101, HMDB51 and GPUs

A scale knows no cell: trainer.paper.plan says which cells there are, `run_config` makes one cell's settings of both.
Needs neither torch nor Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data.views import ClipSpec
from trainer.config import NO_TEACHER, ConfigError, RunConfig
from trainer.paper.records import Cell, TeacherKey

ScaleName = Literal["demo", "full"]
Transport = Literal["serve", "in_process"]

FULL_TEACHER_SEED = 100  # of the teachers on all the data; no student has it, so none starts from its teacher's weights


@dataclass(frozen=True)
class Network:
    """A network's width and how long it is trained."""

    width: float
    epochs: int


@dataclass(frozen=True)
class TransferRecipe:
    """Fine-tuning in both meanings, probe and retrieval. `clips`: even clips per video.

    head_*: only the new layer, on features of the even clips, which are computed once. full_*: backbone and new layer.
    """

    clips: int
    head_epochs: int
    head_lr: float
    full_epochs: int
    full_lr: float
    batch_size: int
    augment: bool = True


@dataclass(frozen=True)
class StepTime:
    """Seconds of one thread or GPU: of a training step of a batch, and of a clip's forward pass."""

    step_s: float
    clip_s: float


@dataclass(frozen=True)
class Expected:
    """What the data sets hold, for an estimate before they are there."""

    train: int
    validation: int
    test: int
    second_train: int
    second_test: int


@dataclass(frozen=True)
class Scale:
    """frame_size: height and width of the stored frames; with `built_in`, the stores are drawn when they are missing.

    student: of all students. teacher: of those on all the data; a matched teacher is a scratch student, an untrained
    one has the width of the students. views_per_video: as RunConfig. curve_points: evaluations on the test list, evenly
    spaced, besides those of the epochs that validation prefers. control_fraction: the share of the data, in percent, on
    which the controls are run. *_gpus: of one student and of the teacher service, where students run on GPUs.
    step_times: by architecture, measured on the machine that `measured_on` names.
    """

    name: ScaleName
    built_in: bool
    store: str
    second_store: str
    frame_size: tuple[int, int]
    student: Network
    teacher: Network
    clip_len: int
    interval: int
    crop: int
    batch_size: int
    lr: float
    schedule: Literal["plateau", "cosine"]
    views_per_video: int
    curve_points: int
    eval_tuples: int
    control_fraction: float
    transfer: TransferRecipe
    device: Literal["auto", "cpu"]
    threads: int
    student_gpus: float
    teacher_gpus: float
    expected: Expected
    step_times: Mapping[str, StepTime]
    measured_on: str

    @property
    def clip_spec(self) -> ClipSpec:
        """Geometry of the views."""
        return ClipSpec(self.clip_len, self.interval, self.crop)


DEMO = Scale(
    name="demo",
    built_in=True,
    store="paper-demo",
    second_store="paper-demo2",
    frame_size=(36, 48),
    student=Network(width=0.125, epochs=16),
    teacher=Network(width=0.125, epochs=96),
    clip_len=8,
    interval=8,
    crop=32,
    batch_size=16,
    lr=0.01,
    schedule="cosine",
    views_per_video=0,
    curve_points=8,
    eval_tuples=1,
    control_fraction=100.0,
    transfer=TransferRecipe(
        clips=3, head_epochs=30, head_lr=0.03, full_epochs=5, full_lr=0.01, batch_size=8, augment=False
    ),
    device="cpu",
    threads=1,
    student_gpus=0.0,
    teacher_gpus=0.0,
    expected=Expected(train=532, validation=56, test=252, second_train=224, second_test=96),
    step_times={
        "r3d": StepTime(0.116, 0.00091),
        "c3d": StepTime(0.136, 0.00097),
        "r2plus1d": StepTime(0.173, 0.00089),
    },
    measured_on="one core of a 2-core machine",
)

FULL = Scale(
    name="full",
    built_in=False,
    store="ucf101",
    second_store="hmdb51",
    frame_size=(128, 171),
    student=Network(width=1.0, epochs=200),
    teacher=Network(width=1.0, epochs=200),
    clip_len=10,
    interval=8,
    crop=112,
    batch_size=16,
    lr=0.01,
    schedule="plateau",
    views_per_video=0,
    curve_points=40,
    eval_tuples=2,
    control_fraction=25.0,
    transfer=TransferRecipe(clips=10, head_epochs=150, head_lr=1e-3, full_epochs=150, full_lr=1e-3, batch_size=8),
    device="auto",
    threads=4,
    student_gpus=0.7,
    teacher_gpus=0.3,
    expected=Expected(train=8583, validation=954, test=3783, second_train=3570, second_test=1530),
    step_times={
        "r3d": StepTime(0.16, 0.0011),
        "c3d": StepTime(0.28, 0.0019),
        "r2plus1d": StepTime(0.19, 0.0013),
    },
    measured_on="no machine: 13.1, 22.9 and 13.9 GMAC a clip, three times that for a step, at 24 TFLOP/s",
)

SCALES: Mapping[ScaleName, Scale] = {"demo": DEMO, "full": FULL}


def with_students(scale: Scale, width: float, epochs: int) -> Scale:
    """The scale with students of another width or length; 0 leaves the scale's own. Raises ConfigError."""
    if width < 0 or epochs < 0:
        raise ConfigError(f"the students' width and epochs must be positive, got {width:g} and {epochs}")
    own = scale.student
    return dataclasses.replace(scale, student=Network(width=width or own.width, epochs=epochs or own.epochs))


@dataclass(frozen=True)
class Choices:
    """What a user may change of every run: where teachers answer, and whether epochs or steps are held equal."""

    transport: Transport = "serve"
    equal_steps: bool = False


def student_config(scale: Scale, cell: Cell, teacher: str, choices: Choices) -> RunConfig:
    """The settings of a cell. teacher: `name@version`, or `none`.

    Views depend on the seed alone, so that the arms of a seed are paired and share a teacher's answers; so does the
    choice of a fraction, because which few videos there are is a part of what differs from seed to seed.
    """
    arm = cell.arm
    return _config(
        scale,
        scale.student,
        choices,
        student=arm.student,
        teacher=teacher,
        seed=cell.seed,
        fraction=cell.fraction,
        kd_target=arm.target,
        contrast=arm.contrast,
    )


def teacher_config(scale: Scale, key: TeacherKey, choices: Choices) -> RunConfig:
    """The settings of a teacher's own training, on all the data."""
    return _config(
        scale,
        scale.teacher,
        choices,
        student=key.arch,
        teacher=NO_TEACHER,
        seed=key.seed,
        fraction=key.fraction,
        kd_target="teacher",
        contrast=True,
    )


def _config(
    scale: Scale,
    network: Network,
    choices: Choices,
    *,
    student: str,
    teacher: str,
    seed: int,
    fraction: float,
    kd_target: Literal["teacher", "shuffled", "smoothed", "smoothed_mean"],
    contrast: bool,
) -> RunConfig:
    return RunConfig(
        teacher=teacher,
        student=student,
        store=scale.store,
        width=network.width,
        clip_len=scale.clip_len,
        interval=scale.interval,
        crop=scale.crop,
        fraction=fraction,
        subset_seed=seed,
        equal_steps=choices.equal_steps,
        epochs=network.epochs,
        batch_size=scale.batch_size,
        lr=scale.lr,
        schedule=scale.schedule,
        seed=seed,
        view_seed=seed,
        views_per_video=scale.views_per_video,
        contrast=contrast,
        kd_target=kd_target,
        num_workers=0,
        threads=scale.threads,
        device=scale.device,
        teacher_transport=choices.transport,
        ledger="auto" if teacher != NO_TEACHER else "off",
        eval_tuples=scale.eval_tuples,
        evaluate=False,
    )
