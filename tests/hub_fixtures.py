"""Datasets on a local hub, and the product's download of them, for the tests of the Hub seam."""

from pathlib import Path

import pytest

from template import constants, dataset_folder, hub
from template.dataset_folder import Request
from template.errors import SubmissionError
from template.localnet.hub_server import HubServer
from template.localnet.hub_store import publish

REPO = "alice/talk"
TOKEN = "hf_local_alice"
OLD = b'{"conversations": []}\n' * 200
NEW = b'{"conversations": ["new"]}\n' * 300
DATA = constants.DATA_FILE


def seed(server: HubServer, content: bytes = OLD, *, repo: str = REPO, private: bool = False) -> str:
    return publish(server.store.root, repo, {DATA: content}, private=private)


def fetch(server: HubServer, revision: str, folder: Path, **options: object) -> hub.HubFile:
    repo = str(options.pop("repo", REPO))
    return hub.download_dataset(repo, revision, folder, endpoint=server.endpoint, **options)  # type: ignore[arg-type]


def claims(folder: Path, revision: str) -> bool:
    request = Request(repo=REPO, revision=revision, filename=DATA)
    return dataset_folder.find(folder, request) is not None


def refusal(server: HubServer, revision: str, folder: Path, **options: object) -> SubmissionError:
    with pytest.raises(SubmissionError) as caught:
        fetch(server, revision, folder, **options)
    return caught.value
