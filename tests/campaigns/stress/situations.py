"""The situations of the stress run, with the verdicts that they allow.

An evaluation has the reference's bits, or is refused by an error that names the fault, or the product itself gives it
another evaluation config, whose losses are never compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tests.campaigns.stress.disturbances import DISTURBANCES


class Verdict(StrEnum):
    """The result of one evaluation beside the reference."""

    EQUAL = "equal"
    REFUSED = "refused"
    OTHER_CONFIG = "another evaluation config"
    DIFFERENT = "DIFFERENT"


_EQUAL = frozenset({Verdict.EQUAL})
_REFUSED = frozenset({Verdict.REFUSED})
_OR_REFUSED = frozenset({Verdict.EQUAL, Verdict.REFUSED})
_OR_OTHER = frozenset({Verdict.EQUAL, Verdict.OTHER_CONFIG})


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One row of the table.

    Args:
        allowed: verdicts of its evaluations.
        prelude: what a shell does before the process takes its place.
        external_load: processes of that module, by their arguments, on each core where `is_per_core`.
        others: evaluations of other datasets before each evaluation but the first.
        address_share: of the address space that the reference mapped, what this process may map.
    """

    name: str
    allowed: frozenset[Verdict] = _EQUAL
    environment: Mapping[str, str] = field(default_factory=dict)
    prelude: str = "exec"
    disturbance: str | None = None
    external_load: tuple[tuple[str, ...], ...] = ()
    is_per_core: bool = False
    others: int = 0
    address_share: float | None = None
    is_child_killed: bool = False


# NAME=VALUE as a process may inherit it, by the allowed verdicts.
_VARIABLES: dict[frozenset[Verdict], str] = {
    _EQUAL: """
        OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 OMP_NUM_THREADS=4 OMP_NUM_THREADS=8 OMP_WAIT_POLICY=active
        OMP_WAIT_POLICY=passive MKL_NUM_THREADS=1 MKL_NUM_THREADS=8 OPENBLAS_NUM_THREADS=1 TORCH_LOGS=+all
        MALLOC_ARENA_MAX=1 MALLOC_PERTURB_=85 MALLOC_MMAP_THRESHOLD_=4096 THP_MEM_ALLOC_ENABLE=1 PYTHONMALLOC=malloc
        PYTHONHASHSEED=0 PYTHONHASHSEED=4294967295 PYTHONOPTIMIZE=1 PYTHONDEVMODE=1 LC_ALL=C LC_ALL=de_DE.UTF-8
        TZ=Pacific/Kiritimati HOME=/nonexistent CUDA_LAUNCH_BLOCKING=1 CUDA_DEVICE_MAX_CONNECTIONS=1
        PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:32
    """,
    _REFUSED: """
        OMP_DYNAMIC=true OMP_THREAD_LIMIT=1 OMP_MAX_ACTIVE_LEVELS=0 OMP_PROC_BIND=true OMP_PROC_BIND=spread
        OMP_PLACES=cores GOMP_CPU_AFFINITY=0
    """,
    _OR_OTHER: """
        OMP_NESTED=true OMP_SCHEDULE=dynamic,1 OMP_STACKSIZE=64k MKL_DYNAMIC=true MKL_DYNAMIC=false
        MKL_CBWR=COMPATIBLE MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=AVX2 DNNL_MAX_CPU_ISA=SSE41
        ONEDNN_DEFAULT_FPMATH_MODE=BF16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=0 ATEN_CPU_CAPABILITY=default
        ATEN_CPU_CAPABILITY=avx2 TORCH_COMPILE_DISABLE=1 GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA
        CUBLAS_WORKSPACE_CONFIG=:16:8 NVIDIA_TF32_OVERRIDE=1 TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1
        DISABLE_ADDMM_CUDA_LT=1
    """,
}
_CUDA_VARIABLES: dict[frozenset[Verdict], str] = {
    _EQUAL: "CUDA_MODULE_LOADING=EAGER",
    _OR_REFUSED: "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    _REFUSED: """
        CUBLAS_WORKSPACE_CONFIG=:0:0 PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync PYTORCH_NO_CUDA_MEMORY_CACHING=1
    """,
}

# Refused where a CPU evaluates; beside a GPU they change no number.
_BINDINGS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")

# Shell commands before `exec` of the process.
_SHELLS: dict[str, tuple[str, frozenset[Verdict]]] = {
    "on one core (taskset)": ("exec taskset -c 0", _OR_OTHER),
    "nice 19": ("exec nice -n 19", _EQUAL),
    "a stack of 1 MiB": ("ulimit -s 1024; exec", _EQUAL),
    "a stack without a limit": ("ulimit -s unlimited; exec", _EQUAL),
    "64 open files": ("ulimit -n 64; exec", _OR_REFUSED),
    "umask 777": ("umask 777; exec", _EQUAL),
    "another working directory": ("cd / && exec", _EQUAL),
    "stdin closed": ("exec 0<&-; exec", _EQUAL),
    "stderr closed": ("exec 2>&-; exec", _EQUAL),
}

_UNSOUND = tuple(name for name in DISTURBANCES if name.startswith(("denormals", "rounding", "omp_")))


def _allowed_within(name: str) -> frozenset[Verdict]:
    if name == "cores taken away in mid-training":
        return _OR_OTHER | _REFUSED  # later ones run on the cores that are left
    return _REFUSED if name in _UNSOUND else _EQUAL


def list_situations(device: str, *, others: int, memory_bytes: int, hog_bytes: int) -> Iterator[Situation]:
    """Yield all situations of a kind of device, the longest last.

    Args:
        memory_bytes: the most that the reference held, of a GPU where there is one.
        hog_bytes: of the machine's memory, what another process may take.
    """
    is_cuda = device != "cpu"
    products, copies = ("products",), ("bandwidth",)
    yield Situation(name="every core at wide products", external_load=(products,), is_per_core=True)
    yield Situation(name="every core copying memory", external_load=(copies,), is_per_core=True)
    yield Situation(name="cores at products and at copies", external_load=(products, copies), is_per_core=True)
    yield Situation(name=f"{hog_bytes / 2**30:.1f} GiB taken and written", external_load=(("memory", str(hog_bytes)),))
    if is_cuda:
        yield Situation(name="two processes at products on the GPU", external_load=(("cuda_products", device),) * 2)
        for share in (1.5, 1.0, 0.5):
            left = int(memory_bytes * share) + 2**30  # libraries and context, beside what torch has
            name = f"the GPU's memory taken but {left / 2**30:.1f} GiB"
            yield Situation(name=name, allowed=_OR_REFUSED, external_load=(("cuda_memory", device, str(left)),))
    else:
        for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6):
            name = f"{share:.0%} of the address space it needs"
            yield Situation(name=name, allowed=_OR_REFUSED, address_share=share)
    yield Situation(name="after a child was killed in mid-training", is_child_killed=True)
    tables = (*_VARIABLES.items(), *(_CUDA_VARIABLES.items() if is_cuda else ()))
    for text, allowed in ((text, allowed) for allowed, texts in tables for text in texts.split()):
        name, _, value = text.partition("=")
        is_moot = is_cuda and name in _BINDINGS
        yield Situation(name=text, allowed=_OR_OTHER if is_moot else allowed, environment={name: value})
    for name, (prelude, allowed) in _SHELLS.items():
        yield Situation(name=name, allowed=allowed, prelude=prelude)
    for name in DISTURBANCES:
        yield Situation(name=name, disturbance=name, allowed=_allowed_within(name))
    yield Situation(name=f"after {others:,} evaluations of others", others=others)
