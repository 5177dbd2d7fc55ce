"""Files of people's ratings, read into one form."""

import json

from toolkit.people import read_people


def test_what_the_writer_was_asked_for_is_kept(tmp_path):
    path = tmp_path / "rated.jsonl"
    rows = [
        {"text": "A tale.", "mean": {"likability": 3}, "prompt": "A well."},
        {"text": "B.", "mean": {"likability": 1}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [r.prompt for r in read_people(path, needed=1)] == ["A well.", ""]
