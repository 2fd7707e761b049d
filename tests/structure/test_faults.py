"""Faults that were once found by trying, by kind: the test that fails where one comes back.

A fact is told in our own words; a section is a kind of fault. A test that is renamed or removed
without its like is missed here.
"""

import ast
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Kind of fault -> what once went wrong -> the tests that hold it, by file.
TOKENS, FATE, CODE, MACHINE = "tokens", "fate", "code and writes", "machine"
SAID, PROCESSES, BOUNDS, HANDED = "what is said", "processes", "bounds", "hand-offs"
KINDS = (TOKENS, FATE, CODE, MACHINE, SAID, PROCESSES, BOUNDS, HANDED)
CASES = "hardship/test_cases.py::test_a_case_gives_what_its_last_line_expects"
REAL = "prep/tokenizer/test_real_tokenizers.py::"
REFERENCE = "prep/tokenizer/test_reference.py::"
SQL = "prep/documents/test_source_sql.py::"
LITTER = "prep/readers/test_litter.py::"
CHECKPOINT = "train/trainer/test_checkpoint.py::"
ERRORS = "cli/test_cli_errors.py::"
TROUBLE = "hardship/test_machine.py::"
SEAL = "train/record/test_seal.py::"
HELD = "train/evaluation/test_held_out.py::"
SCHEMA = "mixtures/manifest/test_schema_4.py::"
RULES = "prep/filters/test_decontaminate.py::"
KILL = "hardship/test_build_kill.py::"
RECIPES = "hardship/test_hostile_recipes.py::"
BOUNDED = "hardship/test_bounded.py::"
WORKERS = "prep/runtime/test_workers.py::"
DATABASE = "prep/runtime/test_database.py::"

FAULTS: tuple[tuple[str, str, str], ...] = (
    (TOKENS, "added tokens that are text were never matched",
     REFERENCE + "test_tokens_that_are_text_are_matched_with_all_their_flags"),
    (TOKENS, "code and web documents had other ids than their file gives",
     REAL + "test_documents_and_fuzzed_strings_have_the_ids_of_the_unmodified_file"),
    (TOKENS, "the user's file with runs of spaces gave other ids, end to end", CASES),
    (TOKENS, "the check derived its reference as the thing it checks",
     REFERENCE + "test_the_proof_and_the_samples_do_not_share_the_derivation"),
    (TOKENS, "a token that is added and in the vocabulary too was refused",
     REAL + "test_documents_and_fuzzed_strings_have_the_ids_of_the_unmodified_file"),
    (TOKENS, "long texts were cut where the tokenizer has no boundary",
     REFERENCE + "test_only_a_tokenizer_with_boundaries_is_cut_into_windows"),
    (TOKENS, "any tokenizer without a proof of its boundaries was cut",
     "prep/tokenizer/test_long_texts.py::test_a_tokenizer_without_a_proof_is_not_cut"),
    (TOKENS, "samples left long texts out, and there were none by default",
     REFERENCE + "test_samples_are_taken_by_default_and_long_texts_among_them"),
    (TOKENS, "two libraries know different versions of Unicode",
     REAL + "test_characters_that_are_newer_than_a_librarys_tables_are_those_of_the_reference"),
    (TOKENS, "a library that gives other ids was believed after a proof without such characters",
     "prep/tokenizer/test_backends.py::test_a_library_that_gives_other_ids_is_told_and_not_used"),
    (TOKENS, "a tokenizer that drops white space was taken without a word",
     REFERENCE + "test_what_a_tokenizer_drops_is_shown_by_an_example"),
    (FATE, "times followed the machine's time zone", DATABASE
     + "test_the_time_zone_is_utc_on_any_machine"),
    (FATE, "types of JSON were guessed batch by batch", SQL
     + "test_a_records_fate_does_not_depend_on_the_others"),
    (FATE, "long whole numbers became doubles",
     "prep/readers/test_jsonlines.py::test_whole_numbers_are_exact_at_any_length"),
    (FATE, "a function that asks the clock passed for one of the record", SQL
     + "test_no_function_that_is_let_through_gives_a_time_of_itself"),
    (FATE, "every function that is not consistent is known from the library's own list", SQL
     + "test_every_function_of_duckdb_that_is_not_consistent_is_refused"),
    (FATE, "samples and limits could be smuggled into an expression", SQL
     + "test_what_is_not_one_expression_is_refused_and_does_nothing"),
    (FATE, "names, kept columns and places had no part in a manifest's digest", SCHEMA
     + "test_the_digest_of_documents_covers_names_kept_columns_and_places"),
    (FATE, "caches of `datasets` were read as data",
     "hardship/test_cases.py::test_a_case_gives_what_its_user_expects"),
    (FATE, "a folder that `datasets` saved was refused for its side files", LITTER
     + "test_a_folder_of_datasets_is_read_without_its_caches_and_side_files"),
    (FATE, "a snapshot of the hub was refused for its side files", LITTER
     + "test_a_snapshot_of_the_hub_is_read"),
    (FATE, "columns of mixed types and keys that come late were refused", SQL
     + "test_columns_that_drift_between_files_have_one_meaning"),
    (FATE, "names with dots could not be written", SQL + "test_any_column_name_can_be_written"),
    (FATE, "each of these once more as its user met it", CASES),
    (CODE, "an expression of a recipe wrote files, attached and installed", SQL
     + "test_what_is_not_one_expression_is_refused_and_does_nothing"),
    (CODE, "what can't be parsed was passed on", SQL
     + "test_what_does_not_follow_from_the_record_is_refused"),
    (CODE, "every connection could write, attach, install and read", DATABASE
     + "test_a_connection_writes_and_reads_nothing_beyond_itself"),
    (CODE, "the metadata of a checkpoint ran what stood in it", CHECKPOINT
     + "test_metadata_that_would_run_code_is_not_run"),
    (CODE, "a value in a checkpoint ran what stood in it", CHECKPOINT
     + "test_a_value_that_would_run_code_is_not_run"),
    (CODE, "checkpoints of old releases were unpickled",
     "train/weights/test_mdl.py::test_checkpoints_of_old_releases_are_read_without_their_pickles"),
    (CODE, "a setting of `sql` overwrote a manifest or made a log", ERRORS
     + "test_sql_is_one_select_that_reads_our_views"),
    (CODE, "`sql` read any file", ERRORS + "test_sql_reads_no_file_beside_the_build"),
    (CODE, "a shard led to other files",
     "prep/rows/test_open_shards.py::test_what_a_shard_does_not_hold_itself_is_refused"),
    (MACHINE, "a file was left out as broken where the disk failed", TROUBLE
     + "test_no_errno_of_a_read_is_taken_for_a_broken_file"),
    (MACHINE, "a shard was called damaged where the disk failed", TROUBLE
     + "test_no_errno_of_a_read_is_taken_for_a_damaged_shard"),
    (MACHINE, "a library's lack of memory, threads or handles had a false remedy", TROUBLE
     + "test_trouble_of_libraries_is_known_by_what_they_raise"),
    (MACHINE, "handles, memory and disk ended a build in a traceback", TROUBLE
     + "test_a_build_in_trouble_ends_in_one_line_and_a_rerun_finishes"),
    (MACHINE, "what was begun on a full disk stood in the way of the next try",
     "hardship/test_disk.py::test_what_a_verb_writes_to_a_full_disk_is_one_line_and_takes_no_room"),
    (MACHINE, "a build whose streams were closed could write words into its files",
     "cli/test_streams.py::test_a_build_without_any_stream_writes_no_word_into_its_files"),
    (MACHINE, "a clock that was set back parted a purge from the one before it",
     "mixtures/manifest/test_purged.py"
     "::test_purges_follow_each_other_though_the_clock_was_set_back"),
    (MACHINE, "no place in memory for a model was a traceback",
     "train/trainer/test_placement.py::test_memory_that_is_not_there_is_one_line_with_a_remedy"),
    (MACHINE, "two builders without locks fell over each other's scratch", DATABASE
     + "test_a_scratch_that_another_process_holds_is_told_in_a_line"),
    (MACHINE, "the demo gave up on a slow machine though it went on",
     "train/demo/test_demo.py::test_the_demo_waits_as_long_as_steps_are_made"),
    (SAID, "a flip in a checkpoint, evaluation, metrics or papers of a run was not found", SEAL
     + "test_a_flip_in_any_file_is_found"),
    (SAID, "flips were not found at random places of any file",
     "hardship/test_run_flips.py::test_every_flip_is_found_and_told_in_a_line"),
    (SAID, "files of a run that were gone were not missed", SEAL
     + "test_a_file_that_is_gone_or_cut_is_found"),
    (SAID, "what is not read was not named", SEAL + "test_what_nobody_reads_is_named"),
    (SAID, "a build without its last phase was sound",
     "mixtures/verify/test_verify.py::test_a_phase_that_was_removed_or_put_in_is_found"),
    (SAID, "a flip in an evaluation was a traceback", SEAL
     + "test_a_line_of_an_evaluation_that_is_none_is_one_line"),
    (SAID, "a harvest without a loader's state was called proven",
     "train/modelzoo/test_harvest.py::test_the_state_of_1_9_is_in_text_files"),
    (SAID, "what was recorded, proven and assumed were told alike", SEAL
     + "test_what_our_trainer_recorded_is_told_as_that"),
    (SAID, "a held-out phase was trained on where receipts were gone", SCHEMA
     + "test_training_on_a_held_out_phase_is_refused_where_receipts_are_gone"),
    (SAID, "what is held out follows from the manifest alone", SCHEMA
     + "test_a_held_out_phase_is_known_by_its_manifest_where_no_receipt_is_there"),
    (SAID, "items too short to be protected were not told", RULES
     + "test_short_items_are_counted_by_file_and_may_be_matched_whole"),
    (SAID, "the build did not say what it protects, file by file",
     "prep/documents/test_choose.py::test_contaminated_documents_are_dropped_with_the_file_they_share"),
    (SAID, "equal builds had files of other bytes",
     "mixtures/build/test_build.py::test_any_number_of_workers_gives_the_same_build"),
    (SAID, "equal rows were deflated to other bytes",
     "prep/rows/test_shards.py::test_equal_rows_make_equal_files_whatever_memory_held_before"),
    (SAID, "a verdict was given from too few pairs of runs",
     "train/ablations/test_conclusions.py::test_without_replicates_no_verdict_is_given"),
    (PROCESSES, "workers outlived a build that was killed", KILL
     + "test_workers_end_with_a_build_that_is_killed_alone"),
    (PROCESSES, "TERM and HUP said nothing and left workers", KILL
     + "test_an_interrupted_build_says_how_to_go_on_and_goes_on"),
    (PROCESSES, "one worker that was killed ended the build", WORKERS
     + "test_the_item_of_a_killed_worker_is_tried_again"),
    (PROCESSES, "an item that kills its workers was not named", WORKERS
     + "test_a_killed_worker_is_told_and_the_next_fan_out_has_a_new_pool"),
    (PROCESSES, "a temporary name was that of another host's process too",
     "prep/runtime/test_atomic_files.py::test_temporary_names_are_of_a_host_and_unique"),
    (BOUNDS, "one long cell took a gigabyte", BOUNDED
     + "test_memory_stays_bounded_for_one_row_group_of_300_mb"),
    (BOUNDS, "a hundred thousand keys took more than a gigabyte", BOUNDED
     + "test_memory_stays_bounded_for_a_hundred_thousand_keys"),
    (BOUNDS, "columns of nothing took more than a gigabyte", BOUNDED
     + "test_memory_stays_bounded_for_parquet_that_unpacks_to_much"),
    (BOUNDS, "a tokenizer without an end, or that waits for its writer, was read", REFERENCE
     + "test_what_is_no_regular_file_of_some_size_is_refused_unread"),
    (BOUNDS, "seeds, steps, batches, lengths, depths, aliases, epochs were tracebacks or no end",
     RECIPES + "test_a_hostile_value_is_one_line_with_its_place"),
    (BOUNDS, "JSON too deep for SQL was a traceback",
     "prep/readers/test_jsonlines.py::test_a_record_too_deep_for_the_sql_is_counted"),
    (BOUNDS, "a url that nothing opens was a traceback", LITTER
     + "test_a_scheme_that_can_t_be_opened_is_one_line"),
    (BOUNDS, "a shard of rows of no length was a traceback",
     "prep/rows/test_open_shards.py::test_chunks_that_would_fill_the_memory_are_refused"),
    (BOUNDS, "a million layers had no end",
     "train/runfile/test_run_file.py::test_a_fault_is_one_line_with_its_place"),
    (BOUNDS, "a list of entries without an end was read",
     "prep/filters/test_opt_out.py::test_a_list_that_never_ends_is_refused"),
    (BOUNDS, "a name too long for a folder failed after others were written", RECIPES
     + "test_a_name_that_no_folder_can_bear_is_refused"),
    (BOUNDS, "recipes, lists, papers and outputs that are no regular files had no end",
     "cli/test_odd_files.py::test_an_odd_file_to_read_is_one_line"),
    (HANDED, "an export did not load where it was to be loaded",
     "train/weights/test_transformers.py::test_logits_greedy_text_and_loss_of_an_export_are_ours"),
    (HANDED, "a bundled recipe did not say where its tokenizer comes from",
     "mixtures/recipes/test_recipe.py::test_a_tokenizer_that_is_not_shipped_is_named_with_its_source"),
    (HANDED, "a url for an output made a folder of that name",
     "prep/objects/test_copies.py::test_a_build_into_a_url_is_refused_before_it_begins"),
    (HANDED, "urls lost a slash and were not there", RECIPES
     + "test_a_url_where_none_can_be_had_is_refused_by_name"),
    (HANDED, "modules of the user were run for ours",
     "structure/test_package.py::test_a_user_s_own_files_are_not_run"),
    (HANDED, "a file with a wrong suffix was to be fetched again", LITTER
     + "test_a_wrong_suffix_is_told_with_the_format_that_reads_it"),
    (HANDED, "a pointer of Git LFS was to be fetched again", LITTER
     + "test_a_pointer_of_git_lfs_is_named_with_the_command"),
)  # fmt: skip


@cache
def names_of(file: str) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("kind", "fact", "test"), FAULTS, ids=[fact for _, fact, _ in FAULTS])
def test_each_fault_has_a_test(kind: str, fact: str, test: str) -> None:
    file, _, name = test.partition("::")
    assert name in names_of(file), f"{kind}: {fact}"


def test_every_kind_is_there_and_no_fact_twice() -> None:
    assert [kind for kind, _ in groupby(kind for kind, _, _ in FAULTS)] == list(KINDS)
    assert len({fact for _, fact, _ in FAULTS}) == len(FAULTS)
