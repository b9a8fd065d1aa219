"""What a run knows of its teacher beforehand, from the card or from the settings, and what it refuses."""

import dataclasses

import pytest

from trainer.config import ConfigError
from trainer.teacher_facts import TeacherFacts, student_action_classes, teacher_facts

ACTIONS = ("bow", "kick", "wave")
BEHIND = {"teacher_transport": "http", "gateway": "http://127.0.0.1:8000"}


def facts(config, **fields):
    return teacher_facts(dataclasses.replace(config, **fields))


@pytest.mark.usefixtures("home")
def test_the_card_says_it(config):
    assert facts(config) is None
    alpha, beta = facts(config, teacher="alpha"), facts(config, teacher="beta")
    assert (alpha.head, alpha.num_classes, alpha.feature_size, alpha.views_per_item) == ("pretext", 5, 64, 3)
    assert (beta.head, beta.classes, beta.feature_size, beta.views_per_item) == ("action", ACTIONS, 64, 1)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_head": "pretext"}, "teacher_head is pretext, the card of teacher beta says action"),
        ({"teacher_classes": 4}, "teacher_classes is 4, the card of teacher beta says 3"),
        ({"teacher_feature_size": 9}, "teacher_feature_size is 9, the card of teacher beta says 64"),
        ({"kd_target": "smoothed"}, "--kd-target smoothed goes by the pretext label, teacher beta has an action head"),
    ],
)
def test_settings_that_contradict_the_card_are_refused(config, fields, message):
    assert facts(config, teacher="beta", teacher_head="action", teacher_classes=3) is not None
    with pytest.raises(ConfigError, match=message):
        facts(config, teacher="beta", **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, TeacherFacts()),
        ({"teacher_head": "pretext", "teacher_classes": 5}, TeacherFacts()),
        ({"hint_weight": 1.0, "teacher_feature_size": 64}, TeacherFacts(feature_size=64)),
        ({"teacher_head": "action", "teacher_classes": 101}, TeacherFacts("action", 101)),
    ],
)
def test_behind_a_gateway_the_settings_say_it(config, fields, expected):
    assert facts(config, teacher="alpha", **BEHIND, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hint_weight": 1.0}, "need --teacher-feature-size"),
        ({"log_cka": True}, "need --teacher-feature-size"),
        ({"teacher_head": "action"}, "needs --teacher-classes, at least 2"),
        ({"teacher_classes": 101}, r"has 5 classes, got teacher_classes 101: is it an action teacher"),
    ],
)
def test_behind_a_gateway_what_the_settings_must_say_is_asked_for(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        facts(config, teacher="alpha", **BEHIND, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hint_weight": 1.0}, "--hint-weight needs a teacher"),
        ({"log_cka": True}, "--log-cka compares with a teacher's features"),
        ({"kd_target": "smoothed_mean"}, "--kd-target smoothed_mean is made of a teacher's answers"),
    ],
)
def test_what_is_made_of_a_teacher_needs_one(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        facts(config, **fields)


@pytest.mark.usefixtures("home")
def test_a_control_is_not_mixed_with_the_teachers_true_features(config):
    with pytest.raises(ConfigError, match="of which the control --kd-target shuffled must know nothing"):
        facts(config, teacher="alpha", kd_target="shuffled", hint_weight=1.0)
    assert facts(config, teacher="alpha", kd_target="shuffled") is not None


def test_the_action_head_has_the_classes_of_the_teacher_or_of_the_store(config):
    supervised = dataclasses.replace(config, ce_weight=1.0)
    teacher = TeacherFacts("action", 3, 8, ACTIONS)
    for settings, facts_of, store_classes, expected in (
        (config, None, ACTIONS, 0),
        (config, TeacherFacts(), ACTIONS, 0),
        (config, teacher, ("left", "right"), 3),
        (supervised, None, ("left", "right"), 2),
        (supervised, TeacherFacts(), ("left", "right"), 2),
        (supervised, teacher, ACTIONS, 3),
        (supervised, TeacherFacts("action", 3), ACTIONS, 3),
    ):
        assert student_action_classes(settings, facts_of, store_classes) == expected
    for other in (("bow", "wave", "kick"), ("left", "right")):
        with pytest.raises(ConfigError, match="share one action head"):
            student_action_classes(supervised, teacher, other)
