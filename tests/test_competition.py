"""The competition and the commitment record."""

import dataclasses
import math
from typing import Any

import pytest

from template import constants
from template.competition import CommitmentRecord, Competition, Incentives, Reward, Seeds, is_repo_id
from template.errors import ConfigError, Reason, SubmissionError

SHA = "784fbf1e78d16c512750e3bb5391fa6b338818ae"
SHA256 = "0f" * 32
DEFAULT = Competition.from_defaults()


@pytest.mark.parametrize("repo", ["o/d", "Owner-1/data_set.v2", "a/" + "b" * 94, "0/x_"])
def test_hub_id_is_recognized(repo: str) -> None:
    assert is_repo_id(repo)


@pytest.mark.parametrize(
    "repo",
    [
        *("", "d", "/d", "o/", "o/d/e", "o//d", "-o/d", "o-/d", ".o/d", "o./d", "o/.d", "o/d.", "o/d-", "o/a--b"),
        *("o/a..b", "o/d.git", "o/d e", "o/d\n", "o/d:e", "ö/d", "o/d\0", "../d", "o/..", "a/" + "b" * 95, "o/d?x"),
        *("o\\d", "@o/d"),
    ],
)
def test_other_text_is_no_hub_id(repo: str) -> None:
    assert not is_repo_id(repo)


def test_default_competition_is_that_of_the_protocol() -> None:
    assert DEFAULT.to_dict() == {
        "id": "1",
        "repo": "flock-io/flock-off-s1-character-roleplay",
        "eval_commit": SHA,
        "bench": 2.60,
        "minb": 2.40,
        "maxb": 2.80,
        "bheight": 0.05,
        "pow": 2.0,
        "rows": 250,
    }
    assert constants.eval_commit == SHA


def test_competition_survives_a_round_trip() -> None:
    again = Competition.from_mapping(DEFAULT.to_dict(), "file")
    assert again == DEFAULT
    assert again.digest == DEFAULT.digest


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Competition)])
def test_digest_changes_with_every_field(field: str) -> None:
    other: dict[str, Any] = {
        "id": "2",
        "repo": "o/d",
        "eval_commit": "a" * 40,
        "bench": 2.5,
        "minb": 2.3,
        "maxb": 2.9,
        "bheight": 0.06,
        "pow": 3,
        "rows": 251,
    }
    assert dataclasses.replace(DEFAULT, **{field: other[field]}).digest != DEFAULT.digest


def test_digest_ignores_int_or_float() -> None:
    assert dataclasses.replace(DEFAULT, pow=2).digest == dataclasses.replace(DEFAULT, pow=2.0).digest


INVALID: dict[str, list[Any]] = {
    "id": [1, "", "a:b", "x" * 33, "1\n"],
    "repo": ["nameonly", None],
    "eval_commit": ["main", SHA[:-1], SHA.upper(), SHA + "\n"],
    "bench": ["2.6", True, math.nan, 2.8],
    "minb": [2.6, -math.inf],
    "maxb": [2.6, math.inf],
    "bheight": [-0.1, 1.1],
    "pow": [0, -1, None],
    "rows": [0, 2.0, True, "250"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in INVALID for value in INVALID[field]])
def test_invalid_value_is_rejected_with_its_field(field: str, value: Any) -> None:
    named = "minb < bench < maxb" if field in ("bench", "minb", "maxb") and type(value) is float else field
    with pytest.raises(ConfigError) as caught:
        Competition.from_mapping({**DEFAULT.to_dict(), field: value}, "comp.yaml")
    assert str(caught.value).startswith("comp.yaml: ")
    assert named in str(caught.value) or f"competition.{field}" in str(caught.value)


INVALID_INCENTIVES: dict[str, list[Any]] = {
    "reward": ["", "linear", 1, None],
    "seeds": ["fixed", True],
    "epsilon": [-0.001, math.nan, math.inf, True, "0.005", 10**400],
    "sd": [-1, math.nan, None],
    "evaluations": [0, -1, 1.0, True, "48", 2**32],
    "hold": [0, 47, None],
    "slots": [0, 2.5],
    "half_life_blocks": [0, -100],
    "update_blocks": [-1, 0.5],
    "blocks_per_epoch": [0, True],
    "start_block": [-1, 2**32],
    "season_block": [-1, 2**32],
}


def test_every_incentive_has_a_case_of_bad_values() -> None:
    assert INVALID_INCENTIVES.keys() == {field.name for field in dataclasses.fields(Incentives)}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in INVALID_INCENTIVES.items() for value in values]
)
def test_invalid_incentive_is_rejected_with_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^incentives\.{field} must "):
        Incentives(**{field: value})


def test_season_cannot_begin_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match=r"incentives\.season_block must not be before start_block \(720\), not 360"):
        Incentives(start_block=720, season_block=360)


def test_incentives_accept_their_least_values() -> None:
    least = Incentives(
        reward="winner",  # type: ignore[arg-type]
        seeds="random",  # type: ignore[arg-type]
        epsilon=0,
        sd=0,
        **dict.fromkeys(("evaluations", "hold", "slots", "half_life_blocks", "blocks_per_epoch"), 1),
        **dict.fromkeys(("update_blocks", "start_block", "season_block"), 0),
    )
    assert (least.reward, least.seeds) == (Reward.WINNER, Seeds.RANDOM)


def test_mapping_of_other_keys_is_rejected() -> None:
    values = DEFAULT.to_dict()
    with pytest.raises(ConfigError, match=r"comp\.yaml: unknown key 'benhc'"):
        Competition.from_mapping({**values, "benhc": 1}, "comp.yaml")
    with pytest.raises(ConfigError, match=r"comp\.yaml: unknown key '7'"):
        Competition.from_mapping(dict([*values.items(), (7, 1)]), "comp.yaml")
    del values["rows"]
    with pytest.raises(ConfigError, match=r"comp\.yaml: key 'rows' is missing"):
        Competition.from_mapping(values, "comp.yaml")
    others: list[object] = [None, [], "text"]
    for value in others:
        with pytest.raises(ConfigError, match=r"comp\.yaml: expected a mapping"):
            Competition.from_mapping(value, "comp.yaml")


@pytest.mark.parametrize(("content", "is_content_addressed"), [(SHA, False), (SHA256, True)])
def test_record_survives_a_round_trip(content: str, is_content_addressed: bool) -> None:
    record = CommitmentRecord("owner/name", "1", content)
    assert str(record) == f"owner/name:1:{content}"
    assert CommitmentRecord.parse(str(record)) == record
    assert record.is_content_addressed is is_content_addressed


OTHER_TEXTS = {
    "not three parts": ["", "::", "owner/name", f"owner/name:{SHA}", f"owner/name:1:{SHA}:", f"owner/name:1:{SHA}:x"],
    "not only the record": [f" owner/name:1:{SHA}", f"owner/name:1:{SHA}\n", f"owner/name:1:{SHA256}\n"],
    "no commit": ["main", SHA[:7], SHA.upper(), "g" * 40, chr(0x0660) * 40, f"0x{SHA[2:]}"],
    "no sha256": [SHA256.upper(), SHA256[1:], f"{SHA256}0", "g" * 64, chr(0x0660) * 64, SHA[:20] * 3],
    "no competition": [f"owner/name::{SHA}", f"owner/name: 1:{SHA}"],
    "no dataset": [f"name:1:{SHA}", f"https://hub/owner/name:1:{SHA}", f"../../etc:1:{SHA}"],
    "noise": ["\0" * 50, ":" * 10_000],
}


@pytest.mark.parametrize("kind", OTHER_TEXTS)
def test_any_other_text_is_a_bad_commitment(kind: str) -> None:
    for text in OTHER_TEXTS[kind]:
        with pytest.raises(SubmissionError, match="invalid commitment: ") as caught:
            CommitmentRecord.parse(f"owner/name:1:{text}" if kind in ("no commit", "no sha256") else text)
        assert caught.value.reason is Reason.BAD_COMMITMENT


@pytest.mark.parametrize("content", [SHA, SHA256])
def test_record_above_128_bytes_is_rejected(content: str) -> None:
    namespace = "o/" + "d" * (constants.MAX_COMMITMENT_BYTES - 2 - len(f":1234:{content}"))
    assert len(str(CommitmentRecord(namespace, "1234", content)).encode()) == 128
    with pytest.raises(SubmissionError, match="129 bytes long, the chain's limit is 128"):
        CommitmentRecord(namespace, "12345", content)


def test_infinite_range_of_losses_is_rejected() -> None:
    with pytest.raises(ConfigError, match="minb < bench < maxb"):
        dataclasses.replace(Competition.from_defaults(), minb=-1e308, bench=0.0, maxb=1e308)
