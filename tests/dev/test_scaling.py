from pathlib import Path

import pytest

from concept_encoder.scripts.dev.scaling import (
    REFERENCE,
    Counted,
    Run,
    count,
    reference_peak_share,
    render_page,
    scale,
)
from concept_encoder.trainers.recipes import Recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_is_fresh():
    assert (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8") == render_page()


@pytest.mark.slow
def test_counts_are_those_of_the_products():
    """One layer each, by hand: two FLOPs a multiplication, and twice the forward pass for the backward pass."""
    width, inner, concepts, tokens, vocabulary, rows = 16, 24, 4, 10, 50, 5
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_concepts": concepts,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "max_position_embeddings": tokens,
    }
    counted = count(Run("small", config, length=tokens, texts_per_step=1, micro_batch=1, steps=1, masked_share=0.5))

    def attention(queries, keys):
        return 2 * queries * width**2 + 2 * keys * width**2 + 2 * queries * keys * width

    def absorbed(queries, keys, heads):
        return 4 * queries * width**2 + 2 * queries * keys * heads * width

    def feed_forward(states):
        return 3 * states * width * inner

    encoder = absorbed(concepts, tokens, heads=2) + attention(concepts, concepts) + feed_forward(concepts)
    decoder = attention(rows, concepts) + feed_forward(rows) + 6 * width**2 + 4 * width**2
    head = rows * width * vocabulary
    assert counted.vocabulary_flops == 6 * head
    assert counted.flops == pytest.approx(6 * (encoder + decoder + head), rel=0.02)


def test_more_gpus_take_less_time_and_move_more():
    counted = Counted(parameters=1000, flops=10**12, vocabulary_flops=0, saved_elements=10)
    one, four, sixteen = (scale(REFERENCE, counted, gpus) for gpus in (1, 4, 16))
    assert one.ddp_bytes == one.fsdp_bytes == 0
    assert one.compute_seconds == pytest.approx(4 * four.compute_seconds)
    assert four.ddp_bytes == pytest.approx(3 / 4 * 2 * 4 * 1000)
    assert four.fsdp_bytes == pytest.approx(3 / 4 * 3 * 2 * 1000)
    assert sixteen.ddp_seconds / four.ddp_seconds == pytest.approx((15 / 16) / (3 / 4) * 9)  # over the network
    assert one.ddp_memory == pytest.approx(16 * 1000 + 64 * 2 * 10)
    assert sixteen.fsdp_memory == pytest.approx(1000 + 2000 + 32 * 2 * 10)
    assert one.hours * 3600 == pytest.approx(REFERENCE.steps * one.compute_seconds)


@pytest.mark.slow
def test_the_reference_run_is_its_recipe():
    recipe = Recipe.load("diffusion_l2", use_cpu=True)
    assert {name: getattr(recipe.model, name) for name in REFERENCE.config} == REFERENCE.config
    assert REFERENCE.length == recipe.data.max_length
    training = recipe.training
    texts = training.per_device_train_batch_size * training.gradient_accumulation_steps * 4
    assert REFERENCE.texts_per_step == texts and REFERENCE.micro_batch == training.per_device_train_batch_size
    corruption = recipe.objective.built_corruption
    assert REFERENCE.masked_share == pytest.approx((corruption.t_min + corruption.t_max) / 2)
    assert 0 < reference_peak_share(count(REFERENCE)) < 1
