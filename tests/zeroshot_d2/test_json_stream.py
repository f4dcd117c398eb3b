"""JSON that does not fit in memory: the same as the parsed whole, whatever is read at a time."""

import json

import pytest

from zeroshot_d2.json_stream import stream_json_array, stream_json_arrays, write_json_array, write_json_arrays


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streamed_json_equals_parsed_json(tmp_path, chunk):
    content = {
        "info": {"text": 'a "quoted" [bracket], {brace} and \\', "n": -1.5e3},
        "a": [{"x": [1, 2, {"y": "é"}]}, 12345, -0.25, "z", None, True, []],
        "empty": [],
        "last": 12,
    }
    (tmp_path / "x.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    assert [e for _, e in stream_json_arrays(tmp_path / "x.json", ("a", "empty"), chunk)] == content["a"]


def test_bad_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2')
    with pytest.raises(ValueError, match="ends in the middle"):
        list(stream_json_arrays(tmp_path / "x.json", ("a",)))
    (tmp_path / "x.json").write_text('{"a": [1]}')
    with pytest.raises(ValueError, match=r"no array \['b'\]; it has \['a'\]"):
        list(stream_json_arrays(tmp_path / "x.json", ("b",)))
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not JSON of the expected form"):
        list(stream_json_arrays(tmp_path / "x.json", ("b",)))
    with pytest.raises(FileNotFoundError, match="gone.json"):
        list(stream_json_arrays(tmp_path / "gone.json", ("b",)))


def test_arrays_that_need_not_fit_in_memory_are_written_element_by_element(tmp_path):
    content = {"info": {"a": [1]}, "images": ({"id": k} for k in range(3)), "none": iter(()), "text": "ü"}
    write_json_arrays(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "info": {"a": [1]},
        "images": [{"id": 0}, {"id": 1}, {"id": 2}],
        "none": [],
        "text": "ü",
    }
    assert list(stream_json_arrays(tmp_path / "a.json", ["images"])) == [("images", {"id": k}) for k in range(3)]
    for elements in ([], [{"a": 1}, 2, "ü"]):
        write_json_array(tmp_path / "b.json", iter(elements))
        assert list(stream_json_array(tmp_path / "b.json")) == elements


def test_a_writing_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_json_arrays(tmp_path / "a.json", {"a": (1 // k for k in (1, 0))})
    with pytest.raises(ValueError, match="float"):
        write_json_array(tmp_path / "b.json", [float("nan")])
    assert list(tmp_path.iterdir()) == []
