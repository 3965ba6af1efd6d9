"""Training and evaluation against the Hugging Face Trainer with PEFT."""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model

from template.data.encoding import EncodedRow
from template.records import Progress
from template.training import loop
from template.training.loop import NonFiniteLoss, evaluate, row_order, train_adapter
from template.training.lora import LoRALinear
from template.training.model import ScoringModel
from template.training.packing import group_by_prefix, last_source
from tests.fixtures.training import Bench, encode, make_rows, row_with_targets, shift_adapter

# Four groups of which the last holds three rows, twice: eight steps, three of them after the warm-up.
TRAIN_ROWS = make_rows(27, seed=3)
EVAL_ROWS = make_rows(9, seed=4)


@pytest.fixture(scope="module")
def model(bench: Bench) -> ScoringModel:
    """A float32 model without dropout."""
    return bench.load(lora_dropout=0.0)


@pytest.fixture(scope="module")
def train_rows(model: ScoringModel) -> list[EncodedRow]:
    return encode(model, TRAIN_ROWS)


@pytest.fixture(scope="module")
def eval_rows(model: ScoringModel) -> list[EncodedRow]:
    return encode(model, EVAL_ROWS)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Losses and adapter of a training; `untouched` is the loss before it."""

    steps: list[float]
    adapter: dict[str, torch.Tensor]
    untouched: float
    loss: float


def train(
    model: ScoringModel, train_rows: Sequence[EncodedRow], eval_rows: Sequence[EncodedRow], lucky_num: int = 7
) -> Trained:
    model.reset_adapter(lucky_num)
    untouched = evaluate(model, eval_rows)
    steps = train_adapter(model, train_rows, row_order(len(train_rows), 2, lucky_num), lucky_num)
    return Trained(steps, adapter(model), untouched, evaluate(model, eval_rows))


@pytest.fixture(scope="module")
def trained(model: ScoringModel, train_rows: list[EncodedRow], eval_rows: list[EncodedRow]) -> Trained:
    """Our training of the model."""
    return train(model, train_rows, eval_rows)


def adapter(model: ScoringModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.adapter_parameters.items()}


class FixedOrderTrainer(transformers.Trainer):
    """The Trainer with a fixed order of rows by epoch, and unrounded losses."""

    def __init__(self, order: Sequence[Sequence[int]], **options: Any) -> None:
        super().__init__(**options)
        self.order = order
        self.row_losses: list[float] = []

    def _get_train_sampler(self, *_: Any) -> Any:
        return FixedOrder(self.order)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.row_losses.append(loss.item())
        return loss


class FixedOrder(torch.utils.data.Sampler[int]):
    def __init__(self, order: Sequence[Sequence[int]]) -> None:
        self.order = order
        self.epochs = iter(order)

    def __len__(self) -> int:
        return len(self.order[0])

    def __iter__(self) -> Iterator[int]:
        return iter(next(self.epochs))


def as_example(row: EncodedRow) -> dict[str, list[int]]:
    labels = [token if hit else -100 for token, hit in zip(row.input_ids, row.targets, strict=True)]
    return {"input_ids": list(row.input_ids), "attention_mask": [1] * len(labels), "labels": labels}


def load_plain(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def trainer(
    bench: Bench,
    model: ScoringModel,
    train_rows: list[EncodedRow],
    eval_rows: list[EncodedRow],
    tmp_path_factory: pytest.TempPathFactory,
) -> FixedOrderTrainer:
    """A Trainer that has trained from our initial adapter in our order."""
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
    )
    network = get_peft_model(load_plain(bench.model_path), config)
    model.reset_adapter(7)
    _, unexpected = network.load_state_dict(adapter(model), strict=False)
    assert not unexpected
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        num_train_epochs=2,
        learning_rate=2e-4,
        optim="adamw_torch",
        weight_decay=0.0,
        warmup_steps=5,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        per_device_eval_batch_size=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = FixedOrderTrainer(
        row_order(len(train_rows), 2, 7),
        model=network,
        args=arguments,
        train_dataset=[as_example(row) for row in train_rows],
        eval_dataset=[as_example(row) for row in eval_rows],
        data_collator=transformers.default_data_collator,
    )
    assert trainer.model_accepts_loss_kwargs  # else it divides by the steps, not by the tokens
    trainer.train()
    return trainer


def test_step_losses_equal_the_trainers(trainer: FixedOrderTrainer, trained: Trained) -> None:
    # The Trainer's log may be rounded; its rows' losses are not, and come in groups of 8, 8, 8 and 3 per epoch.
    starts = [epoch * 27 + index for epoch in range(2) for index in (0, 8, 16, 24)]
    exact = [math.fsum(trainer.row_losses[index:end]) for index, end in zip(starts, [*starts[1:], 54], strict=True)]
    assert trained.steps == pytest.approx(exact, rel=0, abs=1e-5)


def test_trained_adapter_equals_the_trainers(trainer: FixedOrderTrainer, trained: Trained) -> None:
    theirs = dict(trainer.model.named_parameters())
    assert max(value.abs().max().item() for name, value in trained.adapter.items() if "lora_B" in name) > 1e-4
    # AdamW's first step moves an element by the learning rate in the direction of its gradient, so rounding decides
    # the few elements whose gradient is about zero.
    distances = torch.cat([(value - theirs[name]).abs().flatten() for name, value in trained.adapter.items()])
    assert distances.quantile(0.999).item() < 1e-6
    assert distances.max().item() < 1e-4


def test_final_loss_equals_the_trainers(trainer: FixedOrderTrainer, trained: Trained) -> None:
    assert trained.loss == pytest.approx(trainer.evaluate()["eval_loss"], rel=0, abs=1e-5)
    assert abs(trained.loss - trained.untouched) > 1e-3  # else equality would prove nothing


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_losses_do_not_depend_on_the_packing(
    model: ScoringModel,
    train_rows: list[EncodedRow],
    eval_rows: list[EncodedRow],
    trained: Trained,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "TRAIN_FORWARD_TOKENS", {"cpu": tokens})
    monkeypatch.setattr(loop, "EVAL_FORWARD_TOKENS", {"cpu": tokens})
    again = train(model, train_rows, eval_rows)
    assert again.steps == pytest.approx(trained.steps, rel=0, abs=1e-5)
    assert again.loss == pytest.approx(trained.loss, rel=0, abs=1e-5)


@pytest.fixture(scope="module")
def prefix_rows() -> list[EncodedRow]:
    """Rows with shared prefixes; targets are within a prefix, after it and later."""
    stream = random.Random(5)
    systems = [stream.choices(range(512), k=count) for count in (120, 45, 7)]

    def speak(count: int) -> list[int]:
        return stream.choices(range(512), k=count)

    rows = []
    for system in systems:
        rows += [_join((system, False), (speak(9 + index), False), (speak(2 + 3 * index), True)) for index in range(4)]
        # Two rows that differ in the last answer only, which begins right after the prefix, or within it.
        turns = [(system, False), (speak(12), False), (speak(15), True), (speak(8), False)]
        rows += [_join(*turns, ([token, *speak(6)], True), (speak(3), False)) for token in (1, 2)]
        rows += [_join(*turns, (systems[0][:4], True))] * 2
    rows += [_join((speak(30), False), (speak(20), True)), _join((speak(1), False), (speak(1), True))]
    return stream.sample(rows, len(rows))


def _join(*pieces: tuple[list[int], bool]) -> EncodedRow:
    hits = [is_target for ids, is_target in pieces for _ in ids]
    return row_with_targets(
        [token for ids, _ in pieces for token in ids], {index for index, hit in enumerate(hits) if hit}
    )


def test_training_does_not_depend_on_shared_prefixes(
    model: ScoringModel, prefix_rows: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for tokens in (1, 10**6):  # each row alone, and all rows of a step in two packs
        monkeypatch.setattr(loop, "TRAIN_FORWARD_TOKENS", {"cpu": tokens})
        steps.append(train(model, prefix_rows, prefix_rows[:1]).steps)
    assert steps[0] == pytest.approx(steps[1], rel=0, abs=1e-5)


@pytest.fixture(scope="module")
def plain_losses(bench: Bench, prefix_rows: list[EncodedRow]) -> list[float]:
    """The losses of `prefix_rows` by transformers, row by row."""
    plain = load_plain(bench.model_path)
    losses = []
    for row in prefix_rows:
        labels = torch.tensor([as_example(row)["labels"]])
        with torch.no_grad():
            losses.append(plain(input_ids=torch.tensor([row.input_ids]), labels=labels).loss.item())
    return losses


def test_prefix_rows_have_every_kind_of_target(prefix_rows: list[EncodedRow]) -> None:
    groups = [group for group in group_by_prefix(prefix_rows, range(len(prefix_rows)), last_source) if group.prefix]
    shared = {index: group.prefix for group in groups for index in group.indices}
    assert len(groups) > 2
    assert len(shared) < len(prefix_rows)
    assert any(prefix_rows[index].targets[share] for index, share in shared.items())
    assert any(any(prefix_rows[index].targets[:share]) for index, share in shared.items())


@pytest.mark.parametrize("tokens", [1, 150, 2048])
def test_shared_prefixes_give_the_plain_models_losses(
    model: ScoringModel,
    prefix_rows: list[EncodedRow],
    plain_losses: list[float],
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.reset_adapter(7)
    monkeypatch.setattr(loop, "EVAL_FORWARD_TOKENS", {"cpu": tokens})
    assert loop.mean_row_losses(model, prefix_rows, loop.ignore_progress) == pytest.approx(
        plain_losses, rel=0, abs=1e-5
    )
    mean = math.fsum(plain_losses) / len(plain_losses)
    assert evaluate(model, prefix_rows) == pytest.approx(mean, rel=0, abs=1e-5)
    backwards = loop.mean_row_losses(model, prefix_rows[::-1], loop.ignore_progress)
    assert backwards[::-1] == pytest.approx(plain_losses, rel=0, abs=1e-5)


def test_row_order_is_a_permutation_by_epoch_and_seed() -> None:
    order = row_order(50, 3, 7)
    assert [sorted(epoch) for epoch in order] == [list(range(50))] * 3
    assert len({tuple(epoch) for epoch in [*order, range(50)]}) == 4
    torch.manual_seed(1)
    assert row_order(50, 3, 7) == order
    assert row_order(50, 3, 8) != order


@pytest.mark.parametrize("total_steps", [1, 4, 5, 6, 64])
def test_learning_rate_equals_transformers_schedule(total_steps: int) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=loop.LEARNING_RATE)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 5, total_steps)
    for step in range(total_steps):
        rate = loop.LEARNING_RATE * loop._schedule(step, total_steps)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_dropout_is_off_in_evaluation(bench: Bench, eval_rows: list[EncodedRow]) -> None:
    model = bench.load(lora_dropout=0.5)
    shift_adapter(model)
    assert evaluate(model, eval_rows) == evaluate(model, eval_rows)
    model.set_dropout(True)
    model.seed_dropout(7, 0, 0)
    assert evaluate(model, eval_rows) != evaluate(model, eval_rows)
    model.set_dropout(False)
    assert not any(module.training for module in model.network.modules())


def test_progress_counts_tokens_to_the_total(model: ScoringModel, eval_rows: list[EncodedRow]) -> None:
    seen: list[Progress] = []
    model.reset_adapter(7)
    train_adapter(model, eval_rows, row_order(9, 2, 7), 7, on_progress=seen.append)
    evaluate(model, eval_rows, on_progress=seen.append)
    tokens = sum(len(row.input_ids) for row in eval_rows)
    for stage, total in (("train", 2 * tokens), ("evaluate", tokens)):
        done = [progress.done for progress in seen if progress.stage == stage]
        assert done == sorted(set(done))
        assert done[-1] == total
        assert {progress.total for progress in seen if progress.stage == stage} == {total}


def test_non_finite_step_ends_training_with_its_rows(bench: Bench, train_rows: list[EncodedRow]) -> None:
    model = bench.load()
    model.reset_adapter(7)
    next(iter(model.adapter_parameters.values())).data[0, 0] = math.nan
    seen: list[Progress] = []
    with pytest.raises(NonFiniteLoss) as caught:
        train_adapter(model, train_rows, [[3, 1, 2], [1, 2, 3]], 7, on_progress=seen.append)
    assert (caught.value.where, caught.value.rows) == ("training step 1 of 2", (3, 1, 2))
    assert seen == []
    assert not any(layer.dropout for layer in model.network.modules() if isinstance(layer, LoRALinear))
