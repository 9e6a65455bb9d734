import json

import pytest

from concept_encoder.utils.files import whole_folder, write_json


def test_json_is_strict_and_replaced_as_a_whole(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "runs" / "twin"

    def interrupted():
        with whole_folder(target) as staged:
            (staged / "a").write_text("")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        interrupted()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    with whole_folder(target) as staged:
        (staged / "a").write_text("")
        assert not target.exists()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "runs", target, target / "a"]
