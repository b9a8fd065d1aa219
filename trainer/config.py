"""The settings of one training run: typed, checked when built, saved with the run.

Order of precedence: these defaults, then --recipe FILE.toml, then flags. Needs neither torch nor Ray, so that --help
is fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.views import OWN, REMOTE, SEGMENT_COPY, Augment, ClipSpec
from teacher_server.protocol import TeacherRef
from trainer.config_checks import check
from trainer.errors import ConfigError

NO_TEACHER = "none"
SMALLEST_SHARE = 0.5  # of a frame's shorter side that a crop must show; the paper's 112 of 128 is .875
_DO_NOT_IDENTIFY = (  # they change how a run is done, and no number of it; of a timeline the content counts: Plan
    "run_id", "resume", "log_views", "log_cka", "checkpoint_every", "keep_checkpoints", "eval_every", "prefetch",
    "teacher_timeout_s", "teacher_budget_s",
    "teacher_transport", "gateway", "teacher_input", "teacher_replicas", "teacher_max_replicas", "teacher_cpus",
    "teacher_gpus", "teacher_memory_mb", "teacher_weight", "on_teacher_loss", "ledger", "teacher_timeline",
)  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """One run. Times are in seconds, sizes in pixels, lengths in frames; method.md's symbols stand in brackets."""

    teacher: str = "r2plus1d"
    """Teacher to learn from: an alias to follow (r2plus1d), a pinned version (r2plus1d@1), or none (scratch)."""
    student: str = "r3d"
    """Architecture of the student: c3d, r3d, r2plus1d, r3d_18, r2plus1d_18, mc3_18, or your own as module:function (see
    docs/plugins.md)."""
    store: str = "demo"
    """Clip store: a name under $PRECEPTOR_HOME/stores (var/stores in a checkout) or a path; `demo` makes itself."""

    width: float = 0.125
    """Width multiplier of the student; 1.0 is the published network."""
    clip_len: int = 10
    """Frames of a clip."""
    interval: int = 8
    """Frames between the clips of a tuple."""
    crop: int = 56
    """Side of the square crop."""
    modality: Literal["res", "rgb"] = "res"
    """What the student sees: frame differences or frames."""
    augment: bool = True
    """Colour jitter, grayscale, blur and flip; off leaves the random crop."""
    any_swap: bool = False
    """Temporal swap takes any two segments instead of adjacent ones (preset pcl)."""
    shuffle: Literal["segment_copy", "remote"] = "segment_copy"
    """The run's one variant of the temporal shuffle."""
    pretext_operation: str = ""
    """An operation of your own in the place of the temporal shuffle: module:function, uint8 [T,H,W,3] to the same; see
    docs/plugins.md."""

    train_subset: str = "train01"
    """List of the store to train on."""
    test_subset: str = "test01"
    """List of the store to test on."""
    val_fraction: float = 0.1
    """Share of the training groups that is held out for validation."""
    fraction: float = 100.0
    """Percent of the training videos to train on: of each class so many, rounded, and at least one. Smaller fractions
    lie inside larger ones; validation and test stay whole."""
    subset_seed: int = 0
    """Seed of the choice that a fraction makes."""
    equal_steps: bool = False
    """A fraction takes as many steps as the whole list would, in more epochs, instead of as many epochs. Validation,
    checkpoints and what counts epochs by them (plateau, early stop) stay about as frequent as with the whole list."""

    epochs: int = 5
    """Passes over the training videos."""
    max_steps: int = 0
    """Stop after this many steps; 0 means all epochs."""
    batch_size: int = 16
    """Tuples per step, over all workers."""
    lr: float = 0.01
    """Learning rate of SGD at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    schedule: Literal["plateau", "cosine", "step"] = "cosine"
    """plateau: falls when the validation loss does not. cosine: falls to min_lr over the whole run, step by step. step:
    falls by step_factor every step_epochs epochs."""
    plateau_patience: int = 50
    """Epochs without a better validation loss before the learning rate falls."""
    plateau_factor: float = 0.1
    """What the learning rate is multiplied by then."""
    step_epochs: int = 50
    """Epochs between two falls of the learning rate with --schedule step."""
    step_factor: float = 0.1
    """What the learning rate is multiplied by then."""
    min_lr: float = 1e-5
    """Floor of the learning rate."""
    grad_clip: float = 0.0
    """Largest norm of the gradient over all weights; longer ones are shortened to it. 0: off."""
    student_precision: Literal["float32", "bfloat16"] = "float32"
    """What the student's forward pass computes in; bfloat16 (mixed precision) on GPUs only."""
    early_stop: int = 0
    """End training after so many epochs without a lower validation loss. 0: off."""
    seed: int = 0
    """Seed of the student's weights."""
    view_seed: int = 0
    """Seed of the views: frames, crops, jitter, pretext operations, and the order of the epochs."""
    views_per_video: int = 0
    """Epochs cycle over so many view sets, so that later ones can be replayed from a ledger; 0: always new views."""

    contrast: bool = True
    """The contrastive term is on."""
    projector: bool = True
    """It compares what a projector (two layers, 128 numbers) makes of the features; off, the features themselves."""
    alpha: float = 0.5
    """Weight of the contrastive term [alpha]."""
    contrast_temperature: float = 0.07
    """Temperature of the contrastive term [T]."""
    contrast_mode: Literal["in_batch", "memory_bank"] = "in_batch"
    """Where the negatives come from. in_batch: the other videos of the batch. memory_bank: features remembered from
    earlier steps, of all training videos (preset pcl)."""
    bank_negatives: int = 1024
    """Negatives of each tuple in the memory bank [K]; at most all other training videos."""
    bank_momentum: float = 0.5
    """Share of the old features that stays when the memory bank is updated."""
    kd_weight: float = 1.0
    """Weight of the distillation term [lambda]."""
    kd_schedule: Literal["constant", "linear"] = "constant"
    """constant: the weight stays. linear: it falls to 0 over the whole run, step by step."""
    kd_target: Literal["teacher", "shuffled", "smoothed", "smoothed_mean"] = "teacher"
    """What the student follows. Controls: shuffled, the answers of other tuples of the batch with the same pretext
    label; smoothed, label smoothing of the answer's entropy; smoothed_mean, of the batch's mean entropy."""
    temperature: float = 4.0
    """Temperature of the distillation [tau]."""
    teacher_head: Literal["auto", "pretext", "action"] = "auto"
    """What the teacher classifies; auto reads it from its card, and behind a gateway means pretext."""
    teacher_classes: int = 0
    """Classes of an action teacher behind a gateway, whose card is not to be seen from here; 0 reads the card."""
    teacher_feature_size: int = 0
    """Size of the features of a teacher behind a gateway, for the hint term and CKA; 0 reads the card."""
    hint_weight: float = 0.0
    """Weight of the hint term: the student's features, projected, follow the teacher's; 0 is off."""
    log_cka: bool = False
    """Log how alike the features of student and teacher are (linear CKA): the teacher is asked for its features, as it
    is for the hint term, and a ledger records them."""
    ce_weight: float = 0.0
    """Weight of the supervised term, cross entropy with the videos' classes; 0 is off: no label is used."""
    extra_loss: str = ""
    """A loss of your own, module:function; see docs/plugins.md."""
    extra_loss_weight: float = 1.0
    """Weight of that loss."""

    num_workers: int = 1
    """Ray Train workers; 0 trains in this process, which is good for debugging."""
    threads: int = 1
    """CPU threads of each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where students run."""
    teacher_transport: Literal["serve", "http", "in_process"] = "serve"
    """serve: teachers run on this cluster's Ray Serve. http: on another cluster, behind --gateway. in_process: a copy
    in every worker, for comparison and debugging."""
    gateway: str = ""
    """URL of the gateway for --teacher-transport http; a token is taken from PRECEPTOR_TOKEN."""
    teacher_input: Literal["auto", "views", "pixels"] = "auto"
    """What a question carries; auto adds pixels for teachers on this machine's CPUs and sends views to all others."""
    teacher_dtype: Literal["float32", "float16"] = "float32"
    """Type of the logits in a reply."""
    teacher_replicas: int = 1
    """Replicas to deploy, if no teacher service runs yet; the least there are when their number adapts."""
    teacher_max_replicas: int = 0
    """Most replicas that Serve may add while clips queue up; 0 keeps their number fixed."""
    teacher_cpus: float = 1.0
    """CPUs of each replica."""
    teacher_gpus: float = 0.0
    """GPUs of each replica."""
    teacher_memory_mb: int = 2048
    """Memory of each replica for resident teachers, in MiB."""
    teacher_weight: float = 1.0
    """Share of a busy replica that this run gets, relative to other runs."""
    teacher_timeline: str = ""
    """Replay the teacher versions of another run: its result.json, or a JSON list of {first_step, teacher, digest}. Its
    content is one of the run's settings: a run goes on with the same timeline only, and without one likewise."""
    on_teacher_loss: Literal["wait", "skip", "replay"] = "wait"
    """When no teacher answers within its budget. wait: save and end. skip: train without the distillation term and
    count it. replay: go on with what the ledger holds."""
    ledger: Literal["off", "record", "replay", "auto"] = "off"
    """Recorded answers. record: ask and write down. replay: only read. auto: read, and ask for what is missing."""
    prefetch: int = 2
    """Questions in flight per worker."""
    teacher_timeout_s: float = 30.0
    """Limit of one question."""
    teacher_budget_s: float = 120.0
    """Limit of one answer, retries included; after that a checkpoint is written and the run ends."""

    run_id: str = ""
    """Name of the run's folder; made up when empty."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with the newest unfinished run of the same settings (or with --run-id's). never: start a new one."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 means at the end of every validated epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best one on validation; `preceptor verify` starts from them."""
    log_views: bool = False
    """Write each step's item digests to views-rank<R>.jsonl."""

    eval_tuples: int = 1
    """Tuples per test video and operation."""
    eval_clips: int = 4
    """Clips per video for retrieval and probe (the papers of the field take 10)."""
    evaluate: bool = True
    """Evaluate at the end."""
    eval_every: int = 0
    """Validated epochs between pretext evaluations on the test list, for the curves; 0: at the end only."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def clip_spec(self) -> ClipSpec:
        """Geometry of the views."""
        return ClipSpec(clip_len=self.clip_len, interval=self.interval, crop=self.crop)

    @property
    def augmentation(self) -> Augment:
        """Strengths of the augmentation."""
        return Augment(enabled=self.augment)

    @property
    def shuffle_variant(self) -> int:
        """The view generator's number for `shuffle`, or for an operation in its place."""
        if self.pretext_operation:
            return OWN
        return REMOTE if self.shuffle == "remote" else SEGMENT_COPY

    @property
    def teacher_ref(self) -> TeacherRef | None:
        """The teacher that is followed or pinned; None for scratch."""
        return None if self.teacher == NO_TEACHER else TeacherRef.parse(self.teacher)

    @property
    def uses_labels(self) -> bool:
        """Whether the videos' classes reach the losses: only for a supervised one that the user turned on."""
        return self.ce_weight > 0 or bool(self.extra_loss)

    @property
    def wants_features(self) -> bool:
        """Whether the teacher is asked for its features too."""
        return self.hint_weight > 0 or self.log_cka

    @property
    def asks_service(self) -> bool:
        """Whether there is a teacher service to hold a lease on; a run that only replays asks nobody."""
        return self.teacher_ref is not None and self.teacher_transport != "in_process" and self.ledger != "replay"

    @property
    def may_deploy(self) -> bool:
        """Whether the teachers run on the students' cluster, which must then have room for them."""
        return self.asks_service and self.teacher_transport == "serve"

    @property
    def needs_library(self) -> bool:
        """Whether versions and digests come from the teacher library here, and not from behind a gateway."""
        return self.teacher_ref is not None and not (self.asks_service and self.teacher_transport == "http")

    def to_json(self) -> dict[str, Any]:
        """Flat JSON, as in config.json."""
        return dataclasses.asdict(self)

    def identity(self) -> str:
        """12 hex digits; equal for two runs whose settings mean the same training."""
        fields = identifying(self.to_json())
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def identifying(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that change its numbers."""
    return {name: value for name, value in fields.items() if name not in _DO_NOT_IDENTIFY}


def load_recipe(path: Path) -> RunConfig:
    """The defaults with a TOML file's fields on top. Raises ConfigError that names the file and the field."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None
    try:
        return from_json(fields)
    except ConfigError as error:
        raise ConfigError(f"recipe {path}: {error}") from None


def from_json(fields: dict[str, Any]) -> RunConfig:
    """The inverse of `RunConfig.to_json`; fields that are not named keep their defaults. Raises ConfigError."""
    known = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}")
        default = known[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            fields = {**fields, name: float(value)}
        elif type(value) is not type(default):
            raise ConfigError(f"{name} must be {type(default).__name__}, got {value!r}")
    return RunConfig(**fields)
