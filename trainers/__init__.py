"""Recipes and runs. `__init__.pyi` lists what is here; imported when asked for."""

from ..utils.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, __file__)
