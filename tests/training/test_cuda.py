"""Evaluations on a GPU; run with `-m gpu` on a machine with one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from template.records import TrainResult
from template.training import determinism, loop
from template.training.attention import VarlenSpans
from template.training.cuda_graphs import LENGTH_STEP
from template.training.dropout import CudaDropout
from template.training.model import ScoringModel
from template.training.packing import pack_rows, pack_with_shared_prefix
from tests.fixtures.training import CPU, Bench, base_parameters, digests, encode, make_rows, shift_adapter, write_rows

CUDA = torch.device("cuda", 0)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def load(bench: Bench, **hyperparameters: float) -> ScoringModel:
    return bench.load("bfloat16", CUDA, **hyperparameters)


def score(bench: Bench, dtype: str = "bfloat16", device: str = "cuda:0", **options: Any) -> TrainResult:
    return bench.run(dtype, device=device, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loss_is_equal_whatever_was_evaluated_before(bench: Bench, dtype: str, tmp_path: Path) -> None:
    # Other lengths, which record other graphs in between.
    others = write_rows(tmp_path, make_rows(40, seed=5))
    first = score(bench, dtype=dtype)
    score(bench, data_dir=others, lucky_num=8, dtype=dtype)
    again = score(bench, dtype=dtype)
    assert (again.loss, again.step_losses) == (first.loss, first.step_losses)
    assert score(bench, lucky_num=8, dtype=dtype).loss != first.loss


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_loss_is_equal_on_another_gpu(bench: Bench) -> None:
    first = score(bench)
    last = score(bench, device=f"cuda:{torch.cuda.device_count() - 1}")
    assert (last.loss, last.step_losses) == (first.loss, first.step_losses)


def test_dropout_has_graphs_of_its_own(bench: Bench) -> None:
    model = load(bench)
    rows = encode(model, make_rows(4, seed=3))
    packs = list(pack_rows(rows, range(4), 10**6, CUDA, True))
    shift_adapter(model)
    with determinism.deterministic_mode(CUDA), loop.open_accumulator(model, 7) as accumulate:
        without = accumulate(0, packs, 100).item()
        model.set_dropout(True)
        assert accumulate(0, packs, 100).item() != without
        model.set_dropout(False)
        assert accumulate(0, packs, 100).item() == without


def test_base_is_unchanged_by_an_evaluation(bench: Bench) -> None:
    model = load(bench)
    before = digests({name: value.cpu() for name, value in base_parameters(model).items()})
    rows = encode(model, make_rows(13, seed=1))
    with determinism.deterministic_mode(CUDA):
        model.reset_adapter(7)
        loop.train_adapter(model, rows, loop.row_order(len(rows), 2, 7), 7)
        loop.evaluate(model, rows)
    assert digests({name: value.cpu() for name, value in base_parameters(model).items()}) == before


def relative_distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("count", [1, 8])
def test_graph_gradients_equal_those_of_the_cpu(bench: Bench, count: int) -> None:
    ours, plain = load(bench, lora_dropout=0.0), bench.load(lora_dropout=0.0)
    rows = encode(ours, make_rows(count, seed=3))
    targets = sum(row.target_count for row in rows)
    for model in (ours, plain):
        shift_adapter(model)
    with determinism.deterministic_mode(CUDA):
        packs = list(pack_rows(rows, range(count), 10**6, CUDA, True))
        with loop.open_accumulator(ours, 7) as accumulate:
            loss = accumulate(0, packs, targets).item()
            gradients = [parameter.grad.cpu() for parameter in ours.adapter_parameters.values()]
            # A replay has the same bits.
            assert accumulate(0, packs, targets).item() == loss
            again = [parameter.grad.cpu() for parameter in ours.adapter_parameters.values()]
            assert all(torch.equal(*pair) for pair in zip(gradients, again, strict=True))
    with determinism.deterministic_mode(CPU), loop.open_accumulator(plain, 7) as accumulate:
        expected = accumulate(0, list(pack_rows(rows, range(count), 10**6, CPU)), targets).item()
    assert loss == pytest.approx(expected, rel=0.01)
    for name, gradient in zip(plain.adapter_parameters, gradients, strict=True):
        assert relative_distance(gradient, plain.adapter_parameters[name].grad) < 0.05, name


def test_shorter_pack_ignores_an_earlier_longer_one(bench: Bench) -> None:
    model = load(bench, lora_dropout=0.0)
    shift_adapter(model)
    short, long = encode(model, make_rows(1, seed=3)), encode(model, make_rows(6, seed=4))
    with determinism.deterministic_mode(CUDA), loop.open_accumulator(model, 7) as accumulate:
        packs = list(pack_rows(short, [0], 10**6, CUDA, True))
        first = accumulate(0, packs, 10)
        gradients = [parameter.grad.clone() for parameter in model.adapter_parameters.values()]
        assert packs[0].token_count < LENGTH_STEP
        # The rest of a longer pack in the buffers must not be read.
        accumulate(0, list(pack_rows(long, range(6), LENGTH_STEP, CUDA, True)), 10)
        assert torch.equal(accumulate(0, packs, 10), first)
        for parameter, gradient in zip(model.adapter_parameters.values(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)


def test_graph_dropout_depends_on_seed_and_step(bench: Bench) -> None:
    model = load(bench)
    rows = encode(model, make_rows(8, seed=3))
    packs = list(pack_rows(rows, range(8), 10**6, CUDA, True))
    model.set_dropout(True)

    def run(lucky_num: int, step: int) -> float:
        shift_adapter(model, lucky_num)
        with loop.open_accumulator(model, lucky_num) as accumulate:
            return accumulate(step, packs, 100).item()

    with determinism.deterministic_mode(CUDA):
        first = run(7, 0)
        assert run(7, 1) != first
        assert run(8, 0) != first
        assert run(7, 0) == first
        model.set_dropout(False)


def test_shared_prefixes_give_the_losses_of_single_rows(bench: Bench) -> None:
    ours, plain = load(bench), bench.load()
    for model in (ours, plain):
        shift_adapter(model)
    rows = encode(ours, make_rows(30, seed=6))
    with determinism.deterministic_mode(CUDA):
        assert any(
            isinstance(pack.layout, VarlenSpans) and pack.layout.key_indices is not None
            for pack in pack_with_shared_prefix(rows, 10**6, CUDA, True)
        )
        losses = loop.mean_row_losses(ours, rows, loop.ignore_progress)
        alone = [loop.evaluate(ours, [row]) for row in rows]
    with determinism.deterministic_mode(CPU):
        expected = loop.mean_row_losses(plain, rows, loop.ignore_progress)
    assert losses == pytest.approx(expected, rel=0.02)
    assert alone == pytest.approx(expected, rel=0.02)


def test_float32_training_equals_the_cpus(bench: Bench) -> None:
    results = []
    for device in (CUDA, CPU):
        model = bench.load("float32", device, lora_dropout=0.0)
        rows = encode(model, make_rows(13, seed=1))
        with determinism.deterministic_mode(device):
            model.reset_adapter(7)
            losses = loop.train_adapter(model, rows, loop.row_order(len(rows), 2, 7), 7)
            results.append([*losses, loop.evaluate(model, rows)])
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_cuda_dropout_drops_its_share_and_scales() -> None:
    dropout = CudaDropout(0.1, CUDA)
    dropout.seed(1)
    x = torch.ones(1000, 200, dtype=torch.bfloat16, device=CUDA)
    dropped, again = dropout.drop(x, 3)
    assert dropped.shape == (3, 1000, 200)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert dropped.max().item() == pytest.approx(1 / 0.9, rel=0.01)
    assert torch.equal(again(x), dropped)
    assert not torch.equal(dropped[0], dropped[1])
    dropout.seed(1)
    assert torch.equal(dropout.drop(x, 3)[0], dropped)
