import pytest
import torch
from safetensors.torch import load_file
from small_runs import losses, make_trainer, parameters
from transformers import BertConfig, BertModel

from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.objectives.distillation import Distillation, load_distillation
from concept_encoder.trainers.objectives.objective import ObjectiveArguments


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
    """Folder of a tiny BERT with the tokenizer of the tests."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_loss_is_one_minus_the_cosine_to_the_mean_over_real_tokens(teacher):
    bert = BertModel.from_pretrained(teacher)
    distillation = Distillation(bert.train(), hidden_size=24)
    ids = torch.tensor([[10, 11, 12, 0], [13, 14, 15, 16]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    states = BertModel.from_pretrained(teacher).eval()(ids, attention_mask=mask).last_hidden_state
    embeddings = torch.stack([states[0, :3].mean(0), states[1].mean(0)]).detach()
    torch.testing.assert_close(distillation.embed(ids, mask), embeddings)
    distillation.mapping.weight.data = torch.eye(24)
    concepts = torch.stack([embeddings, embeddings], dim=1) * 3  # (2, 2, 24)
    assert distillation(concepts, ids, mask).item() == pytest.approx(0, abs=1e-6)
    assert distillation(-concepts, ids, mask).item() == pytest.approx(2, abs=1e-6)
    assert not bert.training and not any(p.requires_grad for p in bert.parameters())
    assert [name for name, _ in distillation.named_parameters()] == ["mapping.weight"]


def test_training_follows_the_teacher_and_never_saves_it(teacher, tokenizer, tmp_path):
    objective = ObjectiveArguments(distil_from=teacher, distil_weight=2.0)
    settings = {"objective": objective, "max_steps": 12, "rows": 16, "save_strategy": "steps", "save_steps": 6}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tokenizer, tmp_path, **settings)
    before = [p.clone() for p in trainer.objective.distillation._teacher[0].parameters()]
    trainer.train()
    logged = [row["distillation"] for row in trainer.state.log_history if "distillation" in row]
    assert logged[-1] < 0.5 * logged[0]
    after = trainer.objective.distillation._teacher[0].parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    checkpoint = tmp_path / "checkpoint-6"
    assert list(load_file(checkpoint / "objective.safetensors")) == ["distillation.mapping.weight"]
    own = {name for name, _ in trainer.model.named_parameters()}
    assert set(load_file(checkpoint / "model.safetensors")) <= own | set(trainer.model.state_dict())
    resumed = make_trainer(tokenizer, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(parameters(resumed), parameters(trainer)) and losses(resumed) == losses(trainer)


def test_bad_settings_are_named(teacher, tokenizer):
    other = microworld_tokenizer()
    other.add_tokens(["zz"])
    with pytest.raises(ValueError, match=r"distil_from .* has another vocabulary: 1 tokens differ, such as 'zz'"):
        load_distillation(teacher, 32, other)
    with pytest.raises(ValueError, match=r"distil_from .* is neither a local folder"):
        load_distillation(teacher + "/missing", 32, tokenizer)
    with pytest.raises(ValueError, match=r"distil_weight must be positive and finite, got 0\.0"):
        ObjectiveArguments(distil_from=teacher, distil_weight=0.0)
    with pytest.raises(ValueError, match=r"distil_weight=2\.0 says nothing without distil_from; name a teacher"):
        ObjectiveArguments(distil_weight=2.0)
