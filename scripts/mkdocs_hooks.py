"""Hooks of mkdocs: the benchmarks' tables and the changelog, which lie beside docs/, as pages."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("benchmarks/results/*.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each file of BESIDE under its path from the root of the checkout."""
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = str(path.relative_to(ROOT))
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from docs/ to such a page lead out of docs/ in the checkout, and not in the site."""
    return markdown.replace("](../benchmarks/", "](benchmarks/").replace(
        "](../CHANGELOG.md", "](CHANGELOG.md"
    )
