"""Published checkpoints under stock trainers and pipelines of other libraries, where the package is not importable.

The calls are those of transformers' example scripts `run_mlm.py` and `run_glue.py`, which no distribution of the
library holds: stock `Trainer`, stock collators, their metrics. Each process asserts in itself or leaves figures.
"""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import randomised, run_without_package
from small_tasks import pair_table
from transformers import AutoTokenizer

from concept_encoder.eval.hub.publishing import assemble
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
)
from concept_encoder.trainers.data.microworld import microworld_corpus

pytestmark = pytest.mark.slow
POSITIONS = 64  # of the checkpoints, whose tokenizer was saved with 512
MASKED_LMS = {"diffusion": ConceptEncoderForDiffusionMLM, "perceiver": ConceptEncoderForMaskedLMPerceiver}
CLASSIFIERS = {
    "classifier": ConceptEncoderForSequenceClassificationPerceiver,
    "via-decoder": ConceptEncoderForSequenceClassificationViaDecoder,
    "pair": ConceptEncoderForSentencePairClassification,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pretrained) -> Path:
    """An upload set for each head, weights far from their initial values, and files of texts and of pairs."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("clients")
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    tokenizer.model_max_length = 512
    config = ConceptEncoderForDiffusionMLM.config_class.from_pretrained(pretrained)
    assert config.max_position_embeddings == POSITIONS
    for name, head in (MASKED_LMS | CLASSIFIERS).items():
        randomised(head(config), std=0.05).save_pretrained(source / name)
        tokenizer.save_pretrained(source / name)
        (folder / name).mkdir()
        assemble(source / name, folder / name, f"someone/{name}")
    for split, rows in (("train", 48), ("validation", 16)):
        texts = microworld_corpus(split, rows)["text"]
        (folder / f"{split}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        pair_table(rows, seed=rows, similarity=False).to_json(folder / f"{split}.json")
    return folder


def outside(script: str, folder: Path, *arguments: str) -> dict:
    """What a process without the package wrote to `report.json`."""
    (folder / "report.json").unlink(missing_ok=True)
    run_without_package(START + script, folder, *arguments)
    return json.loads((folder / "report.json").read_text())


START = """
import json, math, sys
sys.modules["concept_encoder"] = None
import numpy as np
import torch
import transformers
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
report = {}

def done():
    json.dump(report, open("report.json", "w"))

def options(**more):
    return {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "seed": 0, **more}

def same(model, again, batch):
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch).logits, model.eval()(**batch).logits)
"""

# As run_mlm.py: texts in blocks of the tokenizer's length, or line by line.
MASKED_LM = """
from itertools import chain
from transformers import AutoConfig, AutoModelForMaskedLM, DataCollatorForLanguageModeling

name, by_line = sys.argv[1], sys.argv[2] == "lines"
config = AutoConfig.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained(name, config=config, trust_remote_code=True)
assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]
longest = min(1024, tokenizer.model_max_length)

def encode(rows):
    limit = {"truncation": True, "max_length": longest} if by_line else {}
    return tokenizer(rows["text"], return_special_tokens_mask=True, **limit)

def group(rows):
    joined = {key: list(chain(*rows[key])) for key in rows}
    whole = len(joined["input_ids"]) // longest * longest
    return {key: [row[i : i + longest] for i in range(0, whole, longest)] for key, row in joined.items()}

data = load_dataset("text", data_files={"train": "train.txt", "validation": "validation.txt"})
data = data.map(lambda rows: {"text": [text * 3 for text in rows["text"]]}, batched=True)  # some beyond the limit
data = data.map(encode, batched=True, remove_columns="text")
data = data if by_line else data.map(group, batched=True)

def first_of(logits, labels):
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)

def accuracy(given):
    predictions, labels = given
    counted = labels.reshape(-1) != -100
    return {"accuracy": float((predictions.reshape(-1)[counted] == labels.reshape(-1)[counted]).mean())}

arguments = options(max_steps=12, learning_rate=5e-3, per_device_eval_batch_size=64)
trainer = Trainer(
    model, TrainingArguments("trained-" + name, **arguments), DataCollatorForLanguageModeling(tokenizer),
    data["train"], data["validation"], tokenizer, compute_metrics=accuracy, preprocess_logits_for_metrics=first_of,
)

def evaluate():
    torch.manual_seed(0)  # by which the collator masks
    found = trainer.evaluate()
    return {**found, "perplexity": math.exp(found["eval_loss"])}

report["longest"] = max(map(len, data["train"]["input_ids"]))
report["before"] = evaluate()
report["train"] = trainer.train().metrics
trainer.save_model()
trainer.create_model_card(finetuned_from=name, tasks="fill-mask")
report["after"] = evaluate()
trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None
torch.manual_seed(0)
predicted = trainer.predict(data["validation"])
assert isinstance(predicted.predictions, np.ndarray), type(predicted.predictions)
assert predicted.predictions.shape == (*predicted.label_ids.shape, config.vocab_size)
logits, labels = torch.tensor(predicted.predictions), torch.tensor(predicted.label_ids)
report["expected"] = {
    "eval_loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item(),
    "eval_accuracy": (logits.argmax(-1) == labels)[labels != -100].float().mean().item(),
}
again = AutoModelForMaskedLM.from_pretrained("trained-" + name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("trained-" + name)
batch = tokenizer("the cat [MASK] . " * 99, truncation=True, return_tensors="pt")
same(model, again, batch)
report["cut"] = batch["input_ids"].shape[1]
done()
"""


@pytest.mark.parametrize(("head", "way"), [("diffusion", "blocks"), ("perceiver", "lines")])
def test_masked_language_modelling_ends_with_loss_accuracy_and_perplexity(head, way, folder):
    report = outside(MASKED_LM, folder, head, way)
    assert report["longest"] == report["cut"] == POSITIONS
    after = report["after"]
    assert {name: after[name] for name in report["expected"]} == pytest.approx(report["expected"], rel=1e-4)
    assert after["perplexity"] == pytest.approx(math.exp(report["expected"]["eval_loss"]), rel=1e-3)
    assert after["perplexity"] < report["before"]["perplexity"]
    assert report["train"]["train_loss"] > 0


# As run_glue.py: pairs padded to the limit of the tokenizer.
CLASSIFICATION = """
from datasets import Value
from transformers import AutoConfig, AutoModelForSequenceClassification, default_data_collator

data = load_dataset("json", data_files={"train": "train.json", "validation": "validation.json"})
for name in sys.argv[1:]:
    regression = name == "via-decoder"
    config = AutoConfig.from_pretrained(name, num_labels=1 if regression else 2, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, trust_remote_code=True, ignore_mismatched_sizes=regression
    )
    longest = min(128, tokenizer.model_max_length)

    def encode(rows):
        pairs = rows["sentence1"], [text + " ." * 99 for text in rows["sentence2"]]
        return tokenizer(*pairs, padding="max_length", max_length=longest, truncation=True)

    encoded = data.map(encode, batched=True)
    if regression:
        encoded = encoded.cast_column("label", Value("float32"))

    def score(given):
        assert isinstance(given.predictions, np.ndarray), type(given.predictions)
        if regression:
            return {"mse": float(((given.predictions[:, 0] - given.label_ids) ** 2).mean())}
        return {"accuracy": float((given.predictions.argmax(1) == given.label_ids).mean())}

    arguments = options(max_steps=3, per_device_eval_batch_size=64)
    trainer = Trainer(
        model, TrainingArguments("trained-" + name, **arguments), default_data_collator,
        encoded["train"], encoded["validation"], tokenizer, compute_metrics=score,
    )
    train = trainer.train().metrics
    trainer.save_model()
    found = trainer.evaluate()
    predicted = trainer.predict(encoded["validation"])
    assert predicted.predictions.shape == (16, config.num_labels)
    logits, labels = torch.tensor(predicted.predictions), torch.tensor(predicted.label_ids)
    if regression:
        expected = {"eval_mse": torch.nn.functional.mse_loss(logits[:, 0], labels).item()}
        expected["eval_loss"] = expected["eval_mse"]
    else:
        expected = {"eval_accuracy": (logits.argmax(-1) == labels).float().mean().item()}
        expected["eval_loss"] = torch.nn.functional.cross_entropy(logits, labels).item()
    again = AutoModelForSequenceClassification.from_pretrained("trained-" + name, trust_remote_code=True)
    texts = "the cat sleeps . " * 99, "the dog sleeps ."
    batch = AutoTokenizer.from_pretrained("trained-" + name)(*texts, truncation=True, return_tensors="pt")
    same(model, again, batch)
    report[name] = {
        "class": type(model).__name__, "train": train, "eval": found, "expected": expected,
        "longest": longest, "cut": batch["input_ids"].shape[1],
    }
done()
"""


def test_classification_ends_with_loss_and_accuracy(folder):
    report = outside(CLASSIFICATION, folder, "diffusion", *CLASSIFIERS)
    for name, found in report.items():
        assert found["class"] == CLASSIFIERS.get(name, CLASSIFIERS["classifier"]).__name__
        assert found["longest"] == found["cut"] == POSITIONS
        assert {key: found["eval"][key] for key in found["expected"]} == pytest.approx(found["expected"], rel=1e-4)
        assert found["train"]["train_loss"] > 0


SENTENCE_TRANSFORMERS = """
from sentence_transformers import (
    MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments,
    SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, CrossEntropyLoss
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer import losses

words = "cat dog horse boy girl doctor baker garden".split()
pairs = {"anchor": [f"the {word} sleeps ." for word in words], "positive": [f"a {word} ." for word in words]}
texts = [*pairs["anchor"], "the cat sleeps in the barn . " * 99]
steps = options(max_steps=3, learning_rate=1e-3, per_device_train_batch_size=4)

def train(kind, trainer, arguments, folder, loss, data=pairs, look=lambda model: model.encode(texts), **load):
    model = kind(folder, trust_remote_code=True, **load)
    before = look(model)
    running = trainer(
        model=model, args=arguments("steps-" + name, **steps), train_dataset=Dataset.from_dict(data), loss=loss(model)
    )
    found = running.train()
    assert found.global_step == 3 and np.isfinite(found.training_loss) and found.training_loss > 0, found
    after = look(model)
    model.save_pretrained("saved-" + name)
    loaded = look(kind("saved-" + name, trust_remote_code=True, **load))
    for old, new, again in zip(before, after, loaded, strict=True):
        assert abs(np.asarray(old) - np.asarray(new)).max() > 1e-4, "nothing was learned"
        np.testing.assert_array_equal(np.asarray(again), np.asarray(new))
    report[name] = np.asarray(after[-1]).shape
    return model

ranking = losses.MultipleNegativesRankingLoss
kinds = {
    "ranking": ranking,
    "matryoshka": lambda model: losses.MatryoshkaLoss(model, ranking(model), [32, 8]),
    "layers": lambda model: losses.AdaptiveLayerLoss(model, ranking(model)),
    "matryoshka-2d": lambda model: losses.Matryoshka2dLoss(model, ranking(model), [32, 8]),
}
for name, loss in kinds.items():
    of = SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    vectors = train(*of, "diffusion", loss).encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

name, of = "concepts", (MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments)
concepts = lambda model: model.encode(texts, convert_to_numpy=True)
train(*of, "diffusion", MultiVectorMultipleNegativesRankingLoss, look=concepts)

of = CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
labelled = {**pairs, "label": [0, 1] * 4}
pairwise = lambda model: model.predict(list(zip(texts, reversed(texts))))
for name in ("classifier", "via-decoder", "pair"):  # each with the labels that it was saved with
    train(*of, name, CrossEntropyLoss, labelled, pairwise)
name = "score"
train(*of, "diffusion", BinaryCrossEntropyLoss, {**labelled, "label": [0.0, 1.0] * 4}, pairwise)
done()
"""


def test_trainers_of_sentence_transformers(folder):
    pytest.importorskip("sentence_transformers")
    shapes = outside(SENTENCE_TRANSFORMERS, folder)
    vectors = {name: [32] for name in ("ranking", "matryoshka", "layers", "matryoshka-2d")}
    assert shapes == vectors | {"concepts": [4, 128], "score": [], **{name: [2] for name in CLASSIFIERS}}


PIPELINES = """
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, pipeline

one, two = "the cat sleeps . ", "the dog sleeps in the barn ."
long = one * 99
pair = {"text": long, "text_pair": two}
for name in ("diffusion", "perceiver"):
    cut = {"tokenizer_kwargs": {"truncation": True}}
    fill = pipeline("fill-mask", model=name, trust_remote_code=True)
    report[name] = [fill(text, top_k=2, **cut) for text in ("[MASK] " + two, "[MASK] " + long)]
    extract = pipeline("feature-extraction", model=name, trust_remote_code=True)
    report[name + " concepts"] = np.array(extract(long, tokenize_kwargs={"truncation": True})).shape
for name in ("classifier", "via-decoder", "pair"):
    classify = pipeline("text-classification", model=name, trust_remote_code=True)
    found = classify([pair, pair], truncation=True, top_k=None)
    model, tokenizer = classify.model, classify.tokenizer
    with torch.no_grad():
        expected = model(**tokenizer(**pair, truncation=True, return_tensors="pt")).logits[0].softmax(-1)
        if name == "pair":  # each text alone, as the two halves of the sequence hold it
            half = tokenizer(long, truncation=True, max_length=64 - len(tokenizer.tokenize(two)) - 1)["input_ids"]
            sides = torch.tensor([half]), torch.tensor([tokenizer(two)["input_ids"]])
            apart = model(input_ids_a=sides[0], input_ids_b=sides[1]).logits[0].softmax(-1)
            report["apart"] = (apart - expected).abs().max().item()
    for answers in found:
        scores = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose([scores["LABEL_0"], scores["LABEL_1"]], expected, rtol=1e-4)
    batched = classify([{"text": one, "text_pair": two}, pair], truncation=True, top_k=None, batch_size=2)
    assert abs(batched[1][0]["score"] - found[0][0]["score"]) < 1e-4
try:
    classify(one)  # one text for a pair head
except ValueError as error:
    report["one text"] = str(error)
done()
"""


def test_pipelines_cut_long_texts_and_take_pairs(folder):
    report = outside(PIPELINES, folder)
    for name in MASKED_LMS:
        for answers in report[name]:
            assert len(answers) == 2 and answers[0]["score"] >= answers[1]["score"] > 0
        assert report[f"{name} concepts"] == [1, 4, 32]
    assert report["apart"] < 1e-2
    assert report["one text"].startswith("a pair in one sequence needs token_type_ids with 1 at each token of the sec")


ADAPTER = """
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

data = load_dataset("json", data_files={"train": "train.json"})["train"]
for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    encoded = data.map(lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True), batched=True)
    load = lambda: AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
    model = get_peft_model(load(), LoraConfig("SEQ_CLS", target_modules=["q_proj", "v_proj"]))
    batch = tokenizer("the cat sleeps .", "the dog .", return_tensors="pt")
    before = load().eval()(**batch).logits
    arguments = TrainingArguments("adapted-" + name, **options(max_steps=4, learning_rate=0.02))
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), encoded)
    trainer.train()
    trainer.save_model()
    same(model, PeftModel.from_pretrained(load(), "adapted-" + name), batch)
    with torch.no_grad():
        report[name] = (model.eval()(**batch).logits - before).abs().max().item()
done()
"""


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_is_all_that_was_learned(folder):
    moved = outside(ADAPTER, folder, "diffusion", "pair")
    assert min(moved.values()) > 0.01
