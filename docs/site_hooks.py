"""Hook of mkdocs: links to files of the sources outside docs/ become their paths, and must exist."""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def on_page_markdown(markdown: str, page, **_) -> str:
    folder = (DOCS / page.file.src_path).parent

    def path_of(link: re.Match) -> str:
        text, target = link.groups()
        path = (folder / target).resolve()
        if path.is_relative_to(DOCS):
            return link.group()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_path}: {target} does not exist")
        name = str(path.relative_to(ROOT))
        return text if name in text else f"{text} (`{name}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)\)", path_of, markdown)
