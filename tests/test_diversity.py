"""How different texts of one premise are: each measure by hand, equal terms, names, the verb."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from toolkit import cli
from toolkit.errors import UserError
from toolkit.evaluate import charts, measures
from toolkit.evaluate.diversity import (
    AT_EQUAL_LENGTH,
    LEAST_WORDS,
    MEASURES,
    diversity,
    equal_terms,
    name_index,
    premise_values,
    read_writers,
    table,
)
from toolkit.models.embed import LONGEST
from toolkit.narrative.names import names_in
from toolkit.narrative.stylometry import FUNCTION_WORDS

FAST = {"semantic": "stylometry", "style": "stylometry"}  # no network to load
WORDS = "the keeper lit a lamp and the sea went on against her door that winter while nobody came down".split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))


def drawn(rng, n: int, words: int = 60, vocabulary: int = 100) -> list[str]:
    """`n` texts of words drawn from one long-tailed vocabulary."""
    p = 1 / np.arange(1, vocabulary + 1)
    some = FUNCTION_WORDS["en"][:vocabulary]  # what stylometry sees
    return [" ".join(rng.choice(some, words, p=p / p.sum())) + "." for _ in range(n)]


LONG = [" ".join((WORDS[i:] + WORDS[:i]) * 2) + "." for i in range(4)]  # 38 words each


# ---- the measures, by hand


def test_vendi_of_identical_texts_is_one():
    assert measures.vendi(np.tile([[0.6, 0.8]], (5, 1))) == pytest.approx(1)


def test_vendi_of_orthogonal_texts_is_their_number():
    assert measures.vendi(np.eye(5)) == pytest.approx(5)


def test_vendi_of_two_texts_half_alike():
    pair = np.array([[1, 0], [0.5, np.sqrt(0.75)]])  # eigenvalues of K/2: 3/4 and 1/4
    assert measures.vendi(pair) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_distance_is_the_mean_over_pairs():
    vectors = np.array([[1.0, 0], [1, 0], [0, 1]])
    assert measures.pair_distance(vectors) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n", "share"), [(1, 4 / 6), (2, 3 / 4), (3, 2 / 2)])
def test_distinct_runs_by_hand(n, share):
    # a lamp burned / A lamp, fell: 6 words of which 4 differ; 4 pairs, “a lamp” twice; 2 triples
    assert measures.distinct(["a lamp burned.", "A lamp, fell!"], n) == pytest.approx(share)


def test_runs_do_not_reach_across_two_texts():
    assert np.isnan(measures.distinct(["one", "two"], 2))


def test_chinese_counts_by_character():
    assert measures.distinct(["灯亮了。", "灯灭了。"], 1) == pytest.approx(4 / 6)


def test_repeated_text_compresses_to_less():
    assert measures.compression([LONG[0]] * 4) < measures.compression(drawn(np.random.default_rng(0), 4, 36))


def test_self_bleu_of_identical_texts_is_one_and_of_unlike_ones_near_nothing():
    assert measures.self_bleu([LONG[0]] * 3) == pytest.approx(1)
    assert measures.self_bleu([" ".join(f"{c}{i}" for i in range(40)) for c in "abc"]) < 0.02


def test_self_bleu_of_chinese_is_by_character():
    assert (
        measures.self_bleu(["守灯人点亮了灯塔。", "守灯人熄灭了灯塔。"]) > 0.3
    )  # as one “word” they would share nothing


def test_self_repetition_is_the_share_of_a_texts_runs_found_in_another():
    # a b c d e: abcd, bcde; a b c d x y: abcd, bcdx, cdxy
    assert measures.self_repetition(["a b c d e", "a b c d x y"]) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_run_repeated_inside_one_text_only_is_no_self_repetition():
    assert measures.self_repetition(["a b c d a b c d", "k l m n o p"]) == 0


def test_openings_agree_in_the_first_three_words_whatever_case_and_marks():
    texts = ["In the heart of a town …", "“In the heart,” he said.", "In the end, she came.", "One day it rained."]
    assert measures.openings(texts) == pytest.approx(1 / 6)


def test_chinese_openings_agree_in_the_first_four_characters():
    assert measures.openings(["在一座小镇里。", "在一座小岛上。", "在一片海边。"]) == pytest.approx(1 / 3)


def test_skeleton_of_the_same_quarters_is_one_and_of_one_subject_in_another_order_below_nothing():
    story, turned = np.eye(4)[None], np.roll(np.eye(4), 1, axis=0)[None]
    assert measures.skeleton(np.concatenate([story, story])) == pytest.approx(1)
    assert measures.skeleton(np.concatenate([story, turned])) < 0


def test_a_common_subject_alone_is_no_skeleton():
    rng = np.random.default_rng(0)
    quarters = rng.normal(size=(40, 4, 64)) + 2 * rng.normal(size=64)
    quarters /= np.linalg.norm(quarters, axis=-1, keepdims=True)
    assert measures.skeleton(quarters) == pytest.approx(0, abs=0.01)


STORY = (
    "Mara keeps the lighthouse on a rock, alone since her brother Tobias drowned. One night a letter in his hand "
    "washes up in a bottle and asks her to put out the lamp. She rows to the harbour and learns that old Petra forged "
    "it, for the light shows the customs men her boats. Mara goes home, lights the lamp, and burns the letter in it."
)
SWAPPED = (
    "Henrik keeps the mill on a hill, alone since his sister Agnes died of fever. One night a letter in her hand "
    "slides under the door in an envelope and asks him to stop the wheel. He walks to the village and learns that old "
    "Bruno forged it, for the wheel takes the water from his fields. Henrik goes home, starts the wheel, and burns "
    "the letter beside it."
)
OTHER = (
    "Two chess players meet every Sunday in a noisy park and never speak. When one of them begins to lose on purpose, "
    "the other follows him and finds him asleep in a car with his dog. He leaves a sandwich on the hood. Next week he "
    "offers a draw, and for the first time they shake hands and laugh about the weather until it gets dark."
)


def test_the_same_plot_with_other_names_and_places_repeats_the_skeleton_more_than_another_plot():
    settings = {"semantic": "minilm", "measures": ("skeleton",)}
    same = premise_values({"p": [STORY, SWAPPED]}, **settings)["skeleton"]["p"]
    other = premise_values({"p": [STORY, OTHER]}, **settings)["skeleton"]["p"]
    assert same > other + 0.15


def test_names_and_the_premises_words_are_masked_before_shapes_are_compared():
    quarters = measures.quarters_of("When Mara keeps the lighthouses she hears Tobias.", {"Mara", "Tobias"}, "A lighthouse")  # fmt: skip
    assert " ".join(quarters) == "When someone keeps the something she hears someone."


def test_chinese_words_of_the_premise_are_masked():
    quarters = measures.quarters_of("她独自守着灯塔，直到冬天的信来了。", set(), "灯塔里的人")
    assert "".join(quarters) == "她独自守着某，直到冬天的信来了。"


# ---- identical, empty, huge, alone


def test_identical_texts_have_every_measure_at_its_end():
    found = {m: by["p"] for m, by in premise_values({"p": [LONG[0]] * 3}, **FAST).items()}
    assert found["semantic"] == found["style"] == pytest.approx(0, abs=1e-6)
    assert found["vendi"] == pytest.approx(1)
    for measure in ("self_bleu", "self_repetition", "openings", "skeleton"):
        assert found[measure] == pytest.approx(1), measure


def test_identical_texts_are_counted_in_the_table():
    assert "2 the same as an earlier one" in table(diversity({"w": {"p": [LONG[0]] * 3}}, {}, **FAST))


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="empty"):
        premise_values({"p": ["  ", LONG[0]]}, **FAST)


def test_texts_without_a_partner_are_nothing_to_compare():
    with pytest.raises(UserError, match="no premise has two texts"):
        diversity({"w": {"p": [LONG[0]], "q": [LONG[1]]}}, {}, **FAST)


def test_texts_too_short_for_equal_length_still_have_the_measures_of_whole_texts():
    found = premise_values({"p": ["The lamp went out that night and she wept.", "Nobody came down to the dark sea again."]}, **FAST)  # fmt: skip
    for measure in MEASURES:
        assert np.isnan(found[measure]["p"]) == (measure in AT_EQUAL_LENGTH), measure


def test_an_unknown_measure_is_named_with_those_there_are():
    with pytest.raises(UserError, match="called beauty"):
        premise_values({"p": LONG}, measures=("beauty",))


# ---- equal terms


def test_the_fewest_texts_and_the_shortest_length_are_what_all_are_compared_at():
    short = " ".join(WORDS[:5])
    assert equal_terms({"a": {"p": LONG, "q": LONG[:3]}, "b": {"p": [*LONG[:2], short], "r": LONG[:1]}}) == (2, 38)
    assert equal_terms({"a": {"p": [short, short]}}) == (2, None)
    assert equal_terms({"a": {"p": [short]}}) == (None, None)


def test_more_samples_alone_make_no_writer_more_or_less_diverse():
    rng = np.random.default_rng(1)
    many = {str(p): drawn(rng, 8, vocabulary=40) for p in range(20)}
    few = {str(p): drawn(rng, 4, vocabulary=40) for p in range(20)}
    mean = lambda groups, m, count: np.mean(list(premise_values(groups, measures=(m,), count=count, **FAST)[m].values()))  # noqa: E731  # fmt: skip
    for measure in ("distinct_1", "compression", "self_bleu", "vendi"):
        fair = abs(mean(many, measure, 4) - mean(few, measure, 4))
        naive = abs(mean(many, measure, 8) - mean(few, measure, 4))
        assert fair < naive / 3, measure


def test_more_words_alone_make_no_writer_more_or_less_diverse():
    rng = np.random.default_rng(2)
    writers = {"long": {str(p): drawn(rng, 4, 120) for p in range(10)}, "short": {str(p): drawn(rng, 4) for p in range(10)}}  # fmt: skip
    change = diversity(writers, {}, **FAST)["differences"]["short"]["distinct_1"]["value"]
    assert change[1] < 0 < change[2]


def test_a_premise_has_the_same_value_whoever_stands_beside_it():
    rng = np.random.default_rng(3)
    groups = {"p": drawn(rng, 7), "q": drawn(rng, 7)}
    both = premise_values(groups, count=3, words=40, **FAST)
    alone = premise_values({"q": groups["q"]}, count=3, words=40, **FAST)
    for measure in set(MEASURES) - {"skeleton"}:
        assert both[measure]["q"] == alone[measure]["q"], measure


def test_only_what_is_asked_for_is_computed(monkeypatch):
    monkeypatch.setattr("toolkit.evaluate.diversity.embed", lambda texts, model: 1 / 0 if texts else np.zeros((0, 0)))
    assert premise_values({"p": LONG}, measures=("distinct_1", "openings"))["openings"]["p"] == 0


def test_left_out_premises_and_texts_are_counted():
    writers = {"w": {"p": [*LONG, "Too short."], "q": LONG[:2], "r": LONG[:1]}}
    row = diversity(writers, {}, **FAST)["writers"]["w"]
    assert {k: row[k] for k in ("texts", "premises", "single", "short")} == {"texts": 7, "premises": 2, "single": 1, "short": 1}  # fmt: skip


def test_one_premise_has_figures_without_intervals():
    figures = diversity({"w": {"p": LONG}}, {}, **FAST)
    value = figures["writers"]["w"]["measures"]["distinct_1"]["value"]
    assert value[0] is not None
    assert value[1:] == [None, None]
    assert "One premise: no intervals" in table(figures)


# ---- writers against each other


def copies_and_others(n: int = 12) -> dict:
    """Two writers on the same premises: one that hardly varies, one that does."""
    rng = np.random.default_rng(4)
    base = {str(p): drawn(rng, 3) for p in range(n)}
    dull = {p: [texts[0], texts[0] + " Again.", texts[0]] for p, texts in base.items()}
    return {"base": base, "dull": dull}


def test_the_difference_has_the_sign_of_what_changed():
    figures = diversity(copies_and_others(), {}, **FAST)
    for key, measure in MEASURES.items():
        low, high = figures["differences"]["dull"][key]["value"][1:]
        assert (high < 0) if measure.higher else (low > 0), key
    assert "dull’s texts differ among themselves, against base’s, less by distance in meaning" in figures["sentence"]


def test_the_same_texts_are_not_told_apart():
    base = copies_and_others()["base"]
    assert diversity({"base": base, "twin": base}, {}, **FAST)["sentence"] == (
        "None of 12 measures tells twin from base on 12 premises."
    )


def test_one_shared_premise_tells_no_difference():
    writers = {"a": {"p": LONG, "q": LONG[:2]}, "b": {"p": LONG[:3]}}
    figures = diversity(writers, {}, **FAST)
    assert figures["differences"]["b"]["distinct_1"]["value"][1:] == [None, None]
    assert "share one premise only" in figures["sentence"]


def test_a_writer_with_single_texts_is_named_and_left_out():
    figures = diversity({"single": {"p": LONG[:1]}, "b": {"p": LONG}, "c": {"p": LONG}}, {}, **FAST)
    assert list(figures["differences"]) == ["c"]
    assert "single: left out, no premise with two texts (1 with one)" in table(figures)


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        diversity(copies_and_others(4), {}, **FAST, out=tmp_path / name)
    for file in ("figures.json", "diversity.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_picture_is_one_svg_with_every_writer_and_measure():
    svg = charts.dots({"style ↑": [[0.5, 0.4, 0.6], [0.7, None, None]], "names": [[None] * 3] * 2}, ["a", "b$"], "L", "T")  # fmt: skip
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(word in svg for word in ("style ↑", "names", ">a<", "b$", 'aria-label="T"'))


# ---- names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("At dawn Elara’s brother met Ann Lee by the sea.", {"Elara", "Ann", "Lee"}),
        ("The Keeper slept. Later the keeper woke.", set()),  # also written small: no name
        ("Suddenly it rained. Nobody came.", set()),  # only ever first
        ("Elara slept, and then Elara woke. Elara ran.", {"Elara"}),
        ("On Monday in May, Captain Voss met the King.", {"Voss"}),
        ("He said, “Come at once,” and I’m sure Mr. Barasa heard.", {"Barasa"}),
        ("Title: The Forgotten Tide\nA boat came in.", set()),
    ],
)
def test_names_are_capitals_inside_a_sentence(text, names):
    assert names_in([text]) == [names]


def test_a_word_that_only_begins_sentences_is_a_name_where_another_text_shows_it():
    assert names_in(["Elara ran.", "There stood Elara."])[0] == {"Elara"}


def test_the_index_is_the_chance_that_two_texts_of_two_premises_share_a_name():
    groups = {
        "p": ["At dawn Elara left the town.", "At dusk Otto came home again."],
        "q": ["In winter Elara ran home.", "Then Elara and Otto met."],
    }
    found = name_index(groups, {})
    assert found["index"][0] == pytest.approx(3 / 4)  # Elara: with both texts of q; Otto: with one of them
    assert found["top"][0] == ["Elara", 3, 2]


def test_a_name_used_only_within_one_premise_does_not_count():
    groups = {"p": ["At dawn Elara left.", "At dusk Elara came."], "q": ["In winter Otto ran.", "Then Otto fell."]}
    assert name_index(groups, {})["index"][0] == 0


def test_a_name_that_the_premise_gave_does_not_count():
    groups = {"p": ["At dawn Elara left the town."], "q": ["In winter Elara ran home."]}
    assert name_index(groups, {"p": "Elara must leave."})["index"][0] == 0
    assert name_index(groups, {"p": "A girl must leave."})["index"][0] == 1


def test_names_of_chinese_texts_are_not_found_which_is_not_none_shared():
    found = name_index({"p": ["莉娜守着灯塔，等着信。"], "q": ["莉娜离开了小镇，没有回头。"]}, {})
    assert found["index"] == [None, None, None]
    assert "English only" in found["why"]


def test_names_count_in_the_first_words_only_where_length_is_held_equal():
    late = " ".join(WORDS * 3) + " until at last Elara came."
    assert name_index({"p": [late], "q": [late]}, {}, words=40)["index"][0] == 0


def test_the_interval_of_the_index_covers_it():
    rng = np.random.default_rng(5)
    groups = {str(p): [f"At dawn {n} left." for n in rng.choice(["Elara", "Otto", "Ann", "Ben"], 3)] for p in range(20)}
    value, low, high = name_index(groups, {})["index"]
    assert low < value < high
    assert value == pytest.approx(1 / 4, abs=0.08)


# ---- files and the verb


def write(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def rows_of(groups: dict, **more) -> list[dict]:
    return [{"text": t, "premise_id": p, **more} for p, texts in groups.items() for t in texts]


def test_origins_of_one_file_are_its_writers(tmp_path):
    file = write(tmp_path / "f.jsonl", rows_of({"p": LONG}, origin="base") + rows_of({"p": LONG[:2]}, origin="aligned"))
    writers = read_writers([file])[0]
    assert {name: len(groups["p"]) for name, groups in writers.items()} == {"base": 4, "aligned": 2}


def test_several_files_are_writers_by_name_and_origin(tmp_path):
    one = write(tmp_path / "one.jsonl", rows_of({"p": LONG}))
    two = write(tmp_path / "two.jsonl", rows_of({"p": LONG}, origin="a") + rows_of({"p": LONG}, origin="b"))
    assert list(read_writers([one, two])[0]) == ["one", "two: a", "two: b"]


def test_a_run_folder_is_its_evaluation(tmp_path):
    (tmp_path / "run" / "evaluate").mkdir(parents=True)
    write(tmp_path / "run" / "evaluate" / "plots.jsonl", rows_of({"p": LONG}))
    assert list(read_writers([tmp_path / "run"])[0]) == ["run"]


def test_premises_without_id_are_grouped_by_their_words(tmp_path):
    file = write(tmp_path / "f.jsonl", [{"text": t, "premise": p} for p in ("A lamp.", "A sea.") for t in LONG])
    writers, premises, _ = read_writers([file])
    assert [len(texts) for texts in writers["f"].values()] == [4, 4]
    assert sorted(premises.values()) == ["A lamp.", "A sea."]


def test_a_file_of_ratings_is_grouped_by_group_and_system(tmp_path):
    file = write(tmp_path / "f.jsonl", [{"text": t, "group": "g", "system": s} for s in ("x", "y") for t in LONG])
    assert {name: list(groups) for name, groups in read_writers([file])[0].items()} == {"x": ["g"], "y": ["g"]}


def test_a_file_without_premises_is_one_group_and_says_so(tmp_path):
    writers, _, notes = read_writers([write(tmp_path / "f.jsonl", [{"text": t} for t in LONG])])
    assert [len(texts) for texts in writers["f"].values()] == [4]
    assert "names no premises" in notes[0]


def test_the_same_words_twice_without_ids_are_two_texts(tmp_path):
    file = write(tmp_path / "f.jsonl", [{"text": LONG[0], "premise": "A lamp."}] * 3)
    assert [len(texts) for texts in read_writers([file])[0]["f"].values()] == [3]


def wrong(capsys, *argv) -> str:
    """The error line of a command the user got wrong."""
    assert cli.main(["diversity", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[0]


def test_what_a_user_gets_wrong_is_told(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", rows_of({"p": LONG}))
    assert "no file at" in wrong(capsys, tmp_path / "gone.jsonl")
    assert "is no finished run" in wrong(capsys, tmp_path)
    assert "named twice" in wrong(capsys, good, good)
    empty = write(tmp_path / "empty.jsonl", [*rows_of({"p": LONG}), {"text": " ", "premise_id": "p"}])
    assert "empty.jsonl:5: text is empty" in wrong(capsys, empty)
    huge = write(tmp_path / "huge.jsonl", [{"id": "big", "text": "x" * (LONGEST + 1), "premise_id": "p"}])
    assert f"the text big has {LONGEST + 1:,} characters" in wrong(capsys, huge)
    assert "no premise has two texts" in wrong(capsys, write(tmp_path / "one.jsonl", rows_of({"p": LONG[:1]})))
    mixed = write(tmp_path / "mixed.jsonl", [*rows_of({"p": LONG}), {"id": "odd", "text": "Alone."}])
    assert "the text odd names no premise" in wrong(capsys, mixed)


def test_an_embedding_model_that_is_not_there_is_told_offline(tmp_path, capsys):
    file = write(tmp_path / "f.jsonl", rows_of({"p": LONG}))
    assert "cannot load the embedding model nobody/nothing" in wrong(
        capsys, file, "--semantic", "nobody/nothing", "--offline"
    )


def test_the_verb_prints_a_table_that_ends_with_the_sentence_and_keeps_figures_and_picture(tmp_path, capsys):
    writers = copies_and_others(4)
    rows = [row for name, groups in writers.items() for row in rows_of(groups, origin=name)]
    file = write(tmp_path / "f.jsonl", rows)
    assert cli.main(["diversity", str(file), "--semantic", "stylometry", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    assert shown.rstrip().endswith(figures["sentence"])
    assert all(m.label in shown for m in MEASURES.values())
    assert "3 texts a premise are compared" in shown
    assert "Under 10 premises" in shown
    assert ElementTree.parse(tmp_path / "out" / "diversity.svg")


def test_json_is_the_figures(tmp_path, capsys):
    file = write(tmp_path / "f.jsonl", rows_of({"p": LONG, "q": LONG}))
    assert cli.main(["diversity", str(file), "--semantic", "stylometry", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["count"], figures["words"]) == (4, 38)
    assert set(figures["writers"]["f"]["measures"]) == {*MEASURES, "vendi_per_text"}


def test_chinese_texts_have_every_measure_but_names():
    texts = [
        "守灯人在海边等了三十年，直到一封旧信随潮水漂来。她读完信，点亮了灯，第一次哭了出来。",
        "镇上的钟在同一分钟停了，警长不信巧合。他挨家走访，最后在自己的抽屉里找到了那把钥匙。",
    ]
    row = diversity({"w": {"p": texts, "q": texts}}, {"p": "灯塔", "q": "钟"}, **FAST)["writers"]["w"]
    assert all(row["measures"][m]["value"][0] is not None for m in MEASURES)
    assert row["names"]["index"][0] is None
    assert min(len(t) for t in texts) > LEAST_WORDS


def test_the_docs_define_every_measure():
    text = (Path(__file__).resolve().parents[1] / "docs" / "diversity.md").read_text(encoding="utf-8")
    for key in set(MEASURES) - {"distinct_2", "distinct_3"}:  # the row of distinct_1 … _3
        assert f"`{key}`" in text, key
