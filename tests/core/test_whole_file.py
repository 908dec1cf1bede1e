import pytest

from fewstep.whole_file import whole


def test_a_file_is_replaced_where_all_went_well_and_else_stays_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    with whole(file) as part:
        part.write_text("one")
        assert part.parent == tmp_path
        assert not file.exists()
    with pytest.raises(RuntimeError, match="half-way"), whole(file) as part:
        part.write_text("tw")
        raise RuntimeError("half-way")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "one"
