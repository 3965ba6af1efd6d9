"""Checks of the Hub, the token, the evaluation set and the model, without a download."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import get_session

from template.competition import Competition
from template.errors import ConfigError, RemoteError, SubmissionError
from template.hub.client import make_api, run_with_deadline, translate_hub_errors
from template.hub.listing import HubFileInfo, find_file

DEADLINE_S = 20.0
_NAME = re.compile(r"[\w.-]{1,96}")


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of a token.

    role: "read", "write", "fineGrained" or "unknown", of the token. names: its own, then those of its organisations.
    """

    role: str
    names: tuple[str, ...]


def check_reachable(*, endpoint: str | None = None) -> str:
    """Check that the Hub answers, with whatever it is; return its address. Raises: RemoteError; ConfigError."""
    api = make_api(None, endpoint)

    def ask(_: object) -> None:
        with translate_hub_errors(api, "its own address"):
            get_session().head(api.endpoint)

    run_with_deadline(api, DEADLINE_S, ask)
    return api.endpoint


def read_account(token: str, *, endpoint: str | None = None) -> Account:
    """Return the account of a token. Raises: HostError for a refused one; RemoteError."""
    api = make_api(token, endpoint)

    def ask(_: object) -> Account:
        with translate_hub_errors(api, "this token's account"):
            answer: dict[str, Any] = api.whoami()
            names = [answer["name"], *(org["name"] for org in answer.get("orgs", ()))]
            if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
                raise RemoteError("the Hub sent an unexpected answer about this token's account")
            token_info = answer.get("auth", {}).get("accessToken", {})
            return Account(role=str(token_info.get("role", "unknown")), names=tuple(names))

    return run_with_deadline(api, DEADLINE_S, ask)


def list_eval_set(competition: Competition, token: str | None, *, endpoint: str | None = None) -> HubFileInfo:
    """Return the Hub's listing of the evaluation set. Raises: ConfigError where it has none; HostError; RemoteError."""
    api = make_api(token, endpoint)
    try:
        return run_with_deadline(
            api, DEADLINE_S, lambda budget: find_file(api, competition.repo, competition.eval_commit, None, budget)
        )
    except SubmissionError as error:
        raise ConfigError(f"cannot download the competition's evaluation set: {error}") from error


def check_model_listed(model_id: str, revision: str | None, token: str | None, *, endpoint: str | None = None) -> None:
    """Check that the Hub has a model. Raises: ConfigError where it has none; HostError; RemoteError."""
    api = make_api(token, endpoint)

    def ask(_: object) -> None:
        with translate_hub_errors(api, model_id):
            api.model_info(model_id, revision=revision, expand=["sha"])

    try:
        run_with_deadline(api, DEADLINE_S, ask)
    except SubmissionError as error:
        at = f"{model_id} at {revision or 'main'}"
        raise ConfigError(f"training_args: the Hub has no readable model {at}: {error}") from error


def find_model(model_id: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    """Return the folder of a downloaded model, None without one."""
    path = huggingface_hub.try_to_load_from_cache(model_id, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(path).parent if isinstance(path, str) else None
