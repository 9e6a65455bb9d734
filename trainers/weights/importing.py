"""Import of checkpoints of the reference run's research code: renamed, split, accounted for, verified, saved.

Exact: the imported model gives the outputs of the original, and every tensor of the source is in the table as used,
split, merged or dropped, with the reason. What the original computes and how its tensors are named was established
from its recorded outputs; three things differ from this package's own defaults. Its last encoder norm has epsilon
1e-12, its timestep enters the sinusoids unscaled, and it ignores `hidden_act`: the activation is always the GELU.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
    ConceptEncoderPreTrainedModel,
    sinusoidal_embedding,
)
from ...utils.files import TOKENIZER_FILES, whole_folder, write_json
from ...utils.tokenizer import fit_saved_tokenizer
from ...utils.untrusted import inside, is_hub_id, read_object

# Classes of the original and what they become.
CLASSES: dict[str, type[ConceptEncoderPreTrainedModel]] = {
    "ConceptEncoder": ConceptEncoderModel,
    "ConceptEncoderForMaskedDiffusion": ConceptEncoderForDiffusionMLM,
    "ConceptEncoderForMaskedLMPerceiver": ConceptEncoderForMaskedLMPerceiver,
    "ConceptEncoderForMaskedLMPerceiverPosOnly": ConceptEncoderForMaskedLMPerceiver,
    "ConceptEncoderForSequenceClassificationPerceiver": ConceptEncoderForSequenceClassificationPerceiver,
    "ConceptEncoderForSequenceClassificationViaDecoder": ConceptEncoderForSequenceClassificationViaDecoder,
    "ConceptEncoderForSentencePairClassification": ConceptEncoderForSentencePairClassification,
}
# Whole components of the original's tensor names and what they are called here.
RENAMED = {
    "token_embeddings": "embeddings.tokens",
    "token_position_embeddings": "embeddings.positions",
    "token_projection": "embeddings.projection",
    "concept_embeddings.weight": "latents.weight",
    "concept_position_emb.weight": "latents.positions",
    "concept_token_attn": "cross_attn",
    "token_concept_attn": "token_attn",
    "concept_self_attn": "self_attn",
    "pre_cross_attn_norm": "cross_attn_norm",
    "pre_reverse_cross_norm": "token_attn_norm",
    "pre_self_attn_norm": "self_attn_norm",
    "pre_ff_norm": "mlp_norm",
    "Wi": "mlp.gate_up_proj",
    "Wo": "mlp.down_proj",
    "out_proj": "o_proj",
    "output_layer_norm": "norm",
    "concept_scorer": "pooling.scorer",
    "pool_norm": "pooling.norm",
    "pre_pool_norm": "token_pooling.norm",
    "decoder.token_embed": "decoder.embeddings.tokens",
    "decoder.pos_embed": "decoder.embeddings.positions",
    "decoder.t_embed.proj.0": "decoder.timestep_embedding.fc1",
    "decoder.t_embed.proj.2": "decoder.timestep_embedding.fc2",
    "adaLN": "modulation",
    "norm_cross": "cross_attn_norm",
    "norm_ff": "mlp_norm",
    "ff_in": "mlp.gate_up_proj",
    "ff_out": "mlp.down_proj",
    "decoder.out_norm": "decoder.norm",
    "decoder_query_embeddings": "decoder.positions",
    "decoder_input_projection": "decoder.projection",
    "decoder_norm": "decoder.layer.cross_attn_norm",
    "decoder_cross_attn": "decoder.layer.cross_attn",
    "post_cross_norm": "decoder.layer.mlp_norm",
    "decoder_ffn.0": "decoder.layer.mlp.up_proj",
    "decoder_ffn.2": "decoder.layer.mlp.down_proj",
}
_COMPONENTS = re.compile(rf"(?<![^.])(?:{'|'.join(map(re.escape, RENAMED))})(?![^.])")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
OUTPUT_EMBEDDINGS = "lm_head.weight"
# The diffusion decoder's narrow table and what widens it.
NARROW_TABLE = ("decoder.token_embed.weight", "decoder.token_proj.weight", "decoder.token_proj.bias")


@dataclass
class ImportedTensor:
    """One row of the table.

    Attributes:
        source: name in the original checkpoint.
        shape: its shape.
        fate: "used", "split", "merged" or "dropped".
        targets: names in the imported model; none when dropped.
        reason: why it was merged, dropped or has more than one target.
    """

    source: str
    shape: list[int]
    fate: str
    targets: list[str] = field(default_factory=list)
    reason: str = ""


def import_checkpoint(
    checkpoint: str | os.PathLike, output_dir: str | os.PathLike
) -> tuple[ConceptEncoderPreTrainedModel, list[ImportedTensor]]:
    """Import `checkpoint` into the new folder `output_dir`, which appears whole or not at all.

    The folder holds what `save_pretrained` writes (weights, configuration, code files), the tokenizer of the original,
    and `import.json` with the table and the original's configuration. Before it appears it is loaded back, and every
    tensor compared.

    Args:
        checkpoint: folder with config.json and model.safetensors or pytorch_model.bin, or a Hub id.
        output_dir: folder to make; may exist when empty.

    Raises:
        ValueError: `output_dir` is not empty; no config.json or no weights; a class that is not supported; a tensor
            that is unknown, missing or of another shape; a configuration that this package refuses.
    """
    out = Path(output_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; give a new one, nothing is overwritten")
    source = os.fspath(checkpoint)
    folder = _fetch(source)
    original = read_original_config(folder)
    model, table = convert(original, read_tensors(folder))
    with whole_folder(out) as fresh:
        model.save_pretrained(fresh)
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(inside(folder, name), fresh)
        if (fresh / "tokenizer_config.json").is_file():
            fit_saved_tokenizer(fresh, model.config)
        content = {
            "source": folder.name if Path(source).is_dir() else source,
            "source_class": original["architectures"][0],
            "class": type(model).__name__,
            "tensors": [asdict(row) for row in table],
            "source_config": original,
        }
        write_json(fresh / "import.json", content)
        _verify(model, fresh)
    return model, table


def convert(
    original: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ConceptEncoderPreTrainedModel, list[ImportedTensor]]:
    """The imported model, in eval mode and the dtype of the source, and the fate of each source tensor.

    Args:
        original: content of the original's config.json.
        tensors: its weights by name.

    Raises:
        ValueError: as `import_checkpoint`.
    """
    name = _original_class(original)
    config = _config(original, tensors, name)
    model = CLASSES[name](config).eval()
    table, filled = _assign(tensors, config)
    _tie(filled, table, config)
    _check(filled, model.state_dict(), table, name)
    model.to(reduce(torch.promote_types, {tensor.dtype for tensor in filled.values()}))
    model.load_state_dict(filled)
    return model, table


def format_table(table: list[ImportedTensor]) -> str:
    """The table as text: source name, shape, what became of it."""
    cells = []
    for row in table:
        became = f"{row.fate}: {row.reason}" if row.fate == "dropped" else f"{row.fate}: {', '.join(row.targets)}"
        if row.reason and row.fate != "dropped":
            became += f" ({row.reason})"
        cells.append((row.source, str(row.shape), became))
    widths = [max(len(cell[i]) for cell in cells) for i in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {became}" for name, shape, became in cells)


# -------------------------------------------------------------------------------------------------------- reading


def _fetch(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not is_hub_id(source):
        raise ValueError(f"no folder {source}")
    return Path(snapshot_download(source, allow_patterns=["config.json", *WEIGHT_FILES, *TOKENIZER_FILES]))


def read_original_config(folder: Path) -> dict[str, Any]:
    """config.json of an original checkpoint."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no config.json in {folder}: give the folder that the original's save_pretrained wrote")
    return read_object(path)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Weights of an original checkpoint by name; a pickle is read with `weights_only=True`, so it runs no code."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"no weights in {folder}: expected {' or '.join(WEIGHT_FILES)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


# -------------------------------------------------------------------------------------------------- configuration


def _original_class(original: Mapping[str, Any]) -> str:
    if "num_concepts" in original:
        raise ValueError("this checkpoint is one of this package already; load it with from_pretrained")
    names = original.get("architectures") or []
    supported = ", ".join(CLASSES)
    if len(names) != 1:
        raise ValueError(f"config.json must name one class in architectures, got {names}. Supported: {supported}")
    if "Weighted" in names[0] or "Recursive" in names[0]:
        raise ValueError(f"{names[0]} has no counterpart in this package, by design. Supported: {supported}")
    if names[0] not in CLASSES:
        raise ValueError(f"Unknown class {names[0]!r} in config.json. Supported: {supported}")
    return names[0]


def _config(original: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> ConceptEncoderConfig:
    required = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size concept_num "
    required += "max_sequence_length hidden_dropout_prob attention_probs_dropout_prob initializer_range"
    absent = [key for key in required.split() if key not in original]
    if absent:
        raise ValueError(f"config.json lacks {', '.join(absent)}: it is not one of the original's concept encoders")
    fields = {key: original[key] for key in required.split() if key not in ("concept_num", "max_sequence_length")}
    # These have defaults, and a default is not always written.
    optional = ("mask_token_id", "problem_type", "id2label", "label2id")
    fields |= {key: original[key] for key in optional if original.get(key) is not None}
    width = original.get("token_embedding_dim") or original["hidden_size"]
    # The masked language models go by their class; only the classifier reads the flag.
    position_only = name.endswith("PosOnly") or (name.endswith("ViaDecoder") and original.get("decoder_posonly"))
    decoder_layers = {int(key.split(".")[2]) for key in tensors if key.startswith("decoder.layers.")}
    try:
        return ConceptEncoderConfig(
            **fields,
            pad_token_id=original.get("pad_token_id"),
            bos_token_id=_first(original, "bos_token_id", "cls_token_id"),
            eos_token_id=_first(original, "eos_token_id", "sep_token_id"),
            num_concepts=original["concept_num"],
            position_counting="columns",
            max_position_embeddings=original["max_sequence_length"],
            token_embedding_size=width,
            concept_position_type=_concept_positions(original, tensors),
            token_update="bixt" if original.get("use_bixt") else "none",
            decoder_query="position" if position_only else "token+position",
            decoder_num_hidden_layers=max(decoder_layers, default=1) + 1,
            timestep_scale=1.0,
            final_layer_norm_eps=1e-12,
            tie_word_embeddings=width == original["hidden_size"] and _is_tied(original, tensors),
        )
    except StrictDataclassError as error:
        raise ValueError(f"config.json is refused: {error}") from error


def _first(original: Mapping[str, Any], *keys: str) -> Any:
    return next((original[key] for key in keys if original.get(key) is not None), None)


def _concept_positions(original: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """As configured, but sinusoids that somebody has changed are kept as learned positions."""
    kind = original.get("concept_position_type", "none")
    fixed = [tensor for name, tensor in tensors.items() if name.removeprefix("encoder.") == "concept_position_emb"]
    if kind == "sinusoidal" and fixed and not _is_sinusoidal(fixed[0]):
        return "learned"
    return kind


def _is_sinusoidal(tensor: Tensor) -> bool:
    expected = sinusoidal_embedding(torch.arange(len(tensor)), tensor.shape[-1], torch.float32)
    return torch.allclose(tensor.float(), expected.to(tensor.dtype).float(), atol=1e-5, rtol=0)


def _is_tied(original: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether one table serves wherever this package ties: the file of a tied model may lack one copy."""
    if not original.get("tie_word_embeddings", True):
        return False
    names = ("encoder.token_embeddings.weight", OUTPUT_EMBEDDINGS, "decoder.token_embed.weight")
    present = [tensors[name] for name in names if name in tensors]
    if names[2] in tensors and len(present) < 3:
        return False  # the original's diffusion decoder has a table of its own
    return all(torch.equal(present[0], tensor) for tensor in present[1:])


# -------------------------------------------------------------------------------------------------------- tensors


def _assign(
    tensors: Mapping[str, Tensor], config: ConceptEncoderConfig
) -> tuple[list[ImportedTensor], dict[str, Tensor]]:
    """Table and tensors under this package's names, neither checked against a model yet."""
    table: list[ImportedTensor] = []
    filled: dict[str, Tensor] = {}
    for source, tensor in sorted(tensors.items()):
        target = _COMPONENTS.sub(lambda match: RENAMED[match[0]], source)
        fate, reason = "used", _reason_to_drop(source, config)
        parts = {target: tensor}
        if reason:
            fate, parts = "dropped", {}
        elif source in NARROW_TABLE and all(name in tensors for name in NARROW_TABLE):
            fate, reason = "merged", "tokens times projection, which is a table of the full width"
            parts = {"decoder.embeddings.tokens.weight": _projected(tensors)}
        elif source.endswith(("in_proj_weight", "in_proj_bias")):
            fate, reason = "split", "queries, keys and values"
            names = [target.replace("in_proj_", f"{letter}_proj.") for letter in "qkv"]
            parts = dict(zip(names, (part.clone() for part in tensor.tensor_split(3)), strict=True))
        elif target.endswith("concept_position_emb"):
            reason = "not the sinusoids of the configuration, so kept as learned positions"
            parts = {target.replace("concept_position_emb", "latents.positions"): tensor}
        table.append(ImportedTensor(source, list(tensor.shape), fate, list(parts), reason))
        filled |= parts
    return table, filled


def _reason_to_drop(source: str, config: ConceptEncoderConfig) -> str:
    """Why a tensor has no place in the imported model; empty if it has one."""
    last_layer = re.compile(rf"(encoder\.)?layers\.{config.num_hidden_layers - 1}\.(token_concept_attn|pre_reverse)")
    if source.startswith(("loss_manager.", "loss_log_vars")):
        return "weight of a training loss, not part of the model"
    if config.token_update == "bixt" and last_layer.match(source):
        return "updates the tokens of the last layer, which nothing reads"
    if config.concept_position_type == "sinusoidal" and source.removeprefix("encoder.") == "concept_position_emb":
        return "fixed sinusoids, computed from the configuration"
    if config.decoder_query == "position" and source.startswith("decoder_input_projection."):
        return "projects tokens into queries, which here are positions alone"
    return ""


def _projected(tensors: Mapping[str, Tensor]) -> Tensor:
    table, weight, bias = (tensors[name].double() for name in NARROW_TABLE)
    if weight.shape[1:] != table.shape[1:] or bias.shape != weight.shape[:1]:
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in NARROW_TABLE)
        raise ValueError(f"these do not multiply to a table of tokens: {shapes}")
    return (table @ weight.T + bias).to(tensors[NARROW_TABLE[0]].dtype)


def _tie(filled: dict[str, Tensor], table: list[ImportedTensor], config: ConceptEncoderConfig) -> None:
    """Fill in the copy that the file of a tied model lacks, whichever of the two it is."""
    pair = ("encoder.embeddings.tokens.weight", OUTPUT_EMBEDDINGS)
    for present, absent in (pair, pair[::-1]):
        if config.tie_word_embeddings and present in filled and absent not in filled:
            filled[absent] = filled[present]
            for row in table:
                if present in row.targets:
                    row.targets, row.reason = [*row.targets, absent], "tied in the source, one tensor in its file"


def _check(
    filled: Mapping[str, Tensor], expected: Mapping[str, Tensor], table: list[ImportedTensor], name: str
) -> None:
    unknown = [row.source for row in table if any(target not in expected for target in row.targets)]
    if unknown:
        raise ValueError(f"unknown tensors for {name}: {', '.join(unknown)}; nothing is dropped without a reason")
    sources = Counter(target for row in table if row.fate != "merged" for target in row.targets)
    twice = [row.source for row in table if any(sources[target] > 1 for target in row.targets)]
    if twice:
        raise ValueError(f"several tensors of {name} for one place: {', '.join(twice)}")
    missing = sorted(expected.keys() - filled.keys())
    if missing:
        raise ValueError(f"the weights of {name} give nothing for: {', '.join(missing)}")
    for row in table:
        for target in row.targets:
            got, wanted = list(filled[target].shape), list(expected[target].shape)
            if got != wanted:
                raise ValueError(f"{row.source} {row.shape} gives {target} {got}; the configuration asks for {wanted}")


def _verify(model: ConceptEncoderPreTrainedModel, folder: Path) -> None:
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    expected, got = model.state_dict(), loaded.state_dict()
    wrong = sorted(name for name in expected if name not in got or not torch.equal(expected[name], got[name]))
    wrong += sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise RuntimeError(f"the saved checkpoint does not load back as it was: {', '.join(wrong)}")
