"""The fault matrix is whole: every one of its rows has exactly one test of its name."""

from __future__ import annotations

import ast
from pathlib import Path

ROWS = [
    "01_empty_data_set",
    "02_conflicting_duplicate_keys",
    "03_identical_duplicates",
    "04_empty_value",
    "05_invalid_utf8",
    "06_byte_order_mark",
    "07_line_separator_inside_a_line",
    "08_lone_surrogate",
    "09_nan_in_json",
    "10_line_over_16_mb",
    "11_gzip_bomb",
    "12_nesting_over_64",
    "13_target_longer_than_the_context",
    "14_no_end_of_sequence_or_padding_token",
    "15_doubled_beginning_of_sequence",
    "16_chat_template_mismatch",
    "17_tokens_that_merge_at_the_border",
    "18_tied_embeddings",
    "19_rank_over_the_smaller_dimension",
    "20_no_target_module",
    "21_resized_vocabulary",
    "22_merging_into_a_quantised_base",
    "23_packed_positions_wrong_or_attention_across_documents",
    "24_nan_loss",
    "25_divergence",
    "26_nan_weights",
    "27_gradient_constantly_zero",
    "28_out_of_memory",
    "29_a_hang",
    "30_disk_full",
    "31_io_error",
    "32_ctrl_c",
    "33_sigterm",
    "34_sigkill",
    "35_two_runs_in_one_directory",
    "36_clock_running_backwards",
    "37_adapter_of_another_base",
    "38_truncated_or_flipped_adapter",
    "39_bf16_against_cached_decoding",
    "40_tie_at_one_half",
    "41_result_that_shifts_with_the_batch_size",
    "42_code_or_library_changed_in_mid_sweep",
]


def test_every_row_has_exactly_one_test_of_its_name() -> None:
    found = [
        node.name.removeprefix("test_")
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert sorted(name for name in found if name[:2].isdecimal()) == ROWS
    assert [int(name[:2]) for name in ROWS] == list(range(1, 43))
