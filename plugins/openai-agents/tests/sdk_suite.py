"""The SDK's own tests of sessions, run with ``KodeSession`` in place of ``SQLiteSession``.

They come with the source distribution of the SDK, which pip fetches from the package index.

``python sdk_suite.py`` runs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

FILES: Final = (
    "test_session.py",
    "test_session_limit.py",
    "test_session_context_wrapper.py",
    "test_session_persistence_sanitize.py",
    "test_compaction_suffix.py",
    "test_compaction_model_visibility.py",
    "test_openai_responses_compaction_session.py",
)
"""The files of ``tests/memory`` that are about sessions of any kind."""

UNAVAILABLE: Final = 75
"""The exit code without a suite: the index cannot be reached, or the distribution has no tests."""

SET_ASIDE: Final = {
    # tables, connections and locks of SQLiteSession
    "test_sqlite_session_close_closes_worker_thread_connections",
    "test_sqlite_session_reaps_connections_from_exited_worker_threads",
    "test_sqlite_session_closes_retired_connections_before_the_next_allocation",
    "test_sqlite_session_keeps_connections_of_live_worker_threads",
    "test_sqlite_session_pop_item_skips_corrupt_most_recent",
    "test_sqlite_session_pop_item_returns_none_after_dropping_only_corrupt_rows",
    "test_sqlite_session_get_items_limit_skips_corrupt_newest_rows",
    "test_sqlite_session_get_items_session_settings_limit_skips_corrupt_rows",
    "test_sqlite_session_file_lock_is_shared_across_instances",
    "test_sqlite_session_failed_clear_session_rolls_back",
    "test_sqlite_session_failed_pop_item_releases_write_lock",
    "test_sqlite_session_rollback_failure_evicts_connection",
    "test_sqlite_session_close_retries_quarantined_connection",
    "test_sqlite_session_post_commit_cancellation_propagates_after_known_outcome",
    "test_settled_pop_failure_invalidates_response_chain",
    "test_settled_clear_failure_invalidates_response_chain",
    "test_suffix_transaction_rolls_back_failed_insert",
    "test_cancelled_suffix_transaction_settles_before_newer_append",
    "test_failed_encrypted_suffix_transaction_preserves_original_tokens",
    # a TypeError where KodeSession has an InvalidValueError, which is a ValueError; and the table
    "test_sqlite_session_failed_add_items_releases_write_lock",
    # the words "SQLiteSession is closed"
    "test_sqlite_session_closed_rejects_empty_add_items",
}
"""The tests that look into SQLiteSession. The contracts of those about damage and cancellation have tests here."""

_PLUGIN: Final = """
import agents, agents.memory, agents.memory.sqlite_session, pytest
from kode_openai_agents import KodeSession

SET_ASIDE = {set_aside!r}

class SQLiteSession(KodeSession):
    def __init__(self, session_id, db_path=":memory:", session_settings=None):
        url = "memory://" if str(db_path) == ":memory:" else f"sqlite:///{{db_path}}"
        super().__init__(session_id, url, session_settings=session_settings)

for module in (agents, agents.memory, agents.memory.sqlite_session):
    module.SQLiteSession = SQLiteSession

def pytest_collection_modifyitems(items):
    items[:] = [
        item for item in items
        if getattr(item, "originalname", item.name) not in SET_ASIDE and "[async-sqlite" not in item.nodeid
    ]
"""


class SuiteUnavailable(Exception):
    """The source distribution cannot be had, or has no tests."""


def fetched(folder: Path) -> Path:
    """The unpacked source distribution of the installed SDK, with the plugin that replaces the class.

    Raises:
        SuiteUnavailable: the package index cannot be reached, or the distribution has no tests.
    """
    wanted = f"openai-agents=={version('openai-agents')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai-agents"]
    done = subprocess.run([*pip, "--dest", str(folder), wanted], capture_output=True, text=True, check=False)
    archives = list(folder.glob("openai_agents-*.tar.gz"))
    if not archives:
        raise SuiteUnavailable(f"pip download {wanted} failed: {done.stderr[-500:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    (root,) = (path for path in folder.glob("openai_agents-*") if path.is_dir())
    if not (root / "tests/memory/test_session.py").exists():
        raise SuiteUnavailable("the source distribution has no tests")
    (root / "kode_in_place.py").write_text(_PLUGIN.format(set_aside=SET_ASIDE))
    return root


def run(root: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """Run files of the suite in a process of their own."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "kode_in_place", "-p", "no:cacheprovider", "-W", "default"]
    paths = [f"tests/memory/{name}" for name in files]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [*pytest, "--rootdir", str(root), *paths]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            root = fetched(Path(temporary))
        except SuiteUnavailable as exc:
            print(exc)
            return UNAVAILABLE
        result = run(root, *FILES)
        print(result.stdout[-3_000:], result.stderr[-2_000:])
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
