"""Every row of the list of faults has a test: by its number, or by the name given here."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = range(60, 119)

# Rows that are proved by tests with names of their own.
ELSEWHERE = {
    86: ["a_tile_is_not_recorded_after_a_failed_sync"],
    87: ["every_failing_operation_is_reported_or_harmless_and_can_be_resumed"],
    95: ["test_p17_random_kills_lose_nothing_but_tiles_in_flight"],
    99: [
        "test_p24_an_assembly_to_disk_stays_within_its_limit_and_its_plan",
        "test_row_99_from_the_next_tile_on_a_lowered_limit_holds",
    ],
    102: ["test_p29_a_forked_child_may_assemble", "test_a_forked_child_reads_too"],
    109: ["test_row_47_subnormals_survive_a_caller_that_flushes_them"],
    110: ["test_p33_a_dead_worker_costs_its_tiles_only"],
    117: ["test_p10_a_planted_error_shows"],
}
# Rows without a test, and why.
WITHOUT = {
    101: "overcommit is a setting of the whole machine; buffers are cleared, so touched, when made",
}


def names():
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("rust/**/*.rs"), *ROOT.glob("tests/*.rs")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r"^\s*(?:def|fn) (\w+)\(", text, re.MULTILINE))


def test_every_row_about_stores_and_processes_has_a_test():
    there = names()
    numbered = set()
    for name in there:
        for first, second in re.findall(r"row_(\d+)(?:_and_(\d+))?", name):
            numbered |= {int(number) for number in (first, second) if number}
    for row, tests in ELSEWHERE.items():
        assert set(tests) <= there, f"row {row} names tests that are not there"
    covered = numbered | set(ELSEWHERE) | set(WITHOUT)
    assert [row for row in ROWS if row not in covered] == []
    assert not set(WITHOUT) & (numbered | set(ELSEWHERE))
