"""The two YAML files an operator may write: the training arguments and, for another subnet, a competition."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import yaml

from template.competition import Competition, is_commit, is_repo_id
from template.errors import ConfigError

_DEFAULT_TRAINING_ARGS = Path(__file__).resolve().parent.parent / "training_args.yaml"
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How a dataset trains the model; everything else about training is fixed in `template.train`.

    Raises: ConfigError when a value makes no sense, naming the key.
    """

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_train_epochs: int
    lora_rank: int
    lora_alpha: int
    lora_dropout: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "lora_dropout":
                object.__setattr__(self, field.name, _as_dropout(value))
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field.name} must be a positive whole number, not {value!r}")

    def to_dict(self) -> dict[str, int | float]:
        """The values by key, as the file has them."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """sha256 in hex over the canonical JSON of all values: equal exactly when they are."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _as_dropout(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"lora_dropout must be a number from 0 to below 1, not {value!r}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """The base model and how it trains. model_id: on the Hub. revision: a commit, branch or tag; None is the newest.

    Raises: ConfigError when the id or the revision cannot be one.
    """

    model_id: str
    revision: str | None
    hyperparameters: Hyperparameters

    def __post_init__(self) -> None:
        if not is_repo_id(self.model_id):
            raise ConfigError(f"expected a model's Hub id like owner/name, not {self.model_id!r}")
        revision = self.revision
        if revision is None:
            return
        if not isinstance(revision, str) or not _REVISION.fullmatch(revision) or ".." in revision:
            raise ConfigError(f"revision must be a commit, branch or tag in quotes, not {revision!r}")

    @property
    def is_pinned(self) -> bool:
        """True when the revision is a full commit, which nobody can make another model of."""
        return self.revision is not None and is_commit(self.revision)


def load_training_args(path: Path | None = None) -> TrainingArgs:
    """The first model of the file at `path` and its hyperparameters; by default, those of this repository.

    The file maps one or more model ids to their hyperparameters; all are checked, the first is taken.
    Raises: ConfigError naming file and key.
    """
    path = _DEFAULT_TRAINING_ARGS if path is None else path
    models = _load_mapping(path)
    if not models:
        raise ConfigError(f"{path}: expected a model's Hub id as the first key")
    checked = [_read_model(path, model_id, values) for model_id, values in models.items()]
    return checked[0]


def load_competition(path: Path | None = None) -> Competition:
    """The competition that the file at `path` spells out; by default, the subnet's own. Raises: ConfigError."""
    if path is None:
        return Competition.from_defaults()
    return Competition.from_mapping(_load_mapping(path), str(path))


def _read_model(path: Path, model_id: object, values: object) -> TrainingArgs:
    required = [field.name for field in dataclasses.fields(Hyperparameters)]
    known = [*required, "revision"]
    where = f"{path}: {model_id}"
    if not isinstance(model_id, str):
        raise ConfigError(f"{where}: expected a model's Hub id like owner/name as the key")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping with the keys {', '.join(required)}")
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}")
    if missing := [key for key in required if key not in values]:
        raise ConfigError(f"{where}: key {missing[0]!r} is missing")
    try:
        return TrainingArgs(
            model_id=model_id,
            revision=values.get("revision"),
            hyperparameters=Hyperparameters(**{key: values[key] for key in required}),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]  # PyYAML's stubs are a package apart
    """Plain YAML values only, each key of a mapping once: a second one would silently win otherwise."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: list[object] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.append(key)
        mapping: dict[Hashable, object] = super().construct_mapping(node, deep=deep)
        return mapping


def _load_mapping(path: Path) -> dict[object, object]:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value
