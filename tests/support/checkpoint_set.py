"""Checkpoints, and what they give where they were written, for tests in environments without the package.

As a script: `python tests/support/checkpoint_set.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from helpers import randomised, tiny_config
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, pipeline

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)
from concept_encoder.utils.tokenizer import fit_saved_tokenizer

TEXTS = ["the cat sleeps in the barn .", "the dog [MASK] ."]
WORDS = "[PAD] [MASK] [CLS] [SEP] [UNK] the cat dog sleeps runs in barn garden .".split()
SUMS = {"concept_aggregation": "sum", "pooled_output": "concat", "projection_size": 5, "tokens_per_concept": 2}
MODELS = {
    "encoder": (ConceptEncoderModel, {}),
    "slots": (ConceptEncoderModel, {**SUMS, "num_hidden_layers": 1, "count_saturation": True, "neighbours": 1}),
    "bixt": (ConceptEncoderModel, {"token_update": "bixt", "concept_attention": "slot", "pooled_output": "weighted"}),
    "diffusion": (ConceptEncoderForDiffusionMLM, {"decoder_context": "latent"}),
    "mlm": (ConceptEncoderForMaskedLMPerceiver, {}),
    "classifier": (ConceptEncoderForSequenceClassificationPerceiver, {"num_labels": 3}),
    "via-decoder": (ConceptEncoderForSequenceClassificationViaDecoder, {"num_labels": 3}),
    "pair": (ConceptEncoderForSentencePairClassification, {"num_labels": 3}),
}
PIPELINES = {"feature-extraction": "encoder", "fill-mask": "diffusion", "text-classification": "classifier"}


def words_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in names.items()})


def tensors_of(output) -> dict[str, torch.Tensor]:
    """The tensors of a model's output under their names; those of tuples with their places."""
    found = {}
    for key, value in output.items():
        found |= {f"{key}{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {key: value}
    return {key: tensor.clone() for key, tensor in found.items()}


def write(folder: Path) -> Path:
    """A folder for each of `MODELS`, with its outputs by both kinds of attention, and `pipelines.json`."""
    tokenizer = words_tokenizer()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for name, (kind, fields) in MODELS.items():
        torch.manual_seed(0)
        model = randomised(kind(tiny_config(**{"vocab_size": len(WORDS), "num_concepts": 4, **fields})))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        fit_saved_tokenizer(folder / name, model.config)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inputs = (ids, mask, ids.flip(0), mask.flip(0)) if name == "pair" else (ids, mask)
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                output = model(*inputs, output_hidden_states=True, output_attentions=implementation == "eager")
            save_file(tensors_of(output), folder / name / f"{implementation}.safetensors")
    answers = {task: pipeline(task, model=str(folder / name))(TEXTS[1]) for task, name in PIPELINES.items()}
    (folder / "pipelines.json").write_text(json.dumps(answers))
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
