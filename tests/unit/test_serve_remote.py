"""Images by URL: off by default, and with hosts allowed, no spelling of a private or other place is reached."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest
from tokendial.serve import remote
from tokendial.serve.remote import allowed_host, fetch, public
from tokendial.serve.request import BadRequest

Tls = tuple[ssl.SSLContext, ssl.SSLContext]
Resolve = Callable[[str], Awaitable[Sequence[str]]]
HOSTS = frozenset({"images.example.com"})

# None of these may lead to a lookup, let alone a connection.
EVASIONS = [
    "http://images.example.com/a.png", "HTTP://images.example.com/a.png", "ftp://images.example.com/a.png",
    "file:///etc/passwd", "file://images.example.com/etc/passwd", "gopher://images.example.com/",
    "//images.example.com/", "javascript:alert(1)", "dict://127.0.0.1:11211/", "https:images.example.com/a",
    "https:/images.example.com/a", "https:///images.example.com/a", "https://127.0.0.1/", "https://127.1/",
    "https://0/", "https://0.0.0.0/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/",
    "https://0177.0.0.1/", "https://127.0.0.1./", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
    "https://[0:0:0:0:0:ffff:7f00:1]/", "https://[fe80::1%25eth0]/", "https://169.254.169.254/latest/meta-data/",
    "https://[fd00:ec2::254]/", "https://metadata.google.internal/", "https://localhost/",
    "https://localhost.localdomain/", "https://images.example.com.evil.com/", "https://evilimages.example.com/",
    "https://sub.images.example.com/", "https://images.example.com./", "https://user@images.example.com/",
    "https://images.example.com@127.0.0.1/", "https://images.example.com:80/", "https://images.example.com:8443/",
    "https://images.example.com:/", "https://images.example.com:443@127.0.0.1/",
    "https://127.0.0.1\\@images.example.com/", "https://images.example.com\\.evil.com/",
    "https:\\\\images.example.com/", "https://images.example.com%2f.evil.com/",
    "https://images.example.com%00.evil.com/", "https://images。example。com/", "https://ímages.example.com/",
    "https://images.example.com\t/", " https://images.example.com/",
    "https://images.example.com/\r\nHost: localhost", "https://images.example.com#@127.0.0.1/\n", "https://", "",
    "https://*", "https://ⓘmages.example.com/", "https://images_.example.com/", "https://-images.example.com/",
]  # fmt: skip


async def _nobody(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


def fetched(url: str, hosts: frozenset[str], resolve: Resolve, **more: object) -> bytes:
    return asyncio.run(fetch("messages[0]", url, hosts, 10_000, resolve, **more))  # type: ignore[arg-type]


def test_forty_evasions_are_tried() -> None:
    assert len(set(EVASIONS)) >= 40


@pytest.mark.parametrize("url", EVASIONS)
def test_an_evasion_is_refused_before_a_name_is_looked_up(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fetched(url, HOSTS, _nobody)
    assert caught.value.field == "messages[0].url"


def test_urls_are_off_by_default_and_the_error_names_the_setting() -> None:
    with pytest.raises(BadRequest, match="--allow-image-host"):
        fetched("https://images.example.com/a.png", frozenset(), _nobody)


def test_an_allowed_host_is_recognised_in_any_case() -> None:
    assert allowed_host("HTTPS://Images.Example.COM/a.png?b=c", HOSTS) == "images.example.com"
    assert allowed_host("https://images.example.com:443/", HOSTS) == "images.example.com"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe", "::127.0.0.1", "not an address", "", "::ffff:8.8.8.8",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_known_in_every_spelling(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1"])
def test_a_public_address_is_public(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::1"], []])
def test_a_name_with_any_private_address_is_refused(found: list[str]) -> None:
    async def resolve(host: str) -> Sequence[str]:
        assert host == "images.example.com"
        return found

    with pytest.raises(BadRequest, match="not public"):
        fetched("https://images.example.com/a.png", HOSTS, resolve)


class Canary:
    """A TLS server on loopback that answers once a connection with fixed bytes, and counts who came."""

    def __init__(self, context: ssl.SSLContext, answer: bytes) -> None:
        self.hits = 0
        self.names: list[str | None] = []
        self._answer = answer
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.hits += 1
            try:
                with self._context.wrap_socket(raw, server_side=True) as connection:
                    connection.recv(65_536)
                    connection.sendall(self._answer)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Server and client contexts of a certificate for images.example.com that only this test trusts."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "images.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = serialization.Encoding.PEM
    file.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, form, plain))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cafile=str(file))
    return server, client


def visit(
    tls: Tls, monkeypatch: pytest.MonkeyPatch, answer: bytes, trusted: bool = True
) -> tuple[bytes | BadRequest, Canary]:
    """Fetch from a canary that stands in for the public host: its address is called public, its port is dialled."""
    server, client = tls
    canary = Canary(server, answer)
    monkeypatch.setattr(remote, "public", lambda _address: True)
    original = remote._Pinned.resolve

    async def to_canary(self: remote._Pinned, host: str, port: int = 0, **_: int) -> list[remote.ResolveResult]:
        return await original(self, host, canary.port)

    monkeypatch.setattr(remote._Pinned, "resolve", to_canary)

    async def resolve(_host: str) -> Sequence[str]:
        return ["127.0.0.1"]

    context = client if trusted else ssl.create_default_context()
    try:
        return fetched("https://images.example.com/a.png", HOSTS, resolve, ssl=context), canary
    except BadRequest as error:
        return error, canary
    finally:
        canary.close()


def test_an_allowed_image_arrives_over_tls_checked_against_its_name(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    found, canary = visit(tls, monkeypatch, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage")
    assert found == b"image"
    assert canary.names == ["images.example.com"]


def test_a_certificate_nobody_vouches_for_is_refused(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = visit(tls, monkeypatch, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage", trusted=False)
    assert isinstance(found, BadRequest)
    assert "cannot be fetched" in str(found)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "redirects"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n" + b"x" * 20_000, "more than 10000 bytes"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4e20\r\n" + b"x" * 20_000, "more than 10000 bytes"),
        (b"nonsense\r\n\r\n", "cannot be fetched"),
    ],
)
def test_redirects_refusals_and_large_images_are_not_followed(
    answer: bytes, said: str, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, canary = visit(tls, monkeypatch, answer)
    assert isinstance(found, BadRequest)
    assert said in str(found)
    assert canary.hits == 1


def test_a_slow_resolver_is_given_up() -> None:
    async def resolve(_host: str) -> Sequence[str]:
        await asyncio.sleep(30)
        return []

    with pytest.raises(BadRequest, match="within"):
        fetched("https://images.example.com/a.png", HOSTS, resolve, timeout_s=0.05)
