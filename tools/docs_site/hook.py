"""What mkdocs calls while it builds the site, see mkdocs.yml: pages are added, links are mended.

Pages in docs/ are read on a code host, too, where links lead to files of the repository. On the
site those that are pages are pages, and others are copies of the files.
"""

import functools
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.docs_site.pages import (  # noqa: E402
    TITLES,
    all_losses,
    gallery,
    loss_page,
    notebook_page,
)
from tools.docs_site.pictures import gradient_picture  # noqa: E402

# Files of the repository that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of losses go where the navigation says ``losses/<kind>``."""
    for section in config.nav:
        for entries in section.values():
            if not isinstance(entries, list):
                continue
            for entry in entries:
                for title, target in entry.items():
                    if target in TITLES:
                        names = [name for kind, name in all_losses() if kind == target]
                        entry[title] = [{name: f"losses/{name}.md"} for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages and pictures that are made from the code."""
    add = functools.partial(_add, files, config)
    for path, uri in PAGES.items():
        add(uri, (ROOT / path).read_text())
    for kind, name in all_losses():
        add(f"losses/{name}.md", loss_page(kind, name))
        add(f"figures/gradients/{name}.png", gradient_picture(kind, name))
    add("gallery.md", gallery())
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        add(f"notebooks/{notebook.stem}.md", notebook_page(notebook))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to pages, or to copies of the files."""
    path = page.file.src_uri
    original = {uri: name for name, uri in PAGES.items()}.get(path, f"docs/{path}")
    folder = posixpath.dirname(original)

    def mended(match: re.Match) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, target))
        uri = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            uri = _copy_of(target, files, config)
        here = posixpath.dirname(path)
        return f"]({posixpath.relpath(uri, here or '.')}{'#' + anchor if anchor else ''})"

    # Not in code, where brackets may stand the same way.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", mended, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name other functions as Sphinx has it, which Markdown shows as it is."""
    return re.sub(r":(?:func|class|meth|mod|data):<code>~?(.*?)</code>", r"<code>\1</code>", html)


def _copy_of(target: str, files: Files, config: MkDocsConfig) -> str:
    """The address of a copy of a file, or of a list of what is in a folder, that is added."""
    path = ROOT / target
    uri = f"source/{target}.txt"
    if files.get_file_from_path(uri) is None:
        if path.is_dir():
            text = "\n".join(sorted(child.name for child in path.iterdir()))
        else:
            text = path.read_text()
        _add(files, config, uri, text)
    return uri


def _add(files: Files, config: MkDocsConfig, uri: str, content: str | bytes) -> None:
    files.append(File.generated(config, uri, content=content))
