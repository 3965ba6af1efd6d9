"""Compare what a loss depends on with the newest round."""

from template.errors import HostError
from template.validator.context import Context


def changed_inputs(context: Context, model: str, hyperparameters: str) -> list[str]:
    """Describe the inputs of a loss that changed since the newest round."""
    last = context.store.last_inputs()
    if last is None:
        return []
    competition, old_hyperparameters, old_model = last
    new_competition = context.config.competition.to_dict()
    changes = [
        f"{key} of the competition is {value!r}, was {competition.get(key)!r}"
        for key, value in new_competition.items()
        if competition.get(key) != value
    ]
    if hyperparameters != old_hyperparameters:
        changes.append("the training arguments changed")
    if model != old_model:
        changes.append(f"losses are now of {model!r}, before of {old_model!r}")
    return changes


def check_device_unchanged(context: Context, model: str) -> None:
    """Check that a GPU was not lost since the newest round. Raises: HostError."""
    before = context.store.last_model()
    is_lost = before is not None and _device_of(before) == "cuda" and _device_of(model) != "cuda"
    if is_lost and not context.config.is_device_chosen:
        raise HostError(
            "evaluations ran on a GPU before, and no GPU is found; use --device cpu to continue without one"
        )


def is_on_cpu(model: str) -> bool:
    """Check whether the losses of a model are computed on a CPU."""
    return _device_of(model) == "cpu"


def _device_of(model: str) -> str:
    return model.split(" ")[1] if " " in model else ""
