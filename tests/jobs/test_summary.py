import pytest
from rich.cells import cell_len

from jobs.summary import facts, finished, label_counts, planned, size, standing, text, verified

SUMMARY = {
    "run_id": "20260102-030405-9f0c3a",
    "output": "out/topics",
    "rows_in": 2048,
    "rows_out": 2048,
    "rows_filtered": 0,
    "rows_quarantined": 0,
    "reasons": {},
    "units_total": 4,
    "units_done": 4,
    "units_skipped": 0,
    "units_quarantined": 0,
    "tokens": 167_000,
    "padding_tokens": 7_000,
    "seconds": 19.2,
    "tokens_per_second": 21_060.4,
}

PLAN = {
    "output": "out/topics",
    "files": 12,
    "files_unreadable": 0,
    "partitions": 1,
    "units": 28,
    "rows": 56_684,
    "rows_pruned": 0,
    "bytes": 91_000_000,
    "pools": [{"pool": None, "actors": 2, "threads": 1, "device": "cpu"}],
    "tokens_estimated": 4_600_000,
    "seconds_estimated": 231.5,
    "rows_sampled": 256,
    "annotations": {
        "topic": {"model": "wheel:m/model", "digest": "53aa51172d14" + "0" * 52, "engine": "torch", "dtype": "bfloat16"}
    },
    "notes": [],
}


def shown(part, width=80):
    return text([part], width=width).splitlines()


def test_a_run_without_trouble_points_to_its_output_and_to_verify():
    assert shown(finished(SUMMARY)) == [
        "rows    2,048 in, 2,048 out",
        "speed   21,060 tokens/s, 4% padding, 0:19 in all",
        "output  out/topics/data",
        "next    corpusmill verify out/topics",
    ]


def test_rows_of_several_versions_are_told():
    same, other = {"torch": "2.13.0", "arithmetic": "2"}, {"torch": "2.12.0", "arithmetic": "2"}
    assert shown(finished({**SUMMARY, "computed_by": [same]})) == shown(finished(SUMMARY))
    assert shown(finished({**SUMMARY, "computed_by": [other, same]}))[2:3] == [
        "versions  of several, torch 2.12.0 and 2.13.0: last bits may differ"
    ]


def test_what_a_trial_found_is_told():
    tried = [
        {"engine": "torch", "token_budget": 2048, "tokens_per_second": 7021.4},
        {"engine": "openvino", "token_budget": 2048, "tokens_per_second": None},
        {"engine": "torch", "token_budget": 1024, "tokens_per_second": 8000.0},
    ]
    told = {**SUMMARY, "annotations": {"topic": {"engine": "torch", "token_budget": 1024, "tried": tried}, "b": {}}}
    assert shown(finished(told), width=200)[2] == (
        "engine  topic: torch by 1,024 tokens, after a trial (torch by 2,048: 7,021 tokens/s, openvino by 2,048: "
        "failed, torch by 1,024: 8,000 tokens/s)"
    )


def test_how_far_int8_agrees_with_float32_is_told():
    told = {**SUMMARY, "annotations": {"topic": {"engine": "torch", "agreement": 0.99341}, "b": {"agreement": None}}}
    assert shown(finished(told))[2] == "int8    topic: agreement with float32 0.9934, on rows of this corpus"


def test_what_was_filtered_and_quarantined_is_told_with_reasons_and_what_to_do():
    told = {
        **SUMMARY,
        "rows_out": 2000,
        "rows_filtered": 43,
        "rows_quarantined": 5,
        "reasons": {"over_max_chars": 1, "blank_text": 4},
        "output": "out/my topics/",
    }
    assert shown(finished(told)) == [
        "rows       2,048 in, 2,000 out, 43 filtered, 5 quarantined (4 blank_text, 1 over_max_chars)"[:91].rsplit(
            " ", 1
        )[0],
        "           over_max_chars)",
        "speed      21,060 tokens/s, 4% padding, 0:19 in all",
        "output     out/my topics/data",
        "set aside  out/my topics/quarantine: each row with the reason",
        "next       corpusmill retry 'out/my topics': once more, when the cause is gone",
    ]


def test_a_file_of_unknown_length_in_the_quarantine_is_told_though_no_row_is_counted():
    told = {**SUMMARY, "reasons": {"damaged_footer": 1}, "units_quarantined": 1}
    assert shown(finished(told))[0] == "rows       2,048 in, 2,048 out, 0 quarantined (1 damaged_footer)"


def test_a_run_that_went_on_tells_what_was_there_before():
    assert "units   1 now, 3 were committed before" in shown(finished({**SUMMARY, "units_done": 1, "units_skipped": 3}))


def test_a_run_with_nothing_to_do_says_so_and_no_speed():
    told = {**SUMMARY, "units_done": 0, "units_skipped": 4, "tokens": 0, "padding_tokens": 0, "tokens_per_second": None}
    assert shown(finished(told))[1:3] == [
        "units   nothing was left to do: all 4 were committed before",
        "output  out/topics/data",
    ]


def test_a_start_up_is_told_stage_by_stage():
    startup = {
        "planning": 2.1,
        "ray": 4.0,
        "trial": 0.0,
        "actors": 1.8,
        "imports": 2.42,
        "models": 0.4,
        "first_unit": 1.1,
    }
    assert shown(finished({**SUMMARY, "startup": startup}), 120)[2] == (
        "start-up  0:12: planning 2.1 s, Ray 4.0 s, actors 1.8 s, imports 2.4 s, models 0.4 s, first unit 1.1 s"
    )


def test_a_profile_tells_the_shares_of_the_actors_time_and_where_it_lies():
    profile = {
        "trace": "out/topics/metadata/profile.json",
        "picture": "out/topics/metadata/profile.png",
        "units": 3,
        "units_before": 1,
        "actors": 2,
        "seconds": {"driver": {"annotating": 9.0}, "actors": {"forward topic": 15.0, "waiting": 4.96, "rest": 0.04}},
    }
    assert shown(finished({**SUMMARY, "profile": profile}), 120)[3:-1] == [
        "profile  forward topic 75%, waiting 25%, rest <1% of 2 actors, 20.0 s together",
        "         of this execution alone, not of the 1 unit before",
        "         out/topics/metadata/profile.json: open it in ui.perfetto.dev or chrome://tracing",
        "         out/topics/metadata/profile.png",
    ]
    without = {**profile, "picture": None, "units_before": 0, "actors": 1}
    assert shown(finished({**SUMMARY, "profile": without}), 120)[3:-1] == [
        "profile  forward topic 75%, waiting 25%, rest <1% of 1 actor, 20.0 s together",
        "         out/topics/metadata/profile.json: open it in ui.perfetto.dev or chrome://tracing",
    ]


def test_labels_are_ranked_with_bars():
    lines = shown(label_counts({"topic": {"science": 250, "games": 748, "rare": 2}}), 60)
    assert [line.split() for line in lines] == [
        ["topic", "games", "━" * 30, "748", "75%"],
        ["science", "━" * 10, "250", "25%"],
        ["rare", "2", "<1%"],
    ]


def test_of_many_labels_the_first_are_shown_and_the_rest_is_counted():
    lines = shown(label_counts({"topic": {f"label {n:02}": 100 - n for n in range(14)}}))
    assert len(lines) == 11
    assert lines[-1].split()[:2] == ["4", "more"]
    assert "354" in lines[-1]


@pytest.mark.parametrize("width", [40, 50, 80, 160])
def test_no_line_of_labels_is_wider_than_the_terminal(width):
    counts = {
        "a_very_long_name_of_an_annotation": {"a label that is far too long for anything" * 3: 10, "日本語" * 30: 5}
    }
    assert all(cell_len(line) <= width for line in shown(label_counts(counts, width), width))


def test_no_labels_give_no_lines():
    assert "".join(shown(label_counts({}))).strip() == ""


def test_a_plan_tells_corpus_units_models_and_cost():
    assert shown(planned(PLAN)) == [
        "corpus  12 files, 86.8 MiB, 56,684 rows",
        "units   28 in 1 partition",
        "actors  2 on cpu, 1 thread each",
        "topic   wheel:m/model (53aa51172d14…), torch, bfloat16",
        "cost    about 4,600,000 tokens, 3:52 of computing (judged by 256 rows)",
        "output  out/topics",
    ]


def test_a_plan_tells_what_cannot_be_read_what_is_pruned_and_what_needs_no_model():
    told = {
        **PLAN,
        "files": 1,
        "files_unreadable": 1,
        "rows_pruned": 9,
        "seconds_estimated": None,
        "annotations": {"shout": {"model": None, "digest": None, "engine": None, "dtype": None}},
        "notes": ["a.parquet: the footer is damaged"],
    }
    assert shown(planned(told), 100) == [
        "corpus  1 file (1 unreadable), 86.8 MiB, 56,684 rows, 9 more left out by the filter",
        "units   28 in 1 partition",
        "actors  2 on cpu, 1 thread each",
        "shout   no model",
        "output  out/topics",
        "note    a.parquet: the footer is damaged",
    ]


STATUS = {
    "path": "out/topics",
    "finished": True,
    "running": None,
    "epoch": 2,
    "units_done": 7,
    "units_total": 12,
    "units_quarantined": 0,
    "rows_done": 700,
    "rows_total": 1200,
    "rows_out": 690,
    "rows_filtered": 7,
    "rows_quarantined": 3,
    "reasons": {"null_text": 3},
    "tokens": 12_345,
    "damaged": (),
}


def test_a_status_tells_state_units_and_rows():
    assert shown(standing(STATUS)) == [
        "output  out/topics",
        "state   finished",
        "units   7 of 12",
        "rows    700 of 1,200 read: 690 out, 7 filtered, 3 quarantined (3 null_text)",
        "tokens  12,345",
    ]


def test_a_status_tells_who_runs_or_how_to_go_on_and_what_is_damaged():
    running = {**STATUS, "running": {"pid": 4711, "host": "here", "started": "2026-01-02T03:04:05Z", "run_id": "x"}}
    assert "state   running: process 4711 on here, since 2026-01-02T03:04:05Z" in shown(standing(running))
    stopped = shown(standing({**STATUS, "finished": False, "damaged": ("receipts/a.json: it was edited",)}))
    assert stopped[1] == "state    unfinished: the same `corpusmill run` goes on"
    assert stopped[-1] == "damaged  receipts/a.json: it was edited"


def test_verify_tells_each_fault_as_it_is_and_how_many():
    lines = shown(verified(["data/a.parquet: a [torn] page", "b\x1b: gone"], True, {"parts": 4}))
    assert lines == ["parts  4", "fault  data/a.parquet: a [torn] page", "fault  b : gone", "2 faults found"]


def test_verify_of_a_good_output_says_what_was_proved():
    assert shown(verified([], True, {})) == ["verified: every row stands in exactly one place"]


def test_verify_of_an_unfinished_output_says_how_to_go_on():
    assert shown(verified([], False, {})) == [
        "no fault so far, but the output is unfinished: the same `corpusmill run` goes on"
    ]


def test_facts_tell_units_by_the_end_of_their_key_and_leave_out_what_is_not_there():
    values = {
        "output": "out/x",
        "rows_done": 56_684,
        "data_bytes": 3_250_586,
        "seconds": 92,
        "share": 0.25,
        "finished": False,
        "reasons": {"blank_text": 4, "null_text": 1},
        "notes": ["one", "two"],
        "manifest": None,
        "faults": [],
    }
    assert shown(facts(values)) == [
        "output      out/x",
        "rows done   56,684",
        "data bytes  3.1 MiB",
        "seconds     1:32",
        "share       0.2",
        "finished    no",
        "reasons     blank_text 4, null_text 1",
        "notes       one",
        "            two",
    ]


@pytest.mark.parametrize(
    ("amount", "told"), [(0, "0 bytes"), (812, "812 bytes"), (1024, "1.0 KiB"), (2**60, "1,024.0 PiB")]
)
def test_sizes(amount, told):
    assert size(amount) == told


def test_color_is_for_terminals_alone():
    assert "\x1b[" not in text([verified([], True, {})])
    assert "\x1b[" in text([verified([], True, {})], color=True)
