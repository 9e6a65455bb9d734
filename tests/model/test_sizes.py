"""Sizes chosen in a call: the first k concepts, the first numbers of each, as many concepts as the text needs."""

import pytest
import torch
from helpers import randomised, tiny_config, token_batch
from torch.utils.flop_counter import FlopCounterMode

from concept_encoder import ConceptEncoderModel

SUM = {"concept_aggregation": "sum", "position_embedding_type": "none"}
VARIANTS: dict[str, dict] = {
    "mean": {},
    "bixt": {"token_update": "bixt"},
    "slot": {"concept_attention": "slot"},
    "sum": {**SUM, "num_hidden_layers": 0},
    "sparse sum": {**SUM, "num_hidden_layers": 0, "concepts_per_token": 2},
    "sum, layers": SUM,
}
AUTO = [name for name in VARIANTS if name not in ("bixt", "slot")]
EQUAL = {"rtol": 1e-10, "atol": 1e-10}


def encoder(**config) -> ConceptEncoderModel:
    return randomised(ConceptEncoderModel(tiny_config(**config)).double(), std=0.3)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("variant", VARIANTS)
def test_k_concepts_are_those_of_a_model_that_has_no_others(variant):
    model = encoder(**VARIANTS[variant])
    ids, mask = token_batch()
    for k in (2, 6):
        small = ConceptEncoderModel(tiny_config(**VARIANTS[variant], num_concepts=k)).double().eval()
        weights = model.state_dict() | {"latents.weight": model.latents.weight[:k]}
        small.load_state_dict(weights)
        output = model(ids, mask, num_concepts=k)
        assert output.last_hidden_state.shape == (3, k, 32)
        torch.testing.assert_close(output.last_hidden_state, small(ids, mask).last_hidden_state, **EQUAL)
        torch.testing.assert_close(output.pooler_output, small(ids, mask).pooler_output, **EQUAL)


@pytest.mark.parametrize("pooled", ["mean", "weighted", "concat"])
@pytest.mark.parametrize("variant", AUTO)
def test_a_text_gets_the_concepts_it_needs_whatever_stands_beside_it(variant, pooled):
    model = encoder(**VARIANTS[variant], tokens_per_concept=3, pooled_output=pooled)
    ids, mask = token_batch()
    output = model(ids, mask, num_concepts="auto")
    needed = [-(-n // 3) for n in mask.sum(-1).tolist()]
    assert output.last_hidden_state.shape[1] == max(needed) == 4
    for row, k in enumerate(needed):
        alone = model(ids[row : row + 1], mask[row : row + 1], num_concepts=k)
        torch.testing.assert_close(output.last_hidden_state[row, :k], alone.last_hidden_state[0], **EQUAL)
        assert output.last_hidden_state[row, k:].abs().sum() == 0
        code = output.pooler_output[row]
        if pooled == "concat":
            code = code[: k * 32]
        torch.testing.assert_close(code, alone.pooler_output[0], **EQUAL)


def test_dim_keeps_the_first_numbers_of_each_concept():
    for pooled in ("mean", "weighted", "concat"):
        model = encoder(pooled_output=pooled, projection_size=8)
        ids, mask = token_batch()
        whole = model(ids, mask).pooler_output.unflatten(1, (-1, 8))
        torch.testing.assert_close(model(ids, mask, dim=3).pooler_output, whole[..., :3].flatten(1), **EQUAL)


def test_sums_cost_what_their_slots_do():
    model = encoder(**VARIANTS["sum"]).requires_grad_(False)
    for k in (6, 3, 1):
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(4, 120, (1, 40)), num_concepts=k)
        assert counter.get_total_flops() == 2 * 40 * 32 * (2 * k + 1)  # scores, sums, and the tokens' weights


@pytest.mark.parametrize("variant", ["mean", "slot"])
def test_cost_falls_with_the_concepts(variant):
    model = encoder(**VARIANTS[variant]).requires_grad_(False)
    model.set_attn_implementation("eager")
    counted = []
    for k in (6, 3, 1):
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(4, 120, (1, 40)), num_concepts=k)
        counted.append(counter.get_total_flops())
    assert counted[0] > 1.5 * counted[1] > 2.5 * counted[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_concepts": 0}, r"num_concepts must be in \[1, 6\] or be 'auto', got 0"),
        ({"num_concepts": 7}, r"num_concepts must be in \[1, 6\] or be 'auto', got 7"),
        ({"num_concepts": "all"}, r"num_concepts must be in \[1, 6\] or be 'auto', got 'all'"),
        ({"num_concepts": "auto"}, "num_concepts='auto' needs tokens_per_concept in the configuration"),
        ({"dim": 0}, r"dim must be in \[1, 32\], the numbers of a concept, got 0"),
        ({"dim": 33}, r"dim must be in \[1, 32\], the numbers of a concept, got 33"),
    ],
)
def test_sizes_that_there_are_not(call, message):
    with pytest.raises(ValueError, match=message):
        encoder()(token_batch()[0], **call)


def test_sizes_that_other_concepts_would_feel():
    for config in ({"concept_attention": "slot"}, {"token_update": "bixt"}):
        with pytest.raises(
            ValueError, match="num_concepts='auto' needs layers in which one concept does not affect another"
        ):
            encoder(**config, tokens_per_concept=2)(token_batch()[0], num_concepts="auto")
    with pytest.raises(ValueError, match="pooler_whitening=True mixes all numbers of the mean concept; leave dim out"):
        encoder(pooler_whitening=True)(token_batch()[0], dim=4)
