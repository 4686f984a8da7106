"""Stores that the KODE SDK for TypeScript, version 2.7, wrote: a folder of its ``JSONStore``, or a database and files.

``files`` reads folders, ``tables`` reads databases, ``records`` makes the records of this library, and ``importing``
writes them. A source is read only. Every agent is read whole, so the largest agent has to fit into memory.
"""

from kode_core.formats.kode_sdk.importing import Imported as Imported
from kode_core.formats.kode_sdk.importing import import_agents as import_agents
from kode_core.formats.kode_sdk.opening import open_source as open_source
from kode_core.formats.kode_sdk.raw import Source as Source
