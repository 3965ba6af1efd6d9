"""What others would run instead of `train_lora`, on the Hugging Face Trainer and PEFT.

"reference" mirrors the public reference subnet (FLock-io/FLock-subnet, flockoff/validator/trainer.py), each time from
scratch: load the base, train LoRA on every linear layer with batch 1 and accumulation 8, save the adapter; load the
base and the adapter, evaluate with batch 1. It differs from the public one where that computes another number or is
slower:

- The adapter is not merged before the evaluation. In bfloat16, merging rounds away 0.15 nats of the training on the
  short rows; it would make the evaluation about twice as fast.
- The base is float32 or bfloat16 throughout, not 4 bits; adapters are float32 without autocast; the optimizer is
  torch's AdamW, not the paged 8-bit one.
- No TRL, which passes its arguments to the Trainer, and no deterministic kernels. Rows are tokenized once. The trained
  model is freed before the second load.

"tuned" is the same training by an engineer who measured it: base, tokenizer and tokenized evaluation rows stay loaded,
adapters are made anew for each dataset, the 8 rows of a step are one padded batch, and the evaluation takes batches of
16 rows of similar length.

"padding_free" is "tuned" with the rows of a batch end to end (transformers.DataCollatorWithFlattening), under flash
attention on a GPU where the package flash_attn is installed, else under torch's fused attention with a mask.

Unsloth is not among them, since it cannot be installed beside this repository's lock file (see `why_no_unsloth`).
"""

import gc
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers

from scripts.bench.flops import synchronize
from scripts.bench.inputs import RowMaker
from scripts.bench.job import PADDING_FREE, Job, Run
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow
from template.errors import HostError
from template.training import environment
from template.training.tokenizer import PieceTokenizer

_TRAIN_BATCH, _EVAL_BATCH = 8, 16
_NO_TARGET = -100

Example = dict[str, list[int]]
Collate = Callable[[Sequence[Example]], dict[str, torch.Tensor]]


def run_reference(job: Job, data_dir: str, lucky_num: int) -> Run:
    """Evaluate a dataset by the public recipe."""
    torch.set_num_threads(environment.thread_count())
    started = time.perf_counter()
    _, maker = _load_tokenizer(job)
    train_rows, eval_rows = (_read_examples(maker, folder) for folder in (data_dir, job.eval_data_dir))
    with tempfile.TemporaryDirectory(prefix="bench-adapter-") as adapter:
        steps, train_s = _train(job, train_rows, adapter, lucky_num)
        loss, eval_s = _evaluate(job, eval_rows, adapter)
    return _make_run(started, train_s, eval_s, loss, steps)


def _train(job: Job, rows: list[Example], adapter: str, lucky_num: int) -> tuple[int, float]:
    transformers.set_seed(lucky_num)
    trainer = _make_trainer(
        job, peft.get_peft_model(_load_base(job), _lora_config()), adapter, lucky_num, train_dataset=rows
    )
    _, seconds = _timed(job, trainer.train)
    trainer.save_model(adapter)
    steps = int(trainer.state.global_step)
    del trainer
    _free(job)
    return steps, seconds


def _evaluate(job: Job, rows: list[Example], adapter: str) -> tuple[float, float]:
    model: Any = peft.PeftModel.from_pretrained(_load_base(job), adapter)
    trainer = _make_trainer(job, model, adapter, 0, eval_dataset=rows)
    metrics, seconds = _timed(job, trainer.evaluate)
    del trainer, model
    _free(job)
    return float(metrics["eval_loss"]), seconds


@dataclass(frozen=True)
class _Resident:
    """What the tuned runner keeps between datasets."""

    base: Any
    maker: RowMaker
    collate: Collate
    eval_batches: list[list[Example]]


# One job per process, so the runner names what is loaded.
_resident: dict[str, _Resident] = {}


def run_tuned(job: Job, data_dir: str, lucky_num: int) -> Run:
    """Evaluate a dataset by the tuned recipe, with or without padding."""
    torch.set_num_threads(environment.thread_count())
    started = time.perf_counter()
    if job.runner not in _resident:
        _resident[job.runner] = _load_resident(job)
    kept = _resident[job.runner]
    rows = _read_examples(kept.maker, data_dir)
    transformers.set_seed(lucky_num)
    model: Any = peft.get_peft_model(kept.base, _lora_config())
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as folder:
        trainer = _make_trainer(
            job, model, folder, lucky_num, batch=_TRAIN_BATCH, collate=kept.collate, train_dataset=rows
        )
        _, train_s = _timed(job, trainer.train)
    steps = int(trainer.state.global_step)
    loss, eval_s = _timed(job, partial(_mean_row_loss, model, kept))
    model.unload()
    del trainer, model
    _free(job)
    return _make_run(started, train_s, eval_s, loss, steps)


def _load_resident(job: Job) -> _Resident:
    tokenizer, maker = _load_tokenizer(job)
    rows = sorted(_read_examples(maker, job.eval_data_dir), key=lambda row: len(row["input_ids"]))
    batches = [rows[first : first + _EVAL_BATCH] for first in range(0, len(rows), _EVAL_BATCH)]
    if job.runner == PADDING_FREE:
        # It marks each row's first token as no target, which it never is.
        return _Resident(_load_base(job, _choose_attention(job.device)), maker, _flatten, batches)
    return _Resident(_load_base(job), maker, partial(_pad, pad_id=tokenizer.pad_token_id or 0), batches)


def _choose_attention(device: str) -> str:
    """Return transformers' name of the attention without padding."""
    return "sdpa" if why_no_flash_attention(device) else "flash_attention_2"


def why_no_flash_attention(device: str) -> str | None:
    """Say why "padding_free" takes torch's own attention on a device; None if it does not."""
    if torch.device(device).type == "cpu":
        return "flash_attn needs a GPU"
    return None if importlib.util.find_spec("flash_attn") else "flash_attn is not installed"


def why_no_unsloth() -> str:
    """Say why Unsloth is no peer."""
    return f"its releases up to 2026.10.9 need transformers 5.17 or older, and {transformers.__version__} is installed"


@torch.inference_mode()
def _mean_row_loss(model: Any, kept: _Resident) -> float:
    """Return the mean over rows of each row's mean loss."""
    model.eval()
    losses: list[torch.Tensor] = []
    for batch in kept.eval_batches:
        inputs = {name: value.to(model.device) for name, value in kept.collate(batch).items()}
        labels = F.pad(inputs.pop("labels"), (0, 1), value=_NO_TARGET)[:, 1:]
        logits = model(**inputs, use_cache=False).logits.float()
        of_tokens = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=_NO_TARGET, reduction="none")
        # One sequence with all rows, or one for each.
        widths = [len(row["input_ids"]) for row in batch] if len(labels) == 1 else [labels.shape[1]]
        for row_losses, row_labels in zip(of_tokens.split(widths, 1), labels.split(widths, 1), strict=True):
            losses.append(row_losses.sum(1) / (row_labels != _NO_TARGET).sum(1))
    return float(torch.cat(losses).mean())


def _make_run(started: float, train_s: float, eval_s: float, loss: float, steps: int) -> Run:
    total_s = time.perf_counter() - started
    if not math.isfinite(loss):
        raise HostError(f"the loss of the peer is {loss}")
    return Run(
        load_s=total_s - train_s - eval_s, train_s=train_s, eval_s=eval_s, total_s=total_s, loss=loss, steps=steps
    )


def _load_tokenizer(job: Job) -> tuple[Any, RowMaker]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(job.model_path, trust_remote_code=False)
    return tokenizer, RowMaker(template_for(job.model_id), PieceTokenizer(tokenizer))


def _lora_config() -> peft.LoraConfig:
    hyper = load_training_args().hyperparameters
    return peft.LoraConfig(
        r=hyper.lora_rank,
        target_modules="all-linear",
        lora_alpha=hyper.lora_alpha,
        lora_dropout=hyper.lora_dropout,
        task_type="CAUSAL_LM",
    )


def _make_trainer(
    job: Job,
    model: Any,
    folder: str,
    seed: int,
    *,
    batch: int = 1,
    collate: Collate | None = None,
    **datasets: list[Example],
) -> Any:
    """Return a Trainer whose steps have 8 rows; batch: how many of them are computed together."""
    hyper = load_training_args().hyperparameters
    rows_per_step = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows_per_step // batch,
        num_train_epochs=hyper.num_train_epochs,
        per_device_eval_batch_size=1,
        learning_rate=2e-4,
        warmup_steps=5,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=seed,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=job.device == "cpu",
        dataloader_pin_memory=job.device != "cpu",
    )
    return transformers.Trainer(
        model=model, args=arguments, data_collator=collate or partial(_pad, pad_id=0), **datasets
    )


def _load_base(job: Job, attention: str | None = None) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.model_path,
        dtype=getattr(torch, job.dtype),
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=attention,
    )
    return model.to(job.device)


def _read_examples(maker: RowMaker, folder: str) -> list[Example]:
    return [_make_example(row) for row in maker.encode_folder(Path(folder))]


def _make_example(row: EncodedRow) -> Example:
    labels = [token if is_target else _NO_TARGET for token, is_target in zip(row.input_ids, row.targets, strict=True)]
    return {"input_ids": list(row.input_ids), "attention_mask": [1] * len(labels), "labels": labels}


def _pad(rows: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Return rows as one batch, padded on the right; a batch of one has no padding."""
    width = max(len(row["input_ids"]) for row in rows)
    padding = {"input_ids": pad_id, "attention_mask": 0, "labels": _NO_TARGET}
    return {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in padding.items()
    }


def _flatten(rows: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return rows as one sequence, whose positions start anew with each row."""
    batch: dict[str, torch.Tensor] = transformers.DataCollatorWithFlattening()(list(rows))
    return batch


def _timed(job: Job, call: Any) -> tuple[Any, float]:
    synchronize(torch.device(job.device))
    started = time.perf_counter()
    value = call()
    synchronize(torch.device(job.device))
    return value, time.perf_counter() - started


def _free(job: Job) -> None:
    gc.collect()  # a Trainer is in a reference cycle
    if job.device != "cpu":
        torch.cuda.empty_cache()
