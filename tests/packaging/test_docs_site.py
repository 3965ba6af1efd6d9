"""The documentation as a site."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A link or an anchor without a target fails the build."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    pages = [
        *(path.name for path in ROOT.glob("*.md")),
        *(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")),
    ]
    # The README is the start page.
    folders = [site / page.removesuffix(".md").replace("README", "") for page in pages]
    assert len(folders) > 20 and not [folder for folder in folders if not (folder / "index.html").is_file()]


def test_links_between_root_and_docs_lead_to_pages(site: Path) -> None:
    assert 'href="miner/"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="../CHANGELOG/"' in (site / "operator" / "index.html").read_text(encoding="utf-8")
