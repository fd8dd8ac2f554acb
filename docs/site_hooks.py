"""Hook of mkdocs: links to files of the sources outside docs/ become their paths, and must exist."""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, page, **_) -> str:
    def path_of(link: re.Match) -> str:
        text, target = link.groups()
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_path}: {target} does not exist")
        return text if target in text else f"{text} (`{target}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)\)", path_of, markdown)
