"""Gradients of packs in parallel: the bits of sequential packs at any timing."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from template.training import determinism, environment, loop
from template.training.model import ScoringModel
from template.training.packing import Pack, pack_rows
from tests.fixtures.training import CPU, Bench, encode, make_rows, shift_adapter

# Seconds that one pack waits for another before the test fails.
TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two lanes on any machine, in deterministic mode."""
    monkeypatch.setattr(environment, "thread_count", lambda: 2)
    with determinism.deterministic_mode(CPU):
        yield


@pytest.fixture(scope="module")
def model(bench: Bench) -> ScoringModel:
    """A float32 model with much dropout."""
    return bench.load(lora_dropout=0.5)


@pytest.fixture(scope="module")
def packs(model: ScoringModel) -> list[Pack]:
    """Six packs of unequal size."""
    rows = encode(model, make_rows(6, seed=3))
    return list(pack_rows(rows, range(6), 1, CPU))


class DelayedModel:
    """A model that delays packs and records their losses and threads."""

    graphs = None
    device = CPU

    def __init__(
        self, model: ScoringModel, wait: Callable[["DelayedModel", int], object] = lambda self, pack_index: None
    ) -> None:
        shift_adapter(model)
        model.set_dropout(True)
        self.adapter_parameters = model.adapter_parameters
        self.model = model
        self.wait = wait
        self.begun = [threading.Event() for _ in range(6)]
        self.ended = [threading.Event() for _ in range(6)]
        self.losses: dict[int, torch.Tensor] = {}
        self.threads: dict[int, tuple[int, int]] = {}
        self.order: list[int] = []
        self.own = threading.local()

    def seed_dropout(self, lucky_num: int, step: int, pack: int) -> None:
        self.own.at = pack
        self.model.seed_dropout(lucky_num, step, pack)

    def target_losses(self, pack: Pack) -> torch.Tensor:
        pack_index = self.own.at
        self.begun[pack_index].set()
        self.wait(self, pack_index)
        losses = self.model.target_losses(pack)
        self.losses[pack_index] = losses.detach()
        self.threads[pack_index] = threading.get_ident(), torch.get_num_threads()
        self.order.append(pack_index)
        self.ended[pack_index].set()
        return losses


def accumulate(watched: DelayedModel, packs: Sequence[Pack], step: int = 0) -> list[torch.Tensor]:
    """Compute a step's loss and gradients."""
    with loop.open_accumulator(watched, 7) as run:
        loss = run(step, packs, sum(len(pack.targets) for pack in packs))
    return [loss, *(parameter.grad for parameter in watched.adapter_parameters.values())]


def accumulate_sequentially(watched: DelayedModel, packs: Sequence[Pack], step: int = 0) -> list[torch.Tensor]:
    """Compute the same, one pack after the other with half of the threads."""
    torch.set_num_threads(1)
    targets = sum(len(pack.targets) for pack in packs)
    sums: list[torch.Tensor] = []
    losses = []
    for pack_index, pack in enumerate(packs):
        watched.seed_dropout(7, step, pack_index)
        loss = watched.target_losses(pack).sum() / targets
        gradients = torch.autograd.grad(loss, list(watched.adapter_parameters.values()))
        sums = [first + second for first, second in zip(sums, gradients, strict=True)] if sums else list(gradients)
        losses.append(loss.detach())
    torch.set_num_threads(2)
    return [torch.stack(losses).sum(), *sums]


def wait_for(events: Sequence[threading.Event]) -> None:
    for event in events:
        assert event.wait(TIMEOUT_S)


def start_at_last(last: int) -> Callable[[DelayedModel, int], None]:
    """Return the timing that starts one pack after all others ended."""

    def wait(watched: DelayedModel, pack_index: int) -> None:
        if pack_index == last:
            wait_for([ended for index, ended in enumerate(watched.ended) if index != last])
            time.sleep(0.1)  # for their gradients

    return wait


def end_pairs_in_reverse(watched: DelayedModel, pack_index: int) -> None:
    """Of each two packs, end the second first."""
    if pack_index % 2 == 0:
        wait_for([watched.ended[pack_index + 1]])


TIMINGS = {
    "as it comes": lambda watched, pack_index: None,
    "the first comes last": start_at_last(0),
    "the second comes last": start_at_last(1),
    "of two the second comes first": end_pairs_in_reverse,
}


@pytest.mark.parametrize("timing", TIMINGS)
def test_parallel_packs_equal_sequential_packs(model: ScoringModel, packs: list[Pack], timing: str) -> None:
    in_turn = DelayedModel(model)
    expected = accumulate_sequentially(in_turn, packs, step=3)
    watched = DelayedModel(model, TIMINGS[timing])
    result = accumulate(watched, packs, step=3)
    assert in_turn.order == list(range(6))
    assert watched.order != in_turn.order or timing == "as it comes"
    assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))
    assert all(value.any() for value in result)


def test_gradients_of_an_earlier_step_are_replaced(model: ScoringModel, packs: list[Pack]) -> None:
    expected = [value.clone() for value in accumulate(DelayedModel(model), packs[:3])]
    watched = DelayedModel(model)
    for parameter in watched.adapter_parameters.values():
        parameter.grad = torch.ones_like(parameter)
    assert all(torch.equal(*pair) for pair in zip(accumulate(watched, packs[:3]), expected, strict=True))


def test_two_packs_run_in_parallel_on_half_the_threads(model: ScoringModel, packs: list[Pack]) -> None:
    watched = DelayedModel(model, lambda watched, pack_index: pack_index > 1 or wait_for(watched.begun[:2]))
    accumulate(watched, packs)
    assert len({thread for thread, _ in watched.threads.values()}) == 2
    assert threading.get_ident() not in {thread for thread, _ in watched.threads.values()}
    assert {count for _, count in watched.threads.values()} == {1}


def test_single_core_computes_the_same_bits(
    model: ScoringModel, packs: list[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [value.clone() for value in accumulate(DelayedModel(model), packs)]
    watched = DelayedModel(model)
    with monkeypatch.context() as patch:
        patch.setattr(environment, "thread_count", lambda: 1)
        assert all(torch.equal(*pair) for pair in zip(accumulate(watched, packs), expected, strict=True))
        assert loop.lane_count() == 1
    assert watched.order == list(range(6))
    assert {count for _, count in watched.threads.values()} == {1}


class Broken(Exception):
    """Raised in a pack."""


@pytest.mark.parametrize("broken", [0, 1, 3, 5])
def test_exception_in_a_pack_is_raised_and_threads_end(model: ScoringModel, packs: list[Pack], broken: int) -> None:
    def break_one(watched: DelayedModel, pack_index: int) -> None:
        if pack_index == broken:
            raise Broken(str(pack_index))

    before = {thread.ident for thread in threading.enumerate()}
    for value in model.adapter_parameters.values():
        value.grad = None
    with pytest.raises(Broken, match=str(broken)):
        accumulate(DelayedModel(model, break_one), packs)
    assert torch.get_num_threads() == 2
    assert {thread.ident for thread in threading.enumerate()} == before


def test_packs_after_a_failed_pack_are_not_started(model: ScoringModel, packs: list[Pack]) -> None:
    def break_the_first(watched: DelayedModel, pack_index: int) -> None:
        if pack_index == 0:
            raise Broken
        time.sleep(0.3)

    watched = DelayedModel(model, break_the_first)
    with pytest.raises(Broken):
        accumulate(watched, packs)
    assert not watched.begun[5].is_set()
