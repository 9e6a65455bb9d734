import pytest
from small_tasks import small_task

from concept_encoder.eval.speed_finetuning import padding_case
from concept_encoder.trainers.microworld import microworld_tokenizer

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def case(folder, **settings):
    task = small_task("mrpc", folder)
    options = {"max_length": 32, "batch_size": 8, "num_batches": 4, "repeats": 2, "num_concepts": 2, **SMALL}
    return padding_case(task, microworld_tokenizer(64), **{**options, **settings})


def test_less_padding_costs_less(tmp_path):
    result = case(tmp_path)
    fixed, random, grouped = (result["batchings"][name] for name in ("fixed", "random", "grouped"))
    assert 1 > fixed["padding_share"] > random["padding_share"] >= grouped["padding_share"] >= 0
    assert fixed["flops"] > random["flops"] >= grouped["flops"] > 0
    assert result["flops_ratio"]["grouped"] == fixed["flops"] / grouped["flops"]
    for way in result["batchings"].values():
        assert 0 < way["spread"][0] <= way["seconds"] <= way["spread"][1]
    assert result["speedup"].keys() == {"random", "grouped"} and min(result["speedup"].values()) > 0


def test_more_batches_than_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size \* num_batches \(800\) is more than the 96 training examples"):
        case(tmp_path, num_batches=100)
