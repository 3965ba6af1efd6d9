"""The YAML files of an operator: training arguments and competition."""

import dataclasses
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import yaml

from template.competition import Competition, Incentives, canonical_digest, check_keys, is_commit, is_repo_id
from template.errors import ConfigError

_DEFAULT_TRAINING_ARGS = Path(__file__).with_name("training_args.yaml")
_INCENTIVES = "incentives"

DTYPES = ("bfloat16", "float32")
"""Types of the base model's weights."""

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of the fine-tuning; ConfigError names an invalid key."""

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
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                    raise ConfigError(f"lora_dropout must be a number in [0, 1), not {value!r}")
                object.__setattr__(self, field.name, float(value))
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field.name} must be a positive integer, not {value!r}")

    def to_dict(self) -> dict[str, int | float]:
        """Return the values by key, as in the file."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """sha256 over all values, in hex."""
        return canonical_digest(self.to_dict())


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """The base model and its hyperparameters.

    Without a revision, the newest weights; without a dtype, that which the device computes fast.
    """

    model_id: str
    revision: str | None
    hyperparameters: Hyperparameters
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not is_repo_id(self.model_id):
            raise ConfigError(f"expected a model's Hub id like owner/name, not {self.model_id!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be {' or '.join(DTYPES)}, not {self.dtype!r}")
        revision = self.revision
        if revision is None:
            return
        if not isinstance(revision, str) or not _REVISION.fullmatch(revision) or ".." in revision:
            raise ConfigError(f"revision must be a commit, branch or tag in quotes, not {revision!r}")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit, which always names the same weights."""
        return self.revision is not None and is_commit(self.revision)


def load_training_args(path: Path | None = None) -> TrainingArgs:
    """Load a file's first model and check all. Raises: ConfigError naming the key."""
    path = _DEFAULT_TRAINING_ARGS if path is None else path
    models = _load_mapping(path)
    if not models:
        raise ConfigError(f"{path}: expected a model's Hub id as the first key")
    checked = [_read_model(f"{path}: {model_id}", model_id, values) for model_id, values in models.items()]
    return checked[0]


def load_competition(path: Path | None = None) -> Competition:
    """Load a competition file, by default this subnet's; raises ConfigError."""
    if path is None:
        return Competition.from_defaults()
    values = {key: value for key, value in _load_mapping(path).items() if key != _INCENTIVES}
    return Competition.from_mapping(values, str(path))


def load_incentives(path: Path | None = None) -> Incentives:
    """Load the `incentives` of a competition file.

    A setting missing from the file gets this subnet's value.

    Raises: ConfigError.
    """
    if path is None:
        return Incentives()
    source = f"{path}: {_INCENTIVES}"
    optional = [field.name for field in dataclasses.fields(Incentives)]
    values = check_keys(_load_mapping(path).get(_INCENTIVES, {}), source, (), optional)
    try:
        return Incentives(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_model(source: str, model_id: object, values: object) -> TrainingArgs:
    if not isinstance(model_id, str):
        raise ConfigError(f"{source}: expected a model's Hub id like owner/name as the key")
    required = [field.name for field in dataclasses.fields(Hyperparameters)]
    checked = dict(check_keys(values, source, required, ["revision", "dtype"]))
    revision, dtype = checked.pop("revision", None), checked.pop("dtype", None)
    try:
        return TrainingArgs(
            model_id=model_id, revision=revision, hyperparameters=Hyperparameters(**checked), dtype=dtype
        )
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]  # PyYAML's stubs are a separate package
    """Safe loader that rejects duplicate keys, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: list[object] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
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
