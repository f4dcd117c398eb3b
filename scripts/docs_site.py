"""Hook of mkdocs.yml: pages that lie outside docs/, and links between them and docs/.

A page of docs/ links to ``../datasets/README.md`` and that page to ``../docs/custom_data.md``, as the files lie in the
repository and as a code host shows them. On the site docs/ is the root, and datasets/ is a folder in it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "datasets/README.md", "notebooks/*.md", "notebooks/*.ipynb")
DOCS = "docs/"
_LINK = re.compile(r"(?<=]\()(?![a-z]+:|#)([^)\s#]+)")  # the target of [text](target#anchor), unless it is a URL


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ at their place in the repository."""
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in OUTSIDE for path in root.glob(pattern)):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if page.file.generated_by else DOCS + uri)

    def on_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0])).removeprefix(DOCS)
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return _LINK.sub(on_the_site, markdown)
