import json
import shutil

import pytest
from fuzzing import VALUES, cases, mutated, names_one_of
from hypothesis import given
from hypothesis import strategies as st

from concept_encoder.utils.untrusted import MOST_VALUES, inside, is_hub_id, read_object, read_tokenizer, read_yaml


@pytest.mark.slow
@cases(800)
@given(st.one_of(st.binary(max_size=40), VALUES.map(lambda value: json.dumps(value).encode("utf-8", "replace"))))
def test_any_bytes_are_an_object_or_refused_by_name(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_object(path), dict)
    except ValueError as error:
        names_one_of(error, [str(path)])


@pytest.mark.slow
@cases(800)
@given(st.one_of(st.binary(max_size=40), st.text(st.sampled_from("ab:-[]{}&*!|>'\"\n #%@?,"), max_size=40)))
def test_any_text_is_yaml_or_refused_by_name(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        read_yaml(path)
    except ValueError as error:
        names_one_of(error, [str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a JSON object, got list"),
        ("{", "cannot be read as JSON: Expecting"),
        ('{"a": NaN}', "cannot be read as JSON: NaN is not JSON; an unknown number is null"),
        ("[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
    ],
)
def test_json_that_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_object(tmp_path / "x.json")


def test_yaml_makes_no_object_and_runs_nothing(tmp_path):
    (tmp_path / "x.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ValueError, match=r"could not determine a constructor for the tag .*os\.mkdir"):
        read_yaml(tmp_path / "x.yaml")
    assert not (tmp_path / "made").exists()


def test_a_few_aliases_cannot_stand_for_more_than_memory_holds(tmp_path):
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for text in ("\n".join(lines), "a: &a [*a]"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"with its aliases written out it has more than {MOST_VALUES:,} values"):
            read_yaml(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "link", "link/x"])
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "x").write_text("secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"leads out of .*in; put the file itself into the folder"):
        inside(tmp_path / "in", name)
    assert inside(tmp_path / "in", "a/b") == tmp_path / "in" / "a" / "b"


# ---------------------------------------------------------------------------------------------------------- tokenizers

TRAP = "import os\nos.mkdir({made!r})\nfrom transformers import PreTrainedTokenizerFast as Evil\n"


def test_the_code_of_a_tokenizer_is_never_run(pretrained, tmp_path, monkeypatch):
    folder = shutil.copytree(pretrained, tmp_path / "evil")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(TRAP.format(made=str(tmp_path / "made")))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask, and take this for consent
    with pytest.raises(ValueError, match="needs code of its own, which is never run; save one of a class of"):
        read_tokenizer(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@cases(150)
@given(st.data())
def test_a_broken_tokenizer_is_read_or_refused_by_name(pretrained, tmp_path, data):
    folder = tmp_path / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (pretrained / name).read_bytes()
        if data.draw(st.booleans()):
            content = json.dumps(data.draw(mutated(json.loads(content)))).encode()
        elif not data.draw(st.integers(0, 3)):
            content = content[: data.draw(st.integers(0, len(content)))]
        (folder / name).write_bytes(content)
    try:
        assert read_tokenizer(folder) is not None
    except (ValueError, OSError) as error:
        names_one_of(error, [str(folder)])


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("me/run", True), ("run", False), ("a/b/c", False), ("./run", False), ("/run", False), ("~/x", False)],
)
def test_the_form_of_a_hub_id(name, is_id):
    assert is_hub_id(name) is is_id
