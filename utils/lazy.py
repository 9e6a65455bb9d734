"""Packages that import a name of theirs when it is first asked for (PEP 562)."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def what_to_install(error: ModuleNotFoundError, wanted: str) -> str:
    """One line for a library that is not there; the message as it was for a module of this package."""
    if error.name is None or error.name.partition(".")[0] == "concept_encoder":
        return str(error)
    return f"{wanted} needs {error.name}: pip install 'concept-encoder[eval]'"


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, whose stub says what it has and where it is from.

    The imports of `__init__.pyi` are the one list of the names: type checkers read them too.

    Args:
        package: `__name__` of the package.
        file: its `__file__`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: f"{'.' * node.level}{node.module}" for node in imports for alias in node.names}
    names = sorted(homes)

    def __getattr__(name: str) -> Any:
        if name not in homes:
            from .command_line import did_you_mean

            hint = "" if name.startswith("__") else did_you_mean(name, names)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        try:
            home = import_module(homes[name], package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(what_to_install(error, f"{package}.{name}"), name=error.name) from error
        return getattr(home, name)

    return __getattr__, lambda: names, names
