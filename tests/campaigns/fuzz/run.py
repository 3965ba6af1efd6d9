"""Fuzzing campaigns: inputs made by shape or by what they reach, each held to its target within a budget, and counted.

Every input is run under a budget of processor time; of some, what the process grew by while they ran is measured, too.
An input that breaks either, or that its target raises anything for, is a finding, kept as a file. The campaign goes on:
one finding does not hide the next. Linux only.

As a program it is the child of a campaign that atheris leads, which never returns from its loop:

    python -m tests.campaigns.fuzz.run TARGET CORPUS FINDINGS RUNS SEED
"""

import hashlib
import json
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import template
from template.errors import HostError
from tests.campaigns.measure import memory_kib, reset_peak_memory

# What one input may take: seconds of processor time, and MiB that the process grows by while it runs.
INPUT_SECONDS = 2.0
INPUT_MIB = 64
# What the whole process may take beyond its start: MiB of address space. Past it an input ends in a MemoryError.
PROCESS_MIB = 1024
_MEASURED_EVERY = 50
_HANG_S = 60
_FINDINGS_KEPT = 20


@dataclass
class Tally:
    """What a campaign against one target came to. findings: where each differs from the others, and its file."""

    target: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    input_mib: float = 0.0
    process_mib: float = 0.0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    findings: dict[str, str] = field(default_factory=dict)


class Runner:
    """Runs inputs against one target and keeps the tally. folder: where inputs that are findings go."""

    def __init__(self, target: str, engine: str, check: Callable[[bytes], None], folder: Path) -> None:
        self.tally = Tally(target, engine)
        self._check = check
        self._folder = folder
        self._started = time.monotonic()
        self._start_kib = memory_kib("VmRSS")

    def run(self, data: bytes) -> None:
        """Runs one input; what comes of it is in the tally."""
        tally = self.tally
        is_measured = tally.inputs % _MEASURED_EVERY == 0
        if is_measured:
            reset_peak_memory()
            before = memory_kib("VmRSS")
        started = time.process_time()
        try:
            self._check(data)
        except Exception as error:
            self._keep(_where(error), data)
        seconds = time.process_time() - started
        # The first one also makes what all the others use.
        if is_measured and tally.inputs:
            grown = (memory_kib("VmHWM") - before) / 1024
            tally.input_mib = max(tally.input_mib, grown)
            if grown > INPUT_MIB:
                self._keep(f"more than {INPUT_MIB} MiB", data)
        if tally.inputs:
            tally.slowest_s = max(tally.slowest_s, seconds)
            if seconds > INPUT_SECONDS:
                self._keep(f"more than {INPUT_SECONDS:g} s", data)
        tally.inputs += 1

    def finish(self) -> Tally:
        """The tally, with the time and the memory that all took."""
        self.tally.seconds = time.monotonic() - self._started
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.tally.process_mib = max(0, peak_kib - self._start_kib) / 1024
        return self.tally

    def _keep(self, what: str, data: bytes) -> None:
        if what in self.tally.findings or len(self.tally.findings) == _FINDINGS_KEPT:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self.tally.target}-{name_of(data)}"
        path.write_bytes(data)
        self.tally.findings[what] = str(path)


def name_of(data: bytes) -> str:
    """What an input's file is called."""
    return hashlib.sha256(data).hexdigest()[:16]


def _where(error: Exception) -> str:
    """What tells one finding from another: the error, and the line that it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:100]}"


def read_corpus(folder: Path) -> list[bytes]:
    """The inputs in a folder, smallest first; none where there is no folder."""
    found = (path.read_bytes() for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    return sorted(found, key=lambda data: (len(data), data))


def write_corpus(folder: Path, inputs: Iterable[bytes]) -> None:
    """Puts inputs into a folder, made if missing, and takes out all others."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name_of(data): data for data in inputs}
    for path in folder.iterdir():
        if path.name not in named:
            path.unlink()
    for name, data in named.items():
        (folder / name).write_bytes(data)


def run_shapes(target: str, examples: int, seed: int, folder: Path) -> Tally:
    """A campaign of inputs that hypothesis makes, always the same for a seed."""
    import hypothesis

    from tests.campaigns.fuzz.strategies import SHAPES
    from tests.campaigns.fuzz.targets import TARGETS

    # Where it keeps tables of characters: otherwise in the working directory.
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    runner = Runner(target, "shapes", TARGETS[target].check, folder)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(SHAPES[target])
    def run(data: bytes) -> None:
        runner.run(data)

    run()
    return runner.finish()


def run_coverage(target: str, corpus: Path, runs: int, seed: int, folder: Path) -> Tally:
    """A campaign that atheris leads in a process of its own; `corpus` is where it begins, and what it adds to.

    Raises: HostError when the process fails.
    """
    module = [sys.executable, "-m", "tests.campaigns.fuzz.run"]
    command = [*module, target, str(corpus), str(folder), str(runs), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not told:
        raise HostError(f"the fuzzer of {target} ended with {done.returncode}: {done.stderr[-2000:]}")
    tally = Tally(**json.loads(told[-1]))
    # `#2000 DONE cov: 300 ft: 700 corp: 90/10Kb ...`: libFuzzer's own account, of which this is the last line.
    words = next(line for line in reversed(done.stderr.splitlines()) if "DONE" in line).split()
    tally.edges, tally.features = (int(words[words.index(name) + 1]) for name in ("cov:", "ft:"))
    tally.corpus = len(read_corpus(corpus))
    return tally


def minimise(check: Callable[[bytes], None], inputs: Sequence[bytes]) -> list[bytes]:
    """The smallest of the inputs that together take every step from line to line of the product that all take.

    Once, twice, up to four times, up to eight and so on are each a step of their own.
    """
    kept: list[bytes] = []
    seen: set[object] = set()
    for data in sorted(inputs, key=lambda one: (len(one), one)):
        steps = _steps(check, data)
        if not steps <= seen:
            seen |= steps
            kept.append(data)
    return kept


def _steps(check: Callable[[bytes], None], data: bytes) -> set[object]:
    """The pairs of lines that were run one after the other, about how often, and what was raised."""
    steps: Counter[object] = Counter()
    product = str(Path(template.__file__).parent)

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(product) or "/localnet/" in path:
            return None
        last = [frame.f_lineno]

        def step(frame: FrameType, event: str, value: Any) -> Any:
            if event == "line":
                steps[path, last[0], frame.f_lineno] += 1
                last[0] = frame.f_lineno
            elif event == "exception":
                steps[path, frame.f_lineno, value[0]] += 1
            return step

        return step

    sys.settrace(follow)
    try:
        check(data)
    except Exception as error:
        steps[_where(error)] += 1
    finally:
        sys.settrace(None)
    return {(step, (count - 1).bit_length()) for step, count in steps.items()}


def main(argv: Sequence[str]) -> None:
    """The child: fuzzes one target, prints its tally as JSON, and ends inside of libFuzzer."""
    import atheris

    target, corpus, folder, runs, seed = argv
    # What counts is what the product does, not what it is compared with.
    with atheris.instrument_imports(include=["template", "json"], exclude=["template.localnet"]):
        from tests.campaigns.fuzz.targets import TARGETS
    one = TARGETS[target]
    runner = Runner(target, "coverage", one.check, Path(folder))
    most = int(runs)
    words = Path(folder) / f"{target}.dict"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in one.words))
    limit = memory_kib("VmSize") * 1024 + PROCESS_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def run(data: bytes) -> None:
        runner.run(data)
        if runner.tally.inputs == most:
            print(json.dumps(asdict(runner.finish())), flush=True)

    flags = [f"-runs={most}", f"-seed={seed}", f"-max_len={one.max_bytes}", f"-timeout={_HANG_S}", "-rss_limit_mb=0"]
    flags += [f"-dict={words}", f"-artifact_prefix={folder}/{target}-", "-print_final_stats=0", corpus]
    atheris.Setup(["fuzz", *flags], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
