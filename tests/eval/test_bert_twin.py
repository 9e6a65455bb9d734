import json

import pytest
import torch
from small_runs import tiny_recipe
from small_tasks import small_task

from concept_encoder.eval.benchmarks import finetuning
from concept_encoder.eval.benchmarks.bert_twin import (
    BertTwinConfig,
    BertTwinForMaskedLM,
    BertTwinForSentencePairClassification,
    BertTwinForSequenceClassification,
    BertTwinModel,
)
from concept_encoder.eval.benchmarks.finetuning import finetune_task
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS
from concept_encoder.eval.concepts.sampling import load_sampler
from concept_encoder.eval.concepts.whitening import whiten
from concept_encoder.eval.loading.checkpoints import FAMILIES, Checkpoint, load, random_encoder
from concept_encoder.scripts.pretrain_twin import main
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.pretraining import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.* resamples leave:RuntimeWarning")


@pytest.fixture
def config():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertTwinConfig(vocab_size=100, max_position_embeddings=16, mask_token_id=4, num_concepts=9, **sizes)


@pytest.fixture
def batch():
    torch.manual_seed(3)
    ids = torch.randint(5, 100, (3, 8))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return ids, mask


def test_its_one_concept_is_the_mean_of_the_real_tokens_of_a_bert(config, batch):
    ids, mask = batch
    model = BertTwinModel(config).eval()
    assert model.config.num_concepts == 1
    output = model(ids, mask)
    states = model.bert(ids, mask).last_hidden_state
    assert torch.allclose(output.last_hidden_state[0, 0], states[0, :5].mean(0), atol=1e-6)
    assert torch.allclose(output.pooler_output[1], states[1].mean(0), atol=1e-6)
    assert torch.allclose(model(ids[:1, :5]).last_hidden_state, output.last_hidden_state[:1], atol=1e-5)


def test_masked_language_modelling_scores_the_labelled_positions(config, batch):
    ids, mask = batch
    model = BertTwinForMaskedLM(config).eval()
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[2, 7] = 11, 12
    weights = torch.ones_like(ids, dtype=torch.float)
    weights[2, 7] = 3
    logits = model(ids, mask).logits
    expected = torch.stack([-logits[0, 2].log_softmax(-1)[11], -logits[2, 7].log_softmax(-1)[12]])
    output = model(ids, mask, labels=labels, loss_weights=weights, num_items_in_batch=2)
    assert torch.allclose(output.loss, (expected[0] + 3 * expected[1]) / 2, atol=1e-5)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.train()(ids, mask, labels=labels).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "position" not in name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin") / "run"
    result = pretrain(tiny_recipe(folder, "--corruption", "mlm", "--max_steps", "3"), head=BertTwinForMaskedLM)
    return folder, result


@pytest.mark.slow
def test_a_recipe_trains_it_and_no_code_travels_with_it(trained):
    folder, result = trained
    assert result.evaluation.rebuilding.bits_per_token > 0
    assert (result.model.hidden_size, result.model.num_concepts) == (32, 1)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert_twin"
    assert not list(folder.glob("*.py"))
    kept = BertTwinForMaskedLM.from_pretrained(folder)
    started = folder.parent / "second"
    overrides = ("--corruption", "mlm", "--max_steps", "1", "--learning_rate", "0", "--start_from", str(folder))
    pretrain(tiny_recipe(started, *overrides), head=BertTwinForMaskedLM)
    second = BertTwinForMaskedLM.from_pretrained(started).state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in kept.state_dict().items())


def test_only_masked_language_modelling_can_train_it(tmp_path):
    message = "corruption 'diffusion' trains a ConceptEncoderForDiffusionMLM, got a ConceptEncoderForMaskedLMPerceiver"
    with pytest.raises(ValueError, match=message):
        pretrain(tiny_recipe(tmp_path / "run"), head=BertTwinForMaskedLM)


@pytest.mark.slow
def test_evaluations_load_it_as_they_load_a_concept_encoder(trained):
    folder, _ = trained
    kept = BertTwinForMaskedLM.from_pretrained(folder).encoder.state_dict()
    opened = Checkpoint.open(folder, families=FAMILIES)
    encoder = opened.encoder
    assert type(encoder) is BertTwinModel
    assert all(torch.equal(weight, kept[name]) for name, weight in encoder.state_dict().items())
    assert type(random_encoder(opened.config)) is BertTwinModel
    for head, expected in (
        ("ConceptEncoderForSequenceClassificationPerceiver", BertTwinForSequenceClassification),
        ("ConceptEncoderForSentencePairClassification", BertTwinForSentencePairClassification),
    ):
        model, keys = opened.load_classifier(head, num_labels=2)
        assert type(model) is expected
        assert all(torch.equal(weight, kept[name]) for name, weight in model.encoder.state_dict().items())
        assert all(name.startswith(("pooling.", "classifier.")) for name in keys["newly_initialized"])


def test_what_needs_concepts_refuses_it_by_name(trained, tmp_path):
    folder, _ = trained
    white = tmp_path / "white"
    for read in (load, load_sampler, lambda folder: whiten(str(folder), white, DataArguments())):
        with pytest.raises(ValueError, match="holds a model of type 'bert_twin'; only type 'concept_encoder' can be"):
            read(folder)
    assert not white.exists()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["cross_encoder", "bi_encoder"])
def test_it_is_fine_tuned_beside_its_own_random_twin(protocol, trained, tmp_path, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr(finetuning, "RESAMPLES", 200)
    row = small_task("stsb", tmp_path)
    settings = PROTOCOLS["quick"].override(comparison=protocol, epochs=1)
    result = finetune_task(str(folder), row, settings, tmp_path / "out")
    assert {"pearson", "spearman"} == set(result.scores)
    assert all(score.controls["random_init"].value is not None for score in result.scores.values())
    assert json.loads((tmp_path / "out" / "random_init" / "config.json").read_text())["model_type"] == "bert_twin"


@pytest.mark.slow
def test_the_command_line_trains_and_says_what_is_wrong(tmp_path, capsys):
    arguments = [
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "1",
        "--use_cpu",
        "true",
        "--disable_tqdm",
        "true",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["tiny", *arguments])
    assert stopped.value.code == 2
    assert "corruption 'diffusion' trains a ConceptEncoderForDiffusionMLM" in capsys.readouterr().err
    main(["tiny", "--corruption", "mlm", *arguments])
    assert "bits per rebuilt token" in capsys.readouterr().out
