"""Codes small enough for a test: examples of texts with partners and a teacher's vectors, and a Trainer of them."""

import numpy as np
from datasets import Dataset
from helpers import random_examples
from small_runs import make_trainer

from concept_encoder.trainers.objectives.objective import ObjectiveArguments
from concept_encoder.trainers.training.trainer import ConceptTrainer

SLOTS = {
    "concept_aggregation": "sum",
    "num_hidden_layers": 0,
    "position_embedding_type": "none",
    "pooled_output": "concat",
    "projection_size": 8,
}
TEACHER = 5  # numbers of its vectors


def examples(tokenizer, rows=12, vectors=True, others=("partner",), longest=20) -> list[dict]:
    """Texts, others of like or unlike length, and vectors of a teacher."""
    found = random_examples(tokenizer, rows, 0, longest)
    generator = np.random.default_rng(0)
    for number, role in enumerate(others, 1):
        for row, other in zip(found, random_examples(tokenizer, rows, number, longest * 2), strict=True):
            row[f"{role}_ids"] = other["input_ids"]
    for row in found if vectors else ():
        row |= {f"{role}_vector": generator.normal(size=TEACHER).astype(np.float32) for role in ("text", "partner")}
    return found


def codes_trainer(tokenizer, folder, config=SLOTS, rows=None, **settings) -> ConceptTrainer:
    """Of an encoder alone; settings of the objective and of training by their names."""
    names = [name for name in settings if hasattr(ObjectiveArguments(), name)]
    objective = ObjectiveArguments(**{"reconstruction": 0.0} | {name: settings.pop(name) for name in names})
    data = Dataset.from_list(rows or examples(tokenizer, rows=24))
    return make_trainer(tokenizer, folder, objective=objective, data=data, config=config, **settings)
