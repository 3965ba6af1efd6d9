"""The YAML files of an operator."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from template.competition import Competition, Incentives, Reward
from template.config import Hyperparameters, TrainingArgs, load_competition, load_incentives, load_training_args
from template.data.chat_templates import template_for
from template.errors import ConfigError
from tests.fixtures.training import make_args

GOOD: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.5,
}


def write(folder: Path, content: str) -> Path:
    path = folder / "args.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def load(folder: Path, **changes: Any) -> TrainingArgs:
    values = {key: value for key, value in {**GOOD, **changes}.items() if value != "absent"}
    return load_training_args(write(folder, yaml.safe_dump({"o/m": values})))


def test_default_training_args_are_the_repositorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "broken").rename(tmp_path / "training_args.yaml")
    monkeypatch.chdir(tmp_path)
    args = load_training_args()
    assert args == dataclasses.replace(
        make_args(), revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306", dtype="bfloat16"
    )
    assert template_for(args.model_id)


def test_training_args_need_no_revision(tmp_path: Path) -> None:
    args = load(tmp_path)
    assert (args.model_id, args.revision) == ("o/m", None)
    assert args.hyperparameters.to_dict() == GOOD
    assert load(tmp_path, revision="v1.0").revision == "v1.0"


def test_training_args_need_no_dtype(tmp_path: Path) -> None:
    assert load(tmp_path).dtype is None
    assert load(tmp_path, dtype="float32").dtype == "float32"
    with pytest.raises(ConfigError, match="dtype must be bfloat16 or float32, not 'float16'"):
        load(tmp_path, dtype="float16")


def test_first_model_is_used_and_all_are_checked(tmp_path: Path) -> None:
    text = yaml.safe_dump({"z/first": GOOD, "a/second": {**GOOD, "lora_rank": 4}}, sort_keys=False)
    assert load_training_args(write(tmp_path, text)).model_id == "z/first"
    with pytest.raises(ConfigError, match=r"a/second.*lora_rank"):
        load_training_args(write(tmp_path, text.replace("lora_rank: 4", "lora_rank: 0")))


@pytest.mark.parametrize("key", [*GOOD, "revision", "dtype"])
@pytest.mark.parametrize("value", ["-1", True, [1], {}, -1, float("nan"), float("inf")])
def test_invalid_value_is_rejected_with_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"args\.yaml: o/m: {key} must be"):
        load(tmp_path, **{key: value})


@pytest.mark.parametrize("key", [key for key in GOOD if key != "lora_dropout"])
@pytest.mark.parametrize("value", [0, 1.0, 1.5, None])
def test_count_must_be_a_positive_integer(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key} must be a positive integer"):
        load(tmp_path, **{key: value})


def test_dropout_must_be_in_zero_to_below_one(tmp_path: Path) -> None:
    assert [load(tmp_path, lora_dropout=value).hyperparameters.lora_dropout for value in (0, 0.999)] == [0.0, 0.999]
    for value in (1, 1.0, -0.001, 10**400):
        with pytest.raises(ConfigError, match="lora_dropout"):
            load(tmp_path, lora_dropout=value)


@pytest.mark.parametrize("revision", ["", "a b", "../main", "-x", "a..b", "x" * 101, 7])
def test_invalid_revision_is_rejected(tmp_path: Path, revision: Any) -> None:
    with pytest.raises(ConfigError, match=r"args\.yaml: o/m: revision must be"):
        load(tmp_path, revision=revision)


def test_unknown_and_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args\.yaml: o/m: unknown key 'lora_rnak'"):
        load(tmp_path, lora_rnak=1)
    for key in GOOD:
        with pytest.raises(ConfigError, match=rf"args\.yaml: o/m: key '{key}' is missing"):
            load(tmp_path, **{key: "absent"})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "text", "{}", "o/m:", "o/m: []", "nameonly: {lora_rank: 1}", "7: {lora_rank: 1}", "? [a]\n: 1"),
        *("? {a: b}\n: 1", "a: [", "a: !!python/object/apply:os.getcwd []", "a: b: c", "a: 2024-99-99"),
        *("\t\t: x", "a: &x {<<: *x}", "--- {}\n--- {}"),
    ],
)
def test_file_of_another_shape_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"args\.yaml: "):
        load_training_args(write(tmp_path, text))


def test_duplicate_key_is_rejected_at_any_depth(tmp_path: Path) -> None:
    text = yaml.safe_dump({"o/m": GOOD})
    with pytest.raises(ConfigError, match="duplicate key 'lora_rank'"):
        load_training_args(write(tmp_path, text + "  lora_rank: 8\n"))
    with pytest.raises(ConfigError, match="duplicate key 'o/m'"):
        load_training_args(write(tmp_path, text + text))


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        load_training_args(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_competition(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        load_competition(tmp_path / "latin.yaml")


@pytest.mark.parametrize("key", GOOD)
def test_digest_changes_with_every_hyperparameter(key: str) -> None:
    first = Hyperparameters(**GOOD)
    assert Hyperparameters(**dict(reversed(GOOD.items()))).digest == first.digest
    assert dataclasses.replace(first, **{key: GOOD[key] / 2 if key == "lora_dropout" else 99}).digest != first.digest


def test_digest_ignores_the_spelling_of_zero() -> None:
    digests = {Hyperparameters(**(GOOD | {"lora_dropout": zero})).digest for zero in (0, 0.0)}
    assert len(digests) == 1


def test_default_competition_is_the_subnets_own() -> None:
    assert load_competition(None) == load_competition() == Competition.from_defaults()


def test_competition_file_replaces_the_defaults(tmp_path: Path) -> None:
    mine = dataclasses.replace(Competition.from_defaults(), id="x", bench=5.0, minb=4.0, maxb=6.0, rows=10)
    assert load_competition(write(tmp_path, yaml.safe_dump(mine.to_dict()))) == mine


def test_invalid_competition_file_is_named_with_its_field(tmp_path: Path) -> None:
    values = Competition.from_defaults().to_dict()
    with pytest.raises(ConfigError, match=r"args\.yaml: competition\.id must be text, not 1"):
        load_competition(write(tmp_path, yaml.safe_dump({**values, "id": 1})))
    with pytest.raises(ConfigError, match=r"args\.yaml: key 'pow' is missing"):
        load_competition(write(tmp_path, yaml.safe_dump({k: v for k, v in values.items() if k != "pow"})))


def write_incentives(folder: Path, incentives: object) -> Path:
    values = {**Competition.from_defaults().to_dict(), "incentives": incentives}
    return write(folder, yaml.safe_dump(values))


def test_incentives_of_a_file_replace_the_defaults(tmp_path: Path) -> None:
    path = write_incentives(tmp_path, {"reward": "winner", "slots": 7})
    assert load_incentives(path) == Incentives(reward=Reward.WINNER, slots=7)
    assert load_competition(path) == Competition.from_defaults(), "the competition's own keys are the same"


def test_file_without_incentives_has_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(Competition.from_defaults().to_dict()))
    assert load_incentives(path) == load_incentives() == Incentives()


@pytest.mark.parametrize(
    ("incentives", "message"),
    [
        ({"slots": 0}, r"args\.yaml: incentives\.slots must be an integer of at least 1, not 0"),
        ({"reward": "linear"}, r"args\.yaml: incentives\.reward must be one of improvement, proportional, winner"),
        ({"evaluations": 200}, r"args\.yaml: incentives\.hold must be at least evaluations \(200\), not 128"),
        ({"epsilom": 1}, r"args\.yaml: incentives: unknown key 'epsilom'; the keys are reward, seeds, epsilon"),
        ([1], r"args\.yaml: incentives: expected a mapping"),
        (None, r"args\.yaml: incentives: expected a mapping"),
    ],
)
def test_invalid_incentives_are_named_with_file_and_key(tmp_path: Path, incentives: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_incentives(write_incentives(tmp_path, incentives))


def test_relative_path_is_resolved_by_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, yaml.safe_dump({"o/m": GOOD}))
    monkeypatch.chdir(tmp_path)
    assert load_training_args(Path(os.curdir) / path.name).model_id == "o/m"
