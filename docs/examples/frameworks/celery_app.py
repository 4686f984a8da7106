"""Celery: each worker process has the store of the module, and opens it at its first task."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_process_shutdown

from kode_core import LockUnavailableError, Message, StorageError
from kode_core.sync import open_store

app = Celery("chats", broker=os.environ["CELERY_BROKER_URL"])
store = open_store()


@app.task(autoretry_for=(StorageError, LockUnavailableError), retry_backoff=True, max_retries=5)
def answer(chat: str, question: str) -> None:
    """Answer in a chat; two tasks for one chat take turns."""
    with store.acquire_agent_lock(chat, wait_ms=10_000):
        store.append_messages(chat, [Message.user(question), Message.assistant(question.upper())])


@worker_process_shutdown.connect
def close(**_: object) -> None:
    """Close the store of this process."""
    store.close()
