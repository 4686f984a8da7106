"""MSG-4 with clocks that differ, on DynamoDB."""

from __future__ import annotations

from kode_dynamodb.testing.harness import MotoHarness

from tests.message_times import MessageTimes


class TestMoto(MessageTimes):
    harness = MotoHarness()
