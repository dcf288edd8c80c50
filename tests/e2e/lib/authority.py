"""Asking the certificate authority as a node proxy does, with curl: gRPC by hand."""
import os, struct, tempfile, urllib.parse

from .shell import Failed, run

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, data):
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def request(csr, identity):
    """IstioCertificateRequest{csr, validity_duration, metadata{ImpersonatedIdentity}} as a gRPC message."""
    value = field(1, field(1, b"ImpersonatedIdentity") + field(2, field(3, identity.encode())))
    body = field(1, csr.encode()) + varint(3 << 3) + varint(3600) + field(4, value)
    return b"\0" + struct.pack("!I", len(body)) + body


def ask(world, node, address, token, identity):
    """(gRPC status, message, certificate chain as text) of a request for an identity, sent from a node with a token."""
    files = world.cluster.files(node) + "/var/tmp"
    with tempfile.TemporaryDirectory(dir=files) as d:
        inside = "/var/tmp/" + os.path.basename(d)
        csr = run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/", "-keyout", d + "/key", "-outform", "PEM",
                  "-addext", f"subjectAltName=URI:{identity}")
        with open(d + "/request", "wb") as f:
            f.write(request(csr, identity))
        root = world.kube.api("api/v1/namespaces/default/configmaps/istio-ca-root-cert")["data"]["root-cert.pem"]
        with open(d + "/root.pem", "w") as f:
            f.write(root)
        name = "warren-control.warren-system.svc"
        said = world.cluster.script(node, f"""cd {inside} && curl -sS -m 10 --http2 --cacert root.pem --connect-to {name}:15012:{address}:15012 -D headers -o answer \
            -H 'content-type: application/grpc' -H 'te: trailers' -H 'authorization: Bearer {token}' --data-binary @request https://{name}:15012{METHOD}""", check=False)
        headers = read(d + "/headers")
        got = {k.strip().lower(): v.strip() for k, _, v in (l.partition(":") for l in headers.splitlines()) if v}
        if "grpc-status" not in got:
            raise Failed(f"no gRPC answer from the authority: {said} {headers}")
        return int(got["grpc-status"]), urllib.parse.unquote(got.get("grpc-message", "")), read(d + "/answer")


def read(path):
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def names(chain):
    """The URIs that the first certificate of an answer carries."""
    pem = chain[chain.index("-----BEGIN"):]
    return run("openssl", "x509", "-noout", "-ext", "subjectAltName", input=pem)
