"""What stands in, on the Hub of the tests, for the public data that the recipes name."""

from typing import Any

from concept_encoder.trainers.recipes import Recipe

# (data set, configuration) of a recipe -> fields that name a set of the same kind.
STAND_INS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): {
        "dataset_name": "local/english-prose",
        "dataset_config_name": None,
    },
    ("sentence-transformers/all-nli", "pair"): {
        "dataset_name": "local/nli-small",
        "dataset_config_name": None,
        "text_column": "premise",
        "partner_column": "hypothesis",
        "keep_rows": "label=0",
        "validation_split": "validation",
    },
}


def with_stand_ins(name: str, **fields: Any) -> Recipe:
    """A recipe of the package on data that is here."""
    data = Recipe.load(name, use_cpu=True).data
    return Recipe.load(name, **STAND_INS[data.dataset_name, data.dataset_config_name], **fields)
