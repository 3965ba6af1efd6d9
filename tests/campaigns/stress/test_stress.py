"""The bits of a score in situations of every kind, in real processes; `python -m tests.campaigns.stress` meets all of
them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.stress import __main__ as script
from tests.campaigns.stress import score as stress_score
from tests.campaigns.stress.disturbances import DISTURBANCES
from tests.campaigns.stress.runner import Stress, write_datasets
from tests.campaigns.stress.situations import Situation, Verdict, list_situations

MODEL_ID = "Qwen/Qwen2.5-1.5B-Instruct"
SITUATIONS = {one.name: one for one in list_situations("cpu", others=30, memory_bytes=0, hog_bytes=2**27)}
EQUAL = {Verdict.EQUAL}


@pytest.fixture(scope="module")
def stress(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stress:
    """In bfloat16, which is moved the more, with its reference."""
    datasets = write_datasets(tmp_path_factory.mktemp("stress") / "datasets", 16, 8)
    made = Stress(
        model_id=MODEL_ID, model_path=tiny_model, datasets=datasets, device="cpu", dtypes=("bfloat16",), scores=2
    )
    assert set(made.measure().verdicts) == EQUAL
    return made


def test_loaded_cores_move_no_bit(stress: Stress) -> None:
    row = stress.meet(SITUATIONS["every core at wide products"])
    assert row.is_as_allowed and row.verdicts == (Verdict.EQUAL,) * 2, row


def test_variables_that_choose_other_kernels_make_another_contest(stress: Stress) -> None:
    row = stress.meet(SITUATIONS["ATEN_CPU_CAPABILITY=default"])
    assert row.is_as_allowed and set(row.verdicts) == {Verdict.OTHER_CONTEST}, row
    assert "capability" in row.notes and "kernel_variables ATEN_CPU_CAPABILITY=default" in row.notes


def test_variables_that_keep_openmp_on_one_core_are_refused_by_name(stress: Stress) -> None:
    row = stress.meet(SITUATIONS["OMP_PLACES=cores"])
    assert row.is_as_allowed and set(row.verdicts) == {Verdict.REFUSED}, row
    assert "ConfigError: unset OMP_PLACES" in row.notes


def test_cores_that_are_taken_away_give_no_score_of_the_same_contest(stress: Stress) -> None:
    row = stress.meet(SITUATIONS["cores taken away in mid-training"])
    assert row.is_as_allowed, row
    if int(stress.reference[0].environment["threads"]) > 1:
        assert row.verdicts == (Verdict.REFUSED, Verdict.OTHER_CONTEST), row


def test_memory_that_does_not_suffice_gives_the_same_bits_or_none(stress: Stress) -> None:
    row = stress.meet(SITUATIONS["80% of the address space it needs"])
    assert row.is_as_allowed, row


def within(stress: Stress, situation: Situation) -> Iterator[Verdict]:
    """The verdicts of scores that this process makes, as the situation's own would."""
    for outcome in stress_score.run(stress.job(situation)):
        yield stress.judge(situation, [outcome]).verdicts[0]


@pytest.mark.parametrize(
    "name", ["after 30 scores of others", "set_num_threads in another thread", "random streams used beside"]
)
def test_what_the_same_process_did_and_does_moves_no_bit(stress: Stress, name: str) -> None:
    assert set(within(stress, SITUATIONS[name])) == EQUAL


def test_another_bit_is_found_told_and_ends_with_status_1(
    stress: Stress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, *_) = stress.reference
    for at in range(3):
        bits = [*first.bits]
        bits[at] = "0" + bits[at]
        row = stress.judge(SITUATIONS["nice 19"], [dataclasses.replace(first, bits=bits)])
        assert row.verdicts == (Verdict.DIFFERENT,) and not row.is_as_allowed
        assert "NOT AS IT MUST BE: DIFFERENT: the receipt names no difference" in str(row)
    row = stress.judge(SITUATIONS["nice 19"], [dataclasses.replace(first, error="HostError", said="no memory")])
    assert not row.is_as_allowed, "nothing of it is a reason to refuse"
    other = dataclasses.replace(first, bits=bits)
    monkeypatch.setattr(Stress, "_score_apart", lambda self, situation: [other if self.reference else first])
    assert script.main(["--only", "nice", "--dtypes", "bfloat16"]) == 1
    assert "1 situations not as they must be" in capsys.readouterr().out
    monkeypatch.setattr(Stress, "_score_apart", lambda self, situation: [first])
    assert script.main(["--only", "nice", "--dtypes", "bfloat16"]) == 0


def test_every_situation_has_a_name_of_its_own_and_every_disturbance_a_situation() -> None:
    for device in ("cpu", "cuda:0"):
        names = [one.name for one in list_situations(device, others=1, memory_bytes=2**30, hog_bytes=2**30)]
        assert len(names) == len({*names})
        assert {*DISTURBANCES} <= {*names}


@pytest.mark.parametrize(
    "arguments", [["--scores", "0"], ["--others", "-1"], ["--dtypes", "float16"], ["--hog_gib", "0"]]
)
def test_a_setting_that_is_wrong_is_refused_by_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(arguments) == 3
    assert arguments[0] in capsys.readouterr().err
