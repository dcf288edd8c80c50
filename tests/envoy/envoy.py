"""Envoy with everything that it is told: a client of tunnels, and a waypoint that ends them."""
import json, os

from lib.shell import Failed, wait
from mesh import identity
from place import PODS, ask, end_of_file, start, stop

ADMIN, WORKERS = 9901, 2
# Ports on which Envoy takes plain TCP for the server, and what is special about their tunnels.
TO_SERVER, TO_NOBODY, AS_INTRUDER, AS_FOREIGN, TO_IMPOSTOR = 9001, 9002, 9003, 9004, 9005
APP, CLOSED = 8080, 8081
TYPE = "type.googleapis.com/envoy."


def extension(name, kind, **fields):
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def address(ip, port):
    return {"socket_address": {"address": ip, "port_value": port}}


def tls(directory, side, certificate, peer, **more):
    """A TLS context that shows a certificate and takes peers with such a URI."""
    names = [{"san_type": "URI", "matcher": peer}]
    files = {"certificate_chain": {"filename": f"{directory}/{certificate}.pem"}, "private_key": {"filename": f"{directory}/{certificate}.key"}}
    common = {"tls_certificates": [files], "alpn_protocols": ["h2"], "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
              "validation_context": {"trusted_ca": {"filename": f"{directory}/root.pem"}, "match_typed_subject_alt_names": names}}
    return extension("tls", f"extensions.transport_sockets.tls.v3.{side}TlsContext", common_tls_context=common, **more)


def into_tunnel(directory, port, certificate="gateway", server="server", target=APP):
    """A listener for plain TCP and its way through tunnels to the server."""
    name = f"tunnel-{port}"
    carry = extension("tcp", "extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster=name, tunneling_config={"hostname": f"{PODS['server']}:{target}"})
    listener = {"name": name, "address": address(PODS["gateway"], port), "filter_chains": [{"filters": [carry]}]}
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}
    endpoint = {"endpoint": {"address": address(PODS["server"], 15008)}}
    cluster = {"name": name, "connect_timeout": "5s", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
               "typed_extension_protocol_options": http2, "transport_socket": tls(directory, "Upstream", certificate, {"exact": identity(server)})}
    return listener, cluster


def waypoint(directory, port, certificate, log):
    """A listener that ends tunnels of the client alone, and goes on to the address that was asked for."""
    of_client = {"principals": [{"authenticated": {"principal_name": {"exact": identity("client")}}}], "permissions": [{"any": True}]}
    rbac = extension("rbac", "extensions.filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"client": of_client}})
    route = {"match": {"connect_matcher": {}}, "route": {"cluster": "asked-for", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}
    form = {"peer": "%DOWNSTREAM_PEER_URI_SAN%", "authority": "%REQ(:AUTHORITY)%", "status": "%RESPONSE_CODE%", "tunnel": "%CONNECTION_ID%", "flags": "%RESPONSE_FLAGS%",
            "details": "%RESPONSE_CODE_DETAILS%"}
    hcm = extension("http", "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="waypoint", codec_type="HTTP2",
                    http2_protocol_options={"allow_connect": True}, upgrade_configs=[{"upgrade_type": "CONNECT"}],
                    http_filters=[rbac, extension("router", "extensions.filters.http.router.v3.Router")],
                    route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
                    access_log=[extension("file", "extensions.access_loggers.file.v3.FileAccessLog", path=log, log_format={"json_format": form})])
    of_mesh = tls(directory, "Downstream", certificate, {"prefix": "spiffe://cluster.local/"}, require_client_certificate=True)
    return {"name": f"waypoint-{port}", "address": address(PODS["gateway"], port), "filter_chains": [{"filters": [hcm], "transport_socket": of_mesh}]}


def configuration(directory, log, admin):
    tunnels = [into_tunnel(directory, TO_SERVER), into_tunnel(directory, TO_NOBODY, target=CLOSED), into_tunnel(directory, AS_INTRUDER, "intruder"),
               into_tunnel(directory, AS_FOREIGN, "foreign"), into_tunnel(directory, TO_IMPOSTOR, server="somebody-else")]
    asked_for = {"name": "asked-for", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
                 "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"}}
    return {"admin": {"address": address("127.0.0.1", admin)},
            "static_resources": {"listeners": [listener for listener, _ in tunnels] + [waypoint(directory, 15008, "gateway", log), waypoint(directory, 15009, "intruder", log)],
                                 "clusters": [cluster for _, cluster in tunnels] + [asked_for]}}


class Envoy:
    """One process; several may serve the same ports at once, each with an administrative port of its own."""

    def __init__(self, program, directory, name, admin=ADMIN):
        self.admin, self.log, self.access = admin, f"{directory}/{name}.log", f"{directory}/{name}.access"
        with open(f"{directory}/{name}.json", "w") as f:
            json.dump(configuration(directory, self.access, admin), f)
        argv = [program, "-c", f"{directory}/{name}.json", "--disable-hot-restart", "--concurrency", str(WORKERS), "--log-level", os.environ.get("ENVOY_LOG", "info"),
                "--file-flush-interval-msec", "50", "--drain-strategy", "immediate", "--drain-time-s", "1"]
        self.process = start("gateway", argv, self.log)
        wait("Envoy", self.ready, 30)

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"it ended: {end_of_file(self.log)}")
        return ask("gateway", self.admin, "/ready")

    def command(self, path):
        return ask("gateway", self.admin, path, "POST")

    def figure(self, name):
        """A counter or gauge."""
        text = ask("gateway", self.admin, f"/stats?filter=^{name}$")
        return sum(int(line.rpartition(":")[2]) for line in text.splitlines())

    def requests(self):
        """Its access log: what has ended."""
        try:
            with open(self.access) as f:
                return [json.loads(line) for line in f.read().splitlines()]
        except FileNotFoundError:
            return []

    def stop(self):
        stop(self.process)
