"""The Auto classes of transformers know the concept encoder, and importing the package does not import transformers.

The modules of the Auto classes are imported when somebody asks for one of them. Where they are there already, they are
told at once; else right after they are executed, which is when a finder in front of the import system hears of them.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]


def _register_config() -> None:
    own = _whole("configuration_concept")
    if own is not None:
        from transformers import AutoConfig

        AutoConfig.register(own.ConceptEncoderConfig.model_type, own.ConceptEncoderConfig, exist_ok=True)


def _register_models() -> None:
    own = _whole("modeling_concept")
    if own is None:
        return
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

    # Of several classes, an Auto class takes the one that wrote the checkpoint (`architectures`), or else the first.
    classes: dict[Any, Any] = {
        AutoModel: own.ConceptEncoderModel,
        AutoModelForMaskedLM: (
            _unless_random(own.ConceptEncoderForDiffusionMLM),
            own.ConceptEncoderForDiffusionMLM,
            own.ConceptEncoderForMaskedLMPerceiver,
        ),
        AutoModelForSequenceClassification: (
            own.ConceptEncoderForSequenceClassificationPerceiver,
            own.ConceptEncoderForSequenceClassificationViaDecoder,
            own.ConceptEncoderForSentencePairClassification,
        ),
    }
    for auto, found in classes.items():
        auto.register(own.ConceptEncoderConfig, found, exist_ok=True)


def _unless_random(head: Any) -> type:
    """What an Auto class takes where the configuration names none of its heads: `head`, with no tensor missing."""

    class WholeOnly:
        config_class = head.config_class
        _from_config = head._from_config

        @staticmethod
        def from_pretrained(name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
            model, info = head.from_pretrained(name, *args, output_loading_info=True, **kwargs)
            missing = sorted(info["missing_keys"])
            if missing:
                saved = next(iter(model.config.architectures), "no known class")
                raise ValueError(
                    f"{name} was saved as {saved} and does not hold {len(missing)} tensors of {head.__name__} "
                    f"({missing[0]} ...), which would be random: load it with AutoModel or "
                    f"AutoModelForSequenceClassification; {head.__name__}.from_pretrained makes a new decoder, to be "
                    "trained"
                )
            return (model, info) if output_loading_info else model

    return WholeOnly


def _whole(name: str) -> ModuleType | None:
    """A root module; None while it is being executed, which may import the Auto classes, and is followed by a call."""
    module = sys.modules.get(f"{PACKAGE}.{name}") or import_module(f"{PACKAGE}.{name}")
    return module if hasattr(module, "__all__") else None  # its last statement


class _AfterExecution:
    """A finder of some modules, found as usual; a function is called after each of them has been executed."""

    waiting: dict[str, Callable[[], None]] = {
        "transformers.models.auto.configuration_auto": _register_config,
        "transformers.models.auto.modeling_auto": _register_models,
        f"{PACKAGE}.configuration_concept": _register_config,
        f"{PACKAGE}.modeling_concept": _register_models,
    }

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in cls.waiting:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute, follow = spec.loader.exec_module, cls.waiting[name]

            def execute_and_follow(module: ModuleType) -> None:
                execute(module)
                follow()

            spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec


def register_auto_classes() -> None:
    """Let `AutoModel.from_pretrained` and its like load a concept encoder without `trust_remote_code`."""
    if _AfterExecution not in sys.meta_path:
        sys.meta_path.insert(0, _AfterExecution)
        for name, register in _AfterExecution.waiting.items():
            if name in sys.modules:
                register()
