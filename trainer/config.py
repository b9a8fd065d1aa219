"""The settings of one training run: typed, checked when built, saved with the run.

Order of precedence: these defaults, then --recipe FILE.toml, then flags. Needs neither torch nor Ray, so that --help
is fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.views import REMOTE, SEGMENT_COPY, Augment, ClipSpec
from teacher_server.protocol import MAX_TEMPERATURE, MAX_TIMEOUT_S, MAX_WEIGHT, MIN_TEMPERATURE, TeacherRef
from teacher_server.zoo.names import ARCHITECTURES

NO_TEACHER = "none"
_SMALLEST_CROP = 32
_LARGEST_WIDTH = 4.0
_DO_NOT_IDENTIFY = (  # they change how a run is done, and no number of it; of a timeline the content counts: Plan
    "run_id", "resume", "log_views", "checkpoint_every", "prefetch", "teacher_timeout_s", "teacher_budget_s",
    "teacher_transport", "gateway", "teacher_input", "teacher_replicas", "teacher_max_replicas", "teacher_cpus",
    "teacher_gpus", "teacher_memory_mb", "teacher_weight", "on_teacher_loss", "ledger", "teacher_timeline",
)  # fmt: skip


class ConfigError(ValueError):
    """A setting that cannot be. One sentence: what was given, what is expected."""


@dataclass(frozen=True)
class RunConfig:
    """One run. Times are in seconds, sizes in pixels, lengths in frames; method.md's symbols stand in brackets."""

    teacher: str = "r2plus1d"
    """Teacher to learn from: an alias to follow (r2plus1d), a pinned version (r2plus1d@1), or none (scratch)."""
    student: str = "r3d"
    """Architecture of the student: c3d, r3d or r2plus1d."""
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

    train_subset: str = "train01"
    """List of the store to train on."""
    test_subset: str = "test01"
    """List of the store to test on."""
    val_fraction: float = 0.1
    """Share of the training groups that is held out for validation."""

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
    schedule: Literal["plateau", "cosine"] = "cosine"
    """plateau: falls when the validation loss does not. cosine: falls to min_lr over the whole run, step by step."""
    plateau_patience: int = 50
    """Epochs without a better validation loss before the learning rate falls."""
    plateau_factor: float = 0.1
    """What the learning rate is multiplied by then."""
    min_lr: float = 1e-5
    """Floor of the learning rate."""
    seed: int = 0
    """Seed of the student's weights."""
    view_seed: int = 0
    """Seed of the views: frames, crops, jitter, pretext operations, and the order of the epochs."""
    views_per_video: int = 0
    """Epochs cycle over so many view sets, so that later ones can be replayed from a ledger; 0: always new views."""

    contrast: bool = True
    """The contrastive term is on."""
    alpha: float = 0.5
    """Weight of the contrastive term [alpha]."""
    contrast_temperature: float = 0.07
    """Temperature of the contrastive term [T]."""
    kd_weight: float = 1.0
    """Weight of the distillation term [lambda]."""
    temperature: float = 4.0
    """Temperature of the distillation [tau]."""

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
    """Steps between checkpoints; 0 means at the end of every epoch."""
    log_views: bool = False
    """Write each step's item digests to views-rank<R>.jsonl."""

    eval_tuples: int = 1
    """Tuples per test video and operation."""
    eval_clips: int = 4
    """Clips per video for retrieval and probe (the papers of the field take 10)."""
    evaluate: bool = True
    """Evaluate at the end."""

    def __post_init__(self) -> None:
        _check(self)

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
        """The view generator's number for `shuffle`."""
        return REMOTE if self.shuffle == "remote" else SEGMENT_COPY

    @property
    def teacher_ref(self) -> TeacherRef | None:
        """The teacher that is followed or pinned; None for scratch."""
        return None if self.teacher == NO_TEACHER else TeacherRef.parse(self.teacher)

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
        fields = {name: value for name, value in self.to_json().items() if name not in _DO_NOT_IDENTIFY}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


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


_POSITIVE = ("width", "clip_len", "crop", "epochs", "lr", "contrast_temperature", "temperature", "threads")
_POSITIVE_TOO = ("teacher_replicas", "prefetch", "teacher_timeout_s", "teacher_budget_s", "eval_tuples", "eval_clips",
                 "teacher_memory_mb", "teacher_weight")  # fmt: skip
_NOT_NEGATIVE = ("interval", "max_steps", "momentum", "weight_decay", "alpha", "kd_weight", "num_workers")
_NOT_NEGATIVE_TOO = ("checkpoint_every", "teacher_cpus", "teacher_gpus", "min_lr", "plateau_patience",
                     "views_per_video", "teacher_max_replicas")  # fmt: skip
_CHOICES = {
    "student": ARCHITECTURES,
    "modality": ("res", "rgb"),
    "shuffle": ("segment_copy", "remote"),
    "schedule": ("plateau", "cosine"),
    "device": ("auto", "cpu", "cuda"),
    "teacher_transport": ("serve", "http", "in_process"),
    "teacher_dtype": ("float32", "float16"),
    "on_teacher_loss": ("wait", "skip", "replay"),
    "ledger": ("off", "record", "replay", "auto"),
    "teacher_input": ("auto", "views", "pixels"),
    "resume": ("auto", "never"),
}


def _check(config: RunConfig) -> None:
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
    for name in (*_POSITIVE, *_POSITIVE_TOO):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise ConfigError(f"{name} must be a finite number > 0, got {getattr(config, name)}")
    for name in (*_NOT_NEGATIVE, *_NOT_NEGATIVE_TOO):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ConfigError(f"{name} must be a finite number >= 0, got {getattr(config, name)}")
    for name in ("val_fraction", "plateau_factor"):
        if not 0 < getattr(config, name) < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(config, name)}")
    if config.crop < _SMALLEST_CROP or config.crop % 2:  # the networks' pooling; a permutation of quadrants
        raise ConfigError(f"crop must be even and at least {_SMALLEST_CROP}, got {config.crop}")
    if config.width > _LARGEST_WIDTH:
        raise ConfigError(f"width must be at most {_LARGEST_WIDTH:g}, as on a teacher's card, got {config.width}")
    if config.batch_size < max(2, config.num_workers):
        raise ConfigError(f"batch_size must be at least 2 and at least a tuple per worker, got {config.batch_size}")
    if (config.teacher_transport == "http") != bool(config.gateway):
        raise ConfigError("--teacher-transport http and --gateway URL belong together")
    if not MIN_TEMPERATURE <= config.temperature <= MAX_TEMPERATURE:
        raise ConfigError(
            f"temperature must lie between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}, got {config.temperature}"
        )
    if config.teacher_timeout_s > MAX_TIMEOUT_S:
        raise ConfigError(f"teacher_timeout_s must be at most {MAX_TIMEOUT_S:g}, got {config.teacher_timeout_s}")
    if config.teacher_weight > MAX_WEIGHT:
        raise ConfigError(f"teacher_weight must be at most {MAX_WEIGHT:g}, got {config.teacher_weight}")
    if config.teacher_max_replicas and config.teacher_max_replicas < config.teacher_replicas:
        raise ConfigError(
            f"teacher_max_replicas must be at least teacher_replicas, "
            f"got {config.teacher_max_replicas} < {config.teacher_replicas}"
        )
    if config.on_teacher_loss == "replay" and config.ledger == "off":
        raise ConfigError("--on-teacher-loss replay goes on with a ledger: add --ledger auto or record")
    if not 0 <= config.seed < 2**63 or not 0 <= config.view_seed < 2**63:
        raise ConfigError(f"seeds must lie between 0 and 2**63, got {config.seed} and {config.view_seed}")
