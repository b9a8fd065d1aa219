"""What a run must know of its teacher before the first answer: from its card, or behind a gateway from the settings.

    library    the card of any version of the alias: all of them have one signature
    gateway    the library behind it is not to be seen from here: --teacher-head, --teacher-classes,
               --teacher-feature-size say it, and the service's answers are checked against it

Needs neither torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.errors import DataError
from data.home import store_path, teachers_folder
from data.store import ClipStore
from data.views import VIEWS_PER_TUPLE
from teacher_server.card import PRETEXT_CLASSES, Card, numbered_classes
from teacher_server.errors import TeacherError
from teacher_server.library import TeacherLibrary
from trainer.config import ConfigError, RunConfig


@dataclass(frozen=True)
class TeacherFacts:
    """head: what an answer is about, a tuple of 3 clips (pretext) or its first clip (action). feature_size: 0 when
    unknown. classes: their names in order, empty when unknown."""

    head: Literal["pretext", "action"] = "pretext"
    num_classes: int = len(PRETEXT_CLASSES)
    feature_size: int = 0
    classes: tuple[str, ...] = ()

    @property
    def views_per_item(self) -> int:
        """Clips that one answer is about."""
        return VIEWS_PER_TUPLE if self.head == "pretext" else 1


def teacher_facts(config: RunConfig) -> TeacherFacts | None:
    """None for scratch. Raises TeacherError or ConfigError, a sentence, unless the run can learn from its teacher."""
    ref = config.teacher_ref
    if ref is None:
        _check_scratch(config)
        return None
    if config.needs_library:
        library = TeacherLibrary(teachers_folder())
        facts = _of_card(library.entry(library.first(ref)).card, config)
    else:
        facts = _of_settings(config)
    if facts.head == "action" and config.kd_target != "teacher":
        raise ConfigError(
            f"--kd-target {config.kd_target} goes by the pretext label, teacher {config.teacher} has an action head"
        )
    if config.hint_weight > 0 and config.kd_target != "teacher":
        raise ConfigError(
            f"--hint-weight follows the teacher's true features, of which the control --kd-target {config.kd_target} "
            "must know nothing: leave one of the two out"
        )
    return facts


def student_action_classes(config: RunConfig, teacher: TeacherFacts | None, store_classes: tuple[str, ...]) -> int:
    """Classes of the student's action head: those of an action teacher, or the store's for the supervised term; 0 for
    no such head. Raises ConfigError when both are wanted and are not the same classes."""
    of_teacher = teacher.num_classes if teacher is not None and teacher.head == "action" else 0
    if config.ce_weight == 0:
        return of_teacher
    if teacher is not None and of_teacher:
        differ = of_teacher != len(store_classes) or (teacher.classes and teacher.classes != store_classes)
        if differ:
            raise ConfigError(
                f"--ce-weight and teacher {config.teacher} share one action head, but the teacher's {of_teacher} "
                f"classes are not the store's {len(store_classes)}: use one of the two, or a teacher of these classes"
            )
    return len(store_classes)


def action_class_names(config: RunConfig, count: int) -> tuple[str, ...]:
    """What the `count` classes of a run's action head are called: by its action teacher or, with the supervised term,
    by its store. Numbers where these are not to be had here any more."""
    try:
        facts = None if config.teacher_ref is None else teacher_facts(config)
        if facts is not None and facts.head == "action" and len(facts.classes) == count:
            return facts.classes
        store_classes = ClipStore.open(store_path(config.store)).classes
    except (TeacherError, DataError, ConfigError):
        return numbered_classes(count)
    return store_classes if config.ce_weight > 0 and len(store_classes) == count else numbered_classes(count)


def _check_scratch(config: RunConfig) -> None:
    """Raises ConfigError for what means nothing without a teacher."""
    if config.hint_weight > 0:
        raise ConfigError("--hint-weight needs a teacher whose features to follow: give one with --teacher")
    if config.log_cka:
        raise ConfigError("--log-cka compares with a teacher's features: give one with --teacher, or leave it out")
    if config.kd_target != "teacher":
        raise ConfigError(
            f"--kd-target {config.kd_target} is made of a teacher's answers: give one with --teacher, or leave it out"
        )


def _of_card(card: Card, config: RunConfig) -> TeacherFacts:
    """Raises TeacherMismatch, ConfigError."""
    card.check_fits(
        config.teacher, config.clip_spec, operation=config.pretext_operation, shuffle=config.shuffle_variant
    )
    said = (
        ("teacher_head", "" if config.teacher_head == "auto" else config.teacher_head, card.head),
        ("teacher_classes", config.teacher_classes, len(card.classes)),
        ("teacher_feature_size", config.teacher_feature_size, card.feature_size),
    )
    for name, wanted, found in said:
        if wanted and wanted != found:
            raise ConfigError(f"{name} is {wanted}, the card of teacher {config.teacher} says {found}: leave it out")
    return TeacherFacts(card.head, len(card.classes), card.feature_size, card.classes)


def _of_settings(config: RunConfig) -> TeacherFacts:
    """Raises ConfigError when they do not say enough."""
    if config.wants_features and not config.teacher_feature_size:
        raise ConfigError("--hint-weight and --log-cka with a teacher behind a gateway need --teacher-feature-size")
    if config.teacher_head != "action":
        if config.teacher_classes not in (0, len(PRETEXT_CLASSES)):
            raise ConfigError(
                f"a pretext teacher has {len(PRETEXT_CLASSES)} classes, got teacher_classes {config.teacher_classes}: "
                "is it an action teacher (--teacher-head action)?"
            )
        return TeacherFacts(feature_size=config.teacher_feature_size)
    if config.teacher_classes < 2:
        raise ConfigError("--teacher-head action with a teacher behind a gateway needs --teacher-classes, at least 2")
    return TeacherFacts("action", config.teacher_classes, config.teacher_feature_size)
