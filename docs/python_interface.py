"""Write ``python_interface.md`` anew, from signatures and docstrings of the sources: python docs/python_interface.py"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_suffix(".md")

#: What users import, and where it is written.
PUBLIC = {
    "les_md.export": "les_md/exporting.py",
    "les_md.LESCalculator": "les_md/calculator.py",
    "les_md.LESForce": "openmm_plugin/les_force.py",
    "les_md.openmm.LESReporter": "openmm_plugin/les_reporter.py",
    "les_md.Les": "les_md/les.py",
    "les_md.model_file.read_metadata": "les_md/model_file.py",
    "les_md.load": "les_md/model_file.py",
    "les_md.architectures.TrainedModel": "les_md/architectures/registry.py",
    "les_md.architectures.LoadOptions": "les_md/architectures/registry.py",
}


def signature(node: ast.FunctionDef, name: str) -> str:
    """``name(argument: type = default, ...)``, an argument a line where there are many."""
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    text = f"{name}({arguments})"
    if len(text) <= 100:
        return text
    # Commas between brackets belong to types and defaults.
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return f"{name}(\n" + "".join(f"    {part.strip()},\n" for part in parts) + ")"


def described(name: str, source: str) -> str:
    """Section of a function or class: signature and docstring, and those of the public methods of a class."""
    short = name.rsplit(".", 1)[1]
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    (node,) = [item for item in tree.body if getattr(item, "name", "") == short]
    text = f"\n## {short}\n\n`{name}`\n"
    if isinstance(node, ast.FunctionDef):
        return text + f"\n```text\n{signature(node, short)}\n\n{ast.get_docstring(node)}\n```\n"
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    head = "".join(f"{signature(method, short)}\n\n" for method in methods if method.name == "__init__")
    text += f"\n```text\n{head}{ast.get_docstring(node)}\n```\n"
    for method in methods:
        documented = ast.get_docstring(method)
        if documented and not method.name.startswith("_"):
            is_property = any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)
            title = method.name if is_property else signature(method, method.name)
            text += f"\n```text\n{title}\n\n{inspect.cleandoc(documented)}\n```\n"
    return text


def page() -> str:
    """The whole page: what stands before its first section, and a section for each name."""
    head = PAGE.read_text(encoding="utf-8").split("\n## ")[0]
    return head + "".join(described(name, source) for name, source in PUBLIC.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
