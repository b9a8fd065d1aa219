"""What has been published, to stand beside what is measured here.

The paper: Camarena, Gonzalez-Mendoza, Chang, J. Imaging 2024, 10, 85. Its UCF101 columns are pretext accuracies and its
HMDB51 column is an action accuracy with only the added layer trained; one seed, chosen on the test list. All shares in
[0, 1]; the paper prints whole percents.
"""

from __future__ import annotations

from dataclasses import dataclass

DISPLAY = {"r3d": "R3D", "c3d": "C3D", "r2plus1d": "R(2+1)D"}
STUDENTS = ("r3d", "c3d", "r2plus1d")
FRACTIONS = (100.0, 50.0, 25.0, 2.0)
TABLE_OF_FRACTION = {100.0: 3, 50.0: 4, 25.0: 5, 2.0: 6}
"""The number of the paper's table of each share of the data (in percent)."""

PAIRS: tuple[tuple[str, str], ...] = tuple(
    (student, teacher) for student in STUDENTS for teacher in ("c3d", "r3d", "r2plus1d") if teacher != student
)
"""(student, teacher) of the six distillations."""
ROWS: tuple[tuple[str, str | None], ...] = tuple(
    row for student in STUDENTS for row in (*((s, t) for s, t in PAIRS if s == student), (student, None))
)
"""The nine rows of the paper's Table 2 in its order; a teacher of None is scratch."""

_PERCENT: dict[tuple[str, str | None], tuple[tuple[int, int, int], ...]] = {
    ("r3d", "c3d"): ((44, 45, 45), (42, 44, 45), (46, 46, 46), (42, 43, 44)),
    ("r3d", "r2plus1d"): ((48, 48, 48), (40, 42, 42), (43, 45, 47), (29, 38, 39)),
    ("r3d", None): ((44, 47, 47), (35, 39, 39), (41, 45, 45), (25, 34, 34)),
    ("c3d", "r3d"): ((51, 55, 55), (55, 56, 56), (50, 54, 54), (26, 44, 44)),
    ("c3d", "r2plus1d"): ((52, 52, 52), (54, 54, 54), (53, 56, 56), (25, 40, 40)),
    ("c3d", None): ((44, 46, 46), (48, 53, 54), (48, 49, 51), (24, 33, 36)),
    ("r2plus1d", "c3d"): ((43, 46, 46), (43, 45, 45), (42, 45, 46), (29, 39, 39)),
    ("r2plus1d", "r3d"): ((48, 48, 48), (41, 44, 45), (45, 46, 46), (28, 36, 36)),
    ("r2plus1d", None): ((41, 44, 44), (41, 44, 44), (40, 45, 47), (24, 38, 38)),
}
_TRANSFER = {
    ("r3d", "c3d"): 0.61,
    ("r3d", "r2plus1d"): 0.62,
    ("r3d", None): 0.60,
    ("c3d", "r3d"): 0.61,
    ("c3d", "r2plus1d"): 0.62,
    ("c3d", None): 0.60,
    ("r2plus1d", "c3d"): 0.62,
    ("r2plus1d", "r3d"): 0.60,
    ("r2plus1d", None): 0.62,
}


@dataclass(frozen=True)
class Published:
    """Fine-tuned action accuracies of another work, on UCF101 and HMDB51. retrieval_top1: on UCF101, None where it is
    not known."""

    network: str
    ucf101: float
    hmdb51: float
    retrieval_top1: float | None = None


PCL = (
    Published("C3D", 0.814, 0.452),
    Published("R3D", 0.811, 0.450),
    Published("R(2+1)D", 0.799, 0.456),
    Published("R3D-18", 0.834, 0.488, 0.551),
)
"""PCL(VCP), Tao, Wang, Yamasaki, arXiv 2010.15464: the whole network fine-tuned."""


def paper_accuracy(student: str, teacher: str | None, fraction: float) -> tuple[float, float, float] | None:
    """The paper's early, mid and late pretext accuracy on UCF101; None where it has none."""
    row = _PERCENT.get((student, teacher))
    if row is None or fraction not in FRACTIONS:
        return None
    early, mid, late = row[FRACTIONS.index(fraction)]
    return early / 100, mid / 100, late / 100


def paper_transfer(student: str, teacher: str | None, fraction: float) -> float | None:
    """The paper's accuracy on HMDB51, which it gives for the whole data only."""
    return _TRANSFER.get((student, teacher)) if fraction == 100 else None


def display(architecture: str) -> str:
    """As in the paper's tables; other architectures under their own names."""
    return DISPLAY.get(architecture, architecture)
