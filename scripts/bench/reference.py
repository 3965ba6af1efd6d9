"""One process of the benchmark: submissions scored by the public recipe, on the Hugging Face Trainer and PEFT.

    python -m scripts.bench.reference JOB.json

`scripts/bench/score.py` writes the job and starts this. It mirrors `train_lora` of the public reference subnet
(FLock-io/FLock-subnet, flockoff/validator/trainer.py), for each submission from scratch: load the base, LoRA on every
linear layer, Trainer with batch 1 and accumulation 8, save the adapter; load the base again, put the adapter on it, and
evaluate with the Trainer in batches of one row.

Where it differs, it is to compute the same number as this package, or to be faster than the public one:

- The public one merges the adapter into the base before it evaluates. Rounding the merged weights to bfloat16 takes
  part of the training away again, 0.15 nats on the short rows, so here the adapter stays apart. With `--reference_eval
  merged` it is merged, which makes that evaluation about twice as fast.
- The base is in float32 or bfloat16 throughout, not in 4 bits for training. Adapters are in float32, as peft keeps
  them, and without autocast, which costs time. The optimizer is torch's AdamW, not the paged 8-bit one.
- Left out: TRL, which passes its arguments on to the Trainer, and deterministic kernels. Rows are tokenized once, not
  at every access, and the trained model is freed before the second load.

Tokens and targets come from `template.data.rows`, so they are equal.
"""

import gc
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from scripts.bench.job import Job, Score, run_job, synchronize
from template import constants
from template.config import Hyperparameters, load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow, encode_row
from template.data.rows import EVAL_SET_LIMITS, parse_rows
from template.errors import HostError
from template.training import environment
from template.training.tokenizer import PieceTokenizer

Example = dict[str, list[int]]


def score(job: Job, data_dir: str, lucky_num: int) -> Score:
    """One submission, all of it: nothing is kept from the one before. Raises: HostError when the loss is no number."""
    torch.set_num_threads(environment.thread_count())
    device = torch.device(job.device)
    started = time.perf_counter()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(job.model_path, trust_remote_code=False)
    train_rows, eval_rows = (encode_folder(Path(folder), job, tokenizer) for folder in (data_dir, job.eval_data_dir))
    with tempfile.TemporaryDirectory(prefix="bench-adapter-") as adapter:
        steps, train_s = train(job, train_rows, adapter, lucky_num)
        loss, eval_s = evaluate(job, eval_rows, adapter)
    synchronize(device)
    total_s = time.perf_counter() - started
    if not math.isfinite(loss):
        raise HostError(f"the reference's loss is {loss}")
    return Score(
        load_s=total_s - train_s - eval_s, train_s=train_s, eval_s=eval_s, total_s=total_s, loss=loss, steps=steps
    )


def train(job: Job, rows: list[Example], adapter: str, lucky_num: int) -> tuple[int, float]:
    """Trains an adapter and saves it; the optimizer steps taken and the seconds they took."""
    hyper = load_training_args().hyperparameters
    transformers.set_seed(lucky_num)
    config = peft.LoraConfig(
        r=hyper.lora_rank,
        target_modules="all-linear",
        lora_alpha=hyper.lora_alpha,
        lora_dropout=hyper.lora_dropout,
        task_type="CAUSAL_LM",
    )
    trainer: Any = transformers.Trainer(
        model=peft.get_peft_model(load_base(job), config),
        args=make_arguments(job, hyper, adapter, lucky_num),
        train_dataset=rows,
        data_collator=transformers.default_data_collator,
    )
    seconds = timed(job, trainer.train)[1]
    trainer.save_model(adapter)
    steps = int(trainer.state.global_step)
    del trainer
    free(job)
    return steps, seconds


def evaluate(job: Job, rows: list[Example], adapter: str) -> tuple[float, float]:
    """The loss with the saved adapter on a base loaded anew, and the seconds of the evaluation alone."""
    model: Any = peft.PeftModel.from_pretrained(load_base(job), adapter)
    if job.merges:
        model = model.merge_and_unload()
    trainer: Any = transformers.Trainer(
        model=model,
        args=make_arguments(job, load_training_args().hyperparameters, adapter, 0),
        eval_dataset=rows,
        data_collator=transformers.default_data_collator,
    )
    metrics, seconds = timed(job, trainer.evaluate)
    del trainer, model
    free(job)
    return float(metrics["eval_loss"]), seconds


def make_arguments(job: Job, hyper: Hyperparameters, folder: str, seed: int) -> Any:
    """The Trainer's arguments, those of the public recipe."""
    return transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=hyper.per_device_train_batch_size,
        gradient_accumulation_steps=hyper.gradient_accumulation_steps,
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


def load_base(job: Job) -> Any:
    """The base from its files, on the device."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.model_path, dtype=getattr(torch, job.dtype), use_safetensors=True, trust_remote_code=False
    )
    return model.to(job.device)


def encode_folder(folder: Path, job: Job, tokenizer: Any) -> list[Example]:
    """The folder's rows as the Trainer takes them; labels are -100 where nothing is to be predicted."""
    rows = parse_rows((folder / constants.DATA_FILE).read_bytes(), name=constants.DATA_FILE, limits=EVAL_SET_LIMITS)
    template = template_for(job.model_id)
    tokenize = PieceTokenizer(tokenizer)
    return [make_example(row) for row in (encode_row(row, template, tokenize) for row in rows) if row is not None]


def make_example(row: EncodedRow) -> Example:
    """One row in the Trainer's own terms."""
    labels = [token if hit else -100 for token, hit in zip(row.input_ids, row.targets, strict=True)]
    return {"input_ids": list(row.input_ids), "attention_mask": [1] * len(labels), "labels": labels}


def timed(job: Job, call: Any) -> tuple[Any, float]:
    """What `call` returns and the seconds until the device was done with it."""
    synchronize(torch.device(job.device))
    started = time.perf_counter()
    value = call()
    synchronize(torch.device(job.device))
    return value, time.perf_counter() - started


def free(job: Job) -> None:
    """Gives back what is no longer referred to: a Trainer refers to itself."""
    gc.collect()
    if job.device != "cpu":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(run_job(score))
