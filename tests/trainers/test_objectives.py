import math

import pytest
import torch
from helpers import random_examples, randomised, tiny_config
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.modeling_concept import ConceptMaskedLMOutput
from concept_encoder.trainers.objectives.codes import contrast
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.corruptions import CORRUPTIONS, Diffusion
from concept_encoder.trainers.objectives.objective import Objective, ObjectiveArguments
from concept_encoder.trainers.objectives.regularizers import REGULARIZERS


def objective(**settings) -> Objective:
    return Objective(ObjectiveArguments(**settings))


def info_nce(anchors, positives, temperature=0.05):
    return contrast([anchors, positives], 1, "pooled", 1 / temperature)


@pytest.fixture
def model(tokenizer):
    return randomised(ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=len(tokenizer), mask_token_id=4)))


def corrupted(tokenizer, weighting="none"):
    batch = DataCollatorForReconstruction(tokenizer, Diffusion(weighting=weighting))(
        random_examples(tokenizer, rows=16, longest=30)
    )
    return batch, batch["num_items"].sum()


@pytest.mark.parametrize("weighting", ["none", "elbo"])
def test_loss_equals_a_short_reference(model, tokenizer, weighting):
    batch, items = corrupted(tokenizer, weighting=weighting)
    result = objective(label_smoothing=0.1)(model, batch, items)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids", "timesteps")}
    logits = model(**inputs, labels=batch["input_ids"]).logits.view(*batch["labels"].shape, -1)  # of every position
    nll = nn.functional.cross_entropy(logits.mT, batch["labels"], reduction="none", label_smoothing=0.1)
    expected = (nll * batch["loss_weights"]).sum() / items
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.token_count == (batch["labels"] != -100).sum()


def test_regularizers_add_their_weighted_mean_over_micro_batches(model, tokenizer):
    batch, items = corrupted(tokenizer)
    plain = objective()(model, batch, items)
    both = objective(regularizers={"orthogonality": 0.5, "variance": 2.0})(model, batch, 4 * items)
    concepts = model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    expected = {name: REGULARIZERS[name](concepts) for name in ("orthogonality", "variance")}
    added = (0.5 * expected["orthogonality"] + 2.0 * expected["variance"]) / 4  # one of four such micro-batches
    assert both.loss.item() == pytest.approx((plain.loss / 4 + added).item(), rel=1e-5)
    for name, value in expected.items():
        total, count = both.parts[name]
        assert (total / count).item() == pytest.approx(value.item(), rel=1e-5)
    both.loss.backward()
    assert model.encoder.latents.weight.grad.abs().sum() > 0


def test_binned_parts_add_up_to_all_masked_tokens(model, tokenizer):
    batch, items = corrupted(tokenizer)
    result = objective()(model, batch, items)
    assert list(result.parts) == ["loss_t_0.2", "loss_t_0.4", "loss_t_0.6", "loss_t_0.8", "loss_t_1.0"]
    totals, counts = zip(*result.parts.values(), strict=True)
    assert sum(counts) == result.token_count
    assert (sum(totals) / sum(counts)).item() == pytest.approx(result.loss.item(), rel=1e-5)
    inside = (batch["timesteps"] > 0.4) & (batch["timesteps"] <= 0.6)
    assert result.parts["loss_t_0.6"][1] == (batch["labels"][inside] != -100).sum()


@pytest.mark.slow
def test_monte_carlo_nelbo_of_a_known_model_equals_its_closed_form(tokenizer):
    class Unigram(nn.Module):
        """Scores every position by fixed token probabilities, so its NELBO is the cross-entropy with them."""

        def __init__(self, log_probs):
            super().__init__()
            self.log_probs = log_probs

        def forward(self, labels, loss_weights, num_items_in_batch, **kwargs):
            nll = -self.log_probs[labels.clamp_min(0)] * (labels != -100)
            loss = (nll * loss_weights).sum() / num_items_in_batch
            nothing = torch.zeros(len(nll), 1, 1)
            return ConceptMaskedLMOutput(loss, token_losses=nll, concepts=nothing, pooler_output=nothing[:, 0])

    log_probs = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0)).log_softmax(0)
    collator = DataCollatorForReconstruction(tokenizer)
    batch = collator.pad(random_examples(tokenizer, rows=256))
    content = batch["input_ids"][~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))]
    exact = -log_probs[content].mean().item()
    losses = []
    for step in range(100):
        noised = collator.corrupt(batch, collator.draw(batch, step=step))
        losses.append(objective()(Unigram(log_probs), noised, noised["num_items"].sum()).loss.item())
    estimate = sum(losses) / len(losses)
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert abs(estimate - exact) < 4 * error and error < 0.02 * exact


def test_info_nce_of_known_vectors():
    basis = torch.eye(4)
    alike, apart = math.exp(1 / 0.5), math.exp(0 / 0.5)
    assert info_nce(basis, basis, 0.5).item() == pytest.approx(-math.log(alike / (alike + 3 * apart)))
    assert info_nce(7 * basis, 0.1 * basis, 0.5).item() == pytest.approx(info_nce(basis, basis, 0.5).item())
    same = torch.ones(4, 3)
    assert info_nce(same, same).item() == pytest.approx(math.log(4))
    assert info_nce(basis, basis.roll(1, 0), 0.05).item() == pytest.approx(20, abs=1e-3)


def test_info_nce_equals_a_loop_and_reaches_both_sides():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator, requires_grad=True) for _ in range(2))
    cosines = torch.tensor([[nn.functional.cosine_similarity(x, y, dim=0).item() for y in b] for x in a]) / 0.05
    expected = -sum(cosines[i].log_softmax(0)[i] for i in range(5)) / 5
    loss = info_nce(a, b)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(each.grad.norm() > 0 for each in (a, b))


def test_contrastive_adds_info_nce_of_two_views_and_leaves_the_rest_alone(model, tokenizer):
    batch, items = corrupted(tokenizer)
    plain = objective(regularizers={"variance": 1.0})(model, batch, items)
    both = objective(regularizers={"variance": 1.0}, contrastive=0.5, contrastive_temperature=0.1)(
        model, batch, 2 * items
    )
    pooled = model.encoder(batch["input_ids"], batch["attention_mask"]).pooler_output
    expected = info_nce(pooled, pooled, 0.1)  # without dropout both views are the same
    assert both.loss.item() == pytest.approx(((plain.loss + 0.5 * expected) / 2).item(), rel=1e-5)
    assert both.token_count == plain.token_count
    assert set(both.parts) == {*plain.parts, "contrastive"}
    for name in plain.parts:
        torch.testing.assert_close(both.parts[name], plain.parts[name])


def test_dropout_makes_the_two_views_differ(tokenizer):
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, hidden_dropout_prob=0.3)
    model = randomised(ConceptEncoderForDiffusionMLM(config)).train()
    batch, items = corrupted(tokenizer)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.concepts))
    objective(contrastive=0.5)(model, batch, items)
    first, second = seen[0].chunk(2)
    assert len(first) == 16 and (first - second).flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("longest", [(14, 30), (30, 14)], ids=["longer partners", "shorter partners"])
@pytest.mark.parametrize("corruption", ["diffusion", "prefix", "tsdae", "mlm"])
def test_the_second_view_of_a_pair_is_the_partner_read_in_full(tokenizer, corruption, longest):
    query = {"decoder_query": "position"} if corruption == "tsdae" else {}
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, **query)
    model = randomised(CORRUPTIONS[corruption].head(config))
    collator = DataCollatorForReconstruction(tokenizer, CORRUPTIONS[corruption]())
    texts, partners = (random_examples(tokenizer, 6, seed, most) for seed, most in enumerate(longest))
    pairs = [{**text, "partner_ids": other["input_ids"]} for text, other in zip(texts, partners, strict=True)]
    clean = collator.pad(pairs)
    batch = collator.corrupt(clean, collator.draw(clean, step=0))
    seen = []
    model.register_forward_hook(lambda module, args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True)
    both = batch | {name: clean[name] for name in ("partner_input_ids", "partner_attention_mask")}
    result = objective(contrastive=0.5)(model, both, batch["num_items"].sum())
    (inputs, output), alone = seen[0], [row["input_ids"] for row in partners]
    real = inputs["attention_mask"][6:].bool()
    assert [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"][6:], real, strict=True)] == alone
    read = [model.encoder(torch.tensor([ids])).last_hidden_state[0] for ids in alone]
    torch.testing.assert_close(output.concepts[6:], torch.stack(read), rtol=1e-4, atol=1e-5)
    plain = objective()(model, batch, batch["num_items"].sum())
    expected = info_nce(output.concepts[:6].mean(1), output.concepts[6:].mean(1))
    assert result.loss.item() == pytest.approx((plain.loss + 0.5 * expected).item(), rel=1e-5)


def test_pairs_and_contrastive_need_each_other():
    config = tiny_config(mask_token_id=4)
    ObjectiveArguments(contrastive=0.1).check(config, ["text", "partner"])  # partners differ without dropout
    with pytest.raises(ValueError, match=r"a corpus of pairs trains nothing but contrastive, which is 0"):
        ObjectiveArguments().check(config, ["text", "partner"])


def test_nested_concepts_refuse_what_they_cannot_hide():
    config = tiny_config(mask_token_id=4, concept_attention="slot", decoder_context="latent")
    with pytest.raises(ValueError, match="nested_concepts with decoder_context='latent' needs concept_attention='sof"):
        ObjectiveArguments(nested_concepts=True).check(config)


@pytest.mark.parametrize("name", ["mlm", "tsdae"])
def test_a_corruption_without_timesteps_logs_one_part(tokenizer, name):
    settings = ObjectiveArguments(corruption=name)
    corruption = settings.built_corruption
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4, **corruption.needs)
    model = randomised(corruption.head(config))
    batch = DataCollatorForReconstruction(tokenizer, corruption)(random_examples(tokenizer, rows=16, longest=30))
    result = objective()(model, batch, batch["num_items"].sum())
    total, count = result.parts["loss_rebuilt"]
    assert list(result.parts) == ["loss_rebuilt"] and count == batch["num_items"].sum()
    assert result.loss.item() == pytest.approx((total / count).item(), rel=1e-5)


def test_a_corruption_is_a_name_or_a_mapping_to_its_settings_and_built_once():
    settings = ObjectiveArguments(corruption={"tsdae": {"deletion_rate": 0.5}})
    assert settings.built_corruption == CORRUPTIONS["tsdae"](deletion_rate=0.5)
    assert settings.built_corruption is settings.built_corruption
    settings = ObjectiveArguments(corruption={"prefix": {"t_min": "2e-1", "max_prefix": 0.6, "position_share": 1}})
    assert settings.built_corruption == CORRUPTIONS["prefix"](t_min=0.2, max_prefix=0.6)
    assert ObjectiveArguments(corruption={"mlm": None}) == ObjectiveArguments(corruption="mlm")


def test_a_corruption_is_kept_with_all_its_settings():
    assert ObjectiveArguments(corruption="tsdae").corruption == {
        "tsdae": {"position_share": 1.0, "deletion_rate": 0.6}
    }
    kept = ObjectiveArguments().corruption
    assert ObjectiveArguments(corruption=kept) == ObjectiveArguments()
    assert set(kept["diffusion"]) == {"position_share", "schedule", "t_min", "t_max", "t_sampling", "weighting"}


def test_contrastive_without_dropout_is_refused():
    settings = ObjectiveArguments(contrastive=0.1)
    settings.check(tiny_config(attention_probs_dropout_prob=0.1))
    with pytest.raises(
        ValueError,
        match=r"contrastive without a partner_column needs dropout.*_probs_dropout_prob and token_dropout are all 0",
    ):
        settings.check(tiny_config())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"num_eval_timesteps": 0}, "num_eval_timesteps must be at least 1, got 0"),
        ({"contrastive": -1.0}, "contrastive must be a weight of at least 0, got -1.0"),
        ({"contrastive": math.inf}, "contrastive must be finite, got inf"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature must be positive, got 0.0"),
        ({"nested_concepts": 1}, "nested_concepts must be true or false, got 1"),
        (
            {"corruption": "tsdea"},
            "Unknown corruption 'tsdea'. Available: diffusion, mlm, tsdae, prefix, two_view; did you mean tsdae?",
        ),
        ({"corruption": {"tsdae": {}, "mlm": {}}}, "corruption must be one name, or a mapping from one name to its"),
        ({"corruption": {}}, "corruption must be one name, or a mapping from one name to its settings, got {}"),
        ({"corruption": {"tsdae": 0.6}}, "corruption must be a text or a mapping, got {'tsdae': 0.6}"),
        ({"corruption": {"mlm": {"t_min": 0.1}}}, "Unknown setting 't_min' of corruption 'mlm'. Available: position"),
        ({"corruption": {"tsdae": {"deletion_rate": 2}}}, "deletion_rate must be in"),
        ({"corruption": {"tsdae": {"deletion_rate": "much"}}}, "deletion_rate of tsdae must be a number, got 'much'"),
        (
            {"corruption": {"diffusion": {"t_sampling": "even"}}},
            "t_sampling of diffusion must be one of independent, ant",
        ),
        ({"corruption": {"mlm": {"position_share": 0.0}}}, r"position_share must be in \(0, 1\], got 0.0"),
        (
            {"regularizers": {"orthogonalty": 0.1}},
            "Unknown regularizer 'orthogonalty'. Available: .*mean orthogonality",
        ),
        ({"regularizers": {"vicreg": 0}}, "the weight of regularizer vicreg must be positive, got 0"),
        ({"regularizers": {"vicreg": math.nan}}, "regularizers must be finite, got {'vicreg': nan}"),
        ({"regularizers": ["vicreg=1"]}, r"regularizers must be a mapping, got \['vicreg=1'\]"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveArguments(**kwargs)
