"""Settings: every value that cannot be gives one sentence; recipes lie under flags and over defaults."""

import dataclasses
import math
from pathlib import Path

import pytest

from trainer.command import parse
from trainer.config import ConfigError, RunConfig, from_json, load_recipe

RECIPES = sorted((Path(__file__).parents[3] / "deploy" / "recipes").glob("*.toml"))
BAD = {
    "student": ["resnet", ""],
    "modality": ["flow"],
    "shuffle": ["none"],
    "schedule": ["linear"],
    "student_precision": ["float16"],
    "step_epochs": [0],
    "step_factor": [0.0, 1.0],
    "grad_clip": [-1.0, math.nan],
    "early_stop": [-1],
    "keep_checkpoints": [0],
    "eval_every": [-1],
    "fraction": [0.0, -1.0, 100.5, math.nan],
    "subset_seed": [-1, 2**63],
    "pretext_operation": ["no such name"],
    "device": ["tpu"],
    "teacher_transport": ["grpc"],
    "teacher_input": ["tensor"],
    "teacher_dtype": ["bfloat16"],
    "on_teacher_loss": ["ignore"],
    "ledger": ["on"],
    "resume": ["always"],
    "width": [0.0, -1.0, math.nan, math.inf, 5.0],
    "clip_len": [0, -1],
    "crop": [0, 30, 57],
    "epochs": [0],
    "lr": [0.0, math.nan],
    "contrast_temperature": [0.0],
    "contrast_mode": ["queue"],
    "bank_negatives": [0],
    "bank_momentum": [-0.1, 1.0],
    "kd_schedule": ["cosine"],
    "kd_target": ["student"],
    "teacher_head": ["features"],
    "teacher_classes": [-1],
    "teacher_feature_size": [-1],
    "hint_weight": [-1.0, math.nan],
    "ce_weight": [-1.0],
    "extra_loss": ["no such name"],
    "extra_loss_weight": [-1.0],
    "temperature": [-4.0, math.inf],
    "threads": [0],
    "teacher_replicas": [0],
    "teacher_max_replicas": [-1],
    "teacher_memory_mb": [0],
    "teacher_weight": [0.0, math.nan, 100.5],
    "views_per_video": [-1],
    "prefetch": [0],
    "teacher_timeout_s": [0.0],
    "teacher_budget_s": [-1.0],
    "eval_tuples": [0],
    "eval_clips": [0],
    "interval": [-1],
    "max_steps": [-1],
    "momentum": [-0.1],
    "weight_decay": [math.nan],
    "alpha": [-0.5],
    "kd_weight": [-1.0],
    "num_workers": [-1],
    "checkpoint_every": [-1],
    "teacher_cpus": [-1.0],
    "teacher_gpus": [-1.0],
    "min_lr": [-1e-5],
    "plateau_patience": [-1],
    "val_fraction": [0.0, 1.0, math.nan],
    "plateau_factor": [0.0, 1.0, 1.5, math.nan],
    "batch_size": [0, 1],
    "seed": [-1, 2**63],
    "view_seed": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_cannot_be_is_refused_in_one_sentence_that_names_it(name, value):
    with pytest.raises(ConfigError) as caught:
        RunConfig(**{name: value})
    text = str(caught.value)
    assert "\n" not in text
    assert name in text or (name in ("seed", "view_seed") and "seeds" in text)
    assert str(value) in text


def test_a_batch_has_a_tuple_for_every_worker():
    RunConfig(batch_size=3, num_workers=3)
    with pytest.raises(ConfigError, match="a tuple per worker, got 3"):
        RunConfig(batch_size=3, num_workers=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_transport": "http"}, "--teacher-transport http and --gateway URL belong together"),
        ({"gateway": "http://127.0.0.1:8000"}, "--teacher-transport http and --gateway URL belong together"),
        ({"teacher_replicas": 3, "teacher_max_replicas": 2}, "teacher_max_replicas must be at least .*, got 2 < 3"),
        ({"student_precision": "bfloat16", "device": "cpu"}, "--student-precision bfloat16 needs a GPU: on the CPU"),
        ({"on_teacher_loss": "replay"}, "--on-teacher-loss replay goes on with a ledger: add --ledger auto or record"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "asks", "deploys", "library"),
    [
        ({}, True, True, True),
        ({"teacher": "none"}, False, False, False),
        ({"teacher_transport": "in_process"}, False, False, True),
        ({"teacher_transport": "http", "gateway": "http://127.0.0.1:8000"}, True, False, False),
        ({"teacher_transport": "http", "gateway": "http://127.0.0.1:8000", "ledger": "replay"}, False, False, True),
        ({"ledger": "replay"}, False, False, True),
        ({"ledger": "auto"}, True, True, True),
    ],
)
def test_what_a_run_needs_besides_its_students(fields, asks, deploys, library):
    config = RunConfig(**fields)
    assert (config.asks_service, config.may_deploy, config.needs_library) == (asks, deploys, library)


def test_every_number_field_is_checked_by_some_rule():
    numbers = {field.name for field in dataclasses.fields(RunConfig) if type(field.default) in (int, float)}
    assert numbers == numbers & BAD.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    assert isinstance(load_recipe(path), RunConfig)


def test_there_are_the_recipes_that_the_documentation_names():
    assert {"demo", "paper", "pcl", "teacher"} <= {path.stem for path in RECIPES}


def test_flags_go_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('student = "c3d"\nepochs = 9\nlr = 1\n')
    for argv in (["--recipe", str(recipe), "--epochs", "4"], ["--epochs", "4", f"--recipe={recipe}"]):
        config = parse(argv).config
        assert (config.student, config.epochs, config.lr) == ("c3d", 4, 1.0)
        assert config == dataclasses.replace(RunConfig(), student="c3d", epochs=4, lr=1.0)


def test_every_field_is_a_flag():
    argv = ["--no-contrast", "--any-swap", "--shuffle", "remote", "--kd-weight", "0.5", "--run-id", "x", "--seed", "3"]
    expected = RunConfig(contrast=False, any_swap=True, shuffle="remote", kd_weight=0.5, run_id="x", seed=3)
    assert parse(argv).config == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3\n", "recipe .*: there is no setting 'epoch'"),
        ("epochs = 3.5\n", "recipe .*: epochs must be int, got 3.5"),
        ("epochs = true\n", "epochs must be int, got True"),
        ("contrast = 1\n", "contrast must be bool, got 1"),
        ('lr = "0.1"\n', "lr must be float, got '0.1'"),
        ("lr = nan\n", "lr must be a finite number > 0, got nan"),
        ("epochs = \n", "is not TOML"),
        ('student = "resnet"\n', "student must be one of c3d, r3d, r2plus1d, r3d_18, .* or your own as"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_name_and_the_field(tmp_path, text, message):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(recipe)
    assert str(recipe) in str(caught.value)


def test_a_recipe_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"mine.toml cannot be read: No such file"):
        load_recipe(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(tmp_path / "mine.toml")


def test_json_round_trip():
    config = RunConfig(teacher="c3d@2", lr=0.5, any_swap=True, run_id="x")
    assert from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": "x"},
        {"resume": "never"},
        {"log_views": True},
        {"teacher_timeout_s": 1.0},
        {"keep_checkpoints": 9},
        {"eval_every": 1},
    ],
)
def test_the_identity_ignores_what_changes_nothing_in_the_training(fields):
    assert RunConfig(**fields).identity() == RunConfig().identity()


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"view_seed": 1}, {"teacher": "none"}, {"lr": 0.02}, {"epochs": 7}, {"num_workers": 2}]
)
def test_the_identity_changes_with_what_changes_the_training(fields):
    assert RunConfig(**fields).identity() != RunConfig().identity()


def test_the_teacher_is_an_alias_a_version_or_none():
    assert RunConfig(teacher="none").teacher_ref is None
    assert str(RunConfig(teacher="c3d").teacher_ref) == "c3d"
    assert RunConfig(teacher="c3d@2").teacher_ref.version == 2


def test_the_recipe_of_pcl_is_pcl():
    config = load_recipe(next(path for path in RECIPES if path.stem == "pcl"))
    assert (config.contrast_mode, config.bank_negatives, config.bank_momentum) == ("memory_bank", 1024, 0.5)
    assert (config.any_swap, config.shuffle, config.clip_len, config.modality) == (True, "remote", 16, "res")
    assert (config.contrast_temperature, config.alpha, config.clip_spec.tuple_span) == (0.07, 0.5, 64)


def test_the_recipe_of_the_paper_is_the_papers_setting():
    config = load_recipe(next(path for path in RECIPES if path.stem == "paper"))
    assert (config.contrast_mode, config.any_swap, config.shuffle) == ("in_batch", False, "segment_copy")
    assert (config.clip_len, config.interval, config.clip_spec.tuple_span) == (10, 8, 46)
    assert (config.kd_weight, config.kd_schedule, config.temperature, config.alpha) == (1.0, "constant", 4.0, 0.5)
    assert (config.epochs, config.batch_size, config.lr, config.weight_decay) == (200, 16, 0.01, 5e-4)
