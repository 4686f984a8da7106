"""Django: one store for each process. In a project, the store has a module of its own, and views import it."""

from __future__ import annotations

import atexit
import json

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_http_methods

from kode_core import Message, to_dict
from kode_core.sync import open_store

store = open_store()
atexit.register(store.close)


@require_http_methods(["GET", "POST"])
def messages(request: HttpRequest, chat: str) -> JsonResponse:
    """List the messages of a chat, or add one under its lock."""
    if request.method == "POST":
        with store.acquire_agent_lock(chat, wait_ms=10_000):
            store.append_messages(chat, [Message.user(json.loads(request.body)["text"])])
            return JsonResponse({"count": len(store.load_messages(chat))})
    return JsonResponse([to_dict(message) for message in store.load_messages(chat)], safe=False)


urlpatterns = [path("chats/<str:chat>/messages", messages)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="an example has no secrets")
application = get_wsgi_application()
