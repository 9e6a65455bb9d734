"""Pretraining as a user asks for it: the concepts are watched while it runs, and a push to the Hub brings a card.

`trainers` knows neither: what evaluates is handed to it.
"""

import os
from typing import Any

from ..modeling_concept import ConceptMaskedLMModel
from ..trainers import pretraining
from ..trainers.data.corpora import Data
from ..trainers.recipes import Recipe
from ..utils.results import PretrainResult
from .concepts.monitor import monitor_concepts
from .hub.publishing import assemble


def pretrain(
    recipe: Recipe | str | os.PathLike,
    *,
    data: Data | None = None,
    head: type[ConceptMaskedLMModel] | None = None,
    **fields: Any,
) -> PretrainResult:
    """Train a recipe and leave model, tokenizer, `recipe.yaml` and `pretrain.json` in its output folder.

    Args:
        recipe: from `Recipe.load`; or, with `fields`, what that takes: a name such as "tiny", or a path.
        data: texts in place of the recipe's: a Hub id, a path, or a `Dataset` or `DatasetDict` in memory.
        head: class to train in place of the recipe's own.
        fields: of the recipe, such as `max_steps=100`.

    Returns, raises: as `trainers.pretraining.pretrain`.
    """
    own = assemble if head is None else None  # a card is of this package's models
    return pretraining.pretrain(recipe, monitor=monitor_concepts, assemble=own, head=head, data=data, **fields)
