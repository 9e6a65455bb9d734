"""How other libraries see a checkpoint: the files that sentence-transformers reads."""

import json

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {
        "idx": 1,
        "name": "1",
        "path": "1_Normalize",
        "type": "sentence_transformers.base.modules.normalize.Normalize",
    },
]
# Without unpad_inputs=False a batch would be joined into one row with flash attention, and its texts would mix.
SENTENCE_BERT_CONFIG = {
    "transformer_task": "feature-extraction",
    "unpad_inputs": False,
    "module_output_name": "sentence_embedding",
    "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
}


def sentence_transformers_files() -> dict[str, str]:
    """Files beside a checkpoint that make `SentenceTransformer(path)` give the normalised mean concept: name -> text.

    The mean is the model's own `pooler_output`. The library's Pooling, which it takes where these files are missing,
    would apply the mask of the tokens to the concepts: right in shape when a batch is as long as there are concepts.
    """
    contents = {"modules.json": MODULES, "sentence_bert_config.json": SENTENCE_BERT_CONFIG}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
