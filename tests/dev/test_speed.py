"""The benchmark: its instruments, its cases, and a guard on counted FLOPs that no clock disturbs."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from helpers import MASK, randomised, tiny_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.scripts.dev.benchmark import main
from concept_encoder.scripts.dev.speed import cases as speed_cases
from concept_encoder.scripts.dev.speed import measure as speed
from concept_encoder.scripts.dev.speed import plots as speed_plots
from concept_encoder.scripts.dev.speed import tools as speed_tools
from concept_encoder.scripts.dev.speed.cases import QUICK, EncodingCase, LossCase, TrainingCase
from concept_encoder.scripts.dev.speed.measure import GROUPS, default_groups, measure
from concept_encoder.scripts.dev.speed.pages import render_page
from concept_encoder.scripts.dev.speed.targets import targets
from concept_encoder.scripts.dev.speed.tools import count_products, interleave, peak_memory, products_alone, ratio

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs" / "results" / "speed.json"

# -------------------------------------------------------------------------------------- what a call may cost, at most


def encoding_flops(config, texts: int, length: int) -> int:
    """Matrix products of an encoding, written down from the architecture: each once, and none that is not needed."""
    concepts, width, inner = texts * config.num_concepts, config.hidden_size, config.intermediate_size
    projected = 2 * texts * length * width * 2 * width + 4 * concepts * length * width
    absorbed = 4 * concepts * config.num_attention_heads * length * width + 4 * concepts * width**2
    cross = 2 * 2 * concepts * width**2 + min(projected, absorbed)
    own = 4 * 2 * concepts * width**2 + 4 * concepts * config.num_concepts * width
    return config.num_hidden_layers * (cross + own + 6 * concepts * width * inner)


def step_flops(config, labels: torch.Tensor) -> int:
    """The same of a training step: positions decoded up to the most labels a text has, logits for labels alone."""
    texts, length = labels.shape
    labelled = labels != -100
    decoded, width = texts * int(labelled.sum(-1).max()), config.hidden_size
    concepts = texts * config.num_concepts
    timestep = 2 * texts * width * 2 * width
    attention = (
        2 * 2 * decoded * width**2 + 2 * concepts * width * 2 * width + 4 * decoded * config.num_concepts * width
    )
    layer = 2 * texts * width * 6 * width + attention + 6 * decoded * width * config.intermediate_size
    logits = 2 * int(labelled.sum()) * width * config.vocab_size
    forward = encoding_flops(config, texts, length)
    forward += 2 * timestep + config.decoder_num_hidden_layers * layer + logits
    return 3 * forward - timestep  # the sinusoids of the timestep need no gradient


def encoder(**kwargs) -> ConceptEncoderModel:
    return ConceptEncoderModel(tiny_config(max_position_embeddings=512, **kwargs)).eval()


def ids_of(texts: int, length: int) -> torch.Tensor:
    return torch.randint(4, 120, (texts, length), generator=torch.Generator().manual_seed(0))


def step_inputs(share: float, texts: int = 3, length: int = 40) -> dict[str, torch.Tensor]:
    ids = ids_of(texts, length)
    scored = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < share
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids.masked_fill(scored, MASK),
        "timesteps": torch.full((texts,), 0.5),
        "labels": ids.masked_fill(~scored, -100),
        "loss_weights": 1 + torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)),
        "num_items_in_batch": torch.tensor(texts * length),
    }


def counted(model, inputs, loss=speed_cases.model_loss):
    return count_products(lambda: loss(model, inputs).backward())


@pytest.mark.parametrize(("texts", "length"), [(1, 64), (3, 40)])
def test_encoding_costs_no_more_than_its_arithmetic(texts, length):
    model = encoder()
    with torch.no_grad():
        products = count_products(lambda: model(ids_of(texts, length)))
    assert products.flops <= encoding_flops(model.config, texts, length)
    assert products.calls <= ENCODING_CALLS * model.config.num_hidden_layers


# Per layer: four products of projections and the attention itself to read one another, two of the feed-forward, and to
# read the tokens either the same five or, absorbed, six: there scores and sums are a product each.
ENCODING_CALLS = 13


@pytest.mark.parametrize("options", [{}, {"chunk_length": 64}])
def test_flops_grow_linearly_with_the_length(options):
    model = encoder()
    with torch.no_grad():
        flops = [count_products(lambda n=n: model(ids_of(1, n), **options)).flops for n in (64, 128, 256, 512)]
    assert flops[3] - flops[2] == 2 * (flops[2] - flops[1]) == 4 * (flops[1] - flops[0]) > 0


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_training_step_costs_no_more_than_its_arithmetic(share):
    model = ConceptEncoderForDiffusionMLM(tiny_config()).train()
    inputs = step_inputs(share)
    products = counted(model, inputs)
    assert products.flops <= step_flops(model.config, inputs["labels"])
    forward = ENCODING_CALLS * model.config.num_hidden_layers + 2 + 8 * model.config.decoder_num_hidden_layers + 1
    assert products.calls <= 3 * forward - 1


def test_the_guard_sees_positions_decoded_for_nothing():
    model = ConceptEncoderForDiffusionMLM(tiny_config()).train()
    inputs = step_inputs(0.25)
    assert counted(model, inputs, speed_cases.plain_loss).flops > step_flops(model.config, inputs["labels"])


@pytest.mark.slow
def test_the_guard_sees_logits_of_rows_without_a_label():
    model = ConceptEncoderForDiffusionMLM(tiny_config()).train()
    inputs = step_inputs(0.25)
    limit = step_flops(model.config, inputs["labels"])

    def wasteful(model, inputs):
        every = {**inputs, "labels": inputs["input_ids"]}
        return (speed_cases.model_loss(model, every) * 0) + speed_cases.model_loss(model, inputs)

    everything = counted(model, {**inputs, "labels": inputs["input_ids"]})
    assert everything.flops > limit
    assert counted(model, inputs, wasteful).flops > limit


def test_the_guard_sees_keys_and_values_projected_twice(monkeypatch):
    model = encoder()
    attention = model.layers[0].cross_attn
    project = attention.k_proj.forward
    monkeypatch.setattr(attention.k_proj, "forward", lambda states: project(states) + 0 * project(states))
    with torch.no_grad():
        products = count_products(lambda: model(ids_of(1, 64)))
    assert products.flops > encoding_flops(model.config, 1, 64)


# -------------------------------------------------------------------------------------------------------- instruments


def test_products_are_counted_as_torch_counts_them():
    """With eager attention, which torch's own counter knows."""
    model = encoder(attn_implementation="eager")

    def run() -> None:
        model(ids_of(2, 64)).last_hidden_state.sum().backward()

    with FlopCounterMode(display=False) as counter:
        run()
    assert count_products(run).flops == counter.get_total_flops() > 0


def test_attention_and_products_in_place_are_counted():
    q, k = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8, requires_grad=True)
    scores = 2 * 2 * 3 * 5 * 7 * 8
    forward = count_products(lambda: nn.functional.scaled_dot_product_attention(q, k, k))
    assert (forward.flops, forward.calls) == (2 * scores, 1)
    both = count_products(lambda: nn.functional.scaled_dot_product_attention(q, k, k).sum().backward())
    assert (both.flops, both.calls) == (6 * scores, 2)
    held, left, right = torch.zeros(3, 5), torch.randn(3, 4), torch.randn(4, 5)
    assert count_products(lambda: held.addmm_(left, right)).flops == 2 * 3 * 4 * 5


def test_a_layer_in_inference_mode_is_counted():
    layer, states = nn.Linear(4, 5), torch.randn(3, 4)
    with torch.inference_mode():
        assert count_products(lambda: layer(states)).flops == 2 * 3 * 4 * 5


def test_products_alone_repeats_every_call(monkeypatch):
    left, right = torch.randn(6, 4).mT, torch.randn(6, 5)
    products = count_products(lambda: [torch.mm(left, right) for _ in range(3)])
    called = []
    monkeypatch.setattr(torch.ops.aten.mm, "default", torch.ops.aten.mm.default)
    monkeypatch.setattr(speed_tools, "interleave", lambda runs, *_: called.extend(runs.items()) or {"product": [0.5]})
    assert products_alone(products, "cpu") == 1.5
    (((_, run),),) = [called]
    assert run().shape == (4, 5)


def test_turns_alternate_and_the_first_is_thrown_away(monkeypatch):
    monkeypatch.setattr(speed_tools, "SHORT", 0)
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "AB"}
    seconds = interleave(runs, 3, "cpu")
    assert "".join(order) == "ABABABAB"
    assert {name: len(values) for name, values in seconds.items()} == {"A": 3, "B": 3}
    order.clear()
    interleave(runs, 2, "cpu", warm=True)
    assert "".join(order) == "ABAB"


def test_a_short_call_finds_the_caches_as_it_left_them():
    order = []
    seconds = interleave({name: lambda name=name: order.append(name) for name in "AB"}, 2, "cpu")
    assert "".join(order) == "AB" + "AABB" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"A": 2, "B": 2}
    order.clear()
    interleave({"A": lambda: order.append("A")}, 2, "cpu")  # alone, it does so anyway
    assert order == ["A"] * 3


def test_ratios_are_taken_within_a_turn():
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "min": 2.0, "max": 4.0}


def test_memory_of_all_logits_is_seen():
    plan = dataclasses.replace(QUICK, vocab_size=20_000, batch=4, length=64)
    logits = 4 * plan.vocab_size * int((speed_cases.training_inputs(plan, 1.0, "cpu")["labels"] != -100).sum())
    peak = peak_memory(LossCase(plan, "plain"))
    if peak is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 1.5 * logits < peak < 5 * logits


def test_a_process_that_dies_is_no_figure():
    with pytest.raises(RuntimeError, match="died, code 1"):
        peak_memory(LossCase(QUICK, "no such form"))


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA L40S", 362e12), ("cpu", None)])
def test_peaks_of_cards(name, peak):
    assert speed_tools.card_peak(name) == peak


# -------------------------------------------------------------------------------------------------------------- cases


def without_dropout() -> ConceptEncoderForDiffusionMLM:
    return randomised(ConceptEncoderForDiffusionMLM(tiny_config()), std=0.1).train()


def test_the_plain_loss_is_the_model_s():
    model, inputs = without_dropout(), step_inputs(0.5)
    results = []
    for loss_of in (speed_cases.plain_loss, speed_cases.model_loss):
        model.zero_grad()
        loss = loss_of(model, inputs)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_the_loss_alone_is_the_same_in_both_forms():
    model, inputs = without_dropout(), step_inputs(0.5)
    states = torch.randn(*inputs["labels"].shape, model.config.hidden_size, requires_grad=True)
    losses = [form(model, states, inputs) for form in speed_cases.LOSS_FORMS.values()]
    gradients = [torch.autograd.grad(loss, states)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_labels_are_drawn_as_training_draws_them():
    plan = dataclasses.replace(QUICK, batch=8, length=512, vocab_size=2000)
    whole, quarter = (speed_cases.training_inputs(plan, share, "cpu") for share in (1.0, 0.25))
    masked = (whole["labels"] != -100).float().mean().item()
    assert masked == pytest.approx(0.5, abs=0.1)  # t is even over (0, 1]
    assert (quarter["labels"] != -100).float().mean().item() == pytest.approx(masked / 4, rel=0.2)
    assert (quarter["loss_weights"][quarter["labels"] != -100] >= 4).all()


@pytest.mark.parametrize("form", ["ours", "chunked", "bert", "modernbert", "perceiver"])
def test_peers_have_equal_sizes(form):
    plan, length = QUICK, 64
    run = EncodingCase(plan, form, length).build()
    states = run()
    positions = plan.num_concepts if form in ("ours", "chunked", "perceiver") else length
    assert states.shape == (1, positions, plan.hidden_size)
    width, inner, concepts = plan.hidden_size, plan.intermediate_size, plan.num_concepts
    dense = {"bert": 4 * width + 2 * inner, "modernbert": 4 * width + 3 * inner}
    expected = {name: plan.num_layers * 2 * length * width * (each + 2 * length) for name, each in dense.items()}
    expected["ours"] = expected["chunked"] = encoding_flops(plan.config(length), 1, length)
    block = 2 * concepts * width * (4 * width + 2 * inner)
    read = 2 * concepts * width * (2 * width + 2 * inner) + 2 * length * width * 2 * width
    expected["perceiver"] = read + 4 * concepts * length * width
    expected["perceiver"] += plan.num_layers * (block + 4 * concepts * concepts * width)
    assert count_products(run).flops == expected[form]


@pytest.mark.parametrize("form", ["full", "bfloat16", "checkpointing"])
def test_steps_train(form, monkeypatch):
    made = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, **k: made.append(adamw(p, **k)) or made[-1])
    step = TrainingCase(QUICK, form).build()
    before = made[0].param_groups[0]["params"][0].detach().clone()
    step()
    assert not torch.equal(before, made[0].param_groups[0]["params"][0])


def test_growth_is_the_exponent():
    assert speed_cases.growth([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


# ----------------------------------------------------------------------------------------------------- the whole of it


MEASURED = [name for name in GROUPS if name != "padding"]  # which needs MRPC; tests/test_speed_finetuning.py


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder that the script has written a quick run into."""
    folder = tmp_path_factory.mktemp("speed")
    paths = ["--result", str(folder / "results" / "speed.json"), "--page", str(folder / "SPEED.md")]
    main(["--quick", "--repeats", "2", "--threads", "1", "--device", "cpu", "--only", *MEASURED, *paths])
    return folder


def result_in(folder):
    return json.loads((folder / "results" / "speed.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_script_measures_everything(written):
    result = result_in(written)
    assert {"kind", "environment", "plan", "repeats", "roofline", *MEASURED} == set(result)
    cases = result["training"]["cases"]
    assert cases["share"]["flops"] < cases["full"]["flops"] < cases["plain"]["flops"]
    lengths = {(row["form"], row["length"]) for row in result["encoding"]["rows"]}
    forms = ("ours", "bert", "modernbert", "perceiver")
    assert lengths == {(form, n) for form in forms for n in QUICK.lengths} | {("chunked", QUICK.lengths[-1])}
    assert [row["length"] for row in result["million"]["rows"]] == [QUICK.lengths[-1], QUICK.longest]
    assert result["variants"]["skipped"] == [{"form": "compile", "reason": "not in this plan"}]


def test_the_page_and_its_figures(written, capsys):
    page = (written / "SPEED.md").read_text(encoding="utf-8")
    for words in ("results/speed.json", "## Training step", "## Encoding", "## One long text", "## Growing batches"):
        assert words in page
    for name in ("speed_growth", "speed_growth_dark", "speed_roofline", "speed_roofline_dark"):
        assert (written / "figures" / f"{name}.png").stat().st_size > 10_000
        assert f"figures/{name}.png" in page
    assert "None" not in page and "nan" not in page
    spent = [line for line in page.splitlines() if "aten::" in line]  # three steps, one form at three lengths
    assert len(spent) == 6 and all(re.search(r"aten::\S+ \d+ %", line) for line in spent)
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


@pytest.mark.slow
def test_the_page_can_be_rendered_anew(written, capsys):
    page = written / "SPEED.md"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    main(["--render", "--result", str(written / "results" / "speed.json"), "--page", str(page)])
    assert page.read_text(encoding="utf-8") == before
    assert str(page) in capsys.readouterr().err


@pytest.mark.parametrize("draw", [speed_plots.plot_growth, speed_plots.plot_roofline_shares])
def test_nothing_to_draw_is_an_error(draw, tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({}, tmp_path / "figure.png")


def test_a_result_of_one_group_renders(written):
    part = {name: value for name, value in result_in(written).items() if name not in GROUPS}
    page = render_page(part, "speed.json")
    assert "## Training step" not in page
    assert {row.verdict for row in targets(part)} == {"NOT MEASURED"}


def test_the_median_decides_a_target(written):
    result = result_in(written)

    def verdict(factor):
        result["training"]["ratios"]["plain/share"] = {"median": factor, "min": 0.1, "max": 9.0}
        return next(row for row in targets(result) if "quarter" in row.claim)

    assert verdict(2.21).verdict == "PASS"
    assert verdict(2.19).verdict == "MISSED"
    assert verdict(2.19).reached == "2.19× (0.10× to 9.00×)"
    result["training"]["loss"]["cases"]["model"]["peak_memory"] = None
    row = next(row for row in targets(result) if "peak memory" in row.claim)
    assert row.verdict == "NOT MEASURED"


@pytest.fixture
def no_memory(monkeypatch):
    """Without the processes that measure memory, which take most of the time of a small group."""
    monkeypatch.setattr("concept_encoder.scripts.dev.speed.measure.peak_memory", lambda case: None)


@pytest.mark.slow
def test_a_peer_that_would_take_too_long_is_left_out(no_memory, monkeypatch):
    monkeypatch.setattr(speed, "LONGEST_CALL", 0.0)
    plan = dataclasses.replace(QUICK, lengths=(16, 32))
    encoding = measure(plan, ["encoding"], repeats=2)["encoding"]
    assert {(row["form"], row["length"]) for row in encoding["skipped"]} == {
        (peer, 32) for peer in ("bert", "modernbert", "perceiver")
    }
    assert all("a call, from" in row["reason"] for row in encoding["skipped"])


@pytest.mark.slow
def test_a_batch_beyond_the_card_ends_the_growth(no_memory, monkeypatch):
    scaled = speed._scaled

    def limited(bench, batch, peak):
        if batch > 1:
            raise torch.OutOfMemoryError
        return scaled(bench, batch, peak)

    monkeypatch.setattr(speed, "_scaled", limited)
    result = measure(QUICK, ["scaling"], repeats=2)
    assert [row["batch"] for row in result["scaling"]["rows"]] == [1]
    assert result["scaling"]["skipped"] == [{"batch": 2, "reason": "the card has not the memory for it"}]
    page = render_page(result, "speed.json")
    assert "Batch 2 and beyond was not measured" in page
    assert " – |" in page  # memory, where no system tells it


@pytest.mark.slow
def test_without_a_compiler_nothing_is_compiled(no_memory, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    result = measure(dataclasses.replace(QUICK, variants=("full", "compile")), ["variants"], repeats=2)
    assert {row["form"] for row in result["variants"]["rows"]} == {"full"}
    assert "torch.compile was not measured: there is no C++ compiler" in render_page(result, "speed.json")


def test_scaling_is_for_cards():
    assert "scaling" in default_groups("cuda") and "scaling" not in default_groups("cpu")
    assert "padding" not in default_groups("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "groups must be some of training, encoding"),
        (["--repeats", "1"], "repeats must be at least 2, for a spread, got 1"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--device", "abacus"], "device must be 'cpu' or, where there is a card, 'cuda', got 'abacus'"),
        (["--render"], "No such file"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, tmp_path, capsys):
    paths = ["--result", str(tmp_path / "speed.json"), "--page", str(tmp_path / "SPEED.md")]
    with pytest.raises(SystemExit) as stop:
        main(["--quick", *arguments, *paths])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_quick_run_does_not_replace_the_page(capsys):
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "give --result and --page" in capsys.readouterr().err


def test_the_page_of_the_tree_is_fresh():
    if not RESULT.exists():
        pytest.skip("docs/results/speed.json is not measured yet")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "SPEED.md").read_text(encoding="utf-8")
    assert written == render_page(result, "results/speed.json"), (
        "render it again: python scripts/dev/benchmark.py --render"
    )
