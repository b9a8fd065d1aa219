"""What one cell of the paper's grid is, and what is known of it once it has run.

    <paper folder>/cells/<cell id>/{result.json: CellResult, answers.npz}
    <paper folder>/teachers/<teacher id>.json   TeacherResult

answers.npz: correct_<stage>, bool, of each test tuple, beside groups and keys of its video; and of a cell with
transfers correct_<data set>_<protocol>, bool, of each test video, beside groups_<data set>.

A cell is one student trained once: an arm (who learns from whom), a share of the training data, a seed. Accuracies lie
in [0, 1]. Needs pydantic only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal["early", "mid", "late"]
DatasetName = Literal["same", "second"]
TransferProtocol = Literal["head", "full", "probe", "retrieval"]
PROTOCOLS: tuple[TransferProtocol, ...] = ("head", "full", "probe", "retrieval")
STAGES: tuple[tuple[StageName, float], ...] = (("early", 50 / 200), ("mid", 150 / 200), ("late", 1.0))
"""Each stage and the share of the epochs that it ends after (method.md, section 8)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arm(_Record):
    """Who learns from whom.

    teacher: an architecture, None for scratch. teacher_data: what the teacher was trained on: `full` data, the
    student's own share (`matched`), or nothing (`untrained`, a control); `none` for scratch. target: what is distilled:
    the teacher's answers; they shuffled among the tuples of one label, label smoothing of the entropy of each, or of
    the batch's mean entropy (controls).
    The student's own architecture as teacher is a control too. contrast: whether the contrastive term is on.
    """

    student: str
    teacher: str | None = None
    teacher_data: Literal["none", "full", "matched", "untrained"] = "none"
    target: Literal["teacher", "shuffled", "smoothed", "smoothed_mean"] = "teacher"
    contrast: bool = True

    @property
    def name(self) -> str:
        """As in file names: r3d-scratch, r3d-from-c3d-full, r3d-from-c3d-full-shuffled."""
        name = f"{self.student}-scratch" if self.teacher is None else f"{self.student}-from-{self.teacher}"
        parts: list[str] = [] if self.teacher is None else [self.teacher_data]
        parts += [] if self.target == "teacher" else [self.target.replace("_", "-")]
        parts += [] if self.contrast else ["no-contrast"]
        return "-".join([name, *parts])


class Cell(_Record):
    """One training of one arm. fraction: of the training videos, in percent."""

    arm: Arm
    fraction: float = Field(gt=0, le=100)
    seed: int = Field(ge=0)

    @property
    def id(self) -> str:
        """As in file names: r3d-from-c3d-full-f25-s0."""
        return f"{self.arm.name}-f{self.fraction:g}-s{self.seed}"


class TeacherKey(_Record):
    """A network that teaches. full: trained on all the data; matched: the scratch student of that fraction and seed;
    untrained: random weights, whose fraction is 0."""

    arch: str
    data: Literal["full", "matched", "untrained"]
    fraction: float = Field(ge=0, le=100)
    seed: int = Field(ge=0)

    @property
    def id(self) -> str:
        """As in file names and in the teacher library: r3d-full, r3d-matched-f25-s0, r3d-untrained."""
        return f"{self.arch}-{self.data}" + (f"-f{self.fraction:g}-s{self.seed}" if self.data == "matched" else "")


class TeacherResult(_Record):
    """A teacher in the library, and what it took. teacher: name@version. test_acc: pretext accuracy on the test list.

    training_s: seconds of its training steps. item_s: seconds that it takes for the answer to one tuple, measured when
    it was added.
    """

    format: Literal[1] = 1
    key: TeacherKey
    teacher: str
    digest: str
    width: float
    epochs: int
    steps: int
    num_train: int
    test_acc: float
    training_s: float
    item_s: float


class CurvePoint(_Record):
    """The end of one epoch (counted from 1). seconds: of its steps and all before, as Cost.student_s. train_acc: of the
    epoch's steps, on augmented views; the others on fixed views of the held-out part and of the test list; None where
    that epoch was not evaluated."""

    epoch: int
    step: int
    seconds: float
    train_acc: float
    val_acc: float | None
    val_loss: float | None
    test_acc: float | None


class Stage(_Record):
    """The pretext accuracy on the test list by the end of a stage.

    test_acc: of the checkpoint with the best validation accuracy so far, of epoch `epoch` and step `step`.
    best_test_acc: the best on the test list so far, which is the paper's reading and chosen with hindsight.
    """

    name: StageName
    until_epoch: int
    epoch: int
    step: int
    test_acc: float
    best_test_acc: float
    best_test_epoch: int


class Transfer(_Record):
    """Action accuracy of the late checkpoint on a data set's test list. interval: 95 %, by group."""

    dataset: DatasetName
    protocol: TransferProtocol
    accuracy: float
    interval: tuple[float, float] | None
    chance: float
    seconds: float


class Cost(_Record):
    """Seconds of compute. student_s: steps times the median step, without waiting for the teacher. teacher_inference_s:
    of the answers that this cell's questions need, each different one once, wherever it was computed (a replayed answer
    is charged as if it had been asked). teacher_training_s: of the whole teacher; the tables spread it over the
    students that used it. evaluation_s: of the test list and the transfers. asked_items, replayed_items: questions that
    a teacher and that the ledger answered."""

    student_s: float
    evaluation_s: float
    teacher_inference_s: float
    teacher_training_s: float
    asked_items: int
    replayed_items: int


class CellResult(_Record):
    """All that the tables need of a cell. teacher: the version that answered, with its digest; None for scratch.
    teacher_test_acc: the teacher's own pretext accuracy on the test list.
    second_store_fingerprint: None without transfers."""

    format: Literal[1] = 1
    cell: Cell
    curve: tuple[CurvePoint, ...]
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    cost: Cost
    num_train: int
    num_validation: int
    num_test: int
    epochs: int
    steps: int
    teacher: str | None = None
    teacher_digest: str | None = None
    teacher_test_acc: float | None = None
    store_fingerprint: str
    second_store_fingerprint: str | None
    weights_sha256: str
