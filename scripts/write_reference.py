"""Write the tables of docs/configuration.md from `conf/` and the schema: `python scripts/write_reference.py`."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from fourfold import config, groups
from fourfold.compose import composed
from fourfold.explain import in_words
from fourfold.identity import NOT_IN_THE_RESULT

PAGE = Path(__file__).parents[1] / "docs/configuration.md"


def tables() -> dict[str, str]:
    """What stands between `<!-- NAME -->` and `<!-- end -->` in the page."""
    return {"groups": _groups(), "keys": _keys(), "identity": _table(("key", "why it is left out"), _identity())}


def filled(page: str) -> str:
    """The page with every table as it should be."""
    for name, text in tables().items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda block, text=text: block[1] + text + block[2], page, flags=re.S
        )
    return page


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines) + "\n"


def _groups() -> str:
    text = ""
    for group, files in groups.options((groups.conf_dir(),)).items():
        title = f"{group} (or {groups.FREEZE[0]})" if group == groups.FREEZE[1] else group
        text += f"\n### {title}\n" + _table(
            ("option", "meaning"), ((f"`{name}`", groups.meaning(f)) for name, f in files.items())
        )
    return text


def _identity() -> Iterator[tuple[str, ...]]:
    return ((f"`{key}`", reason) for key, reason in NOT_IN_THE_RESULT.items())


def _keys() -> str:
    """Every key, what to write for it, its value when nothing is chosen, and the comment beside its type."""
    defaults = OmegaConf.to_container(composed([]), resolve=False)
    comments = _comments()

    def rows(kind: type, values: Any, prefix: str = "") -> Iterator[tuple[str, ...]]:
        for name, hint in get_type_hints(kind).items():
            if is_dataclass(hint) and isinstance(hint, type):
                yield from rows(hint, values[name], f"{prefix}{name}.")
            else:
                value = values[name] if isinstance(values[name], str) else json.dumps(values[name])
                yield f"`{prefix}{name}`", in_words(hint), f"`{value}`", comments.get((kind.__name__, name), "")

    return _table(("key", "write", "default", "meaning"), rows(config.RunConfig, defaults))


def _comments() -> dict[tuple[str, str], str]:
    source = Path(config.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    return {
        (found.name, field.target.id): _spelt_out(lines[field.lineno - 1].partition("  # ")[2])
        for found in ast.parse(source).body
        if isinstance(found, ast.ClassDef)
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _spelt_out(comment: str) -> str:
    """`one of TASKS` with the names that the constant holds."""
    return re.sub(r"\b[A-Z_]{4,}\b", lambda name: ", ".join(getattr(config, name[0], [name[0]])), comment)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
