import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from explorable import OTHER, TEXT, explorable, perceiver

from concept_encoder import ConceptEncoderModel
from concept_encoder.eval.concepts import sampling
from concept_encoder.eval.explorer.explorer import ENGLISH, load_explorer, newest_run
from concept_encoder.scripts.explore import main

GAPS = "The [MASK] saw a [MASK] in the [MASK]."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return explorable(tmp_path_factory.mktemp("explorable") / "run")


@pytest.fixture(scope="module")
def explorer(folder):
    return load_explorer(str(folder))


@pytest.fixture(scope="module")
def without_context(tmp_path_factory):
    return load_explorer(str(explorable(tmp_path_factory.mktemp("none") / "run", decoder_context="none")))


@pytest.fixture(scope="module")
def without_decoder(tmp_path_factory):
    return load_explorer(str(perceiver(tmp_path_factory.mktemp("perceiver") / "run")))


@pytest.mark.slow
def test_reading_has_a_share_per_concept_and_token(explorer):
    reading = explorer.read(TEXT)
    assert reading.tokens == ["[CLS]", *"the cat saw a dog in the garden .".split(), "[SEP]"]
    assert reading.read.shape == (5, 11) and reading.read_by.shape == (11, 5)
    np.testing.assert_allclose(reading.read.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(reading.read_by.sum(1), 1, atol=1e-6)
    output = explorer.encoder(**explorer.tokenizer(TEXT, return_tensors="pt"), output_attentions=True)
    attention = torch.stack(output.cross_attentions)  # (L, 1, H, C, N)
    np.testing.assert_allclose(reading.read, attention.mean(dim=(0, 2))[0].detach(), atol=1e-6)


def test_reading_s_rows_sum_up_its_weights(explorer):
    reading = explorer.read(TEXT)
    for row, weights in zip(reading.concepts, reading.read, strict=True):
        entropy = -(weights * np.log2(weights)).sum()
        assert row.entropy_bits == pytest.approx(entropy, abs=1e-6)
        the = [place for place, token in enumerate(reading.tokens) if token == "the"]
        assert dict(row.top_tokens)["the"] == pytest.approx(weights[the].sum(), abs=1e-6)
    assert reading.uniform.entropy_bits == pytest.approx(np.log2(11))
    text = reading.read_by[1:-1]  # the special tokens are not rebuilt
    np.testing.assert_allclose([row.share_read for row in reading.concepts], text.mean(0), atol=1e-6)


def test_comparison_of_a_text_with_itself(explorer):
    result = explorer.compare(TEXT, TEXT)
    assert all(own == pytest.approx(1) and twin == pytest.approx(1) for own, twin in result.similarity.values())
    assert result.partner.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.diag(result.cosines), 1, atol=1e-6)


def test_matching_has_the_largest_total_of_all(explorer):
    result = explorer.compare(TEXT, OTHER)
    totals = [result.cosines[range(5), order].sum() for order in itertools.permutations(range(5))]
    assert result.cosines[range(5), result.partner].sum() == pytest.approx(max(totals))
    reading = explorer.read(OTHER)
    assert result.most_read[1] == [reading.tokens[place] for place in reading.read.argmax(1)]
    assert all(-1 < own < 1 and own != twin for own, twin in result.similarity.values())


def test_cosine_is_of_what_the_checkpoint_pools(explorer):
    pooled = [explorer.encoder(**explorer.tokenizer(t, return_tensors="pt")).pooler_output for t in (TEXT, OTHER)]
    expected = torch.nn.functional.cosine_similarity(*pooled).item()
    assert explorer.compare(TEXT, OTHER).similarity["cosine of the pooled outputs"][0] == pytest.approx(
        expected, abs=1e-5
    )


def test_swap_shows_both_texts_with_and_without(explorer):
    before, after = explorer.swap(TEXT, OTHER, [0, 3], 4)
    greedy = {"num_steps": 4, "temperature": 0.0}
    assert before == sampling.reconstruct(explorer.model, explorer.tokenizer, [TEXT, OTHER], **greedy)
    assert after == sampling.swap(explorer.model, explorer.tokenizer, TEXT, OTHER, [0, 3], **greedy)
    assert after != before


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_infilling_steps_are_those_of_generate(explorer, num_steps):
    steps = explorer.infill(GAPS, num_steps, 1.0, 3)
    batch = explorer.tokenizer(GAPS, return_tensors="pt")
    out = explorer.model.generate(
        batch.input_ids, batch.attention_mask, num_steps=num_steps, generator=torch.Generator().manual_seed(3)
    )
    assert steps[-1].tokens == explorer.tokenizer.convert_ids_to_tokens(out[0].tolist())
    assert steps[0].tokens == explorer.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    filled = [place for step in steps for place in step.committed]
    assert sorted(filled) == [2, 5, 8]  # each gap once
    for before, after in itertools.pairwise(steps):
        changed = {place for place in range(11) if before.tokens[place] != after.tokens[place]}
        assert changed == set(after.committed)
    assert not explorer.model._forward_hooks


def test_infilling_shows_the_probability_of_what_it_took(explorer):
    (_, step) = explorer.infill(GAPS, 1, 0.0, 0)
    batch = explorer.tokenizer(GAPS, return_tensors="pt")
    likely = explorer.model(**batch).logits[0].softmax(-1)
    assert len(step.committed) == GAPS.count(explorer.tokenizer.mask_token) > 0
    for place, share in step.committed.items():
        assert share == pytest.approx(likely[place].max().item(), abs=1e-5)


def test_rebuilding_from_all_concepts_is_reconstruction(explorer):
    result = explorer.rebuild(TEXT, 5, 4, 0.0, 0)
    (text,) = sampling.reconstruct(explorer.model, explorer.tokenizer, [TEXT], num_steps=4, temperature=0.0)
    assert " ".join(result.rebuilt) == text
    assert result.original == "the cat saw a dog in the garden .".split()
    assert result.right == [a == b for a, b in zip(result.original, result.rebuilt, strict=True)]


def test_rebuilding_from_fewer_sees_only_those(explorer, monkeypatch):
    """As with `num_visible_concepts`, which the decoder is trained with."""
    model, batch = explorer.model, explorer.tokenizer(TEXT, return_tensors="pt")
    blank = batch.input_ids.clone()
    blank[:, 1:-1] = model.config.mask_token_id
    accuracy = {}
    for count in range(1, 6):
        scores = model(**batch, decoder_input_ids=blank, num_visible_concepts=count).logits[0, 1:-1]
        hits = scores.argmax(-1) == batch.input_ids[0, 1:-1]
        accuracy[count] = hits.double().mean().item()
    assert explorer.rebuild(TEXT, 2, 1, 0.0, 0).accuracy == pytest.approx(accuracy)
    one_call = explorer.rebuild(TEXT, 2, 1, 0.0, 0)
    assert np.mean(one_call.right) == pytest.approx(accuracy[2])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.read("  "), "There is no text; type one."),
        (lambda e: e.read("cat " * 63), "The text has 65 tokens; at most 64 can be shown. Shorten it."),
        (lambda e: e.compare(TEXT, ""), "There is no text"),
        (lambda e: e.swap(TEXT, OTHER, [], 4), r"indices in \[0, 5\), got \[\]"),
        (lambda e: e.infill(TEXT, 4, 0.0, 0), r"There is no \[MASK\] in the text; put one where a word"),
        (lambda e: e.rebuild(TEXT, 6, 4, 0.0, 0), r"must be a whole number in \[1, 5\], got 6"),
        (lambda e: e.read("cat " * 1_300_000), "The text has 5,200,000 characters; at most 10,000 are read"),
        (lambda e: e.read(None), "There is no text; type one."),
        (lambda e: e.compare(TEXT, None), "There is no text; type one."),
        (lambda e: e.infill(None, 4, 0.0, 0), "There is no text; type one."),
        (lambda e: e.read("xyzzy \N{SLIGHTLY SMILING FACE}"), "This checkpoint knows none of these words"),
        (lambda e: e.read("\ud800"), "This checkpoint knows none of these words"),
        (lambda e: e.rebuild("xyzzy", 2, 4, 0.0, 0), "This checkpoint knows none of these words"),
        (lambda e: e.swap(TEXT, OTHER, None, 4), r"indices in \[0, 5\), got \[\]"),
        (lambda e: e.swap(TEXT, OTHER, [None], 4), r"A concept must be a whole number in \[0, 4\], got None"),
        (lambda e: e.swap(TEXT, OTHER, [1], 10**9), r"decoder calls must be a whole number in \[1, 64\], got 10+"),
        (lambda e: e.infill("a [MASK]", None, 0.0, 0), "number of decoder calls must be a whole number .* got None"),
        (lambda e: e.infill("a [MASK]", 4, None, 0), r"The temperature must be a number in \[0, 2.0\], got None"),
        (lambda e: e.infill("a [MASK]", 4, float("nan"), 0), "The temperature must be a number .* got nan"),
        (lambda e: e.infill("a [MASK]", 4, 0.0, None), "The seed must be a whole number in .* got None"),
        (lambda e: e.infill("a [MASK]", 4, 0.0, 2**70), "The seed must be a whole number in"),
        (lambda e: e.rebuild(TEXT, None, 4, 0.0, 0), "The number of concepts must be a whole number .* got None"),
    ],
)
def test_bad_input_is_named(explorer, act, message):
    with pytest.raises(ValueError, match=message):
        act(explorer)


def test_words_that_it_does_not_know_are_masked_and_filled_like_others(explorer):
    """[UNK] counts as a word, though it is a special token."""
    rebuilt = explorer.rebuild("the xyzzy cat", 5, 2, 0.0, 0)
    assert rebuilt.original == ["the", "[UNK]", "cat"]
    assert len(rebuilt.right) == len(rebuilt.rebuilt) == 3


@pytest.mark.slow
def test_what_a_checkpoint_cannot_do_is_said_and_refused(explorer, without_context, without_decoder):
    assert explorer.missing == {}
    assert list(without_context.missing) == ["infill"]
    with pytest.raises(ValueError, match=r"decoder_context='none'.*--decoder_context latent"):
        without_context.infill(GAPS, 4, 0.0, 0)
    assert list(without_decoder.missing) == ["swap", "infill", "rebuild"]
    with pytest.raises(ValueError, match=r"saved by ConceptEncoderForMaskedLMPerceiver\. It has no diffusion decoder"):
        without_decoder.rebuild(TEXT, 5, 4, 0.0, 0)
    with pytest.raises(ValueError, match="no diffusion decoder"):
        without_decoder.swap(TEXT, OTHER, [0], 4)


def test_a_checkpoint_without_decoder_is_read_and_compared(without_decoder):
    reading = without_decoder.read(TEXT)
    assert reading.read_by is None and reading.concepts[0].share_read is None
    assert without_decoder.compare(TEXT, TEXT).similarity["MaxSim"][0] == pytest.approx(1)


def test_cautions_follow_the_run(explorer, without_context):
    assert "has never met [MASK] in training (corruption diffusion)" in explorer.cautions["infill"]
    assert "Trained without nested_concepts" in explorer.cautions["rebuild"]
    assert list(without_context.cautions) == ["rebuild"]  # what cannot be done needs none
    trained = dataclasses.replace(explorer.run, objective={"corruption": {"two_view": {}}, "nested_concepts": True})
    assert dataclasses.replace(explorer, run=trained).cautions == {}
    assert dataclasses.replace(explorer, run=None).cautions == {}


def test_examples_are_in_the_checkpoint_s_language(explorer):
    text, first, second, gaps = explorer.examples
    known = explorer.tokenizer([text, first, second]).input_ids
    assert explorer.tokenizer.unk_token_id not in itertools.chain(*known)
    assert gaps.count("[MASK]") == len(text.split()) // 5
    assert dataclasses.replace(explorer, run=None).examples[:3] == ENGLISH


def test_a_bare_encoder_without_a_run_file(folder, tmp_path, explorer):
    ConceptEncoderModel.from_pretrained(folder).save_pretrained(tmp_path)
    explorer.tokenizer.save_pretrained(tmp_path)
    bare = load_explorer(str(tmp_path))
    assert bare.run is None and list(bare.missing) == ["swap", "infill", "rebuild"]
    np.testing.assert_allclose(bare.read(TEXT).read, explorer.read(TEXT).read, atol=1e-6)


@pytest.mark.slow
def test_a_revision_of_the_hub(hub, folder):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("me/explored", exist_ok=True)
    commit = api.upload_folder(repo_id="me/explored", folder_path=folder).oid
    explored = load_explorer("me/explored", commit)
    assert explored.name == "me/explored" and explored.run.steps == 3
    with pytest.raises(OSError, match="nowhere"):
        load_explorer("me/explored", "nowhere")


def test_the_newest_run_is_the_default(tmp_path):
    with pytest.raises(ValueError, match=r"no run of the recipe .*: type `concept-encoder pretrain microworld`, or"):
        newest_run(tmp_path)
    for name, saved in (("microworld-20250301-000000", 1), ("microworld", 2), ("other-20250401-000000", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        os.utime(tmp_path / name / "config.json", (saved, saved))
    (tmp_path / "microworld-20250501-000000").mkdir()  # killed before it saved anything
    assert newest_run(tmp_path).name == "microworld"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "No checkpoint folder nowhere"),
        (["FOLDER", "--revision", "main"], "is a folder, which has no revision 'main'; leave the revision out"),
        (["--space_dir", "out"], "--space_dir needs the Hub id of a published checkpoint"),
        (["FOLDER", "--space_dir", "out"], "a Space loads its checkpoint from the Hub"),
    ],
)
def test_script_ends_bad_input_as_one_line(folder, argv, message, capsys):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as stop:
        main([str(folder) if word == "FOLDER" else word for word in argv])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_without_gradio_all_but_the_app_imports_and_the_script_says_what_to_install(folder):
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "import concept_encoder.eval.explorer.pages, concept_encoder.eval.explorer.space\n"
        "from concept_encoder.scripts.explore import main\n"
        f"main([{str(folder)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "the explorer needs gradio: pip install 'concept-encoder[explore]'" in result.stderr
    assert "Traceback" not in result.stderr
