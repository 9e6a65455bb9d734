"""Codes trained by contrast and by a teacher: values against the formulas, passes, sizes, resuming, bad input."""

import math
from pathlib import Path

import numpy as np
import pytest
import small_codes
import torch
from datasets import Dataset
from helpers import random_examples, randomised, tiny_config
from small_codes import SLOTS, TEACHER, codes_trainer, examples
from small_runs import launch_two, losses, parameters
from torch import nn

from concept_encoder import ConceptEncoderModel
from concept_encoder.trainers.data.corpora import DataArguments, load_pretraining_data
from concept_encoder.trainers.objectives.codes import (
    Size,
    TrainingHead,
    attach,
    contrast,
    encode,
    mean_max_sim,
    similarity_divergence,
)
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.objective import ObjectiveArguments


def random_codes(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("interaction", ["pooled", "maxsim"])
def test_contrast_equals_a_loop_over_partners_and_negatives(interaction):
    text, first, second, negative = codes = random_codes(*[(5, 3, 4)] * 4)
    unit = [nn.functional.normalize(each, dim=-1) for each in codes]

    def similarity(x, y):
        if interaction == "pooled":
            return nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0)
        return sum(max(a @ b for b in y) for a in x) / len(x)

    a, *rest = codes if interaction == "pooled" else unit
    total = 0.0
    for partner in rest[:2]:
        for i in range(5):
            scores = torch.stack([similarity(a[i], other) for other in [*partner, *rest[2]]]).float() * 7.0
            total -= scores.log_softmax(0)[i].item() / 10
    loss = contrast(codes, 2, interaction, 7.0)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert all(each.grad.abs().sum() > 0 for each in (text, first, second, negative))


def test_one_concept_alike_is_enough_for_max_sim():
    a = torch.eye(3)[None, :2]  # two concepts
    b = torch.stack([torch.eye(3)[[0, 2]], torch.eye(3)[[2, 2]]])
    assert mean_max_sim(a, b).tolist() == [[0.5, 0.0]]


def test_similarity_divergence_equals_a_loop_over_the_other_texts():
    student, teacher = (x @ x.T for x in random_codes((6, 4), (6, 3)))
    expected = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = ((scores[i, others] / 0.3).softmax(0) for scores in (teacher, student))
        expected += (p * (p.log() - q.log())).sum().item() / 6
    loss = similarity_divergence(student, teacher, 0.3)
    assert loss.item() == pytest.approx(expected)
    assert similarity_divergence(teacher, teacher, 0.3).item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def objective_of(tokenizer, config, rows, **settings):
    """Objective, model with its training head, and a batch, as the Trainer has them."""
    arguments = ObjectiveArguments(reconstruction=0.0, **settings)
    torch.manual_seed(0)
    model = randomised(ConceptEncoderModel(tiny_config(vocab_size=len(tokenizer), **config)), std=0.1).train()
    attach(model, arguments.build_head(model.config, TEACHER))
    batch = DataCollatorForReconstruction(tokenizer).pad(rows)
    batch["num_items"] = torch.ones(len(rows), dtype=torch.long)
    return arguments.build_objective(), model, batch


def test_the_terms_equal_their_formulas_and_reach_all_that_learns(tokenizer):
    settings = {"contrastive": 0.5, "distillation": 2.0, "similarity_distillation": 3.0, "learn_temperature": True}
    objective, model, batch = objective_of(tokenizer, SLOTS, examples(tokenizer), **settings)
    result = objective(model, batch, 4 * len(batch["num_items"]))
    a, b = (
        model(batch[f"{role}input_ids"], batch[f"{role}attention_mask"]).pooler_output for role in ("", "partner_")
    )
    both, teacher = torch.cat([a, b]), torch.cat([batch["text_vector"], batch["partner_vector"]])
    cosine = nn.functional.cosine_similarity
    alike = cosine(both[:, None], both[None], dim=-1), cosine(teacher[:, None], teacher[None], dim=-1)
    expected = {
        "contrastive": nn.functional.cross_entropy(20 * cosine(a[:, None], b[None], dim=-1), torch.arange(12)),
        "distillation": (1 - cosine(both @ model.training_head.map.weight.T, teacher)).mean(),
        "similarity_distillation": similarity_divergence(*alike, 0.05),
    }
    for name, value in expected.items():
        assert result.parts[name][0].item() == pytest.approx(value.item(), rel=1e-4)
    weighted = sum(settings[name] * value for name, value in expected.items()).item()
    assert result.loss.item() == pytest.approx(weighted / 4, rel=1e-4)  # one of four such micro-batches
    assert result.parts["temperature"][0].item() == pytest.approx(0.05)
    result.loss.backward()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not unused


def test_the_scorer_of_a_weighted_mean_learns(tokenizer):
    config = {"pooled_output": "weighted", "projection_size": 8}
    objective, model, batch = objective_of(tokenizer, config, examples(tokenizer), contrastive=1.0)
    objective(model, batch, 12).loss.backward()
    assert model.pool.scorer.weight.grad.any() and model.pool.projection.weight.grad.any()


# -------------------------------------------------------------------------------------------------------------- passes


@pytest.mark.slow
@pytest.mark.parametrize("head", [False, True], ids=["plain", "learned"])
def test_gradient_caching_changes_neither_loss_nor_gradients(tokenizer, head):
    settings = {"contrastive": 1.0, "distillation": float(head), "learn_temperature": head}
    rows = examples(tokenizer, others=("partner", "negative"), longest=12)
    config = {"pooled_output": "weighted", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    found = []
    for caching in (False, True):
        limits = {"mini_batch_num_tokens": 60, "gradient_caching": caching}
        objective, model, batch = objective_of(tokenizer, config, rows, **settings, **limits)
        passes, forward = [], model.forward
        model.forward = lambda **inputs: passes.append(inputs["input_ids"].shape) or forward(**inputs)  # noqa: B023
        torch.manual_seed(1)
        loss = objective(model, batch, 12).loss
        loss.backward()
        assert all(rows * width <= 60 or rows == 1 for rows, width in passes)
        assert sorted(width for _, width in passes)[0] < sorted(width for _, width in passes)[-1]
        found.append((len(passes), loss, {name: weight.grad for name, weight in model.named_parameters()}))
    (once, plain, gradients), (twice, cached, again) = found
    assert twice == 2 * once and torch.equal(plain, cached)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


def test_texts_read_by_length_are_those_read_together(tokenizer):
    _, model, batch = objective_of(tokenizer, SLOTS, examples(tokenizer), contrastive=1.0)
    together, apart = encode(model, batch), encode(model, batch, mini_batch_num_tokens=50)
    for each, other in zip(together, apart, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5)


def test_tokens_are_dropped_but_no_special_one(tokenizer):
    collator = DataCollatorForReconstruction(tokenizer)
    batch = collator.pad(examples(tokenizer, rows=400))
    fewer = collator.without_tokens(batch, 0.3, step=1)
    assert collator.without_tokens(batch, 0.3, step=1)["input_ids"].equal(fewer["input_ids"])
    for role in ("", "partner_"):
        before, after = (each[f"{role}attention_mask"].sum(-1) - 2 for each in (batch, fewer))
        assert (after.sum() / before.sum()).item() == pytest.approx(0.7, abs=0.02) and after.min() >= 1
        ids, mask = fewer[f"{role}input_ids"], fewer[f"{role}attention_mask"]
        assert (ids[:, 0] == tokenizer.cls_token_id).all()
        assert (ids.gather(1, mask.sum(-1, keepdim=True) - 1) == tokenizer.sep_token_id).all()


# --------------------------------------------------------------------------------------------------------------- sizes


def test_a_prefix_is_what_the_model_gives_for_it(tokenizer):
    for kind in ("concat", "mean"):
        config = SLOTS | {"pooled_output": kind}
        _, model, batch = objective_of(tokenizer, config, examples(tokenizer), contrastive=1.0)
        codes = encode(model.eval(), batch, Size(3)).codes(model.config, 5)
        asked = model(batch["input_ids"], batch["attention_mask"], num_concepts=3, dim=5).pooler_output
        torch.testing.assert_close(codes[:12].flatten(1), asked, rtol=1e-4, atol=1e-5)


def test_the_map_of_a_prefix_is_that_of_a_code_with_zeros_for_the_rest():
    config = tiny_config(**SLOTS)
    head = TrainingHead(config, None, TEACHER)
    codes = torch.randn(4, 6, 8)
    cut = codes.clone()
    cut[:, 3:], cut[:, :, 5:] = 0, 0
    torch.testing.assert_close(head.mapped(codes[:, :3, :5], config), head.mapped(cut, config))


def test_sizes_are_drawn_for_each_step_and_alike_on_all_processes(tokenizer):
    collator = DataCollatorForReconstruction(tokenizer)
    drawn = [collator.draw_size([2, 4, 6], [2, 4, 8], 2, step) for step in range(60)]
    assert {each["num_concepts"] for each in drawn} == {2, 4, 6}
    assert {tuple(each["dims"]) for each in drawn} == {(2, 4), (2, 8), (4, 8)}
    assert collator.draw_size([], [8, 2], -1, 0) == {"dims": [8, 2]} and collator.draw_size([], [], -1, 0) == {}


def test_nested_terms_are_means_over_the_sizes(tokenizer):
    objective, model, batch = objective_of(tokenizer, SLOTS, examples(tokenizer), contrastive=1.0, distillation=1.0)
    both = objective(model, batch | {"num_concepts": 2, "dims": [3, 8]}, 12).parts
    apart = [objective(model, batch | {"num_concepts": 2, "dims": [dim]}, 12).parts for dim in (3, 8)]
    for name in ("contrastive", "distillation"):
        values = [parts[name][0].item() for parts in apart]
        assert values[0] != values[1]
        assert both[name][0].item() == pytest.approx(sum(values) / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ training

EVERYTHING = {
    "contrastive": 1.0,
    "distillation": 1.0,
    "similarity_distillation": 1.0,
    "learn_temperature": True,
    "token_dropout": 0.3,
    "matryoshka_concepts": [2, 6],
    "matryoshka_dims": [4, 8],
    "n_dims_per_step": 1,
    "mini_batch_num_tokens": 100,
    "gradient_caching": True,
    "regularizers": {"orthogonality": 0.1},
}


@pytest.mark.slow
def test_resume_is_exact_with_everything(tokenizer, tmp_path):
    shared = {**EVERYTHING, "gradient_accumulation_steps": 2, "dropout": 0.1, "ema_decay": 0.5}
    straight = codes_trainer(tokenizer, tmp_path / "a", max_steps=4, **shared)
    straight.train()
    settings = {**shared, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    codes_trainer(tokenizer, tmp_path / "b", **settings).train()
    resumed = codes_trainer(tokenizer, tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert torch.equal(parameters(straight), parameters(resumed))  # those of the head among them
    assert losses(straight) == losses(resumed)


@pytest.mark.slow
def test_what_is_saved_is_an_encoder(tokenizer, tmp_path):
    trainer = codes_trainer(tokenizer, tmp_path, **EVERYTHING, max_steps=2)
    assert "training_head.map.weight" in dict(trainer.model.named_parameters())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model, info = ConceptEncoderModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert model.config.architectures == ["ConceptEncoderModel"]
    assert model.config.auto_map["AutoModel"] == "modeling_concept.ConceptEncoderModel"
    metrics = trainer.evaluate()
    names = ("orthogonality", "contrastive", "distillation", "similarity_distillation")
    weights = trainer.settings.weights
    assert metrics["eval_loss"] == pytest.approx(sum(weights[name] * metrics[f"eval_{name}"] for name in names))


@pytest.mark.slow
def test_training_brings_partners_together(tokenizer, tmp_path):
    rows = [{**row, "partner_ids": row["input_ids"][::-1]} for row in random_examples(tokenizer, 32, longest=12)]
    trainer = codes_trainer(tokenizer, tmp_path, rows=rows, contrastive=1.0, max_steps=40)
    before = trainer.evaluate()["eval_contrastive"]
    trainer.train()
    assert trainer.evaluate()["eval_contrastive"] < 0.5 * before


# ---------------------------------------------------------------------------------------------------------------- data


def table(rows=8, size=3):
    generator = np.random.default_rng(0)
    texts = [f"the fox number {i} jumps" for i in range(rows)]
    columns = {"a": texts, "b": texts[::-1], "c": texts, "d": texts[::-1]}
    vectors = {name: generator.normal(size=(rows, size)).astype(np.float16).tolist() for name in ("va", "vb")}
    return columns | vectors


FIELDS = {
    "text_column": "a",
    "partner_column": "b",
    "more_partner_columns": ["c"],
    "negative_columns": ["d"],
    "teacher_columns": {"a": "va", "b": "vb"},
    "packing": "truncated",
    "max_length": 16,
    "validation_size": 0.4,
}


@pytest.mark.slow
def test_columns_become_texts_of_roles_and_vectors(tokenizer, tmp_path):
    columns = table(20)
    columns["b"][3] = " "
    data = Dataset.from_dict(columns)
    data.to_parquet(tmp_path / "pairs.parquet")
    for rows, source in ((data, {"dataset_name": "in-memory"}), (None, {"dataset_name": f"{tmp_path}/pairs.parquet"})):
        args = DataArguments(**FIELDS, **source, tokenizer_name="x")
        train, validation = load_pretraining_data(args, tokenizer, rows)
        assert len(train) + len(validation) == 19
        named = ["input_ids", "partner_ids", "partner_2_ids", "negative_ids", "text_vector", "partner_vector"]
        assert train.column_names == named
        for row in train:
            number = [vector[0] for vector in columns["va"]].index(row["text_vector"][0])
            np.testing.assert_array_equal(row["text_vector"], columns["va"][number])
            np.testing.assert_array_equal(row["partner_vector"], columns["vb"][number])
            for name, column in zip(named, "abcd", strict=False):
                assert row[name].tolist() == tokenizer(columns[column][number])["input_ids"]
        batch = DataCollatorForReconstruction(tokenizer).pad([train[0], train[1]])
        assert batch["text_vector"].shape == (2, 3) and batch["text_vector"].dtype == torch.float32
        assert {"partner_2_input_ids", "negative_attention_mask"} <= batch.keys()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0]] * 7 + [[1.0]], "must hold as many finite numbers in every row; rows 0 to 7 do not"),
        ([[1.0, 2.0]] * 7 + [[1.0, math.nan]], "must hold as many finite numbers in every row; rows 0 to 7 do not"),
        ([[1.0, 2.0]] * 7 + [None], "must hold as many finite numbers in every row; rows 0 to 7 do not"),
        (["1"] * 8, "teacher_columns: column 'va' of .* must hold lists of numbers, got Value"),
    ],
)
def test_vectors_that_are_none_are_named(tokenizer, vectors, message):
    data = Dataset.from_dict(table() | {"va": vectors})
    with pytest.raises(ValueError, match=message):
        load_pretraining_data(DataArguments("in-memory", tokenizer_name="x", **FIELDS), tokenizer, data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negative_columns": ["d"], "partner_column": None}, r"negative_columns=\['d'\] is of use with a partner_co"),
        ({"more_partner_columns": ["a"]}, "two columns are both 'a': a pair needs two columns"),
        ({"teacher_columns": {"e": "ve"}}, "teacher_columns has vectors of 'e', which is none of .*: a, b, d$"),
        (
            {"partner_column": None, "packing": "packed", "negative_columns": []},
            "teacher_columns need packing='truncated', one text per example, got 'packed'",
        ),
    ],
)
def test_bad_columns_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DataArguments("x/y", tokenizer_name="x", **{**FIELDS, "more_partner_columns": [], **fields})


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reconstruction": -1.0}, "reconstruction must be a weight of at least 0, got -1.0"),
        ({"distillation": -1.0}, "distillation must be a weight of at least 0, got -1.0"),
        ({"distillation_temperature": 0.0}, "distillation_temperature must be positive, got 0.0"),
        ({"interaction": "dot"}, "interaction must be one of pooled, maxsim, got 'dot'"),
        (
            {"learn_temperature": True, "contrastive_temperature": 0.001},
            "learn_temperature starts from at least 0.01, got 0.001",
        ),
        ({"token_dropout": 1.0}, r"token_dropout must be in \[0, 1\), got 1.0"),
        ({"n_dims_per_step": 2, "matryoshka_dims": [8]}, r"n_dims_per_step must be -1 or in \[1, 1\], .* got 2"),
        ({"mini_batch_num_tokens": 0}, "mini_batch_num_tokens must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveArguments(**settings)


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        (
            {"contrastive": 0.0},
            {},
            "reconstruction is 0 and nothing else is trained: set contrastive, distillation or",
        ),
        ({"interaction": "maxsim"}, {}, "interaction='maxsim' compares all concepts: set pooled_output='concat', got"),
        ({"matryoshka_concepts": [7]}, {}, r"matryoshka_concepts must be in \[1, 6\], got 7"),
        ({"matryoshka_dims": [0, 8]}, {"projection_size": 8}, r"matryoshka_dims must be in \[1, 8\], got 0"),
        ({"nested_concepts": True}, {}, "nested_concepts hides concepts from a decoder, and reconstruction is 0"),
        (
            {"nested_concepts": True, "reconstruction": 1.0, "matryoshka_concepts": [2]},
            {},
            "nested_concepts and matryoshka_concepts both choose k; leave one out",
        ),
        ({"mini_batch_num_tokens": 9, "reconstruction": 1.0}, {}, "mini_batch_num_tokens needs reconstruction 0"),
        ({"gradient_caching": True}, {}, "gradient_caching needs mini_batch_num_tokens, the size of a pass"),
        (
            {"token_dropout": 0.3, "reconstruction": 1.0, "corruption": "mlm"},
            {},
            "token_dropout hides tokens from the encoder alone, and corruption 'mlm' gives encoder and decoder one",
        ),
        ({"distillation": 1.0}, {}, "distillation needs a teacher's vectors: name their columns in teacher_columns"),
    ],
)
def test_what_a_model_cannot_be_trained_by_is_named(settings, config, message):
    settings = {"reconstruction": 0.0, "contrastive": 1.0, **settings}
    with pytest.raises(ValueError, match=message):
        ObjectiveArguments(**settings).check(tiny_config(mask_token_id=4, **config), ["text", "partner"])


def test_a_teacher_that_nothing_listens_to_or_of_another_size_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="teacher_columns train nothing: set distillation or similarity_distillation"):
        codes_trainer(tokenizer, tmp_path, contrastive=1.0)
    with pytest.raises(ValueError, match="makes the pooled output, 48 numbers, a teacher's vector of 5; choose sizes"):
        codes_trainer(tokenizer, tmp_path, distillation=1.0, distillation_map=False)
    config = {"projection_size": TEACHER}
    with pytest.raises(
        ValueError, match="distillation_map=False compares whole codes: leave the matryoshka sizes out"
    ):
        codes_trainer(tokenizer, tmp_path, config, distillation=1.0, distillation_map=False, matryoshka_dims=[2])
    trainer = codes_trainer(tokenizer, tmp_path, config, distillation=1.0, distillation_map=False)
    assert not hasattr(trainer.model, "training_head")


IN_TWO_PROCESSES = """
import sys
sys.path[:0] = {tests!r}
import torch
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from small_codes import codes_trainer
from small_runs import parameters

trainer = codes_trainer(microworld_tokenizer(), {out!r}, per_device_train_batch_size=4, **{settings!r})
assert trainer.accelerator.num_processes == 2
trainer.train()
torch.save(parameters(trainer), {out!r} + f"/{{trainer.args.process_index}}.pt")
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does_from_twice_the_batch(tokenizer, tmp_path):
    settings = {"contrastive": 1.0, "distillation": 1.0, "learn_temperature": True, "max_steps": 3, "optim": "sgd"}
    settings |= {"mini_batch_num_tokens": 60, "gradient_caching": True}
    script = tmp_path / "two.py"
    support = str(Path(small_codes.__file__).parent)
    script.write_text(IN_TWO_PROCESSES.format(tests=[support], out=str(tmp_path), settings=settings))
    launch_two(script)
    apart = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    trainer = codes_trainer(tokenizer, tmp_path / "one", per_device_train_batch_size=8, **settings)
    trainer.train()
    assert torch.equal(*apart)
    torch.testing.assert_close(apart[0], parameters(trainer), rtol=1e-4, atol=1e-5)
