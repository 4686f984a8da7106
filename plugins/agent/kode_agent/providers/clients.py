"""The errors of the official clients, which have the same classes under the same names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from kode_agent.errors import ProviderError, ProviderTimeoutError, ProviderUnavailableError
from kode_agent.provider import error_of_status, hidden
from kode_core import KodeError

__all__ = ["translated"]

_HTTP = ("httpx", "httpx2", "httpcore", "httpcore2")


@contextmanager
def translated(client: ModuleType, base: type[Exception], name: str, key: str | None) -> Iterator[None]:
    """Errors of a client, and of the HTTP library below it, become errors of this package without secrets.

    *base* is the class of all errors of the client, *key* a secret that messages may have.
    """
    try:
        yield
    except (KodeError, GeneratorExit):
        raise
    except client.APITimeoutError:
        raise ProviderTimeoutError(f"{name} did not answer in the time that its client allows") from None
    except client.APIConnectionError as exc:
        raise ProviderUnavailableError(f"{name} cannot be reached: {hidden(exc.__cause__ or exc, key)}") from None
    except client.APIStatusError as exc:
        raise error_of_status(name, exc.status_code, hidden(exc.message, key)) from None
    except base as exc:
        raise ProviderError(f"{name}: {hidden(exc, key)}") from None
    except Exception as exc:  # noqa: BLE001 - of the libraries below the client
        if type(exc).__module__.partition(".")[0] in _HTTP:
            raise ProviderUnavailableError(f"the connection to {name} broke: {hidden(exc, key)}") from None
        if isinstance(exc, TypeError) and "authentication" in str(exc):
            raise ProviderError(f"{name} needs a key: set {name.upper()}_API_KEY, or give api_key=") from None
        if isinstance(exc, TypeError) and "unexpected keyword argument" in str(exc):
            raise ProviderError(f"an option of {name}'s provider is none of its client: {hidden(exc, key)}") from None
        raise ProviderError(f"{name} sent what cannot be read: {type(exc).__name__}: {hidden(exc, key)}") from None
