import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from datasets.table import MemoryMappedTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerFast

from concept_encoder.trainers.data import corpora as data
from concept_encoder.trainers.data.corpora import (
    DataArguments,
    load_corpus,
    load_pretraining_data,
    load_tokenizer,
    train_tokenizer,
)

SENTENCES = [f"document {i} has its own words like w{i % 7} and w{i % 11}" for i in range(60)]
WORDS = ["document", "has", "its", "own", "words", "like", "and", *(f"w{i}" for i in range(11)), *map(str, range(60))]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def word_tokenizer(special=SPECIAL, model_max_length=64):
    """Word-level tokenizer with BERT's template as far as `special` has the tokens for it."""
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if "cls_token" in special:
        ids = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=model_max_length, **special)


@pytest.fixture(scope="module")
def words():
    return word_tokenizer()


def write(path: Path, rows) -> Path:
    """`rows` of texts or dicts in the format that the file's name asks for."""
    if isinstance(rows, str):  # as it is
        path.write_text(rows, encoding="utf-8")
        return path
    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        empty = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))
        (Dataset.from_list(rows) if rows else empty).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(path, **kwargs):
    return DataArguments(**{"dataset_name": str(path), "validation_size": 0.25, "max_length": 16, **kwargs})


def texts(corpus):
    return [row["text"] for row in corpus]


def ids(dataset):
    assert all(set(row) == {"input_ids"} for row in dataset)
    return [list(row["input_ids"]) for row in dataset]


def naive_blocks(documents, tokenizer, max_length):
    stream = [
        i for text in documents for i in [*tokenizer.encode(text, add_special_tokens=False), tokenizer.sep_token_id]
    ]
    pieces = [stream[i : i + max_length - 1] for i in range(0, len(stream), max_length - 1)]
    return [[tokenizer.cls_token_id, *piece] for piece in pieces if len(piece) == max_length - 1]


class TestArguments:
    def test_every_field_is_a_flag_with_help(self):
        assert all(len(field.metadata["help"]) > 20 for field in dataclasses.fields(DataArguments))
        flags = ["--dataset_name", "a/b", "--packing", "truncated", "--streaming", "--validation_size", "0.1"]
        (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(flags)
        assert args == DataArguments("a/b", packing="truncated", streaming=True, validation_size=0.1)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"packing": "tight"}, "packing must be one of packed, truncated, got 'tight'"),
            ({"max_length": 2}, "max_length must be at least 3 .* got 2"),
            ({"validation_size": 1.0}, "validation_size must be between 0 and 1, got 1.0"),
            ({"validation_size": 0.0}, "validation_size must be between 0 and 1, got 0.0"),
            ({"corpus_seed": -1}, "corpus_seed must not be negative, got -1"),
            ({"max_train_documents": 0}, "max_train_documents must be at least 1 or left out, got 0"),
            ({"max_validation_documents": -3}, "max_validation_documents must be at least 1 or left out, got -3"),
            ({"preprocessing_num_workers": 0}, "preprocessing_num_workers must be at least 1 or left out, got 0"),
            (
                {"train_split": "all", "validation_split": "all"},
                r"train_split \('all'\) and validation_split \('all'\) must differ; .* set validation_size",
            ),
            (
                {"dataset_name": "a/b", "streaming": True, "preprocessing_num_workers": 2},
                "preprocessing_num_workers=2 is of no use with streaming=True",
            ),
            ({"streaming": True}, "streaming=True has no meaning with dataset_name='microworld'"),
            ({"text_column": "body"}, "text_column='body' has no meaning with dataset_name='microworld'"),
            ({"validation_size": 0.1}, "validation_size=0.1 has no meaning with dataset_name='microworld'"),
            ({"dataset_revision": "v1"}, "dataset_revision='v1' has no meaning with dataset_name='microworld'"),
            (
                {"dataset_config_name": "x"},
                "dataset_config_name must be 'pairs', or None for stories, with dataset_na",
            ),
            (
                {"partner_column": "partner", "packing": "truncated"},
                "partner_column must be None, or 'partner' of dataset_config_name='pairs'",
            ),
            (
                {"dataset_config_name": "pairs", "partner_column": "other", "packing": "truncated"},
                "partner_column must be None, or 'partner' of dataset_config_name='pairs', .* got 'other'",
            ),
            ({"train_split": "test"}, "train_split='test' has no meaning with dataset_name='microworld'"),
        ],
    )
    def test_contradictions(self, fields, message):
        with pytest.raises(ValueError, match=message):
            DataArguments(**fields)


class TestTokenizer:
    def test_microworld_has_its_own(self):
        tokenizer = load_tokenizer(DataArguments(max_length=40))
        assert tokenizer.model_max_length == 40 and tokenizer.mask_token_id is not None

    def test_folder(self, tmp_path, words):
        words.save_pretrained(tmp_path)
        tokenizer = load_tokenizer(DataArguments(tokenizer_name=str(tmp_path)))
        assert tokenizer("document 3")["input_ids"] == words("document 3")["input_ids"]

    def test_no_name(self):
        with pytest.raises(ValueError, match=r"tokenizer_name is None, .*'microworld', got dataset_name='a/b'"):
            load_tokenizer(DataArguments(dataset_name="a/b"))

    def test_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere' is neither a local folder with a tokenizer nor a Hub id"):
            load_tokenizer(DataArguments(tokenizer_name=str(tmp_path / "nowhere")))

    @pytest.mark.parametrize("kind", ["mask", "pad"])
    def test_missing_special_token(self, tmp_path, kind):
        word_tokenizer({k: v for k, v in SPECIAL.items() if k != f"{kind}_token"}).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=rf"has no {kind} token.*add_special_tokens\(\{{'{kind}_token'"):
            load_tokenizer(DataArguments(tokenizer_name=str(tmp_path)))


class TestSources:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.txt"])
    def test_file(self, tmp_path, name, streaming):
        args = arguments(write(tmp_path / name, SENTENCES), streaming=streaming)
        train, validation = (load_corpus(args, split) for split in ("train", "validation"))
        assert isinstance(train, IterableDataset if streaming else Dataset)
        assert sorted(texts(train) + texts(validation)) == sorted(SENTENCES)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_csv_holds_texts(self, tmp_path, streaming):
        rows = [*SENTENCES, "NA", "12", "a, quoted"]
        (tmp_path / "a.csv").write_text("text,n\n" + "".join(f'"{row}",{n}\n' for n, row in enumerate(rows)))
        for name in ("a.csv", "*.csv", "."):
            args = arguments(tmp_path / name, streaming=streaming)
            train, validation = (load_corpus(args, split) for split in ("train", "validation"))
            assert sorted(texts(train) + texts(validation)) == sorted(rows)
        (tmp_path / "a.csv").write_text("text,n\na,1\nb\n")
        with pytest.raises(ValueError, match=r"a\.csv"):
            load_corpus(arguments(tmp_path / "a.csv", streaming=streaming), "train")

    def test_files_of_another_kind_in_a_folder_are_named(self, tmp_path, caplog):
        write(tmp_path / "a.jsonl", [{"text": each} for each in SENTENCES])
        write(tmp_path / "b.jsonl", [{"text": each} for each in SENTENCES])
        write(tmp_path / "c.txt", SENTENCES)
        load_corpus(arguments(tmp_path), "train")
        assert "read as json, without 1 of its files, such as c.txt; name those by a glob" in caplog.text

    @pytest.mark.parametrize("streaming", [False, True])
    def test_glob_and_column(self, tmp_path, streaming):
        for i in range(3):
            write(tmp_path / f"part-{i}.jsonl", [{"id": j, "body": s} for j, s in enumerate(SENTENCES[i::3])])
        args = arguments(tmp_path / "part-*.jsonl", text_column="body", streaming=streaming)
        train = load_corpus(args, "train")
        assert set(next(iter(train))) == {"text"}
        assert set(texts(train)) < set(SENTENCES)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_folder_with_a_card(self, tmp_path, streaming):
        card = """\
            ---
            configs:
            - config_name: short
              data_files:
              - {split: fit, path: a/fit.parquet}
              - {split: held, path: a/held.parquet}
            - config_name: long
              data_files: [{split: fit, path: b.parquet}]
            ---
        """
        (tmp_path / "README.md").write_text(textwrap.dedent(card), encoding="utf-8")
        write(tmp_path / "a" / "fit.parquet", SENTENCES[:5])
        write(tmp_path / "a" / "held.parquet", SENTENCES[5:8])
        write(tmp_path / "b.parquet", SENTENCES[8:])
        names = {"train_split": "fit", "validation_split": "held", "validation_size": None, "streaming": streaming}
        args = arguments(tmp_path, dataset_config_name="short", **names)
        assert texts(load_corpus(args, "train")) == SENTENCES[:5]
        assert texts(load_corpus(args, "validation")) == SENTENCES[5:8]
        args = arguments(tmp_path, dataset_config_name="long", **names)
        assert texts(load_corpus(args, "train")) == SENTENCES[8:]
        with pytest.raises(ValueError, match=r"'longer' not found. Available: .*'short', 'long'"):
            load_corpus(arguments(tmp_path, dataset_config_name="longer", **names), "train")

    def test_microworld(self):
        args = DataArguments(max_train_documents=30, max_validation_documents=10, corpus_seed=3)
        train = load_corpus(args, "train")
        assert train.column_names == ["text"] and len(train) == 30
        assert len(load_corpus(args, "validation")) == 10
        assert texts(train) == texts(load_corpus(args, "train"))
        assert texts(train) != texts(load_corpus(dataclasses.replace(args, corpus_seed=4), "train"))

    @pytest.mark.slow
    @pytest.mark.parametrize("streaming", [False, True])
    def test_hub(self, seeded_hub, shared, streaming):
        args = DataArguments(
            dataset_name="local/english-prose",
            dataset_config_name="wikinews",
            dataset_revision="main",
            tokenizer_name="answerdotai/ModernBERT-base",
            streaming=streaming,
            max_train_documents=40,
            max_validation_documents=10,
            max_length=64,
        )
        tokenizer = load_tokenizer(args)
        assert len(texts(load_corpus(args, "train"))) == 40
        train, validation = load_pretraining_data(args, tokenizer)
        for part in (train, validation):
            rows = ids(part)
            assert len(rows) > 10
            assert all(len(row) == 64 and row[0] == tokenizer.cls_token_id for row in rows)
        assert any("english-prose" in request["path"] for request in seeded_hub.requests())

    def test_hub_errors(self, seeded_hub):
        with pytest.raises(FileNotFoundError, match="nobody/nothing"):
            load_corpus(arguments("nobody/nothing"), "train")
        with pytest.raises(FileNotFoundError, match="v9"):
            load_corpus(arguments("local/english-prose", dataset_revision="v9"), "train")
        with pytest.raises(ValueError, match="nobody/nothing' is neither"):
            load_tokenizer(DataArguments(tokenizer_name="nobody/nothing"))

    @pytest.mark.slow
    @pytest.mark.parametrize("streaming", [False, True])
    def test_limits(self, tmp_path, streaming):
        path = write(tmp_path / "a.parquet", SENTENCES)
        args = arguments(path, streaming=streaming, max_train_documents=7, max_validation_documents=2)
        train = texts(load_corpus(args, "train"))
        everything = texts(load_corpus(arguments(path, streaming=streaming), "train"))
        assert len(set(train)) == 7 and train == texts(load_corpus(args, "train"))
        assert len(texts(load_corpus(args, "validation"))) == 2
        assert (train == everything[:7]) == streaming  # the first of a stream, a random sample otherwise
        generous = arguments(path, streaming=streaming, max_train_documents=1000)
        assert texts(load_corpus(generous, "train")) == everything


class TestHeldOut:
    @pytest.mark.slow
    def test_disjoint_and_the_same_for_streams_and_workers(self, tmp_path):
        repeated = [*SENTENCES, *SENTENCES[::-1]]  # every text twice
        path = write(tmp_path / "a.parquet", repeated)
        parts = []
        for options in ({}, {"streaming": True}, {"preprocessing_num_workers": 2}):
            args = arguments(path, **options)
            parts.append([texts(load_corpus(args, split)) for split in ("train", "validation")])
        train, validation = parts[0]
        assert parts == [[train, validation]] * 3
        assert not set(train) & set(validation) and sorted(train + validation) == sorted(repeated)
        other = texts(load_corpus(arguments(path, corpus_seed=1), "validation"))
        assert set(other) != set(validation)

    def test_share(self, tmp_path):
        path = write(tmp_path / "a.txt", [f"line {i}" for i in range(4000)])
        held_out = len(load_corpus(arguments(path, validation_size=0.2), "validation"))
        assert 720 < held_out < 880  # 3 standard deviations around 800

    def test_the_dataset_s_own_split_comes_first(self, tmp_path, caplog):
        write(tmp_path / "train.jsonl", SENTENCES[:40])
        write(tmp_path / "validation.jsonl", SENTENCES[40:])
        with caplog.at_level(logging.WARNING):
            assert texts(load_corpus(arguments(tmp_path), "train")) == SENTENCES[:40]
        assert "validation_size=0.25 is not used" in caplog.text


class TestBadCorpora:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_blank_rows_are_dropped_and_counted(self, tmp_path, caplog, streaming):
        rows = [{"text": None}, {"text": ""}, {"text": " \n"}, *SENTENCES]
        args = arguments(write(tmp_path / "a.parquet", rows), streaming=streaming)
        with caplog.at_level(logging.WARNING):
            parts = [load_corpus(args, split) for split in ("train", "validation")]
        assert sorted(texts(parts[0]) + texts(parts[1])) == sorted(SENTENCES)
        assert streaming or "dropped 3 of 63 rows of the split 'train'" in caplog.text

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        ("name", "rows", "message"),
        [
            ("a.txt", [], "is empty"),
            ("a.jsonl", [], "is empty"),
            ("a.parquet", [], "is empty"),
            (
                "a.jsonl",
                "{oops",
                r"row 1 of .*a\.jsonl is not JSON: Expecting property name",
            ),
            ("a.txt", ["", " "], "no row of the split 'train' .* holds text in column 'text': all are null or blank"),
            ("a.parquet", [{"text": None}], "all are null or blank"),
            ("a.jsonl", [{"text": 3}], r"row 1 of .*a\.jsonl: text_column 'text' must hold a text, got 3"),
            ("a.jsonl", [{"text": ["a"]}], r"row 1 of .*a\.jsonl: text_column 'text' must hold a text, got \['a'\]"),
            ("a.parquet", [{"body": "b", "title": "t"}], "text_column 'text' is not in .*Columns: body, title"),
        ],
    )
    def test_no_texts(self, tmp_path, name, rows, message, streaming):
        args = arguments(write(tmp_path / name, rows), streaming=streaming)
        with pytest.raises(ValueError, match=message):
            load_corpus(args, "train")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_pairs(self, tmp_path, words, streaming):
        rows = [{"a": a, "b": b, "same": i % 3} for i, (a, b) in enumerate(pairwise(SENTENCES))]
        rows[1] |= {"b": " ", "same": 1}  # half a pair is none
        settings = {"text_column": "a", "partner_column": "b", "packing": "truncated", "streaming": streaming}
        args = arguments(write(tmp_path / "a.jsonl", rows), keep_rows="same=1", **settings)
        examples = [row for part in load_pretraining_data(args, words) for row in part]
        wanted = {(row["a"], row["b"]) for row in rows if row["same"] == 1 and row["b"] != " "}
        assert {tuple(words.decode(row[name][1:-1]) for name in ("input_ids", "partner_ids")) for row in examples} == {
            tuple(words.decode(words.encode(text, add_special_tokens=False)) for text in pair) for pair in wanted
        }
        assert all(row[name][0] == words.cls_token_id for row in examples for name in row)

    def test_rows_above_a_number(self, tmp_path):
        rows = [{"text": text, "score": i / 10 if i else None} for i, text in enumerate(SENTENCES)]
        args = arguments(write(tmp_path / "a.jsonl", rows), keep_rows="score>=4.5")
        assert {text for split in ("train", "validation") for text in texts(load_corpus(args, split))} == set(
            SENTENCES[45:]
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"keep_rows": "label"}, "keep_rows must be column=value or column>=number, such as .* got 'label'"),
            ({"keep_rows": "label>=high"}, "keep_rows must be column=value or column>=number"),
            ({"keep_rows": "kind=1"}, "keep_rows='kind=1': the column 'kind' is not in the split .* Columns: text"),
            ({"keep_rows": "text=nothing"}, "keep_rows='text=nothing' keeps no row of the split 'train'"),
            ({"partner_column": "other"}, "partner_column='other' needs packing='truncated', one pair per example"),
            ({"partner_column": "text", "packing": "truncated"}, "partner_column and text_column are both 'text'"),
            ({"partner_column": "other", "packing": "truncated"}, "partner_column 'other' is not in .* Columns: text"),
        ],
    )
    def test_bad_pairs_and_rules(self, tmp_path, settings, message):
        path = write(tmp_path / "a.jsonl", SENTENCES)
        with pytest.raises(ValueError, match=message):
            load_corpus(arguments(path, **settings), "train")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_splits(self, tmp_path, streaming):
        args = arguments(write(tmp_path / "a.txt", SENTENCES), validation_size=None, streaming=streaming)
        message = r"has no split 'validation'. Splits: train; name one with validation_split, or set validation_size"
        with pytest.raises(ValueError, match=message):
            load_corpus(args, "validation")
        with pytest.raises(ValueError, match=r"has no split 'fit'. Splits: train; name one with train_split$"):
            load_corpus(dataclasses.replace(args, train_split="fit"), "train")
        with pytest.raises(ValueError, match="split must be one of train, validation, got 'test'"):
            load_corpus(args, "test")

    def test_share_that_leaves_nothing(self, tmp_path):
        args = arguments(write(tmp_path / "a.txt", SENTENCES[:3]), validation_size=1e-6)
        with pytest.raises(ValueError, match="validation_size=1e-06 leaves no validation documents"):
            load_corpus(args, "validation")

    def test_names(self, tmp_path):
        path = write(tmp_path / "a.txt", SENTENCES)
        for name in ("prose", str(tmp_path / "no" / "folder"), "../a/b", str(tmp_path / "a.xml")):
            with pytest.raises(ValueError, match=r"dataset_name must be 'microworld', a Hub id .* got '.*"):
                load_corpus(arguments(name), "train")
        with pytest.raises(FileNotFoundError, match=r"b.\*.parquet': there is no such file"):
            load_corpus(arguments(tmp_path / "b.*.parquet"), "train")
        (tmp_path / "hollow").mkdir()
        with pytest.raises(ValueError, match=r"hollow' holds no data files; put <config>/<split>\*\.parquet files"):
            load_corpus(arguments(tmp_path / "hollow"), "train")
        with pytest.raises(ValueError, match=r"dataset_revision='v1' needs a Hub id, but dataset_name='.*' is local"):
            load_corpus(arguments(path, dataset_revision="v1"), "train")
        with pytest.raises(ValueError, match=r"dataset_config_name='c' needs a dataset, but .*' is a file"):
            load_corpus(arguments(path, dataset_config_name="c"), "train")


class TestPacked:
    @pytest.mark.slow
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        documents=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1),
        max_length=st.integers(3, 20),
        batch_size=st.integers(1, 5),
    )
    def test_no_token_is_lost(self, words, documents, max_length, batch_size):
        """Blocks are the reference's, wherever the batches end."""
        rows = data._tokenize({"text": documents}, words, max_length=None, format_version=0)["input_ids"]
        encoded = Dataset.from_dict({"input_ids": rows}, features=data._IDS)
        packer = data._Packer(max_length, words.cls_token_id)
        tables = [
            packer(encoded.with_format("arrow")[i : i + batch_size], list(range(i, min(i + batch_size, len(rows)))))
            for i in range(0, len(rows), batch_size)
        ]
        blocks = [block for table in tables for block in table["input_ids"].to_pylist()]
        assert blocks == naive_blocks(documents, words, max_length)
        left_over = sum(map(len, rows)) - len(blocks) * (max_length - 1)
        assert left_over == len(packer.rest) < max_length - 1

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"preprocessing_num_workers": 2}, {"streaming": True}])
    def test_whole_way(self, tmp_path, words, options):
        documents = [" ".join(random.Random(i).choices(WORDS, k=i % 40 + 1)) for i in range(1500)]  # more than a batch
        args = arguments(write(tmp_path / "a.jsonl", documents), **options)
        _, validation = load_pretraining_data(args, words)
        blocks = ids(validation)
        assert blocks == naive_blocks(texts(load_corpus(args, "validation")), words, 16)
        assert ids(validation) == blocks  # a stream starts afresh

    @pytest.mark.slow
    def test_training_stream(self, tmp_path, words, monkeypatch):
        monkeypatch.setattr(data, "STREAM_SHUFFLE_BUFFER", 8)
        for i in range(3):
            write(tmp_path / f"{i}.jsonl", SENTENCES[i::3])
        args = arguments(tmp_path / "*.jsonl", streaming=True, corpus_seed=5)
        train, _ = load_pretraining_data(args, words)
        again, _ = load_pretraining_data(args, words)
        other, _ = load_pretraining_data(dataclasses.replace(args, corpus_seed=6), words)
        first = ids(train)
        assert first == ids(train) == ids(again) != ids(other)
        train.set_epoch(1)
        second = ids(train)
        assert second == ids(train) != first
        train.set_epoch(0)
        assert ids(train) == first
        # The same tokens in every epoch, except for the piece left over.
        expected = naive_blocks(texts(load_corpus(args, "train")), words, 16)
        assert len(first) == len(second) == len(expected)
        assert all(len(block) == 16 and block[0] == words.cls_token_id for block in first + second)
        assert sorted(first) != sorted(expected)

    @pytest.mark.slow
    def test_bos_and_eos_stand_in(self, tmp_path):
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
        path = write(tmp_path / "a.txt", SENTENCES)
        tokenizer = word_tokenizer({**special, "bos_token": "<s>", "eos_token": "</s>"})
        blocks = ids(load_pretraining_data(arguments(path), tokenizer)[0])
        assert all(block[0] == tokenizer.bos_token_id for block in blocks)
        assert sum(block.count(tokenizer.eos_token_id) for block in blocks) > 30
        tokenizer = word_tokenizer({**special, "eos_token": "</s>"})
        blocks = ids(load_pretraining_data(arguments(path), tokenizer)[0])
        assert {len(block) for block in blocks} == {16}
        first = tokenizer.encode(texts(load_corpus(arguments(path), "train"))[0])
        assert blocks[0][: len(first) + 1] == [*first, tokenizer.eos_token_id]

    def test_no_separator(self, tmp_path):
        tokenizer = word_tokenizer({"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"})
        args = arguments(write(tmp_path / "a.txt", SENTENCES))
        with pytest.raises(ValueError, match=r"packing='packed' needs .* neither a sep nor an eos token; .*'trunc"):
            load_pretraining_data(args, tokenizer)
        truncated = load_pretraining_data(dataclasses.replace(args, packing="truncated"), tokenizer)
        assert len(ids(truncated[0])) > 30

    @pytest.mark.parametrize("streaming", [False, True])
    def test_too_few_tokens_for_a_block(self, tmp_path, words, streaming):
        args = arguments(write(tmp_path / "a.txt", SENTENCES[:8]), max_length=64, streaming=streaming)
        with pytest.raises(ValueError, match=r"part of .* fewer than 64 tokens .*; .*lower max_length"):
            load_pretraining_data(args, words)


class TestTruncated:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_one_example_per_document(self, tmp_path, words, streaming):
        documents = [*SENTENCES, " ".join(WORDS), "a"]
        args = arguments(write(tmp_path / "a.jsonl", documents), packing="truncated", streaming=streaming)
        train, validation = load_pretraining_data(args, words)
        rows = ids(train) if not streaming else sorted(ids(train))
        expected = [words.encode(t, truncation=True, max_length=16) for t in texts(load_corpus(args, "train"))]
        assert rows == (expected if not streaming else sorted(expected))
        assert max(map(len, rows + ids(validation))) == 16
        assert all(row[0] == words.cls_token_id and row[-1] == words.sep_token_id for row in rows)

    def test_no_tokens_at_all(self, tmp_path):
        backend = word_tokenizer().backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("x")
        silent = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
        args = arguments(write(tmp_path / "a.txt", ["x" * i for i in range(1, 60)]), packing="truncated")
        with pytest.raises(ValueError, match=r"the train part of .* has fewer than one token; give it more text$"):
            load_pretraining_data(args, silent)


class TestBoth:
    @pytest.mark.parametrize("packing", ["packed", "truncated"])
    def test_a_text_cannot_hold_special_tokens(self, tmp_path, words, packing):
        path = write(tmp_path / "a.txt", [f"{s} [MASK] [PAD]" for s in SENTENCES])
        for part in load_pretraining_data(arguments(path, packing=packing), words):
            assert not {words.mask_token_id, words.pad_token_id} & {i for row in ids(part) for i in row}

    def test_longer_than_the_tokenizer_s_limit(self, tmp_path, words):
        args = arguments(write(tmp_path / "a.txt", SENTENCES), max_length=65)
        with pytest.raises(ValueError, match=r"max_length \(65\) is larger than .*model_max_length \(64\)"):
            load_pretraining_data(args, words)

    @pytest.mark.slow
    def test_the_caller_s_tokenizer_is_left_alone(self, tmp_path, caplog):
        tokenizer = word_tokenizer(model_max_length=16)
        before = tokenizer.backend_tokenizer.to_str()
        path = write(tmp_path / "a.txt", [" ".join(SENTENCES), *SENTENCES])
        for packing in ("packed", "truncated"):
            load_pretraining_data(arguments(path, packing=packing), tokenizer)
        assert tokenizer.backend_tokenizer.to_str() == before
        assert "sequence length is longer" not in caplog.text

    def test_microworld(self, tokenizer):
        args = DataArguments(max_length=32, max_train_documents=50, max_validation_documents=20)
        train, validation = load_pretraining_data(args, tokenizer)
        assert {len(row) for row in ids(train) + ids(validation)} == {32}
        assert tokenizer.unk_token_id not in {i for row in ids(train) for i in row}


class TestCache:
    SCRIPT = """
        import sys
        from accelerate import PartialState
        from transformers import AutoTokenizer
        from concept_encoder.trainers.data import corpora as data
        state = PartialState(cpu=True)
        pack = data._Packer.__call__
        def told(self, *batch):
            print(f"PACKED BY {state.process_index}\\n", end="", flush=True)
            return pack(self, *batch)
        data._Packer.__call__ = told
        args = data.DataArguments(sys.argv[1], validation_size=0.25, max_length=16, max_train_documents=20)
        train, _ = data.load_pretraining_data(args, AutoTokenizer.from_pretrained(sys.argv[2]))
        print(f"ROWS {state.num_processes} {len(train)} {train[0]['input_ids']}\\n", end="", flush=True)
    """

    @staticmethod
    def cache_files():
        return {p: p.stat().st_mtime_ns for p in Path(os.environ["HF_HOME"], "datasets").rglob("cache-*.arrow")}

    @pytest.mark.slow
    @pytest.mark.parametrize("packing", ["packed", "truncated"])
    def test_a_second_call_works_nothing_out(self, tmp_path, words, packing):
        args = arguments(write(tmp_path / "a.parquet", SENTENCES), packing=packing, max_train_documents=20)
        first = load_pretraining_data(args, words)
        before = self.cache_files()
        words.encode("a text in between", truncation=True, max_length=4)
        second = load_pretraining_data(args, words)
        assert self.cache_files() == before
        assert [part.cache_files for part in first] == [part.cache_files for part in second]
        load_pretraining_data(dataclasses.replace(args, max_length=12), words)
        assert len(self.cache_files()) > len(before)

    def test_examples_are_arrays_out_of_a_memory_map(self, tmp_path, words):
        args = arguments(write(tmp_path / "a.parquet", SENTENCES))
        for part in load_pretraining_data(args, words):
            assert isinstance(part.data, MemoryMappedTable)
            assert isinstance(part[0]["input_ids"], np.ndarray)
        (row, *_), _ = load_pretraining_data(dataclasses.replace(args, streaming=True), words)
        assert isinstance(row["input_ids"], np.ndarray)

    @pytest.mark.slow
    def test_two_processes_build_one_cache_that_a_third_reads(self, tmp_path, words, monkeypatch):
        words.save_pretrained(tmp_path / "tokenizer")
        path = write(tmp_path / "a.parquet", SENTENCES)
        script = tmp_path / "load.py"
        script.write_text(textwrap.dedent(self.SCRIPT), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [script, path, tmp_path / "tokenizer"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        lines = run.stdout.splitlines()
        assert {line for line in lines if "PACKED" in line} == {"PACKED BY 0"}
        rows = [line for line in lines if "ROWS" in line]
        assert len(rows) == 2 and rows[0] == rows[1]

        monkeypatch.setattr(data._Packer, "__call__", None)
        before = self.cache_files()
        args = arguments(path, max_train_documents=20)
        train, _ = load_pretraining_data(args, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
        assert self.cache_files() == before
        assert rows[0] == f"ROWS 2 {len(train)} {train[0]['input_ids']}"


@pytest.mark.slow
def test_real_tokenizer_reads_every_text_back(shared):
    """Packed english prose, decoded, is the corpus."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / "answerdotai" / "ModernBERT-base")
    args = DataArguments(
        dataset_name=str(shared / "data" / "local" / "english-prose"),
        dataset_config_name="wikinews",
        max_length=128,
        max_train_documents=10,
        max_validation_documents=10,
    )
    blocks = ids(load_pretraining_data(args, tokenizer)[0])
    stream = tokenizer.decode([i for block in blocks for i in block[1:]])
    whole = "[SEP]".join(texts(load_corpus(args, "train"))) + "[SEP]"
    assert len(stream) > len(whole) - 1000 and whole.startswith(stream)


def bert_like(shared, tmp_path) -> DataArguments:
    return DataArguments(
        dataset_name=str(write(tmp_path / "train.jsonl", SENTENCES)),
        validation_size=0.1,
        tokenizer_name=str(shared / "data" / "tokenizers" / "google-bert" / "bert-base-uncased"),
    )


@pytest.mark.slow
def test_a_learned_vocabulary_is_the_corpus_own_in_the_seed_tokenizers_manner(tmp_path, shared):
    args = bert_like(shared, tmp_path)
    seed = load_tokenizer(args)
    learned = train_tokenizer(args, 90, tmp_path / "vocabulary")
    assert AutoTokenizer.from_pretrained(tmp_path / "vocabulary").get_vocab() == learned.get_vocab()
    with pytest.raises(ValueError, match="vocabulary is not empty; name a new folder"):
        train_tokenizer(args, 90, tmp_path / "vocabulary")
    assert len(learned) <= 90
    assert learned.tokenize("Documents has its own words") == ["document", "##s", "has", "its", "own", "words"]
    assert learned("its own")["input_ids"][0] == learned.cls_token_id
    for name in ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token"):
        assert getattr(learned, name) == getattr(seed, name)


@pytest.mark.slow
def test_characters_leave_room_for_words(tmp_path, shared):
    args = bert_like(shared, tmp_path)
    few, all_of_them = (train_tokenizer(args, 90, tmp_path / str(count), count) for count in (12, None))
    letters = [{piece.removeprefix("##") for piece in each.get_vocab() if len(piece.removeprefix("##")) == 1}
               for each in (few, all_of_them)]  # fmt: skip
    assert len(letters[0]) == 12 < len(letters[1])
    with pytest.raises(ValueError, match="characters must be at least 1, got 0"):
        train_tokenizer(args, 90, tmp_path / "none", 0)


def test_a_vocabulary_too_small_for_its_characters_is_refused(tmp_path, shared):
    with pytest.raises(ValueError, match=r"vocab_size=8 is too small: .* alone are \d+; ask for more"):
        train_tokenizer(bert_like(shared, tmp_path), 8, tmp_path / "vocabulary")
    assert not (tmp_path / "vocabulary").exists()
