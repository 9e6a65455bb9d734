"""Four ways to load one checkpoint, in a process without the package: Auto classes, pipelines, sentence-transformers
and several vectors per text; the last three as the model card shows them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import randomised, run_without_package, tiny_config
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)
from concept_encoder.eval.benchmarks.similarity import max_sim
from concept_encoder.eval.hub.publishing import assemble

pytestmark = pytest.mark.slow

REPO_ID = "someone/tiny"
SHORT, LONG = "the cat sleeps .", "the cat sleeps in the barn and the dog is in the garden ."
MASKED = "the cat [MASK] in the barn ."
# Between [CLS] and [SEP] the longer one has as many tokens as the checkpoint has concepts, and the other one is padded
# to that: here a mask of tokens, applied to concepts, would fit.
WORD, PAIR = "cat", "the cat"
CARD_TEXTS = ["A cat sleeps.", "A cat is asleep."]  # of the examples on the card

# Runs where the package cannot be imported: reads card.json, writes outputs.safetensors and report.json.
CHILD = """
import json, sys
sys.modules["concept_encoder"] = None
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import maxsim
from transformers import pipeline

transformers.logging.set_verbosity_error()
given = json.load(open("card.json"))
short, long, masked, word, pair = given["texts"]
tensors, report = {}, {}

extract = pipeline("feature-extraction", model="pretrained", trust_remote_code=True)
for name, text in (("short", short), ("long", long)):
    tensors[f"pipeline/{name}"] = np.array(extract(text), dtype=np.float32)
report["fill"] = pipeline("fill-mask", model="pretrained", trust_remote_code=True)(masked, top_k=3)
classify = pipeline("text-classification", model="classifier", trust_remote_code=True)
report["labels"] = classify([short, long], top_k=None)

encoder = SentenceTransformer("pretrained", trust_remote_code=True)
tensors["st/batch"] = encoder.encode([short, long])
tensors["st/alone"] = encoder.encode([short])
tensors["st/word alone"], tensors["st/word padded"] = encoder.encode([word]), encoder.encode([word, pair])
tensors["st/similarity"] = encoder.similarity(tensors["st/batch"], tensors["st/batch"]).numpy()
encoder.prompts["query"] = "q: "
encoder.save("resaved")
again = SentenceTransformer("resaved", trust_remote_code=True)
tensors["st/resaved"] = again.encode([short, long])
tensors["st/run"] = SentenceTransformer("run", trust_remote_code=True).encode([short, long])
for name, texts in (("alone", [word]), ("batch", [word, long])):  # fewer and more tokens than concepts
    found = again.encode(texts, output_value="token_embeddings")
    tensors[f"st/concepts {name}"] = np.stack([each.numpy() for each in found])
report["st"] = {"dimension": again.get_embedding_dimension(), "longest": again.max_seq_length}
modules = [encoder[0], encoder[1], Normalize("token_embeddings")]  # without a projection to train
late = MultiVectorEncoder(modules=modules)
tensors["late/scores"] = late.similarity(late.encode([short, long]), late.encode([short, long])).numpy()
projected = MultiVectorEncoder("pretrained", trust_remote_code=True)
report["multi_vector"] = [list(each.shape) for each in projected.encode([word, long])]
projected.save("projected")
same = MultiVectorEncoder("projected", trust_remote_code=True).encode([long])[0]
report["projected"] = float(abs(same - projected.encode([long])[0]).max())

def gradients(wrap):
    encoder.zero_grad()
    plain = losses.MultipleNegativesRankingLoss(encoder)
    torch.manual_seed(0)
    value = wrap(plain)([encoder.preprocess([short, word]), encoder.preprocess([long, pair])], None)
    value.backward()
    return value.item(), encoder[0].model.latents.weight.grad.norm().item()

encoder.eval()
every = {"n_layers_per_step": -1, "n_dims_per_step": -1}  # the library would draw some, by a generator of its own
report["losses"] = {
    "plain": gradients(lambda loss: loss),
    "adaptive": gradients(lambda loss: losses.AdaptiveLayerLoss(encoder, loss, n_layers_per_step=-1)),
    "last": gradients(lambda loss: losses.AdaptiveLayerLoss(encoder, loss, prior_layers_weight=0, kl_div_weight=0)),
    "2d": gradients(lambda loss: losses.Matryoshka2dLoss(encoder, loss, [32, 8], **every)),
    "cached": gradients(lambda loss: losses.CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=1)),
}

for name, blocks in given["blocks"].items():
    scope = {}
    for block in blocks:
        exec(block.replace(given["repo_id"], name), scope)
    if name == "pretrained":
        tensors["card/max_sim"] = scope["max_sim"].numpy()
        tensors["card/maxsim"] = maxsim(scope["vectors"], scope["vectors"]).numpy()
        tensors["card/embeddings"] = scope["embeddings"]
        tensors["card/concepts"] = np.array(scope["concepts"], dtype=np.float32)
save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, "outputs.safetensors")
json.dump(report, open("report.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pretrained) -> Path:
    """Upload sets `pretrained` and `classifier`, weights far from their initial values."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("surfaces")
    tokenizer_files = [path for path in pretrained.iterdir() if path.name.startswith("tokenizer")]
    heads = {
        "pretrained": ConceptEncoderForDiffusionMLM.from_pretrained(pretrained),
        "classifier": ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(pretrained, num_labels=3),
    }
    for name, model in heads.items():
        randomised(model).save_pretrained(source / name)
        for path in tokenizer_files:
            (source / name / path.name).write_bytes(path.read_bytes())
        (folder / name).mkdir()
        assemble(source / name, folder / name, REPO_ID)
    shutil.copytree(source / "pretrained", folder / "run")
    return folder


@pytest.fixture(scope="module")
def outside(folder) -> tuple[dict, dict[str, np.ndarray]]:
    """(report, tensors) of the process without the package."""
    cards = {name: (folder / name / "README.md").read_text(encoding="utf-8") for name in ("pretrained", "classifier")}
    blocks = {
        name: re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE) for name, card in cards.items()
    }
    assert [len(each) for each in blocks.values()] == [5, 2]
    given = {"texts": [SHORT, LONG, MASKED, WORD, PAIR], "repo_id": REPO_ID, "blocks": blocks}
    (folder / "card.json").write_text(json.dumps(given))
    run_without_package(CHILD, folder)
    return json.loads((folder / "report.json").read_text()), load_file(folder / "outputs.safetensors")


@pytest.fixture(scope="module")
def concepts(folder, pretrained):
    """Function: texts to their concepts (B, C, D), by the installed package."""
    model = ConceptEncoderModel.from_pretrained(folder / "pretrained").eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained)

    @torch.no_grad()
    def encode(texts: list[str]) -> torch.Tensor:
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state

    return encode


def test_feature_extraction_gives_concepts(outside, concepts):
    _, tensors = outside
    for name, text in (("short", SHORT), ("long", LONG)):
        np.testing.assert_allclose(tensors[f"pipeline/{name}"], concepts([text]), atol=1e-5)


def test_fill_mask_ranks_tokens_as_the_model_does(folder, outside, pretrained):
    report, _ = outside
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = ConceptEncoderForDiffusionMLM.from_pretrained(folder / "pretrained").eval()
    batch = tokenizer(MASKED, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
    best = logits[0].softmax(-1).topk(3)
    assert [answer["token"] for answer in report["fill"]] == best.indices.tolist()
    np.testing.assert_allclose([answer["score"] for answer in report["fill"]], best.values, rtol=1e-4)


def test_text_classification_scores_as_the_model_does(folder, outside, pretrained):
    report, _ = outside
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(folder / "classifier").eval()
    for text, answers in zip((SHORT, LONG), report["labels"], strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        given = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose([given[f"LABEL_{i}"] for i in range(3)], expected, rtol=1e-4)


def test_sentence_transformers_embedding_is_the_normalised_mean_concept(outside, concepts):
    report, tensors = outside
    expected = torch.nn.functional.normalize(concepts([SHORT, LONG]).mean(1), dim=-1)
    np.testing.assert_allclose(tensors["st/batch"], expected, atol=1e-5)
    np.testing.assert_allclose(tensors["st/similarity"], expected @ expected.T, atol=1e-5)
    assert report["st"] == {"dimension": 32, "longest": 64}


def test_sentence_transformers_embedding_does_not_depend_on_the_batch(outside, concepts, pretrained):
    _, tensors = outside
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(pretrained)([WORD, PAIR])["input_ids"]]
    assert lengths == [3, concepts([PAIR]).shape[1]]
    np.testing.assert_allclose(tensors["st/word padded"][0], tensors["st/word alone"][0], atol=1e-5)
    np.testing.assert_allclose(tensors["st/alone"][0], tensors["st/batch"][0], atol=1e-5)
    assert np.abs(tensors["st/batch"][0] - tensors["st/batch"][1]).max() > 0.01


def test_sentence_transformers_saves_itself(folder, outside):
    _, tensors = outside
    np.testing.assert_array_equal(tensors["st/resaved"], tensors["st/batch"])
    for name in ("modules.json", "sentence_bert_config.json"):
        written = (folder / "resaved" / name).read_text()
        # Where the class is in this version; the place that the checkpoint names is the one that 5.4 knows too.
        written = written.replace(".base.modules.normalize.", ".sentence_transformer.modules.normalize.")
        assert json.loads(written) == json.loads((folder / "run" / name).read_text())
    assert json.loads((folder / "resaved/config_sentence_transformers.json").read_text())["prompts"]["query"] == "q: "
    for name in ("modeling_concept.py", "reading_concept.py", "configuration_concept.py"):
        assert (folder / "resaved" / name).read_bytes() == (folder / "pretrained" / name).read_bytes()


def test_late_interaction_on_the_card_is_max_sim(outside, concepts):
    _, tensors = outside
    z = concepts(CARD_TEXTS)
    scores = tensors["card/max_sim"]
    np.testing.assert_allclose(np.diag(scores), z.shape[1], rtol=1e-5)  # a text matches itself in every concept
    symmetrised = (scores[0, 1] + scores[1, 0]) / (2 * z.shape[1])
    np.testing.assert_allclose(symmetrised, max_sim(z[:1], z[1:])[0], atol=1e-5)
    np.testing.assert_allclose(tensors["card/maxsim"], scores, rtol=1e-5)  # of sentence-transformers


def test_examples_on_the_card_give_what_they_say(outside, concepts):
    _, tensors = outside
    z = concepts(CARD_TEXTS)
    np.testing.assert_allclose(tensors["card/concepts"], z[:1], atol=1e-5)
    mean = torch.nn.functional.normalize(z.mean(1), dim=-1)
    np.testing.assert_allclose(tensors["card/embeddings"], mean, atol=1e-5)


def test_a_run_folder_is_the_same_model_as_its_upload(outside):
    _, tensors = outside
    np.testing.assert_array_equal(tensors["st/run"], tensors["st/batch"])
    np.testing.assert_allclose(np.linalg.norm(tensors["st/run"], axis=-1), 1, rtol=1e-6)


def test_token_embeddings_are_the_concepts_for_any_number_of_tokens(outside, concepts):
    _, tensors = outside
    for name, texts in (("alone", [WORD]), ("batch", [WORD, LONG])):
        np.testing.assert_allclose(tensors[f"st/concepts {name}"], concepts(texts), atol=1e-5)


def test_multi_vector_encoder_scores_concepts(outside, concepts):
    report, tensors = outside
    unit = torch.nn.functional.normalize(concepts([SHORT, LONG]), dim=-1)
    expected = torch.einsum("acd,bkd->abck", unit, unit).amax(-1).sum(-1)
    np.testing.assert_allclose(tensors["late/scores"], expected, rtol=1e-4)
    assert report["multi_vector"] == [[4, 128]] * 2  # its own projection of every concept, not of every token
    assert report["projected"] == 0


def test_losses_over_layers_see_the_layers(outside):
    report, _ = outside
    values = {name: value for name, (value, _) in report["losses"].items()}
    assert values["last"] == pytest.approx(values["plain"], rel=1e-5)
    assert values["cached"] == pytest.approx(values["plain"], rel=1e-5)
    assert values["adaptive"] > 1.1 * values["plain"] and values["2d"] > 1.1 * values["plain"]
    assert all(gradient > 0 for _, gradient in report["losses"].values())


def test_mteb_takes_the_checkpoint_as_it_is(folder):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'concept-encoder[mteb]'")
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    table = {"sentence1": [SHORT, LONG, WORD, MASKED], "sentence2": [SHORT, SHORT, PAIR, WORD]}
    table["score"] = [5.0, 3.0, 1.0, 0.0]
    unknown = (
        "reference date domains task_subtypes license annotations_creators dialect sample_creation bibtex_citation"
    )

    class Pairs(AbsTaskSTS):
        metadata = TaskMetadata(
            name="Pairs",
            description="Four pairs.",
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
            dataset={"path": "local/pairs", "revision": "1"},
            **dict.fromkeys(unknown.split()),
        )

        def load_data(self, **kwargs):
            self.dataset, self.data_loaded = {"test": Dataset.from_dict(table)}, True

    encoder = SentenceTransformer(str(folder / "pretrained"), trust_remote_code=True)
    result = mteb.evaluate(encoder, [Pairs()], cache=None, co2_tracker=False)
    scores = result.task_results[0].scores["test"][0]
    cosines = (encoder.encode(table["sentence1"]) * encoder.encode(table["sentence2"])).sum(-1)
    assert scores["main_score"] == pytest.approx(spearmanr(cosines, table["score"])[0])


@pytest.mark.parametrize(
    ("kind", "size"), [("mean", 8), ("weighted", None), ("weighted", 8), ("concat", None), ("concat", 8)]
)
def test_sentence_transformers_has_the_pooled_output(tmp_path, tokenizer, kind, size):
    from sentence_transformers import SentenceTransformer

    config = tiny_config(vocab_size=len(tokenizer), pooled_output=kind, projection_size=size)
    model = randomised(ConceptEncoderModel(config))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    encoder = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
    batch = tokenizer(["the cat sleeps ."], return_tensors="pt")
    with torch.no_grad():
        expected = model(batch["input_ids"], batch["attention_mask"]).pooler_output
    vectors = encoder.encode(["the cat sleeps ."])
    assert vectors.shape[1] == encoder.get_embedding_dimension() == config.projection_dim == expected.shape[1]
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
    encoder.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(["the cat sleeps ."]), vectors)


def test_a_multi_vector_encoder_is_refused_where_there_are_no_concepts_of_its_width(tmp_path, tokenizer):
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    def saved(name, **config):
        torch.manual_seed(0)
        model = randomised(ConceptEncoderModel(tiny_config(vocab_size=len(tokenizer), **config)))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return model, str(tmp_path / name)

    for kind in ("mean", "concat"):
        model, folder = saved(kind, pooled_output=kind, projection_size=8)
        with pytest.raises(ValueError, match="adds a map of 32 numbers, and projection_size gives 8 of each concept"):
            MultiVectorEncoder(folder, trust_remote_code=True)
        whole = SentenceTransformer(folder, trust_remote_code=True)
        late = MultiVectorEncoder(modules=list(whole)[:-1])
        batch = tokenizer(["the cat sleeps ."], return_tensors="pt")
        with torch.no_grad():
            concepts = model.projected(batch["input_ids"], batch["attention_mask"]).last_hidden_state[0]
        np.testing.assert_allclose(late.encode(["the cat sleeps ."])[0], concepts, rtol=1e-4, atol=1e-5)
    _, folder = saved("weighted", pooled_output="weighted")
    with pytest.raises(ValueError, match="compares concepts, and pooled_output='weighted' gives one vector"):
        MultiVectorEncoder(folder, trust_remote_code=True)
    assert MultiVectorEncoder(saved("plain")[1], trust_remote_code=True).encode(["a"])[0].shape == (6, 128)
