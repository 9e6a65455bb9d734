import json
import os

import pytest

from concept_encoder.utils.files import whole_folder, write_json


def test_json_is_strict_and_replaced_as_a_whole(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_is_for_those_that_the_users_own_rule_allows(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "deep" / "x.json", {"a": 1})
        write_json(tmp_path / "deep" / "x.json", {"a": 2})
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "x.json").stat().st_mode & 0o777 == 0o666 & ~mask


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
