"""Fuzzing one target: inputs by shape or by coverage, each within a budget.

An input that breaks its budget, or for which the target raises anything, is a finding and kept as a file; the campaign
goes on. Linux only. Campaigns by coverage run in a child, since atheris never returns from its loop:

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
from tests.campaigns.measure import MIB, memory_kib, reset_peak_memory

# Limits for one input: seconds of processor time, and MiB by which the process grows meanwhile.
INPUT_SECONDS, INPUT_MIB = 2.0, 64
# MiB of address space beyond the process's start. Past it an input ends in a MemoryError.
PROCESS_MIB = 1024
MEASURED_EVERY = 50
_HANG_S = 60
_MAX_FINDINGS = 20
_PRODUCT = str(Path(template.__file__).parent)

Check = Callable[[bytes], None]


@dataclass
class Tally:
    """The result of a campaign against one target, with the files of findings."""

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

    def __str__(self) -> str:
        reached = f", {self.edges} edges, {self.features} features, {self.corpus} in the corpus" if self.edges else ""
        return (
            f"{self.target} by {self.engine}: {self.inputs:,} inputs in {self.seconds:.0f} s, slowest "
            f"{self.slowest_s * 1000:.1f} ms, {self.input_mib:.1f} MiB for one, {self.process_mib:.1f} MiB in all"
            f"{reached}, {len(self.findings)} findings"
        )


class Runner:
    """Runs inputs against one target. folder: for the files of findings."""

    def __init__(self, target: str, engine: str, check: Check, folder: Path) -> None:
        self.tally = Tally(target, engine)
        self._check = check
        self._folder = folder
        self._started = time.monotonic()
        self._start_kib = memory_kib("VmRSS")

    def run(self, data: bytes) -> None:
        tally = self.tally
        is_measured = tally.inputs % MEASURED_EVERY == 0
        if is_measured:
            reset_peak_memory()
            before = memory_kib("VmRSS")
        started = time.process_time()
        try:
            self._check(data)
        except Exception as error:
            self._keep(_where(error), data)
        seconds = time.process_time() - started
        # The first input also pays for caches that all inputs share.
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
        self.tally.seconds = time.monotonic() - self._started
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.tally.process_mib = max(0, peak_kib - self._start_kib) / 1024
        return self.tally

    def _keep(self, what: str, data: bytes) -> None:
        if what not in self.tally.findings and len(self.tally.findings) < _MAX_FINDINGS:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self.tally.target}-{name_of(data)}"
            path.write_bytes(data)
            self.tally.findings[what] = str(path)


def name_of(data: bytes) -> str:
    """Return the name of an input's file."""
    return hashlib.sha256(data).hexdigest()[:16]


def _where(error: Exception) -> str:
    """Return the error and the line that raised it, to tell findings apart."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:100]}"


def read_corpus(folder: Path) -> list[bytes]:
    """Return the inputs in a folder, smallest first; none without the folder."""
    inputs = (path.read_bytes() for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    return sorted(inputs, key=lambda data: (len(data), data))


def write_corpus(folder: Path, inputs: Iterable[bytes]) -> None:
    """Write these inputs, and remove all others from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name_of(data): data for data in inputs}
    for path in folder.iterdir():
        if path.name not in named:
            path.unlink()
    for name, data in named.items():
        (folder / name).write_bytes(data)


def run_inputs(target: str, inputs: Iterable[bytes], folder: Path) -> Tally:
    """Run these inputs, the corpus."""
    from tests.campaigns.fuzz.targets import TARGETS

    runner = Runner(target, "corpus", TARGETS[target].check, folder)
    for data in inputs:
        runner.run(data)
    return runner.finish()


def run_shapes(target: str, examples: int, seed: int, folder: Path) -> Tally:
    """Run inputs that hypothesis makes, always the same for a seed."""
    import hypothesis

    from tests.campaigns.fuzz.strategies import SHAPES
    from tests.campaigns.fuzz.targets import TARGETS

    # It keeps tables of characters there, otherwise in the working directory.
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    runner = Runner(target, "shapes", TARGETS[target].check, folder)
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    hypothesis.seed(seed)(settings(hypothesis.given(SHAPES[target])(lambda data: runner.run(data))))()
    return runner.finish()


def run_coverage(target: str, corpus: Path, runs: int, seed: int, folder: Path) -> Tally:
    """Run inputs that atheris makes from a corpus. Raises: HostError."""
    command = [sys.executable, "-m", "tests.campaigns.fuzz.run", target, corpus, folder, runs, seed]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace")
    tallies = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode != 0 or not tallies:
        raise HostError(f"the fuzzer of {target} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    tally = Tally(**json.loads(tallies[-1]))
    # libFuzzer's last line: `#2000 DONE cov: 300 ft: 700 corp: 90/10Kb ...`
    words = next(line for line in reversed(ended.stderr.splitlines()) if "DONE" in line).split()
    tally.edges, tally.features = (int(words[words.index(name) + 1]) for name in ("cov:", "ft:"))
    tally.corpus = len(read_corpus(corpus))
    return tally


def minimise(check: Check, inputs: Iterable[bytes]) -> list[bytes]:
    """Return the smallest inputs that take every step that all take."""
    chosen: list[bytes] = []
    seen: set[object] = set()
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        steps = steps_of(check, data)
        if not steps <= seen:
            seen |= steps
            chosen.append(data)
    return chosen


def steps_of(check: Check, data: bytes) -> set[object]:
    """Return pairs of consecutive lines, and about how often each was taken."""
    steps: Counter[object] = Counter()
    newest: object = None

    def follow(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal newest
        path = frame.f_code.co_filename
        if not path.startswith(_PRODUCT) or "/localnet/" in path:
            return None
        before, newest = newest, (path, frame.f_lineno, value[0] if event == "exception" else event)
        steps[before, newest] += 1
        return follow

    sys.settrace(follow)
    try:
        check(data)
    except Exception as error:
        steps[_where(error)] += 1
    finally:
        sys.settrace(None)
    return {(step, (count - 1).bit_length()) for step, count in steps.items()}


def main(argv: Sequence[str]) -> None:
    """Fuzz one target by coverage; ends inside of libFuzzer."""
    import atheris

    name, corpus, folder, runs, seed = argv
    # Only the product's code counts, not the reference's.
    with atheris.instrument_imports(include=["template", "json"], exclude=["template.localnet"]):
        from tests.campaigns.fuzz.targets import TARGETS
    target = TARGETS[name]
    runner = Runner(name, "coverage", target.check, Path(folder))
    words = Path(folder) / f"{name}.dict"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))
    limit = memory_kib("VmSize") * 1024 + PROCESS_MIB * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def run(data: bytes) -> None:
        runner.run(data)
        if runner.tally.inputs == int(runs):
            print(json.dumps(asdict(runner.finish())), flush=True)

    flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_bytes}", f"-timeout={_HANG_S}"]
    flags += ["-rss_limit_mb=0", f"-dict={words}", f"-artifact_prefix={folder}/{name}-", "-print_final_stats=0"]
    atheris.Setup(["fuzz", *flags, corpus], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
