import shutil

import pytest
import torch
from helpers import tiny_config
from safetensors.torch import load_file, save_file
from small_runs import tiny_recipe
from transformers import BertConfig, BertModel

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.weights.warm_start import start_from_checkpoint, warm_start_embeddings


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


def rewritten(folder, target, change):
    """A copy of a checkpoint whose tensors `change` has been at."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return str(target)


TABLE = "embeddings.word_embeddings.weight"


def with_nan(tensors, name):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[3] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update(foreign=t.pop(TABLE)),
            f"holds no token embeddings: {TABLE} is not there, and would be",
        ),
        (lambda t: t.update({TABLE: t[TABLE].long()}), f"token embeddings that are not real numbers: {TABLE} is I64"),
        (lambda t: t.update({TABLE: t[TABLE].to(torch.complex64)}), f"are not real numbers: {TABLE} is C64"),
        (lambda t: with_nan(t, TABLE), f"holds weights that are not finite: {TABLE}; take another checkpoint"),
        (
            lambda t: t.update({TABLE: t[TABLE][:, :5]}),
            rf"{TABLE} is \[421, 5\], not \[421, 32\] as its config says",
        ),
    ],
    ids=["missing", "integer", "complex", "nan", "shape"],
)
def test_token_embeddings_that_cannot_be_used_are_named(bert, tokenizer, tmp_path, change, message):
    source = rewritten(bert[0], tmp_path / "changed", change)
    model = make_model(tokenizer)
    before = model.get_input_embeddings().weight.clone()
    with pytest.raises(ValueError, match=message):
        warm_start_embeddings(model, tokenizer, source)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_other_tensors_of_an_encoder_are_not_looked_at(bert, tokenizer, tmp_path):
    def change(tensors):
        tensors["embeddings.position_ids"] = torch.arange(16)  # as old checkpoints have it
        with_nan(tensors, "pooler.dense.bias")

    model = make_model(tokenizer)
    warm_start_embeddings(model, tokenizer, rewritten(bert[0], tmp_path / "changed", change))
    assert torch.equal(model.get_input_embeddings().weight, bert[1][: len(tokenizer)])


@pytest.mark.slow
def test_a_recipe_starts_from_them(bert, tokenizer, tmp_path):
    folder, table = bert
    overrides = ("--warm_start_embeddings", str(folder), "--learning_rate", "0", "--max_steps", "1")
    pretrain(tiny_recipe(tmp_path / "run", *overrides, "--ema_decay", "0.9"))
    model = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "run")
    assert torch.equal(model.encoder.embeddings.tokens.weight, table[: len(tokenizer)])


@pytest.fixture
def trained(tokenizer, tmp_path):
    """Folder of a tiny diffusion model with random weights, and the model."""
    torch.manual_seed(1)
    model = make_model(tokenizer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # adaLN-Zero gates as well
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained", model


@pytest.mark.slow
def test_a_run_goes_on_from_encoder_and_decoder_of_its_own_kind(trained, tokenizer):
    folder, model = trained
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, hidden_dropout_prob=0.3)
    started = start_from_checkpoint(ConceptEncoderForDiffusionMLM, config, tokenizer, str(folder))
    assert started.config.hidden_dropout_prob == 0.3
    expected = model.state_dict()
    assert started.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in started.state_dict().items())


def test_a_run_with_another_decoder_takes_the_encoder_alone(trained, tokenizer):
    folder, model = trained
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, decoder_query="position")
    torch.manual_seed(2)
    started = start_from_checkpoint(ConceptEncoderForMaskedLMPerceiver, config, tokenizer, str(folder))
    expected = model.encoder.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in started.encoder.state_dict().items())
    assert started.lm_head.weight is started.encoder.embeddings.tokens.weight
    torch.manual_seed(2)
    fresh = ConceptEncoderForMaskedLMPerceiver(config)
    own = [name for name in fresh.decoder.state_dict() if "embeddings.tokens" not in name]
    assert own and all(
        torch.equal(fresh.decoder.state_dict()[name], started.decoder.state_dict()[name]) for name in own
    )


def test_an_encoder_that_computes_something_else_is_not_started_from(trained, tokenizer, bert):
    folder, _ = trained
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, num_attention_heads=1)
    message = r"another architecture \(num_attention_heads is \d+ there, 1 here\); set these fields to the same values"
    with pytest.raises(ValueError, match=message):
        start_from_checkpoint(ConceptEncoderForDiffusionMLM, config, tokenizer, str(folder))
    with pytest.raises(ValueError, match="another architecture"):
        start_from_checkpoint(ConceptEncoderForDiffusionMLM, config, tokenizer, str(bert[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: [t.update({f"x.{n}": t.pop(n)}) for n in list(t)],
            "lacks weights of its ConceptEncoderForDiffusionM",
        ),
        (
            lambda t: t.update(extra=torch.ones(2)),
            "holds weights of no part of its ConceptEncoderForDiff.*: extra",
        ),
        (
            lambda t: with_nan(t, "decoder.norm.weight"),
            "weights that are not finite: decoder.norm.weight; take",
        ),
        (
            lambda t: t.update({"decoder.norm.weight": t["decoder.norm.weight"][:3]}),
            r"other shapes than its config.json says: decoder.norm.weight is \[3\], not \[32\]",
        ),
        (
            lambda t: t.update({"decoder.norm.weight": t["decoder.norm.weight"].to(torch.complex64)}),
            "not real numbers: decoder.norm.weight is C64",
        ),
    ],
    ids=["names", "extra", "nan", "shape", "complex"],
)
@pytest.mark.parametrize("head", [ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver])
def test_weights_that_do_not_belong_are_named(trained, tokenizer, tmp_path, change, message, head):
    source = rewritten(trained[0], tmp_path / "changed", change)
    query = "position" if head is ConceptEncoderForMaskedLMPerceiver else "token+position"
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, decoder_query=query)
    with pytest.raises(ValueError, match=f"start_from '{source}': .*{message}"):
        start_from_checkpoint(head, config, tokenizer, source)


def test_damaged_weights_are_named(trained, tokenizer):
    folder, _ = trained
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4)
    with pytest.raises(ValueError, match=r"start_from '.*model\.safetensors is broken: .*; fetch or save it again"):
        start_from_checkpoint(ConceptEncoderForDiffusionMLM, config, tokenizer, str(folder))


@pytest.mark.slow
def test_a_recipe_goes_on_from_a_run(tmp_path):
    pretrain(tiny_recipe(tmp_path / "first", "--max_steps", "2"))
    pretrain(
        tiny_recipe(
            tmp_path / "second", "--start_from", str(tmp_path / "first"), "--learning_rate", "0", "--max_steps", "1"
        )
    )
    first, second = (ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    message = "start_from='a/b' brings its own token embeddings; leave warm_start_embeddings"
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path / "third", "--start_from", "a/b", "--warm_start_embeddings", "c/d")
