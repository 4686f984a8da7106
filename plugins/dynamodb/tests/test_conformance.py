"""The DynamoDB backend passes the shared suite on both emulators."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance
from kode_dynamodb.servers import LocalServer, NoServerError, shared_server
from kode_dynamodb.testing import LocalHarness, MotoHarness

MANY_RECORDS = (
    "LIFE-2.thousands",
    "LIFE-5.delete_many",
    "EVT-2.who_saw_an_offset",
    "ID-2.an_agent_and_a_key_do_not_run_together",
    "LIFE-4.writes_behind_the_clock",
    "MSG-1.what_was_saved_before_is_saved_again",
    "MSG-8.kinds_that_refer_to_each_other",
    "OPS-13.a_refused_write_fails_alone",
    "QRY-7.statistics_are_of",
    "QRY-8.an_instance_that_closes_late",
    "QRY-8.streams_that_are_read_half",
    "TC-3.upserts_of_all",
    "TURN-1.a_turn_is_seen_whole",
    "TURN-1.turns_at_once",
    "VAL-1.odd_json",
    "VAL-1.every_value_replaces",
    "VAL-5.filters_take_times",
    "FORK-1",
    "MSG-5.saving_costs",
    "MSG-8.random",
    "MSG-1.readers_see",
    "EVT-5",
    "EVT-1.conc",
    "LOCK-6",
    "VAL-4",
    "QRY-4.a_large",
    "QRY-5.cursors_give",
    "VAL-1.any_json",
    "VAL-1.random",
    "VAL-2.what_json",
    "QRY-2.any_text",
    "OPS-9.a_write_beyond",
    "OPS-9.what_is_read_after_a_cancellation_stays",
    "DUR-3.a_turn_killed_at_its_calls",
    "DUR-3.an_append_of_many_killed_midway",
    "EVT-4.repeats_far_apart",
    "EVT-7.every_follower_gets_every_event",
    "EVT-7.following_through_silence",
    "EVT-7.nothing_is_dropped_for_who_comes_late",
    "EVT-7.random_histories_are_followed",
    "HIS-1.a_document_moves_among_many",
    "HIS-1.documents_of_any_number",
    "ID-2.no_text_finds_another_name",
    "ID-2.twin_agents_share_nothing",
    "LIFE-3.nothing_is_left_of_much",
    "LIFE-4.every_write_is_new_after_every_delete",
    "LIFE-4.queries_after_each_end_and_fork",
    "LOCK-5.nothing_of_a_large_call_under_a_lost_lease",
    "LOCK-5.random_histories_under_leases",
    "MSG-1.a_large_call_is_seen_whole_or_not_at_all",
    "MSG-1.lists_of_any_length_are_replaced",
    "MSG-1.more_than_a_thousand_are_seen_whole",
    "MSG-1.one_is_changed_among_many",
    "MSG-1.two_large_calls_at_once",
    "MSG-3.lists_grow_to_any_length",
    "MSG-5.what_is_saved_beside_long_lists_costs_the_same",
    "MSG-6.ten_thousand_in_one_turn",
    "MSG-8.loads_after_each_change_of_a_document",
    "OPS-13.what_hangs_holds_up_no_other_agent",
    "OPS-14.a_slow_follower_holds_a_page",
    "OPS-2.what_dangles_is_found_at_every_place",
    "OPS-3.each_call_moves_its_counter",
    "OPS-4.damaged_records_are_not_quoted",
    "OPS-5.all_that_is_under_way_ends_when_a_store_is_closed",
    "OPS-5.nothing_is_left_of_a_closed_store",
    "OPS-5.nothing_is_left_of_streams_and_locks",
    "OPS-7.many_first_starts_at_once",
    "OPS-9.a_large_call_that_is_cancelled",
    "OPS-9.what_is_written_after_a_cancellation_is_last",
    "QRY-2.any_time_is_ordered_and_bounded",
    "QRY-2.each_name_is_found_by_itself_alone",
    "QRY-2.filters_follow_every_change",
    "QRY-2.queries_after_each_change_of_a_list",
    "QRY-2.queries_after_each_change_of_an_info",
    "QRY-2.random_histories_and_queries",
    "QRY-4.offsets_and_limits_at_every_edge",
    "QRY-5.filters_pages_and_orders_together",
    "QRY-5.many_agents",
    "QRY-5.pages_of_any_size",
    "QRY-5.pages_while_a_list_grows",
    "QRY-5.pages_while_agents_come_and_go",
    "QRY-5.writes_at_the_end_of_a_page",
    "QRY-6.iterators_and_statistics_of_many",
    "QRY-6.lists_are_streamed_whatever_is_asked_of_them",
    "QRY-6.writes_at_the_pages_of_a_stream",
    "TC-3.an_upsert_of_one_id_several_times",
    "TC-3.upserts_find_the_last_of_an_id_among_many",
    "TC-3.upserts_of_all_that_is_there",
    "VAL-1.a_change_of_one_field_is_a_change",
    "VAL-1.every_answer_is_the_callers",
    "VAL-1.every_length_in_every_field",
    "VAL-1.every_number_in_every_field",
    "VAL-1.every_text_in_every_field",
    "VAL-1.every_value_replaces_another",
    "VAL-1.odd_json_in_every_field",
    "VAL-1.records_changed_in_place_are_saved",
    "VAL-1.what_was_saved_or_loaded_is_the_callers",
    "VAL-2.every_method_refuses_what_json_cannot_carry",
    "VAL-2.the_last_of_many_is_refused_with_all",
    "VAL-3.every_field_may_stand_alone",
    "VAL-5.nothing_depends_on_the_zone",
    "VAL-6.unknown_fields_may_have_any_name",
)
"""An emulator writes some two hundred items a second: these take most of the time, three seconds and more each."""
ALL_BUT_TRANSACTIONS = r"(?!TURN|LOCK-1|DUR-1|MSG-1|OPS-1)"
"""Both emulators do the same; on this one a turn is written in a transaction."""


class TestMoto(StoreConformance):
    harness = MotoHarness()
    later = "|".join(MANY_RECORDS)


@pytest.fixture(scope="class")
def local() -> None:
    try:
        shared_server(LocalServer)
    except NoServerError as exc:
        pytest.skip(str(exc))


@pytest.mark.usefixtures("local")
class TestLocal(StoreConformance):
    harness = LocalHarness()
    later = ALL_BUT_TRANSACTIONS
