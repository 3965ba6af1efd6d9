"""Check that the product never reads a format that can carry code.

`tests/integration/test_secrets.py` shows it for a real run. Ray is the exception: its own processes exchange pickles
(docs/scaling.md).
"""

import ast
from collections.abc import Iterator

import pytest

from tests.fixtures.network import ROOT
from tests.fixtures.source import PRODUCT, parse

# Modules whose formats can carry code, or that start processes by pickle.
FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "dbm", "marshal"),
    *("multiprocessing", "concurrent.futures.process", "torch.multiprocessing", "copyreg", "code", "codeop"),
    "torch.package",
}
# Calls by their last two names.
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "input"),
    *("os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.save", "torch.jit.load", "jit.load", "jit.script", "hub.load", "hub.load_state_dict_from_url"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
}
# Calls that are fine with one argument: name, argument, its source.
DEMANDED = {
    "torch.load": ("weights_only", "True"),
    "numpy.load": ("allow_pickle", "False"),
    "np.load": ("allow_pickle", "False"),
    "yaml.load": ("Loader", "_StrictLoader"),
}
# Loaders of a model's repository: never of its code or a pickle.
FROM_PRETRAINED = {
    "AutoModelForCausalLM": {"trust_remote_code", "use_safetensors"},
    "AutoTokenizer": {"trust_remote_code"},
    "AutoConfig": {"trust_remote_code"},
    # The benchmark reads the adapter that it saved a moment before.
    "PeftModel": set[str](),
}
EXPECTED = {"trust_remote_code": "False", "use_safetensors": "True"}

# Where a rule is broken and why that is no way in: a file, and the call.
ALLOWED = {
    ("template/localnet/models/sources.py", "AutoModelForCausalLM.from_pretrained without use_safetensors=True"): (
        "the quickstart's model comes as a GGUF file, numbers alone, whose sha256 is known"
    ),
}


def find(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and description of each violation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"imports {name.name}") for name in node.names if is_forbidden(name.name))
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
            yield from ((node.lineno, f"imports {name}") for name in names if is_forbidden(name))
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, violation) for violation in broken_by(node))
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
            yield node.value.lineno, "trust_remote_code"


def is_forbidden(name: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in FORBIDDEN_MODULES)


def broken_by(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    words = {word.arg: ast.unparse(word.value) for word in call.keywords}
    short = ".".join(called.split(".")[-2:])
    if short in FORBIDDEN_CALLS or called in FORBIDDEN_CALLS:
        yield f"calls {called}"
    if words.get("shell", "False") != "False":
        yield f"{called} with a shell"
    if words.get("allow_pickle", "False") != "False":
        yield f"{called} with pickles"
    if short in DEMANDED and words.get(DEMANDED[short][0]) != DEMANDED[short][1]:
        yield f"{called} without {'='.join(DEMANDED[short])}"
    if called in ("__import__", "importlib.import_module") and not all(
        isinstance(argument, ast.Constant) for argument in call.args
    ):
        yield f"{called} of a name that is made up"
    if short.endswith(".from_pretrained"):
        for word in FROM_PRETRAINED.get(called.split(".")[-2], EXPECTED.keys()):
            if words.get(word) != EXPECTED[word]:
                yield f"{called} without {word}={EXPECTED[word]}"


def test_no_file_reads_what_can_carry_code_nor_runs_words() -> None:
    violations = {
        (str(path.relative_to(ROOT)), violation): line
        for path, tree in parse(*PRODUCT).items()
        for line, violation in find(tree)
    }
    assert [(*place, line) for place, line in violations.items() if place not in ALLOWED] == []
    assert set(ALLOWED) <= set(violations), "an exception that nothing needs any more"


WRONG = """
import pickle
import cloudpickle
from multiprocessing import Process
from concurrent.futures.process import ProcessPoolExecutor
from torch import multiprocessing
torch.load(path)
torch.load(path, weights_only=False)
np.load(path, allow_pickle=True)
numpy.load(path)
yaml.load(text)
yaml.load(text, Loader=yaml.FullLoader)
yaml.unsafe_load(text)
subprocess.run(words, shell=True)
os.system(words)
tempfile.mktemp()
eval(words)
exec(words)
importlib.import_module(name)
AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False)
transformers.AutoTokenizer.from_pretrained(name)
AutoConfig.from_pretrained(name, trust_remote_code=True, use_safetensors=True)
pipeline(name, trust_remote_code=is_trusted)
"""
RIGHT = """
import json, struct
from concurrent.futures import ThreadPoolExecutor
torch.load(path, weights_only=True)
yaml.safe_load(text)
yaml.load(text, Loader=_StrictLoader)
numpy.load(path, allow_pickle=False)
subprocess.run(words)
model.eval()
re.compile(pattern)
AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
AutoConfig.from_pretrained(name, trust_remote_code=False)
importlib.import_module("ray")
"""


@pytest.mark.parametrize(("lines", "is_found"), [(WRONG, True), (RIGHT, False)])
def test_the_search_finds_what_is_wrong_alone(lines: str, is_found: bool) -> None:
    assert [line for line in lines.strip().splitlines() if any(find(ast.parse(line))) != is_found] == []
