"""Fine-tuning protocols: what they hold, how they are named when changed, what they refuse."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concept_encoder.eval.benchmarks.finetuning import result_path
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, Protocol, fields_from_words, fields_help

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "diffusion_l2.json"


def test_reference_protocol_is_the_published_one():
    protocol = PROTOCOLS["reference"]
    assert protocol.grid == [(1e-5, 96)]
    assert protocol.seeds == (42,)
    assert protocol.selection_size == 0
    tasks = ("mrpc", "stsb", "paws", "sick_relatedness", "sick_entailment")
    assert [protocol.epochs_for(task) for task in tasks] == [20, 20, 5, 10, 10]
    if not REFERENCE.is_file():
        pytest.skip("the record of the reference run is not here")
    published = json.loads(REFERENCE.read_text())["downstream"]
    for task in tasks:
        ours = {"epochs": protocol.epochs_for(task), "learning_rate": 1e-5, "batch_size": 96}
        assert {name: published[task][name] for name in ours} == ours


def test_tuned_protocol_sweeps_where_small_encoders_train():
    protocol = PROTOCOLS["tuned"]
    assert (min(protocol.learning_rates), max(protocol.learning_rates)) == (3e-5, 1e-3)
    assert len(protocol.seeds) == 3
    assert 0 < protocol.selection_size <= 0.2
    assert protocol.override(batch_sizes=(16, 32)).grid[:2] == [(3e-5, 16), (1e-4, 16)]


def test_overrides_become_part_of_the_name():
    protocol = PROTOCOLS["reference"].override(seeds=(1,), learning_rates=(3e-4,), max_train_examples=500)
    assert protocol.name == "reference+learning_rates=0.0003+seeds=1+max_train_examples=500"
    assert protocol.epochs_for("mrpc") == 20
    assert PROTOCOLS["reference"].override(epochs=2).epochs_for("mrpc") == 2
    assert PROTOCOLS["reference"].override() is PROTOCOLS["reference"]
    assert PROTOCOLS["tuned"].override(seeds=(1, 2)).name == "tuned+seeds=1,2"
    assert result_path("run", "mrpc", PROTOCOLS["tuned"].override(seeds=(1, 2))).name == "mrpc.tuned+seeds=1,2.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": (1e-3, 0.0)}, r"learning_rates must be positive, got 0\.001,0\.0"),
        ({"batch_sizes": (-1,)}, "batch_sizes must be positive, got -1"),
        ({"seeds": ()}, "seeds must hold at least one value and none twice, got "),
        ({"seeds": (1, 1)}, "seeds must hold at least one value and none twice, got 1,1"),
        ({"seeds": (-1,)}, "seeds must not be negative, got -1"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"warmup_steps": -0.1}, "warmup_steps must not be negative, got -0.1"),
        ({"max_train_examples": 1}, "max_train_examples must be at least 2, got 1"),
        ({"selection_size": 1.0}, r"selection_size must be in \[0, 1\), got 1\.0"),
        (
            {"learning_rates": (1e-3, 1e-4)},
            r"2 settings \(learning_rates 0\.001,0\.0001; .* selection_size is 0; give",
        ),
        ({"comparison": "cosin"}, "comparison must be one of cross_encoder, bi_encoder, got 'cosin'"),
        ({"learning_rates": 1e-3}, "learning_rates must be a list of numbers, got 0.001"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be finite, got nan"),
        ({"warmup_steps": float("inf")}, "warmup_steps must be finite, got inf"),
        ({"lr_scheduler_type": "lineal"}, "lr_scheduler_type must be one of linear, .*, got 'lineal'"),
        ({"dropout": 0.1}, "Unknown protocol field 'dropout'. Available: learning_rates, batch_sizes"),
    ],
)
def test_bad_protocol(changes, message):
    with pytest.raises(ValueError, match=message):
        PROTOCOLS["quick"].override(**changes)


def test_unknown_protocol():
    available = "reference, tuned, bi_encoder, frozen, quick"
    with pytest.raises(ValueError, match=rf"Unknown protocol 'tuend'\. Available: {available}"):
        Protocol.load("tuend")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rates": (3e-4, 1e-3), "epochs": 5, "seeds": (42,)},
        {"max_train_examples": 500, "bf16": True, "comparison": "cross_encoder", "lr_scheduler_type": "cosine"},
    ],
)
def test_a_protocol_is_found_by_the_name_that_its_results_bear(changes):
    protocol = PROTOCOLS["bi_encoder"].override(**changes)
    assert Protocol.load(protocol.name) == protocol == Protocol.load("bi_encoder", **changes)


def test_a_name_says_a_field_once_however_often_it_was_changed():
    twice = PROTOCOLS["bi_encoder"].override(epochs=5, bf16=True).override(seeds=(1, 2), epochs=3)
    assert twice.name == "bi_encoder+epochs=3+seeds=1,2+bf16=True"
    assert Protocol.load(twice.name) == twice == PROTOCOLS["bi_encoder"].override(epochs=3, seeds=(1, 2), bf16=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bi_encoder+epoch=5",
            r"protocol 'bi_encoder\+epoch=5': Unknown protocol field 'epoch'\. Available: learn",
        ),
        ("bi_encoder+epochs=five", r"protocol 'bi_encoder\+epochs=five': epochs must be a whole number, got 'five'"),
    ],
)
def test_a_name_that_no_result_bears(name, message):
    with pytest.raises(ValueError, match=message):
        Protocol.load(name)


def test_fields_are_typed_and_part_of_the_name():
    protocol = Protocol.load("quick", learning_rates=["1e-4"], epochs="2", bf16="true")
    assert protocol.learning_rates == (1e-4,) and protocol.epochs == 2 and protocol.bf16 is True
    assert protocol.name == "quick+learning_rates=0.0001+epochs=2+bf16=True"
    words = "--learning_rates 3e-4 1e-3 --selection_size 0.1 --seeds 1 2 --no_bf16".split()
    fields = {"learning_rates": (3e-4, 1e-3), "selection_size": 0.1, "seeds": (1, 2), "bf16": False}
    assert fields_from_words(words) == fields
    with pytest.raises(ValueError, match="unknown field 'epoch'; did you mean epochs"):
        fields_from_words(["--epoch", "3"])
    assert all(f"  --{name}  " in fields_help() for name in ("learning_rates", "epochs", "comparison"))


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rates": st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=3, unique=True).map(tuple),
            "seeds": st.lists(st.integers(0, 10**9), min_size=1, max_size=3, unique=True).map(tuple),
            "epochs": st.integers(1, 100),
            "max_train_examples": st.none() | st.integers(2, 10**6),
            "weight_decay": st.floats(0, 1),
            "bf16": st.booleans(),
            "comparison": st.sampled_from(["cross_encoder", "bi_encoder"]),
        },
    )
)
def test_a_name_is_read_back_as_what_wrote_it(changes):
    protocol = PROTOCOLS["tuned"].override(**changes)
    assert Protocol.load(protocol.name) == protocol
