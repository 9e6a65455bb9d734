import math
import warnings

import pytest
import torch
from fuzzing import SCALARS, cases, names_one_of
from helpers import tiny_config
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from concept_encoder import ConceptEncoderConfig, ConceptEncoderForDiffusionMLM
from concept_encoder.modeling_concept import ConceptEncoderForMaskedLMPerceiver

FIELDS = sorted(set(ConceptEncoderConfig.__annotations__) - {"auto_map"})
SIZES = [name for name in FIELDS if ConceptEncoderConfig.__annotations__[name] in (int, int | None)]
CHOICES = {
    "position_embedding_type": ["learned", "sinusoidal"],
    "latent_init": ["normal", "orthogonal"],
    "concept_position_type": ["none", "sinusoidal", "learned", "anchored"],
    "token_update": ["none", "bixt"],
    "concept_attention": ["softmax", "slot"],
    "decoder_context": ["none", "latent"],
    "decoder_query": ["token+position", "position"],
    "hidden_act": ["gelu", "relu", "silu", "evil"],
    "embedding_layer_norm": [False, True],
    "pooler_whitening": [False, True],
    "tie_word_embeddings": [False, True],
}


@pytest.mark.slow
@cases(2500)
@given(st.dictionaries(st.sampled_from(FIELDS), SCALARS, max_size=4))
def test_a_configuration_is_legal_or_refused_by_name(fields):
    try:
        config = ConceptEncoderConfig(**fields)
    except StrictDataclassError as error:
        names_one_of(error, FIELDS)
        return
    again = ConceptEncoderConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    for name, value in config.to_dict().items():
        assert not isinstance(value, float) or math.isfinite(value), (name, value)


@pytest.mark.slow
@cases(300)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.sampled_from(values) for name, values in CHOICES.items()},
            **{name: st.integers(0, 9) for name in SIZES if not name.endswith("_id")},
            **{name: st.sampled_from([None, 0, 1, 7]) for name in SIZES if name.endswith("_id")},
            "hidden_size": st.sampled_from([2, 4, 8]),
            "num_attention_heads": st.sampled_from([1, 2]),
            "token_embedding_size": st.sampled_from([None, 2, 3, 8]),
        },
    )
)
def test_every_legal_architecture_computes_finite_numbers(fields):
    tiny = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4, "num_concepts": 3}
    tiny |= {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "max_position_embeddings": 6}
    try:
        config = tiny_config(**{**tiny, **fields})
        models = [head(config) for head in (ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver)]
    except (StrictDataclassError, ValueError) as error:
        names_one_of(error, FIELDS)
        return
    length = min(5, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    for model in models:
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["layer_norm_eps", "final_layer_norm_eps", "initializer_range", "timestep_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_scales_are_positive_and_finite(name, value):
    with pytest.raises(StrictDataclassError, match=f"{name} must be positive and finite, got {value}"):
        tiny_config(**{name: value})


@pytest.mark.parametrize("name", ["vocab_size", "num_concepts", "max_position_embeddings"])
def test_sizes_are_numbers_of_things_that_can_be_had(name):
    with pytest.raises(StrictDataclassError, match=rf"{name} must be less than 2\*\*31, got {2**64}"):
        tiny_config(**{name: 2**64})


def test_an_unknown_activation_is_refused():
    with pytest.raises(StrictDataclassError, match=r"hidden_act must be one of gelu, .*, tanh.*, got 'evil'"):
        tiny_config(hidden_act="evil")


@pytest.mark.slow
def test_every_activation_can_be_built():
    from transformers.activations import ACT2FN

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ACT2FN:
            model = ConceptEncoderForDiffusionMLM(tiny_config(hidden_act=name, num_hidden_layers=1)).eval()
            assert model(input_ids=torch.arange(6)[None]).logits.isfinite().all(), name
