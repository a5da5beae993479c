"""The one function that resolves a dotted path of the user's own code."""

import importlib
import sys
from pathlib import Path
from typing import Any

from fourfold.config import ConfigError, nearest


def resolve(path: str) -> Any:
    """The object that a dotted path such as `my_package.models.build` names.

    The current directory is importable, so that a file beside the user's configs is enough.

    Raises:
        ConfigError: no such module, or no such name in it.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue  # this prefix is not a module: try a shorter one
            raise
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                raise ConfigError(
                    f"_target_={path} names nothing: {name} has no {attribute}{nearest(attribute, dir(found))} "
                    "(give package.module.function)"
                )
            found = getattr(found, attribute)
        return found
    raise ConfigError(
        f"_target_={path} cannot be imported: there is no module {parts[0]} in {here} or among the installed packages; "
        "give package.module.function, or install the package"
    )
