"""Servers that speak TLS, with certificates made for the test."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from kode_conformance.servers.faults import FaultProxy
from kode_postgres.testing.servers import LocalServer

_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class Authority:
    """Signs certificates. What it signs is trusted by who trusts ``file``.

    Attributes:
        issued: the certificate of the last front.
    """

    issued: trustme.LeafCert

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._ca = trustme.CA(organization_name=f"kode tests, {name}")
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def revoking(self, *certificates: trustme.LeafCert) -> Path:
        """The file of a list in which these certificates are revoked."""
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject
        now = datetime.now(UTC)
        revoked = x509.CertificateRevocationListBuilder(issuer, now - timedelta(hours=1), now + timedelta(days=1))
        for certificate in certificates:
            number = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number
            one = x509.RevokedCertificateBuilder(number, now - timedelta(hours=1)).build()
            revoked = revoked.add_revoked_certificate(one)
        file = self.file.with_suffix(f".{len(certificates)}.crl")
        file.write_bytes(revoked.sign(key, SHA256()).public_bytes(Encoding.PEM))
        return file

    def server(self, programs: Path, *names: str) -> LocalServer:
        """A server, not started, whose certificate has these names. Its programs must have been built with TLS, which
        Debian's are and those of packages are not.
        """
        issued = self._ca.issue_cert(*names)
        files = {
            "server.crt": b"".join(part.bytes() for part in issued.cert_chain_pems),
            "server.key": issued.private_key_pem.bytes(),
        }
        settings = {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
        return LocalServer(programs, settings=settings, files=files)

    def front(self, port: int, *names: str) -> TlsFront:
        """Speaks TLS with these names, and passes on to a server that does not; a fault proxy in all else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.issued = self._ca.issue_cert(*names)
        self.issued.configure_cert(context)
        return TlsFront(port, context)


class TlsFront(FaultProxy):
    """Answers a client's request for TLS as a server does."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__("127.0.0.1", port)
        self._context = context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readexactly(8) != _SSL_REQUEST:
                writer.close()  # refuses to go on without TLS
                return
            cast(asyncio.ReadTransport, writer.transport).pause_reading()  # what comes after the answer is TLS already
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
            return
        await super()._serve(reader, writer)
