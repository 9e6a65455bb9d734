"""Concept encoders: text compressed into a few learned concept vectors, Hub-native.

`__init__.pyi` lists what is here. Nothing of it is imported before it is asked for, torch and transformers included.
"""

from concept_encoder.utils.auto_classes import register_auto_classes
from concept_encoder.utils.lazy import lazily

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazily(__name__, __file__)

register_auto_classes()
