"""A child process of the benchmark: evaluates datasets one after another.

    python -m scripts.bench.runner JOB.json

`scripts.bench.score` writes the job and starts this, so that memory, threads and loading are the runner's own.

"ours" calls `train_and_evaluate` as a validator's worker does; the base stays loaded. "reference" mirrors the public
reference subnet (FLock-io/FLock-subnet, flockoff/validator/trainer.py) on the Hugging Face Trainer and PEFT, each time
from scratch: load the base, train LoRA on every linear layer with batch 1 and accumulation 8, save the adapter; load
the base and the adapter, evaluate with batch 1. It differs from the public one where that computes another number or is
slower:

- The adapter is not merged before the evaluation. In bfloat16, merging rounds away 0.15 nats of the training on the
  short rows; it would make the evaluation about twice as fast.
- The base is float32 or bfloat16 throughout, not 4 bits; adapters are float32 without autocast; the optimizer is
  torch's AdamW, not the paged 8-bit one.
- No TRL, which passes its arguments to the Trainer, and no deterministic kernels. Rows are tokenized once. The trained
  model is freed before the second load.
"""

import dataclasses
import gc
import json
import math
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from scripts.bench.flops import synchronize
from scripts.bench.inputs import RowMaker
from template import cli, constants
from template.config import load_training_args
from template.data.chat_templates import template_for
from template.data.encoding import EncodedRow
from template.errors import HostError
from template.telemetry import logging
from template.train import RunOptions, train_and_evaluate
from template.training import environment
from template.training.tokenizer import PieceTokenizer

OURS, REFERENCE = "ours", "reference"
_BENCHMARK_LOSS = 2.6  # reported only

Example = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Datasets with their seeds, and the file to which the `Outcome` is written."""

    runner: str
    model_path: str
    model_id: str
    device: str
    dtype: str
    data_dirs: list[str]
    lucky_nums: list[int]
    eval_data_dir: str
    out: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds (`total_s` with all loading), loss and optimizer steps of one dataset."""

    load_s: float
    train_s: float
    eval_s: float
    total_s: float
    loss: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All runs of a child process, and its peak memory (on a GPU, reserved by torch)."""

    runs: list[Run]
    peak_mib: float


def main() -> int:
    """Execute the job file named on the command line."""
    logging.quiet_libraries()
    return cli.run_entry_point(_work)


def _work() -> int:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    run = run_ours if job.runner == OURS else run_reference
    runs = [run(job, *pair) for pair in zip(job.data_dirs, job.lucky_nums, strict=True)]
    outcome = Outcome(runs=runs, peak_mib=_peak_mib(job.device))
    Path(job.out).write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
    return 0


def read_outcome(path: Path) -> Outcome:
    """Read the file that a child process wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(runs=[Run(**run) for run in values["runs"]], peak_mib=values["peak_mib"])


def _peak_mib(device: str) -> float:
    if device != "cpu":
        # Reserved, because the memory of CUDA graphs is not counted as allocated.
        return torch.cuda.max_memory_reserved() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux includes the peak of the parent process.
        (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def run_ours(job: Job, data_dir: str, lucky_num: int) -> Run:
    """Evaluate a dataset by `train_and_evaluate`."""
    options = RunOptions(
        training_args=dataclasses.replace(load_training_args(), model_id=job.model_id, revision=None),
        model_path=Path(job.model_path),
        device=job.device,
        dtype=job.dtype,
    )
    where = {"data_dir": data_dir, "eval_data_dir": job.eval_data_dir}
    started = time.perf_counter()
    result = train_and_evaluate(lucky_num, _BENCHMARK_LOSS, constants.MAX_SUBMISSION_ROWS, **where, options=options)
    return Run(
        load_s=result.load_seconds,
        train_s=result.train_seconds,
        eval_s=result.eval_seconds,
        total_s=time.perf_counter() - started,
        loss=result.loss,
        steps=len(result.step_losses),
    )


def run_reference(job: Job, data_dir: str, lucky_num: int) -> Run:
    """Evaluate a dataset by the public recipe."""
    torch.set_num_threads(environment.thread_count())
    started = time.perf_counter()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(job.model_path, trust_remote_code=False)
    maker = RowMaker(template_for(job.model_id), PieceTokenizer(tokenizer))
    train_rows, eval_rows = (
        [_make_example(row) for row in maker.encode_folder(Path(folder))] for folder in (data_dir, job.eval_data_dir)
    )
    with tempfile.TemporaryDirectory(prefix="bench-adapter-") as adapter:
        steps, train_s = _train(job, train_rows, adapter, lucky_num)
        loss, eval_s = _evaluate(job, eval_rows, adapter)
    total_s = time.perf_counter() - started
    if not math.isfinite(loss):
        raise HostError(f"the loss of the reference is {loss}")
    return Run(
        load_s=total_s - train_s - eval_s, train_s=train_s, eval_s=eval_s, total_s=total_s, loss=loss, steps=steps
    )


def _train(job: Job, rows: list[Example], adapter: str, lucky_num: int) -> tuple[int, float]:
    hyper = load_training_args().hyperparameters
    transformers.set_seed(lucky_num)
    config = peft.LoraConfig(
        r=hyper.lora_rank,
        target_modules="all-linear",
        lora_alpha=hyper.lora_alpha,
        lora_dropout=hyper.lora_dropout,
        task_type="CAUSAL_LM",
    )
    trainer = _make_trainer(job, peft.get_peft_model(_load_base(job), config), adapter, lucky_num, train_dataset=rows)
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


def _make_trainer(job: Job, model: Any, folder: str, seed: int, **datasets: list[Example]) -> Any:
    hyper = load_training_args().hyperparameters
    arguments = transformers.TrainingArguments(
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
    collator = transformers.default_data_collator
    return transformers.Trainer(model=model, args=arguments, data_collator=collator, **datasets)


def _load_base(job: Job) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.model_path, dtype=getattr(torch, job.dtype), use_safetensors=True, trust_remote_code=False
    )
    return model.to(job.device)


def _make_example(row: EncodedRow) -> Example:
    labels = [token if is_target else -100 for token, is_target in zip(row.input_ids, row.targets, strict=True)]
    return {"input_ids": list(row.input_ids), "attention_mask": [1] * len(labels), "labels": labels}


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


if __name__ == "__main__":
    sys.exit(main())
