"""The profile of an evaluation: every second has a kind."""

from pathlib import Path

import pytest

from scripts.bench import profile
from tests.fixtures.training import MODEL_ID

KINDS = {"base, products", "adapter, products", "head, products", "attention, softmax", "everything else"}


@pytest.mark.usefixtures("small_products")
def test_profile_has_both_phases_by_kind(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model_path", str(tiny_model), "--train_rows", "4", "--eval_rows", "4", "--dtype", "bfloat16"]
    arguments += ["--model_id", MODEL_ID]
    assert profile.main(arguments) == 0
    _, training, evaluation = capsys.readouterr().out.split("\n\n")
    for name, table in (("training", training), ("evaluation", evaluation)):
        header, *lines, together, wall = table.strip().splitlines()
        assert header.startswith(name)
        assert wall.startswith("from end to end") and float(wall[24:].split()[0]) > 0
        cells = {line[:24].strip(): line[24:].split() for line in lines}
        assert set(cells) >= KINDS
        assert sum(float(seconds) for seconds, *_ in cells.values()) == pytest.approx(
            float(together.split()[-1]), abs=0.1
        )
        assert all(len(row) == 5 for kind, row in cells.items() if kind in ("base, products", "adapter, products"))
    adapter_calls = int(training.split("adapter, products")[1].split()[2].replace(",", ""))
    assert adapter_calls > int(evaluation.split("adapter, products")[1].split()[2].replace(",", "")) > 0


def test_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["--model_path", str(tmp_path)]) == 3
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_2x4_h_bz_coopA_NNT", "products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>", "attention"),
        ("void at::native::(anonymous namespace)::masked_scale_kernel<unsigned char, c10::BFloat16>", "dropout"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>", "losses"),
        ("some_kernel_of_tomorrow", "everything else"),
    ],
)
def test_kernel_name_decides_its_kind(kernel: str, kind: str) -> None:
    assert profile.classify_name(kernel) == kind
