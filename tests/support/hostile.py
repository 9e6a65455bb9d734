"""Hostile inputs as rows: what is written into a folder, which door reads it, and what the door has to say.

Written apart from the code that refuses them. A row whose `says` is None is odd but right, and has to be read.
`counts` is what docs/results/hostile.json holds.
"""

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    door: str
    """of `tests/reliability/test_hostile.py`"""
    says: str | None
    """a pattern of the one line; None: no complaint"""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """name -> content; `-> target` as the content makes a link"""
    options: Mapping[str, object] = field(default_factory=dict)
    """of the door"""

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith("-> "):
                path.symlink_to(content.removeprefix("-> "))
            elif isinstance(content, str):
                path.write_text(content.replace("{folder}", str(folder)), encoding="utf-8", newline="")
            else:
                path.write_bytes(content)


def lines(*rows: object) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows(kind: str, door: str, **cases: tuple) -> list[Case]:
    """A case of each name: what it says, its files, and options."""
    return [Case(kind, name, door, *case) for name, case in cases.items()]


# ---------------------------------------------------------------------------------------------------------------- YAML

BOMB = "a0: &a0 {k0: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 26))
ALIASES = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
YAML = {
    "merge_bomb": (r"line 2 has a merge key \(<<\); write its fields out", BOMB),
    "merge_of_one": ("line 2 has a merge key", "a: &a {b: 1}\nc: {<<: *a}\n"),
    "merge_in_a_key": ("line 1 has a merge key", "? {<<: {a: 1}}\n: b\n"),
    "merge_by_tag": ("line 1 has a merge key", "!!merge x: {a: 1}\n"),
    "alias_bomb": ("with its aliases written out it has more than 30,000 values", ALIASES),
    "alias_bomb_in_mappings": (
        "with its aliases written out it has more than",
        "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 40)),
    ),
    "alias_of_itself": ("with its aliases written out it has more than", "a: &a [*a]\n"),
    "many_values": ("with its aliases written out it has more than", "[" + "1, " * 40_000 + "1]"),
    "very_long": ("it has more than 500,000 characters", "# " + "x" * 600_000),
    "deep": ("maximum recursion depth exceeded|cannot be read", "[" * 5_000),
    "long_number": ("a number of 5000 characters", "a: " + "1" * 5_000),
    "long_sexagesimal": ("a number of 200001 characters", "a: 1" + ":1" * 100_000),
    "key_twice": ("line 3 has the key 'model' again, which line 1 has; keep one", "model: {}\ndata: {}\nmodel: {}\n"),
    "key_twice_below": ("line 3 has the key 'a' again, which line 2 has", "model:\n  a: 1\n  a: 2\n"),
    "key_twice_as_number": ("line 2 has the key True again, which line 1 has", "1: a\ntrue: b\n"),
    "key_twice_quoted": ("line 2 has the key 'a' again", "a: 1\n'a': 2\n"),
    "key_that_is_a_list": ("found unhashable key", "[a]: b\n"),
    "object": ("could not determine a constructor for the tag", "!!python/object/apply:os.getcwd []\n"),
    "two_documents": ("expected a single document", "a: 1\n---\nb: 2\n"),
    "latin_1": ("can't decode byte 0xe9", "a: café\n".encode("latin-1")),
    "control": ("special characters are not allowed", "a: \x1b[31m\n"),
    "no_date": ("is out of range|must be in", "a: 2020-13-45\n"),
}
CASES = [Case("YAML", name, "yaml", says, {"x.yaml": text}) for name, (says, text) in YAML.items()]
CASES += rows(
    "YAML",
    "yaml",
    anchors=(None, {"x.yaml": "a: &a [1, 2]\nb: *a\n"}),
    quoted_merge=(None, {"x.yaml": '"<<": 1\n'}),
)
CASES += [
    Case(
        "YAML", f"{name}_in_a_{door.replace(' ', '_')}", door, rf"x\.yaml.*{YAML[name][0]}", {"x.yaml": YAML[name][1]}
    )
    for door in ("recipe", "task file", "plan", "gates")
    for name in ("merge_bomb", "alias_bomb", "key_twice")
]
CASES += [
    Case(
        "YAML",
        f"{name}_in_a_{place}",
        "corpus of a folder",
        says,
        {"x/a.jsonl": lines({"text": "a"}), **card},
    )
    for name, says in (("merge_bomb", "has a merge key"), ("alias_bomb", "aliases"), ("key_twice", "'model' again"))
    for place, card in (
        ("card", {"x/README.md": "---\nx:\n---\n".replace("x:\n", str(YAML[name][1]))}),
        ("dot_card", {"x/.huggingface.yaml": YAML[name][1]}),
    )
]
CASES += [
    Case("YAML", f"{name}_in_a_foreign_recipe", "foreign recipe", YAML[name][0], {"x/recipe.yaml": YAML[name][1]})
    for name in ("merge_bomb", "alias_bomb", "key_twice")
]

# ------------------------------------------------------------------------------------------------------ ways out

OUT = r"leads out of .*; put the file itself into the folder"
SECRET = {"secret.yaml": "model: {}\nsecret: hunter2\n", "secret.jsonl": lines({"text": "hunter2"})}


def card(text: str) -> str:
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{text}\n---\n"


CASES += rows(
    "ways out",
    "corpus of a folder",
    card_above=(OUT, {**SECRET, "x/README.md": card("  - {split: train, path: ../secret.jsonl}")}),
    card_above_and_back=(OUT, {**SECRET, "x/README.md": card("  - {split: train, path: a/../../secret.jsonl}")}),
    card_absolute=(OUT, {"x/README.md": card("  - {split: train, path: /etc/passwd}")}),
    card_glob_above=(OUT, {**SECRET, "x/README.md": card("  - {split: train, path: '../*.jsonl'}")}),
    card_list=(OUT, {**SECRET, "x/README.md": card("  - {split: train, path: [a.jsonl, ../secret.jsonl]}")}),
    card_one_name=(
        OUT,
        {**SECRET, "x/README.md": "---\nconfigs:\n- {config_name: default, data_files: ../secret.jsonl}\n---\n"},
    ),
    card_url=(OUT, {"x/README.md": card("  - {split: train, path: 'http://127.0.0.1:1/x.jsonl'}")}),
    card_file_url=(OUT, {"x/README.md": card("  - {split: train, path: 'file:///etc/passwd'}")}),
    card_chained_url=(OUT, {"x/README.md": card("  - {split: train, path: 'zip://a::/etc/x.zip'}")}),
    card_data_dir=(OUT, {**SECRET, "x/README.md": "---\nconfigs:\n- {config_name: default, data_dir: ..}\n---\n"}),
    dot_card=(
        OUT,
        {**SECRET, "x/.huggingface.yaml": "configs:\n- {config_name: default, data_files: ../secret.jsonl}\n"},
    ),
    linked_card=(OUT, {"card.md": card("  - {split: train, path: a.jsonl}"), "x/README.md": "-> ../card.md"}),
    linked_file=(OUT, {**SECRET, "x/train.jsonl": "-> ../secret.jsonl"}),
    linked_folder=("holds no data files", {"other/train.jsonl": lines({"text": "hunter2"}), "x/data": "-> ../other"}),
    link_inside=(None, {"x/all.jsonl": lines({"text": "a"}), "x/train.jsonl": "-> all.jsonl"}),
    plain_card=(None, {"x/a.jsonl": lines({"text": "a"}), "x/README.md": card("  - {split: train, path: a.jsonl}")}),
    readme_that_is_no_card=(None, {"x/a.jsonl": lines({"text": "a"}), "x/README.md": "# Texts\n\n---\n../x\n---\n"}),
)
CASES += rows(
    "ways out",
    "foreign recipe",
    linked_recipe=(OUT, {**SECRET, "x/recipe.yaml": "-> ../secret.yaml"}),
    linked_to_etc=(OUT, {"x/recipe.yaml": "-> /etc/passwd"}),
    link_in_the_folder=(None, {"x/own.yaml": "data: {}\n", "x/recipe.yaml": "-> own.yaml"}),
)
CASES += rows(
    "ways out",
    "recipe",
    extends_above=(OUT, {**SECRET, "in/x.yaml": "extends: ../secret\n"}, {"path": "in/x.yaml"}),
    extends_above_by_suffix=(OUT, {**SECRET, "in/x.yaml": "extends: ../secret.yaml\n"}, {"path": "in/x.yaml"}),
    extends_absolute=(OUT, {"x.yaml": "extends: /etc/passwd\n"}),
    extends_a_link=(
        OUT,
        {**SECRET, "in/x.yaml": "extends: other\n", "in/other.yaml": "-> ../secret.yaml"},
        {"path": "in/x.yaml"},
    ),
    extends_a_link_by_suffix=(
        OUT,
        {**SECRET, "in/x.yaml": "extends: other.yaml\n", "in/other.yaml": "-> ../secret.yaml"},
        {"path": "in/x.yaml"},
    ),
    extends_through_a_linked_folder=(
        OUT,
        {**SECRET, "in/x.yaml": "extends: up/secret.yaml\n", "in/up": "-> .."},
        {"path": "in/x.yaml"},
    ),
)

# ------------------------------------------------------------------------------------------------------------- corpora

GOOD = {"text": "a good text"}
BAD_TEXT = "text_column 'text' must hold a text, got"
CORPORA = {
    "number.jsonl": (
        r"row 2 of .*number\.jsonl: column 'text' holds a number, before it a str",
        lines(GOOD, {"text": 3}),
    ),
    "numbers.jsonl": (rf"row 1 of .*: {BAD_TEXT} 3", lines({"text": 3}, {"text": 4})),
    "bool.jsonl": (rf"row 1 of .*: {BAD_TEXT} True", lines({"text": True})),
    "list.jsonl": (rf"row 1 of .*: {BAD_TEXT} \['a'\]", lines({"text": ["a"]})),
    "object.jsonl": (rf"row 1 of .*: {BAD_TEXT} \{{'a': 1\}}", lines({"text": {"a": 1}})),
    "date.jsonl": (rf"row 1 of .*: {BAD_TEXT} datetime", lines({"text": "2020-01-01"})),
    "nulls.jsonl": ("holds text in column 'text': all are null or blank", lines({"text": None}, {"text": " "})),
    "cut.jsonl": (r"row 2 of .*cut\.jsonl is not JSON: Unterminated string", lines(GOOD)[:-1] + '\n{"text": "b'),
    "scalars.jsonl": (r"row 1 of .* must be an object of columns, got 'a'", lines("a", "b")),
    "key_twice.jsonl": ("Column.*was specified twice", '{"text": "a", "text": "b"}\n'),
    "latin_1.jsonl": (
        r"line 2 of .* is not UTF-8 .*; save it as UTF-8",
        lines(GOOD).encode() + b'{"text": "caf\xe9"}\n',
    ),
    "utf_16.jsonl": (r"line 1 of .* is not UTF-8|is not JSON", lines(GOOD).encode("utf-16")),
    "surrogate.jsonl": ("surrogate", '{"text": "\\ud800"}\n'),
    "empty.jsonl": ("is empty", ""),
    "blank_lines.jsonl": ("is empty|no rows", "\n\n"),
    "other_column.jsonl": (r"text_column 'text' is not in .*Columns: body", lines({"body": "a"})),
    "cut.json": (r"cut\.json is not JSON", '[{"text": "a"}, {"te'),
    "scalar.json": (r"row 1 of .*scalar\.json must be an object of columns, got 3", "3"),
    "empty.json": ("is empty: no rows", ""),
    "no_rows.json": ("is empty", "[]"),
    "latin_1.txt": (r"line 2 of .*latin_1\.txt is not UTF-8", b"a\ncaf\xe9\n"),
    "utf_16.txt": (r"line 1 of .* is not UTF-8", "a\nb\n".encode("utf-16")),
    "blank.txt": ("all are null or blank", "\n \n\t\n"),
    "empty.txt": ("is empty", ""),
    "cut.parquet": ("cut.parquet is broken", b"PAR1\0\0\0\0"),
    "text.parquet": ("text.parquet is broken", "text\na\n"),
    "empty.parquet": ("cannot be read or is empty", ""),
}
CASES += [
    Case(
        "corpora",
        name.replace(".", "_") + ("_as_a_stream" if streaming else ""),
        "corpus",
        says,
        {name: content},
        {"streaming": streaming},
    )
    for name, (says, content) in CORPORA.items()
    for streaming in (False, True)
]
CASES += [
    Case("corpora", name, "corpus", says, files, {"glob": glob, "streaming": streaming})
    for name, says, glob, files in (
        (
            "other_columns",
            r"b\.jsonl has the columns text, c, .*a\.jsonl has text, b; give all files the same",
            "*.jsonl",
            {"a.jsonl": lines({"text": "a", "b": 1}), "b.jsonl": lines({"text": "a", "c": 1})},
        ),
        (
            "swapped_columns",
            r"b\.jsonl: column 'text' holds a number, in .*a\.jsonl a str",
            "*.jsonl",
            {"a.jsonl": lines({"text": "a", "b": 1}), "b.jsonl": lines({"text": 1, "b": "a"})},
        ),
        (
            "one_is_cut",
            r"row 2 of .*b\.jsonl is not JSON",
            "*.jsonl",
            {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD) + "{"},
        ),
        (
            "one_is_latin_1",
            r"line 1 of .*b\.txt is not UTF-8",
            "*.txt",
            {"a.txt": "a\n", "b.txt": b"caf\xe9\n"},
        ),
        ("one_is_empty", None, "*.jsonl", {"a.jsonl": lines(GOOD), "b.jsonl": ""}),
        (
            "columns_in_another_order",
            None,
            "*.jsonl",
            {"a.jsonl": lines({"text": "a", "b": 1}), "b.jsonl": lines({"b": 1, "text": "a"})},
        ),
    )
    for streaming in (False,)
]
CSV = "text,label\na,1\n"
CASES += rows(
    "corpora",
    "corpus of a folder",
    csv_row_too_long=(r"row 2 of .*train\.csv has 3 fields, its header has 2", {"x/train.csv": CSV + "b,2,3\n"}),
    csv_row_too_short=(r"row 2 of .*train\.csv has 1 fields, its header has 2", {"x/train.csv": CSV + "b\n"}),
    csv_rows_all_too_long=(r"row 1 of .*train\.csv has 3 fields", {"x/train.csv": "text,label\na,1,9\nb,2,9\n"}),
    csv_open_quote=(r"row 2 of .*train\.csv is not CSV: unexpected end of data", {"x/train.csv": CSV + '"b,1\n'}),
    csv_column_twice=(r"train\.csv has the column 'text' twice", {"x/train.csv": "text,text\na,b\n"}),
    csv_latin_1=(r"line 3 of .*train\.csv is not UTF-8", {"x/train.csv": CSV.encode() + b"caf\xe9,1\n"}),
    csv_empty=(r"train\.csv is empty", {"x/train.csv": ""}),
    csv_header_only=("is empty", {"x/train.csv": "text,label\n"}),
    csv_other_separator=(r"text_column 'text' is not in .*Columns: text;label", {"x/train.csv": "text;label\na;1\n"}),
    csv_other_columns=(
        r"b\.csv has the columns text, other, .*a\.csv has text, label",
        {"x/data/train/a.csv": CSV, "x/data/train/b.csv": "text,other\na,1\n"},
    ),
    csv_words_that_pandas_drops=(None, {"x/train.csv": "text,label\nNone,1\nNA,1\nnull,1\n"}),
    csv_numbers=(None, {"x/train.csv": "text,label\n007,1\n1e5,2\n"}),
    csv_with_an_index=(None, {"x/train.csv": ",text\n0,a\n"}),
    csv_other_order=(None, {"x/data/train/a.csv": CSV, "x/data/train/b.csv": "label,text\n1,a\n"}),
    csv_byte_order_mark=(None, {"x/train.csv": b"\xef\xbb\xbf" + CSV.encode()}),
    tsv=(None, {"x/train.tsv": CSV.replace(",", "\t")}),
    gz_cut=(
        r"train\.jsonl\.gz is broken: Compressed file ended",
        {"x/train.jsonl.gz": gzip.compress(lines(*[GOOD] * 500).encode())[:-12]},
    ),
    gz_damaged=(
        r"train\.jsonl\.gz is broken",
        {"x/train.jsonl.gz": gzip.compress(bytes(lines(GOOD), "utf-8"))[:12] + b"xxxxxxxx" * 4},
    ),
    gz_that_is_none=(r"train\.jsonl\.gz is broken: Not a gzipped file", {"x/train.jsonl.gz": lines(GOOD)}),
    gz_good=(None, {"x/train.jsonl.gz": gzip.compress(lines(GOOD).encode())}),
    no_tables=("No .supported. data files found", {"x/notes.xyz": "a"}),
    pictures=(
        "its files are of the kind 'imagefolder'; tables are of arrow, csv, json",
        {"x/train/a.png": b"\x89PNG"},
    ),
    archive=("its files are of the kind 'webdataset'", {"x/train.tar": b"\0" * 1024}),
    saved_to_disk=("save_to_disk wrote it; write each split with to_parquet", {"x/state.json": "{}"}),
    script=("it holds a loading script", {"x/x.py": "raise SystemExit\n"}),
    card_of_other_size=(
        "cannot be read|NonMatching|expected",
        {
            "x/a.jsonl": lines(GOOD),
            "x/README.md": "---\ndataset_info:\n  features:\n  - {name: other, dtype: string}\n---\n",
        },
    ),
)
RULE = {"a.jsonl": lines(*({"text": "a", "n": n, "b": n == 1, "s": str(n), "l": [n], "x": None} for n in (1, 2)))}
CASES += rows(
    "corpora",
    "corpus",
    rule_number=(None, RULE, {"keep_rows": "n=1", "keeps": 1}),
    rule_number_as_float=(None, RULE, {"keep_rows": "n=1.0", "keeps": 1}),
    rule_text_number=(None, RULE, {"keep_rows": "s>=2", "keeps": 1}),
    rule_bool=(None, RULE, {"keep_rows": "b=true", "keeps": 1}),
    rule_bool_as_python_says=(None, RULE, {"keep_rows": "b=False", "keeps": 1}),
    rule_bool_as_number=(r"row 1 of .*: keep_rows=b=1: the column holds true and false", RULE, {"keep_rows": "b=1"}),
    rule_bool_above=("the column holds true and false", RULE, {"keep_rows": "b>=1"}),
    rule_number_as_word=("the column holds numbers, such as 1; compare", RULE, {"keep_rows": "n=one"}),
    rule_list=(r"only numbers, texts, true and false can be compared so, got \[1\]", RULE, {"keep_rows": "l=1"}),
    rule_text_above=(
        r"row 1 of .*: keep_rows=text>=1: only numbers can be compared so, got 'a'",
        RULE,
        {"keep_rows": "text>=1"},
    ),
    rule_null=("keep_rows='x=None' keeps no row", RULE, {"keep_rows": "x=None"}),
    rule_nan=("keep_rows must be column=value or column>=number", RULE, {"keep_rows": "n>=nan"}),
    rule_inf=("keep_rows must be column=value or column>=number", RULE, {"keep_rows": "n>=inf"}),
    rule_below=("keep_rows must be column=value or column>=number", RULE, {"keep_rows": "n<=1"}),
    rule_no_column=("the column 'z' is not in .*Columns: text", RULE, {"keep_rows": "z=1"}),
)

# ---------------------------------------------------------------------------------------------------------- task files

PAIR = "dataset_id: {folder}/data\nsentence_columns: [a, b]\n"


def table(*labels: object, **columns: list) -> str:
    made = {
        "a": [f"first {i}" for i in range(len(labels))],
        "b": [f"second {i}" for i in range(len(labels))],
        **columns,
    }
    return lines(
        *({**{name: values[i] for name, values in made.items()}, "label": each} for i, each in enumerate(labels))
    )


def task(like: str, train: str | bytes, more: str = "", suffix: str = "jsonl", validation: str | None = None) -> dict:
    good = table(0, 1, 1, 0) if validation is None else validation
    good = good.replace("first", "other")
    if suffix == "csv" and validation is None:
        good = "a,b,label\nx,y,0\nz,w,1\n"
    return {
        "own.yaml": f"like: {like}\n{PAIR}{more}",
        f"data/train.{suffix}": train,
        f"data/validation.{suffix}": good,
    }


CLASS = r"label_column 'label' must hold a class id 0 to 1, got"
VALUE = r"label_column 'label' must hold a finite number, got"
CASES += rows(
    "task files",
    "task",
    float_label=(rf"row 2 of .*train\.jsonl: {CLASS} 0\.5", task("mrpc", table(0, 0.5, 1))),
    whole_floats=(None, task("mrpc", table(0.0, 1.0, 1.0))),
    text_numbers=(None, task("mrpc", table("0", "1", "1"))),
    bool_label=(rf"row 1 of .*: {CLASS} True", task("mrpc", table(True, False))),
    bool_value=(rf"row 1 of .*: {VALUE} True", task("stsb", table(True, False))),
    list_label=(rf"row 1 of .*: {CLASS} \[1\]", task("mrpc", table([1], [0]), validation=table([1], [0]))),
    list_value=(rf"row 1 of .*: {VALUE} \[1.5\]", task("stsb", table([1.5], [0.5]), validation=table([1.5], [0.5]))),
    object_label=(
        rf"row 1 of .*: {CLASS} \{{'x': 1\}}",
        task("mrpc", table({"x": 1}, {"x": 0}), validation=table({"x": 1}, {"x": 0})),
    ),
    date_label=(rf"row 1 of .*: {CLASS} datetime", task("mrpc", table("2020-01-01", "2020-01-02"))),
    date_value=(rf"row 1 of .*: {VALUE} datetime", task("stsb", table("2020-01-01", "2020-01-02"))),
    word_label=(rf"row 1 of .*: {CLASS} 'no'", task("mrpc", table("no", "yes"))),
    word_value=(rf"row 2 of .*: {VALUE} 'much'", task("stsb", table("1", "much"))),
    decimal_comma=(rf"row 1 of .*: {VALUE} '4,5'; write it with a point", task("stsb", table("4,5", "3,0"))),
    thousands=(rf"row 1 of .*: {VALUE} '1,000.5'", task("stsb", table("1,000.5", "3"))),
    nan_text=(rf"row 2 of .*: {VALUE} 'nan'", task("stsb", table("1", "nan"))),
    inf=(
        rf"row 2 of .*: {VALUE} inf",
        task("stsb", '{"a": "x", "b": "y", "label": 1}\n{"a": "x", "b": "z", "label": Infinity}\n'),
    ),
    nan=(
        r"1 of 2 rows have no label .* the first is row 2 of",
        task("stsb", '{"a": "x", "b": "y", "label": 1}\n{"a": "x", "b": "z", "label": NaN}\n'),
    ),
    huge=(rf"row 2 of .*: {VALUE} 1e\+300", task("stsb", table(1.0, 1e300))),
    too_large_class=(rf"row 3 of .*: {CLASS} 2", task("mrpc", table(0, 1, 2))),
    negative_class=(rf"row 1 of .*: {CLASS} -2", task("mrpc", table(-2, 1, 0))),
    null_label=(r"1 of 3 rows have no label \(null or -1\), the first is row 2 of", task("mrpc", table(0, None, 1))),
    hidden_labels=(r"2 of 2 rows have no label .*use a labelled split", task("mrpc", table(-1, -1))),
    hidden_values=(
        r"2 of 2 rows have no label .*add 1 to every label where -1 is a value",
        task("stsb", table(-1.0, -1.0)),
    ),
    hidden_beside_values=(r"1 of 3 rows have no label", task("stsb", table(4.0, -1.0, 2.0))),
    minus_one_is_a_value=(None, task("stsb", table(-1.0, -0.5, 0.0, 1.0))),
    hidden_in_validation=(
        r"split validation: 2 of 2 rows have no label",
        task("mrpc", table(0, 1), validation=table(-1, -1)),
    ),
    constant_value=(r"split train: every label is 3; give rows of at least two", task("stsb", table(3.0, 3.0, 3.0))),
    constant_validation=(
        r"split validation: every label is 3",
        task("stsb", table(3.0, 2.0), validation=table(3.0, 3.0)),
    ),
    constant_class=(r"split train: every label is 1", task("mrpc", table(1, 1, 1))),
    one_row=(r"split train: every label is 1", task("mrpc", table(1))),
    null_text=(
        r"row 2 of .*: sentence column 'b' must hold a text, got nothing",
        task("mrpc", table(0, 1, b=["x", None])),
    ),
    number_text=(
        r"row 2 of .*train\.jsonl: column 'a' holds a number, before it a str",
        task("mrpc", table(0, 1, a=["x", 7])),
    ),
    number_texts=(
        r"row 1 of .*: sentence column 'a' must hold a text, got 7",
        task("mrpc", table(0, 1, a=[7, 8]), validation=table(0, 1, a=[7, 9])),
    ),
    list_text=(
        r"row 1 of .*: sentence column 'a' must hold a text, got \['x'\]",
        task("mrpc", table(0, 1, a=[["x"], ["y"]]), validation=table(0, 1, a=[["x"], ["y"]])),
    ),
    no_text_column=(
        r"sentence column 'b' is not in .* Columns: a, label",
        task("mrpc", lines({"a": "x", "label": 0}), validation=lines({"a": "x", "label": 0})),
    ),
    no_label_column=(
        r"label_column 'label' is not in .* Columns: a, b",
        task("mrpc", lines({"a": "x", "b": "y"}), validation=lines({"a": "x", "b": "y"})),
    ),
    empty=("is empty", task("mrpc", "")),
    cut=(r"row 2 of .*train\.jsonl is not JSON", task("mrpc", table(0, 1)[:-20])),
    latin_1=(r"line 2 of .*train\.jsonl is not UTF-8", task("mrpc", table(0).encode() + b'{"a": "caf\xe9"}\n')),
    csv=(None, task("mrpc", "a,b,label\nx,y,0\nv,w,1\n", suffix="csv")),
    csv_ragged=(
        r"row 2 of .*train\.csv has 2 fields, its header has 3",
        task("mrpc", "a,b,label\nx,y,0\nv,1\n", suffix="csv"),
    ),
    csv_no_label=(r"1 of 2 rows have no label", task("mrpc", "a,b,label\nx,y,0\nv,w,\n", suffix="csv")),
    csv_decimal_comma=(
        rf"row 1 of .*train\.csv: {VALUE} '4,5'",
        task("stsb", 'a,b,label\nx,y,"4,5"\nv,w,"1,0"\n', suffix="csv"),
    ),
    csv_word=(rf"row 2 of .*train\.csv: {CLASS} 'NA'", task("mrpc", "a,b,label\nx,y,0\nv,w,NA\n", suffix="csv")),
    csv_true=(
        rf"row 1 of .*train\.csv: {CLASS} 'true'",
        task("mrpc", "a,b,label\nx,y,true\nv,w,false\n", suffix="csv"),
    ),
    csv_underscore=(rf"row 2 of .*: {CLASS} '1_0'", task("mrpc", "a,b,label\nx,y,0\nv,w,1_0\n", suffix="csv")),
    same_rows=(
        r"every row of validation is in train too",
        task("mrpc", table(0, 1), validation=table(0, 1).replace("first", "other"))
        | {"data/train.jsonl": table(0, 1).replace("first", "other")},
    ),
    many_classes=(
        "num_labels is 1000000000, and there are only 4 rows",
        task("mnli_matched", table(0, 1, 2, 1), "num_labels: 1000000000\n"),
    ),
    no_split=(
        "there is no such split in .*Splits: train, validation",
        task("mrpc", table(0, 1), "train_split: fit\n"),
    ),
)
CASES += rows(
    "task files",
    "task file",
    validation_is_train=(
        "train_split and validation_split are both 'train'",
        {"x.yaml": f"like: mrpc\n{PAIR}validation_split: train\n"},
    ),
    train_is_validation=("are both 'validation'", {"x.yaml": f"like: mrpc\n{PAIR}train_split: validation\n"}),
    slice_of_train=(
        r"a split must be a whole one, .* got 'train\[:10%\]'",
        {"x.yaml": f"like: mrpc\n{PAIR}validation_split: 'train[:10%]'\n"},
    ),
    sum_of_splits=(
        r"a split must be a whole one, .* got 'train\+test'",
        {"x.yaml": f"like: mrpc\n{PAIR}validation_split: train+test\n"},
    ),
    column_twice=("uses column 'a' twice", {"x.yaml": "like: mrpc\ndataset_id: x/y\nsentence_columns: [a, a]\n"}),
    label_as_text=(
        "uses column 'label' twice",
        {"x.yaml": "like: mrpc\ndataset_id: x/y\nsentence_columns: [a, label]\n"},
    ),
    label_as_text_by_name=("uses column 'a' twice", {"x.yaml": f"like: mrpc\n{PAIR}label_column: a\n"}),
    **{
        name: (
            f"a whole number of classes, at least 2, got {written.removeprefix('.')}",
            {"x.yaml": f"like: mnli_matched\n{PAIR}num_labels: {written}\n"},
        )
        for name, written in {
            "one_class": "1",
            "no_classes": "-3",
            "half_a_class": "2.5",
            "infinite_classes": ".inf",
        }.items()
    },
    classes_of_values=(
        "num_labels can be set where accuracy is the only metric",
        {"x.yaml": f"like: stsb\n{PAIR}num_labels: 2\n"},
    ),
    three_columns=(
        "sentence_columns must list one column or two",
        {"x.yaml": "like: mrpc\ndataset_id: x/y\nsentence_columns: [a, b, c]\n"},
    ),
    no_columns=(
        "sentence_columns must list one column or two",
        {"x.yaml": "like: mrpc\ndataset_id: x/y\nsentence_columns: []\n"},
    ),
    boolean_column=("label_column must be a text, got False", {"x.yaml": f"like: mrpc\n{PAIR}label_column: no\n"}),
    like_nothing=("like must be one of mrpc, stsb, .*, got 'nothing'", {"x.yaml": f"like: nothing\n{PAIR}"}),
    like_a_list=(r"like must be a text, got \['mrpc'\]", {"x.yaml": f"like: [mrpc]\n{PAIR}"}),
    unknown_metric=("may hold like, .*; got .*'metric': 'bleu'", {"x.yaml": f"like: mrpc\n{PAIR}metric: bleu\n"}),
)

# ------------------------------------------------------------------------------------------------ tokenizers, sizes

CASES += rows(
    "tokenizers",
    "learned tokenizer",
    without_a_trainer=(
        r"a tokenizer like .*bytes' \(ByT5Tokenizer\) cannot be learned: .*; name another tokenizer_name",
        {"texts.txt": "a\nb\n"},
        {"kind": "bytes"},
    ),
    too_small=("vocab_size=2 is too small", {"texts.txt": "a\nb\n"}, {"kind": "words", "size": 2}),
    good=(None, {"texts.txt": "a b\nb c\n"}, {"kind": "words", "size": 60}),
)
CASES += rows(
    "tokenizers",
    "read tokenizer",
    empty_folder=("the tokenizer of .* cannot be read|is neither", {"x/README.md": ""}),
    broken_json=("the tokenizer of .* cannot be read|is neither", {"x/tokenizer.json": "{"}),
    a_list=("the tokenizer of .* cannot be read|is neither", {"x/tokenizer.json": "[]"}),
    no_model=("the tokenizer of .* cannot be read|is neither", {"x/tokenizer.json": "{}"}),
    own_code=(
        "needs code of its own, which is never run",
        {
            "x/tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["e.E", "e.E"]}}),
            "x/e.py": "raise SystemExit(3)\n",
        },
    ),
)
CASES += rows(
    "tokenizers",
    "pair task",
    without_a_template=("has no template, so nothing would separate the two texts", {}, {"template": False}),
    with_a_template=(None, {}, {"template": True}),
)
CASES += rows(
    "sizes",
    "size",
    concepts=(
        r"training needs at least [\d,]{13,} bytes, .* is for num_concepts: lower",
        {},
        {"num_concepts": 2**31 - 1},
    ),
    width=("at least .* bytes, .* num_hidden_layers, hidden_size or intermediate", {}, {"hidden_size": 4 * 10**7}),
    layers=("at least .* bytes, .* num_hidden_layers, hidden_size or", {}, {"num_hidden_layers": 2**31 - 1}),
    decoder=("at least .* bytes, .* num_hidden_layers", {}, {"decoder_num_hidden_layers": 2**31 - 1}),
    feed_forward=("at least .* bytes, .* intermediate_size", {}, {"intermediate_size": 2**31 - 1}),
    vocabulary=("at least .* bytes, .* is for vocab_size", {}, {"vocab_size": 2**31 - 1}),
    positions=("at least .* bytes, .* is for max_position_embeddings", {}, {"max_position_embeddings": 2**31 - 1}),
    batch=("at least .* bytes, .* is for per_device_train_batch_size", {}, {"per_device_train_batch_size": 2**31 - 1}),
    small=(None, {}, {"num_concepts": 8}),
)

# ------------------------------------------------------------------------------------------- measurements, checkpoints

SAMPLES = [[[1.0, 2.0, 4.0], [3.0, 5.0, 4.0]], [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]]
CASES += rows(
    "measurements",
    "measurement",
    score_of_nothing=(r"compute needs predictions= and references=, \(n,\) each", {}, {"name": "benchmark_score"}),
    score_without_references=("needs references=", {}, {"name": "benchmark_score", "predictions": [1, 0]}),
    score_without_predictions=("needs predictions=", {}, {"name": "benchmark_score", "references": [1, 0]}),
    score_without_task=(
        "needs task=, one of mrpc",
        {},
        {"name": "benchmark_score", "predictions": [1, 0], "references": [1, 0]},
    ),
    score_of_unknown_task=(
        "Unknown task 'bleu'. Available: mrpc",
        {},
        {"name": "benchmark_score", "predictions": [1, 0], "references": [1, 0], "task": "bleu"},
    ),
    geometry_of_nothing=("needs concepts=, a list of samples", {}, {"name": "concept_geometry"}),
    geometry_without_batches=("needs batch_size=", {}, {"name": "concept_geometry", "concepts": SAMPLES}),
    geometry_of_none=("needs concepts=", {}, {"name": "concept_geometry", "concepts": None, "batch_size": 2}),
    spectrum_of_nothing=("needs concepts=, a list of samples", {}, {"name": "concept_spectrum"}),
    spectrum_of_no_samples=("concepts must have shape", {}, {"name": "concept_spectrum", "concepts": []}),
    ragged_samples=("must have the same number", {}, {"name": "concept_spectrum", "concepts": [SAMPLES[0], [[1.0]]]}),
    good=(None, {}, {"name": "concept_geometry", "concepts": SAMPLES, "batch_size": 2}),
)
INDEX = "x/model.safetensors.index.json"
CASES += rows(
    "checkpoints",
    "weight files",
    index_without_metadata=("has no metadata; save the model again", {INDEX: '{"weight_map": {}}'}),
    index_with_a_list=("has no metadata", {INDEX: '{"metadata": [], "weight_map": {}}'}),
    index_without_map=("has no weight_map", {INDEX: '{"metadata": {}}'}),
    index_of_a_pickle=("is not a .safetensors file", {INDEX: '{"metadata": {}, "weight_map": {"a": "x.bin"}}'}),
    index_above=(OUT, {INDEX: '{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}'}),
    index_of_nothing=("does not hold", {INDEX: '{"metadata": {}, "weight_map": {"a": "x.safetensors"}}'}),
    no_weights=("has no model.safetensors", {"x/config.json": "{}"}),
    links_of_the_cache=(
        None,
        {
            "m/blobs/1": "",
            "m/snapshots/c/model.safetensors.index.json": '{"metadata": {}, "weight_map": {"a": "x.safetensors"}}',
            "m/snapshots/c/x.safetensors": "-> ../../blobs/1",
            "x": "-> m/snapshots/c",
        },
    ),
    links_out_of_the_cache=(
        OUT,
        {
            "m/secret": "",
            "m/snapshots/c/model.safetensors.index.json": '{"metadata": {}, "weight_map": {"a": "x.safetensors"}}',
            "m/snapshots/c/x.safetensors": "-> ../../secret",
            "x": "-> m/snapshots/c",
        },
    ),
)

# ---------------------------------------------------------------------------------------- paths, terminal, cards

CASES += [
    Case("paths", f"corpus_{number}", "corpus", None, {name: lines(GOOD)}, {"glob": name})
    for number, name in enumerate(
        (
            "a[1].jsonl",
            "[a].jsonl",
            "a b.jsonl",
            "a'b\".jsonl",
            "*.jsonl",
            "a?.jsonl",
            "ä.jsonl",
            "x/a{b}.jsonl",
            "-a.jsonl",
        )
    )
]
CASES += [
    Case("paths", f"folder_{number}", "corpus of a folder", None, {f"{name}/train.jsonl": lines(GOOD)}, {"path": name})
    for number, name in enumerate(("a[1]", "[a-z]", "a b", "a'b", "a*", "a?", "ä", "a{b}", "a~b", "a%20b", "a#b"))
]
CASES += rows(
    "paths",
    "corpus at home",
    home=(None, {"a.jsonl": lines(GOOD)}),
)
CASES += rows(
    "paths",
    "corpus of a folder",
    card_in_brackets=(
        "a folder with a card that names files can have none of",
        {"a[1]/a.jsonl": lines(GOOD), "a[1]/README.md": card("  - {split: train, path: a.jsonl}")},
        {"path": "a[1]"},
    ),
)
CASES += [
    Case("terminal", name, "terminal", says, {}, {"said": said})
    for name, said, says in (
        ("ascii", "caf\u00e9 \u2013 \N{SLIGHTLY SMILING FACE}", r"caf\\xe9 \\u2013 \\U0001f642"),
        ("escapes", "\x1b[31mred\x1b[0m", r"\\x1b\[31mred"),
        ("bidi", "a\u202eb", r"a\\u202eb"),
        ("bell", "a\x07b", r"a\\x07b"),
        ("lines", "a\n\rb", "error: a b"),
        ("half_a_pair", "a\ud800b", r"a\\ud800b"),
    )
]
CASES += [
    Case("terminal", f"word_{number}", "words", says, {}, {"word": word})
    for number, (word, says) in enumerate(
        (
            ("caf\udce9", r"status 2: .*caf\\udce9 is not UTF-8 as this terminal gives it; set LC_ALL"),
            ("--a=\ud800", r"status 2: .*ud800 is not UTF-8"),
            ("caf\u00e9 \N{SLIGHTLY SMILING FACE}", None),
        )
    )
]
CASES += [
    Case("cards", f"name_{number}", "card", None, {}, {"recipe": name})
    for number, name in enumerate(
        (
            "plain",
            "a`b",
            "`",
            "``",
            "a`` b",
            "`a`",
            "a\n\n# Title",
            "a\r\nb",
            "`\n<script>alert(1)</script>",
            "[x](y)",
            " ",
        )
    )
]


def counts() -> dict[str, int]:
    """Cases of each kind."""
    return dict(Counter(case.kind for case in CASES))
