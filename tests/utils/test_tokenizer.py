"""What a tokenizer and a model have to agree on."""

import json

import pytest
from helpers import tiny_config
from small_runs import make_trainer, tiny_recipe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderForSentencePairClassification
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.utils.tokenizer import fit_saved_tokenizer, limit_length, longest_text, vocabulary_size

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture
def holed() -> PreTrainedTokenizerFast:
    """Seven tokens, with 90 as the largest id."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)} | {"cat": 90, "dog": 7}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, SPECIAL, strict=True)))


def test_texts_are_as_long_as_there_are_learned_positions():
    learned, endless = tiny_config(), tiny_config(position_embedding_type="sinusoidal")
    assert [longest_text(learned, n) for n in (7, 40, 512)] == [7, 40, 40]
    assert longest_text(endless, 512) == 512
    assert limit_length(microworld_tokenizer(max_length=512), learned).model_max_length == 40
    assert limit_length(microworld_tokenizer(max_length=16), learned).model_max_length == 16
    assert limit_length(microworld_tokenizer(max_length=512), endless).model_max_length == 512


@pytest.mark.parametrize(
    ("given", "kept"), [(512, 40), (16, 16), (None, 40), (1e30, 40), ("many", 40), (int(1e30), 40)]
)
def test_the_limit_of_copied_files(tmp_path, given, kept):
    microworld_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name != "model_max_length"}
    path.write_text(json.dumps(content if given is None else content | {"model_max_length": given}))
    fit_saved_tokenizer(tmp_path, tiny_config())
    assert content["tokenizer_class"] == "TokenizersBackend"  # which no transformers 4 knows
    kept_name = {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert json.loads(path.read_text()) == content | {"model_max_length": kept} | kept_name
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == kept


def test_without_learned_positions_the_files_stay_as_they_are(tmp_path):
    microworld_tokenizer(max_length=512).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    before = path.read_bytes()
    fit_saved_tokenizer(tmp_path, tiny_config(position_embedding_type="sinusoidal"))
    assert path.read_bytes() == before


def test_the_tokenizer_of_a_pair_head_parts_two_texts(tmp_path):
    microworld_tokenizer(max_length=16).save_pretrained(tmp_path)
    fit_saved_tokenizer(tmp_path, tiny_config(architectures=["ConceptEncoderForSequenceClassificationPerceiver"]))
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path)("cat", "dog")
    fit_saved_tokenizer(tmp_path, tiny_config(architectures=[ConceptEncoderForSentencePairClassification.__name__]))
    assert AutoTokenizer.from_pretrained(tmp_path)("cat", "dog")["token_type_ids"] == [0, 0, 0, 1, 1]


def test_a_trainer_saves_a_tokenizer_that_cuts_what_the_model_cannot_read(tmp_path):
    trainer = make_trainer(microworld_tokenizer(max_length=512), tmp_path / "run")
    trainer.save_model()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.model_max_length == 40
    model = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "run").eval()
    batch = tokenizer(["cat " * 400], truncation=True, return_tensors="pt", return_token_type_ids=False)
    assert model(**batch).logits.shape[:2] == (1, 40)


@pytest.mark.slow
def test_a_vocabulary_with_holes_needs_rows_up_to_its_largest_id(holed, tmp_path):
    assert len(holed) == 7 and vocabulary_size(holed) == 91
    recipe = tiny_recipe(tmp_path / "run")
    config = recipe.model_config(holed)
    assert config.vocab_size == 91
    model = ConceptEncoderForDiffusionMLM(config).eval()
    assert model(**holed("cat dog", return_tensors="pt", return_token_type_ids=False)).logits.isfinite().any()
    model.save_pretrained(tmp_path)
    holed.save_pretrained(tmp_path)
    assert load(tmp_path).encode(["cat"]).shape == (1, 32)
    ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=90, mask_token_id=4)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="has 91 tokens, the model only 90; give the tokenizer that it was pretrained"
    ):
        load(tmp_path).encode(["cat"])
    recipe.model.vocab_size = 8
    with pytest.raises(ValueError, match=r"vocab_size \(8\) is smaller than the tokenizer's 91 tokens"):
        recipe.model_config(holed)
