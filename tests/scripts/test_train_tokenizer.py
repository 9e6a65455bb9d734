import os

import pytest
from killing import killed_at, visible
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from concept_encoder.scripts.train_tokenizer import main


@pytest.fixture
def line(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "seed")
    words = ["--output_dir", str(tmp_path / "vocabulary"), "--vocab_size", "120", "--dataset_name", "microworld"]
    return [*words, "--tokenizer_name", str(tmp_path / "seed"), "--max_train_documents", "40"]


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), [(PreTrainedTokenizerBase, "save_pretrained"), (os, "replace")])
def test_killed_while_it_writes_the_same_command_can_be_typed_again(line, tmp_path, owner, name):
    assert killed_at(lambda: main(line), owner, name)
    assert visible(tmp_path) == {"seed"}
    main(line)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "vocabulary")) <= 120


def test_a_folder_with_files_is_refused_and_an_empty_one_filled(line, tmp_path, capsys):
    (tmp_path / "vocabulary").mkdir()
    main(line)
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert stop.value.code == 2
    assert f"{tmp_path / 'vocabulary'} is not empty; name a new folder" in capsys.readouterr().err
