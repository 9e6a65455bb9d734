import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from helpers import randomised, tiny_config

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.scripts.dev.sampling_steps import NUM_STEPS, main, sampling_steps, steps_table

WORDS, LENGTH = 4, 16  # each text is one of four words, sixteen times


def one_word_texts(tokenizer, rows: int, generator: torch.Generator) -> torch.Tensor:
    words = torch.arange(WORDS) + max(tokenizer.all_special_ids) + 1
    return words[torch.randint(WORDS, (rows, 1), generator=generator)].expand(-1, LENGTH)


def config_of(tokenizer, context):
    ids = {"pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    return tiny_config(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        decoder_context=context,
        embedding_layer_norm=True,
        initializer_range=0.1,
        **ids,
    )


def trained(tokenizer, context, steps=120):
    """Diffusion of one-word texts whose concepts say nothing: the encoder sees [MASK]s alone."""
    torch.manual_seed(0)
    model = ConceptEncoderForDiffusionMLM(config_of(tokenizer, context)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = one_word_texts(tokenizer, 32, generator)
        masked = torch.rand(ids.shape, generator=generator) < torch.rand(32, 1, generator=generator)
        masked[:, 0] = True
        noised = ids.masked_fill(masked, tokenizer.mask_token_id)
        blind = torch.full_like(ids, tokenizer.mask_token_id)
        loss = model(blind, decoder_input_ids=noised, labels=ids.masked_fill(~masked, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("context", ["none", "latent"])
def test_more_steps_help_with_latent_context_and_cannot_without(tokenizer, context):
    model = trained(tokenizer, context)
    ids = one_word_texts(tokenizer, 32, torch.Generator().manual_seed(1)).contiguous()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = steps_table(model, tokenizer, [batch], mask_share=1.0)["encoder_reads"]["canvas"]
    bits = {row["num_steps"]: row["nll_bits"]["value"] for row in rows}
    one_word = []
    for steps in (1, LENGTH):
        blank = torch.full((64, LENGTH), tokenizer.mask_token_id)
        seeded = torch.Generator().manual_seed(0)
        texts = model.generate(blank, num_steps=steps, order="ancestral", generator=seeded)
        one_word.append((texts == texts[:, :1]).all(-1).float().mean().item())
    if context == "none":
        # Nobody knows what the others are: log2 of the words for each of them, and texts of mixed words.
        assert all(value == pytest.approx(math.log2(WORDS), abs=0.1) for value in bits.values())
        assert one_word == [0, 0]
    else:
        # The tokens of the first step cost log2 of the words each, all later ones nothing.
        assert all(bits[steps] == pytest.approx(math.log2(WORDS) / steps, abs=0.1) for steps in NUM_STEPS)
        assert one_word[0] == 0 and one_word[1] > 0.8
        assert rows[-1]["nll_bits"]["gain"][1] < -1


@pytest.mark.slow
def test_table_agrees_with_a_count_by_hand(tokenizer):
    model = randomised(ConceptEncoderForDiffusionMLM(config_of(tokenizer, "latent")))
    ids = torch.randint(max(tokenizer.all_special_ids) + 1, len(tokenizer), (5, 12))
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, tokenizer.pad_token_id), "attention_mask": mask}
    table = steps_table(model, tokenizer, [batch], mask_share=1.0)
    halves = [{name: x[part] for name, x in batch.items()} for part in (slice(0, 2), slice(2, 5))]
    assert table["encoder_reads"]["text"][0]["nll_bits"]["value"] == pytest.approx(
        steps_table(model, tokenizer, halves, mask_share=1.0)["encoder_reads"]["text"][0]["nll_bits"]["value"]
    )
    blank = torch.where(mask.bool(), tokenizer.mask_token_id, tokenizer.pad_token_id)
    row = table["encoder_reads"]["text"][0]
    output = model(batch["input_ids"], mask, blank, labels=ids.masked_fill(mask == 0, -100))
    assert row["nll_bits"]["value"] == pytest.approx(output.loss.item() / math.log(2), rel=1e-5)
    probable = model(batch["input_ids"], mask, blank).logits.argmax(-1)
    hits = ((probable == ids) & mask.bool()).sum() / mask.sum()
    assert row["recovered"]["value"] == pytest.approx(hits.item())
    assert "gain" not in row["nll_bits"]
    last = table["encoder_reads"]["text"][-1]["nll_bits"]
    low, high = last["interval"]
    assert low <= last["value"] <= high and np.isfinite([low, high, *last["gain"]]).all()


@pytest.fixture
def run(pretrained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pretrained, folder)
    data = {"dataset_name": "microworld", "max_length": 40, "packing": "truncated"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


@pytest.mark.slow
def test_the_script_measures_a_run_on_its_own_corpus(run, tmp_path, capsys):
    output = tmp_path / "steps.json"
    main([str(run), "--result", str(output), "--num_texts", "6", "--seed", "3"])
    written = json.loads(output.read_text())
    measured = written["runs"]["run"]
    assert written["kind"] == "sampling_steps" and measured == sampling_steps(str(run), 6, seed=3)
    assert (measured["decoder_context"], measured["num_texts"], measured["mask_share"]) == ("none", 6, 0.5)
    printed = capsys.readouterr().out
    assert len(printed.strip().splitlines()) == 1 + 2 * len(NUM_STEPS)
    cell = measured["encoder_reads"]["canvas"][0]["nll_bits"]
    assert f"{cell['value']:.3f} ({cell['interval'][0]:.3f} to {cell['interval'][1]:.3f})" in printed


def test_bad_input_ends_as_one_line(run, pretrained, tmp_path, capsys):
    for argv, message in (
        ([str(run), "--num_texts", "1"], "num_texts must be at least 2, for an interval, got 1"),
        ([str(pretrained)], "has no recipe.yaml, which names the corpus"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*argv, "--result", str(tmp_path / "steps.json")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "steps.json").exists()
