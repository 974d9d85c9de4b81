"""The rows of the table of faults: what is caused, what must hold, and the tests that show it.

A row may be shown by any tests of the tree; of those named here the quick ones belong to the default suite too.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A row.

    Attributes:
        what: is done.
        goal: must hold.
        tests: beginnings of the ids of its tests, below ``tests/``.
    """

    what: str
    goal: str
    tests: tuple[str, ...]


def _row(what: str, goal: str, *tests: str) -> Row:
    return Row(what, goal, tests)


ROWS = {
    "R1": _row(
        "kill -9 at 200 random moments, resumed each time", "all bitwise the clean run",
        "app/test_kill.py::test_kills_at_random_moments", "app/test_watchers.py::test_many_interruptions_at_random_steps",
    ),
    "R2": _row(
        "five kills in one run, at the places that hurt", "bitwise; every validation once",
        "app/test_kill.py::test_five_kills_where_they_hurt",
    ),
    "R3": _row(
        "resumed with 0 workers for 2, and 2 for 0", "bitwise",
        "app/test_kill.py::test_the_number_of_workers_changes_nothing",
    ),
    "R4": _row(
        "every window of two epochs, three kills", "none lost, none twice, same order",
        "app/test_faults.py::test_every_window_of_two_epochs",
    ),
    "R5": _row(
        "the same words again on a finished run", "exit 0 in < 1 s, no torch, no file changed",
        "app/test_startup.py::test_a_finished_run_is_left_alone",
        "app/test_position.py::test_a_finished_run_has_nothing_left_to_do",
    ),
    "R6": _row(
        "re-keying, position, optimizer, schedule, callback state or buffers lost", "R1's comparison sees each",
        "app/test_kill.py::test_the_comparison_sees",
    ),
    "R7": _row(
        "the same configuration twice; 1 x 8 against 2 x 4", "bitwise; equal by rule 1",
        "app/test_kill.py::test_two_clean_runs_are_bitwise_the_same",
        "app/test_faults.py::test_accumulation_is_a_larger_batch",
        "app/test_running_state.py::test_accumulation_and_ranks_move_it_once_per_step",
        "app/test_equilibrium.py::test_ranks_and_accumulation_move_what_one_batch_moves",
    ),
    "R8": _row(
        "resumed with other sizes, also from an edited file", "no window lost or twice, tokens right, change recorded",
        "app/test_position.py::test_no_window_is_lost_or_read_twice",
        "app/test_position.py::test_the_checkpoint_and_not_an_edited_file",
    ),
    "C1": _row(
        "kill -9 within a save, on another file system", "0 unusable, newest whole one taken, nothing left over",
        "run/test_checkpoint.py::test_kill_", "app/test_faults.py::test_a_kill_within_a_slow_save",
        "app/test_damage.py::test_left_over_files_are_swept",
    ),
    "C2": _row(
        "disk full, TMPDIR full, read-only, missing, file size limited", "exit 5, older checkpoint intact, bytes named",
        "app/test_storage.py::",
    ),
    "C3": _row(
        "truncated, empty, random, text, wrong zip, a folder", "exit 4 in <= 3 lines, fallback named",
        "run/test_checkpoint.py::test_truncated_at_20_offsets", "run/test_checkpoint.py::test_file_that_is_no_checkpoint",
        "run/test_checkpoint.py::test_directory_pipe", "app/test_damage.py::test_the_newest_whole",
        "app/test_damage.py::test_nothing_whole", "app/test_damage.py::test_a_damaged_file",
    ),
    "C4": _row(
        "500 bits flipped, one at a time; a save of 1 GB", "all found; <= 1.1 x the unhashed save or hashing the file alone",
        "app/test_faults.py::test_500_flipped_bits", "app/test_faults.py::test_the_hash_costs_a_tenth_at_most",
        "run/test_checkpoint.py::test_any_flipped_bit_is_found",
    ),
    "C5": _row(
        "power cut: every write replayed without what was not synced", "last verified checkpoint opens; each sync needed",
        "run/test_durability.py::", "app/test_durable_run.py::", "training/test_durable_steps.py::",
        "datamodules/test_durable_data.py::",
    ),
    "S1": _row(
        "SIGTERM, USR1, HUP, INT at 20 random moments each, also to the group", "verified checkpoint in <= 10 s, bitwise on",
        "app/test_signals.py::test_many_stops", "app/test_signals.py::test_a_stop_at",
        "app/test_signals.py::test_a_stop_while_workers", "app/test_signals.py::test_a_stop_before",
    ),
    "S2": _row(
        "signals while rendezvous, collective or compilation blocks", "ends in <= 10 s with the signal's code",
        "app/test_signals.py::test_a_stop_while_nothing", "app/test_signals.py::test_two_interrupts",
        "app/test_distributed.py::test_any_signal_while_a_rank_hangs",
        "app/test_distributed.py::test_a_rank_that_waits_for_a_plan",
        "app/test_distributed.py::test_a_stop_before_the_first_step",
    ),
    "D1": _row(
        "one rank against two, every architecture", "equal by rule 1; statistics the same on all ranks",
        "app/test_distributed.py::test_two_ranks_make_the_steps_of_one",
        "app/test_running_state.py::test_accumulation_and_ranks", "app/test_equilibrium.py::test_ranks_and_accumulation",
        "app/test_local_gpt.py::test_feedback_after_a_kill_and_on_two_ranks", "models/test_tilelli_ranks.py::",
        "models/test_equilibrium_ranks.py::", "app/test_watchers_ranks.py::",
    ),
    "D2": _row(
        "2 to 1 and 1 to 2 ranks after kill -9", "none lost or twice; equal by rule 1",
        "app/test_distributed.py::test_a_lost_launcher",
    ),
    "D3": _row(
        "a rank killed; an exception on one", "all gone in <= 15 s, exit 6, first cause last",
        "app/test_distributed.py::test_a_lost_rank", "app/test_distributed.py::test_an_exception",
        "app/test_distributed.py::test_a_lost_launcher", "training/test_distributed.py::test_a_rank_leaves",
    ),
    "D4": _row(
        "a bank or route without a token on one rank", "trains on",
        "app/test_distributed.py::test_a_bank_without", "app/test_equilibrium.py::test_routes_without",
    ),
    "N1": _row(
        "NaN or Inf in loss, gradient, on one rank, at step 1", "exit 3 before the update, culprit named",
        "app/test_nonfinite.py::", "app/test_distributed.py::test_a_loss_that_is_not_finite",
        "app/test_equilibrium.py::test_a_bad_first_step", "app/test_running_state.py::test_a_bad_step",
        "app/test_local_gpt.py::test_a_bad_step",
    ),
    "T1": _row(
        "empty, one token, shorter than a block, blank, no validation", "exit 2 before the model, have and need",
        "app/test_text.py::", "datamodules/test_char.py::test_empty_and_blank",
        "datamodules/test_char.py::test_short_texts",
    ),
    "T2": _row(
        "binary, not UTF-8, UTF-16, NUL, 1 GB line, CRLF, link, FIFO", "file and byte named, no hang, <= 1.5 GB",
        "datamodules/test_text.py::", "datamodules/test_memory.py::", "app/test_prepare.py::test_a_text_that_cannot",
    ),
    "T3": _row(
        "another tokenizer of the same size", "refused with both hashes",
        "app/test_damage.py::test_another_tokenizer", "app/test_prepare.py::test_another_tokenizer",
        "app/test_loading.py::test_another_tokenizer",
    ),
    "T4": _row(
        "text edited between two launches", "refused with what changed; acceptance recorded",
        "app/test_prepare.py::test_an_edited_text", "app/test_resume.py::test_another_text",
    ),
    "K1": _row(
        "wrong configurations and files of every kind", "exit 2 in < 8 s, file, key, nearest key; all at once",
        "app/test_configuration.py::test_a_mistake", "app/test_configuration.py::test_all",
        "app/test_configuration.py::test_types", "app/test_configuration.py::test_both",
        "run/test_configuration.py::test_malformed",
    ),
    "X1": _row(
        "malicious checkpoints, exports, tensors; each reader fuzzed", "refused, no side effect, memory <= 2 x file + 64 MB",
        "run/test_hostile_files.py::", "run/test_checkpoint.py::test_pickle", "run/test_checkpoint.py::test_rebuilt",
        "run/test_checkpoint.py::test_zip_bombs", "app/test_export.py::test_a_hostile", "commands/test_gamma.py::",
        "app/test_damage.py::test_a_foreign_file", "app/test_damage.py::test_a_file_made_to_fill", "stress/test_fuzz.py::",
    ),
    "X2": _row(
        "malicious YAML, class paths and run names", "refused before any import",
        "app/test_configuration.py::test_nothing_in_a_configuration", "app/test_configuration.py::test_neither",
        "app/test_configuration.py::test_a_file_name", "run/test_imports.py::", "run/test_directory.py::test_run_names",
    ),
    "X3": _row(
        "every socket call of fit on two ranks, resume, generate", "none outbound; none listens beyond 127.0.0.1",
        "app/test_faults.py::test_no_socket_leads_elsewhere",
    ),
    "O1": _row(
        "two runs, one folder; a stale lock; two hosts; a requeue", "one winner, other exit 2 in < 1 s naming it",
        "app/test_sharing.py::", "app/test_startup.py::test_a_run_in_use", "run/test_lock.py::", "run/test_lock_lost.py::",
    ),
    "O2": _row(
        "a loader worker killed", "exit naming it, checkpoint intact", "app/test_kill.py::test_a_lost_loader_worker",
    ),
    "O3": _row(
        "2,000 steps, 40 mixed faults, restarted each time", "bitwise; goodput >= 85 %; no growth",
        "app/test_soak.py::",
    ),
    "O4": _row(
        "output gone, rank variables, clock +-1 h, stop beyond the lease, little memory", "goes on, nothing silent, lock kept",
        "app/test_output.py::", "app/test_rank_variables.py::", "app/test_faults.py::test_the_clock_is_stepped",
        "app/test_faults.py::test_a_stop_longer_than_the_lease", "app/test_faults.py::test_memory_runs_short",
    ),
    "V1": _row(
        "1,000 single bits of weights, moments, data at rest and gradients flipped", "found before the next update; 1/N in flight",
        "training/test_guards.py",
    ),
    "V2": _row("ten tampered runs, also with every hash made anew", "app verify names what and where", "app/test_verify.py"),
}  # fmt: skip
