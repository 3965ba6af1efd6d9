"""What the benchmark asks of a child process, and the seconds of one dataset."""

from dataclasses import dataclass

OURS, REFERENCE, TUNED, PADDING_FREE = "ours", "reference", "tuned", "padding_free"


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
