from dataclasses import asdict

import pytest
from small_tasks import small_task

from concept_encoder.scripts.dev.speed.cases import QUICK
from concept_encoder.scripts.dev.speed.finetuning import padding_case
from concept_encoder.scripts.dev.speed.pages import render_page
from concept_encoder.scripts.dev.speed.targets import targets
from concept_encoder.scripts.dev.speed.tools import environment
from concept_encoder.trainers.data.microworld import microworld_tokenizer

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
    assert result["speedup"].keys() == {"random", "grouped"}
    for each in (*(way["seconds"] for way in result["batchings"].values()), *result["speedup"].values()):
        assert 0 < each["min"] <= each["median"] <= each["max"]


def test_the_page_has_it_with_its_target(tmp_path):
    result = {"plan": asdict(QUICK), "environment": environment("cpu"), "repeats": 2, "roofline": {"rates": {}}}
    result["padding"] = case(tmp_path)
    page = render_page(result, "speed.json")
    assert page.count("padded to 32") == 3  # in the target, the head of the table and its first line
    result["padding"]["speedup"]["grouped"] = {"median": 2.1, "min": 1.9, "max": 2.2}
    assert next(row for row in targets(result) if row.group == "fine-tuning").verdict == "PASS"


def test_more_batches_than_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size \* num_batches \(800\) is more than the 96 training examples"):
        case(tmp_path, num_batches=100)
