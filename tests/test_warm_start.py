import pytest
import torch
from helpers import tiny_config
from test_pretraining import tiny_recipe
from transformers import BertConfig, BertModel

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.microworld import microworld_tokenizer
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.warm_start import warm_start_embeddings


@pytest.fixture(scope="module")
def bert(tokenizer, tmp_path_factory):
    """Folder of a tiny BERT with the tokenizer of the tests, and a few rows more than tokens."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model.embeddings.word_embeddings.weight.detach()


def make_model(tokenizer, **kwargs):
    return ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=len(tokenizer), mask_token_id=4, **kwargs))


def test_embeddings_arrive_in_the_encoder_and_in_what_is_tied_to_it(bert, tokenizer):
    folder, table = bert
    model = make_model(tokenizer)
    before = model.encoder.embeddings.positions.weight.clone()
    warm_start_embeddings(model, tokenizer, str(folder))
    for weight in (
        model.encoder.embeddings.tokens.weight,
        model.decoder.embeddings.tokens.weight,
        model.lm_head.weight,
    ):
        assert torch.equal(weight, table[: len(tokenizer)])
    assert torch.equal(model.encoder.embeddings.positions.weight, before)


def test_another_width_is_projected_where_the_model_says_so(bert, tokenizer):
    folder, table = bert
    wide = {"hidden_size": 48, "num_attention_heads": 4}
    message = "has token embeddings of width 32, the model of width 48; set token_embedding_size=32 and tie_word"
    with pytest.raises(ValueError, match=message):
        warm_start_embeddings(make_model(tokenizer, **wide), tokenizer, str(folder))
    model = make_model(tokenizer, **wide, token_embedding_size=32, tie_word_embeddings=False)
    decoder = model.decoder.embeddings.tokens.weight.clone()
    warm_start_embeddings(model, tokenizer, str(folder))
    assert torch.equal(model.encoder.embeddings.tokens.weight, table[: len(tokenizer)])
    assert torch.equal(model.decoder.embeddings.tokens.weight, decoder)
    assert model(input_ids=torch.tensor([[10, 11, 12]])).concepts.shape == (1, 6, 48)


def test_another_vocabulary_is_refused_with_its_first_differences(bert, tokenizer):
    folder, _ = bert
    other = microworld_tokenizer()
    other.add_tokens(["zz"])
    message = f"another vocabulary: 1 tokens differ, such as 'zz' is {len(tokenizer)} here, None there; train with its"
    with pytest.raises(ValueError, match=message):
        warm_start_embeddings(make_model(other), other, str(folder))


def test_a_source_with_too_few_rows_or_none_is_refused(bert, tokenizer, tmp_path):
    folder, _ = bert
    small = BertModel.from_pretrained(folder)
    small.resize_token_embeddings(9)
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=f"has 9 token embeddings for {len(tokenizer)} tokens"):
        warm_start_embeddings(make_model(tokenizer), tokenizer, str(tmp_path / "small"))
    with pytest.raises(ValueError, match="is neither a local folder with an encoder and its tokenizer nor a Hub id"):
        warm_start_embeddings(make_model(tokenizer), tokenizer, str(tmp_path / "missing"))


def test_a_recipe_starts_from_them(bert, tokenizer, tmp_path):
    folder, table = bert
    overrides = ("--warm_start_embeddings", str(folder), "--learning_rate", "0", "--max_steps", "1")
    pretrain(tiny_recipe(tmp_path / "run", *overrides, "--ema_decay", "0.9"))
    model = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "run")
    assert torch.equal(model.encoder.embeddings.tokens.weight, table[: len(tokenizer)])
