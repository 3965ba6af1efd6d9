"""Situations of the stress run, and different bits that must be reported."""

import dataclasses
from pathlib import Path

import pytest

from template.errors import HostError
from tests.campaigns.stress import __main__ as command
from tests.campaigns.stress import evaluation
from tests.campaigns.stress.disturbances import DISTURBANCES
from tests.campaigns.stress.run import Stress, external_load, write_datasets
from tests.campaigns.stress.situations import Situation, Verdict, list_situations

SITUATIONS = {
    situation.name: situation for situation in list_situations("cpu", others=3, memory_bytes=0, hog_bytes=2**27)
}

# Two in one process, whose imports take seconds: a shell's setting, and a variable that gives the model another name.
BOTH = "umask 777, ATEN_CPU_CAPABILITY=default"
SITUATIONS[BOTH] = dataclasses.replace(
    SITUATIONS["ATEN_CPU_CAPABILITY=default"], prelude=SITUATIONS["umask 777"].prelude
)


@pytest.fixture(scope="module")
def stress(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stress:
    """A run in bfloat16, where small changes show most, with its reference."""
    stress = Stress(
        model_id="Qwen/Qwen2.5-1.5B-Instruct",
        model_path=tiny_model,
        datasets=write_datasets(tmp_path_factory.mktemp("stress") / "datasets", rows=8),
        device="cpu",
        dtypes=("bfloat16",),
        evaluations=1,
    )
    stress.measure()
    return stress


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdict", "note"),
    [
        (BOTH, Verdict.OTHER_CONFIG, "kernel_variables ATEN_CPU_CAPABILITY=default"),
        ("60% of the address space it needs", Verdict.REFUSED, ""),
        ("cores taken away in mid-training", None, ""),
    ],
)
def test_stress_situation_has_allowed_verdict(name: str, verdict: Verdict | None, note: str, stress: Stress) -> None:
    row = stress.run(SITUATIONS[name])
    assert row.is_as_allowed and note in row.notes, row
    assert verdict is None or set(row.verdicts) == {verdict}, row


@pytest.mark.slow
@pytest.mark.parametrize("name", ["after 3 evaluations of others", "set_num_threads in another thread"])
def test_stress_within_this_process_keeps_bits(name: str, stress: Stress) -> None:
    outcomes = list(evaluation.run(stress.job(SITUATIONS[name])))
    assert set(stress.judge(SITUATIONS[name], outcomes).verdicts) == {Verdict.EQUAL}


@pytest.mark.slow
def test_stress_different_bits_exit_with_1(
    stress: Stress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, *_), plain = stress.reference, SITUATIONS["nice 19"]
    others = [
        dataclasses.replace(
            first, bits=[("0" if number == index else "") + bit for number, bit in enumerate(first.bits)]
        )
        for index in range(3)
    ]
    for other in others:
        row = stress.judge(plain, [other])
        assert row.verdicts == (Verdict.DIFFERENT,) and not row.is_as_allowed
    # Nothing in this situation is a reason to refuse.
    assert not stress.judge(plain, [dataclasses.replace(first, error="HostError", message="no memory")]).is_as_allowed
    arguments = ["--only", "nice", "--dtypes", "bfloat16"]
    monkeypatch.setattr(Stress, "_evaluate_in_process", lambda self, _: [others[0] if self.reference else first])
    assert command.main(arguments) == 1
    assert "NOT ALLOWED: DIFFERENT: the receipt names no difference" in capsys.readouterr().out
    monkeypatch.setattr(Stress, "_evaluate_in_process", lambda self, _: [first])
    assert command.main(arguments) == 0


def test_stress_situations_are_unique_and_use_every_disturbance() -> None:
    for device in ("cpu", "cuda:0"):
        names = [situation.name for situation in list_situations(device, others=1, memory_bytes=2**30, hog_bytes=2**30)]
        assert len(names) == len({*names}) and {*DISTURBANCES} <= {*names}


@pytest.mark.slow
def test_stress_external_load_that_does_not_start_is_an_error() -> None:
    with external_load(SITUATIONS["0.1 GiB taken and written"]):
        pass
    broken = Situation(name="broken", external_load=(("memory", "some"),))
    with pytest.raises(HostError, match="failed to start: memory some"), external_load(broken):
        pass


@pytest.mark.parametrize("arguments", [["--scores", "0"], ["--dtypes", "float16"]])
def test_stress_wrong_setting_is_refused(arguments: list[str]) -> None:
    assert command.main(arguments) == 3
