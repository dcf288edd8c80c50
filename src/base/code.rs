//! Every refusal and failure that an operator can meet, each with a code that never changes its meaning.
//!
//! This table is the only place: the access log, the admin API, `warren explain` and `docs/errors.md` are made from it.
//! W0 start and settings · W1 outbound · W2 inbound · W3 identity, certificates, TLS · W4 xDS · W5 ZDS · W6 redirection ·
//! W7 control plane · W8 demo · W9 CNI.

use std::fmt;

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The application that opened the connection.
    Client,
    /// The application, pod or node that was to answer.
    Destination,
    /// The proxy at the other end of a tunnel.
    Peer,
    /// Whoever wrote policy or mesh configuration.
    Configuration,
    /// The control plane or the certificate authority.
    ControlPlane,
    /// The node this process runs on: kernel, permissions, files.
    Node,
    /// Warren itself: a defect, please report it.
    Warren,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Destination => "destination",
            Side::Peer => "peer",
            Side::Configuration => "configuration",
            Side::ControlPlane => "control plane",
            Side::Node => "node",
            Side::Warren => "warren",
        })
    }
}

/// One entry of the error reference.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `W` and four digits.
    pub id: &'static str,
    /// What happened, a few words.
    pub title: &'static str,
    /// Who has to act.
    pub side: Side,
    /// Whether the same attempt may succeed later with nothing changed.
    pub retry: bool,
    /// The `response_flags` label of the TCP metrics.
    pub flag: &'static str,
    /// What to look at or do.
    pub hint: &'static str,
}

macro_rules! codes {
    ($($name:ident $id:literal $side:ident $retry:literal $flag:literal $title:literal $hint:literal;)*) => {
        $(
            #[doc = $title]
            pub static $name: Code = Code { id: $id, title: $title, side: Side::$side, retry: $retry, flag: $flag, hint: $hint };
        )*
        /// All of them, in order.
        pub static ALL: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    INTERNAL "W0001" Warren false "CONNECT" "internal error" "This is a defect. Report it with the log lines around it.";
    BAD_SETTING "W0002" Configuration false "-" "a setting has an unusable value" "Correct the named environment variable or flag; docs/configuration.md lists what each accepts.";
    NO_PERMISSION "W0003" Node false "-" "the kernel refused a privileged operation" "Give the container the capabilities listed in docs/operating.md (NET_ADMIN, SYS_ADMIN; the agent also SYS_PTRACE and DAC_OVERRIDE), or run `warren demo`, which needs none.";
    BIND_FAILED "W0004" Node true "-" "a listener could not be bound" "Another process holds the port or socket (`ss -lxtnp` shows who), the address is not on this node, or this process may not open it: the kernel's answer is in the text.";
    BAD_FILE "W0005" Configuration false "-" "a file could not be read or understood" "The text names the file and, if it could be read, line and column. What was in force stays in force.";
    NOT_READY "W0006" ControlPlane true "-" "not ready yet" "The readiness endpoint lists what is waited for.";
    DRAINED "W0007" Node true "CONNECT" "closed because this proxy is shutting down" "Expected during an upgrade. Raise the termination grace period if connections need longer.";
    UNINSTALL "W0010" Node true "-" "Warren could not be taken out of the cluster" "The text names what is left. Mend or remove the node and uninstall again, or go on without waiting: `helm uninstall RELEASE -n NAMESPACE --no-hooks`, and at once `/opt/cni/bin/warren purge` on the nodes it names, whose pods have no connections until then.";
    PURGE_REFUSED "W0011" Node false "-" "a node on which an agent runs is not purged" "While it runs it would put everything back, and pods would be in clear meanwhile. Uninstall the chart, or keep the agent off the node (agent.nodeSelector); then purge. A DaemonSet warren-purge beside a Warren that is in use is the rest of an interrupted `helm uninstall`: delete it. If another product listens on the socket, name another path: --zds-socket, --cni-socket.";

    CONNECT_TIMEOUT "W1001" Destination true "CONNECT" "no answer to a TCP connect" "The address is silent: the pod is gone, its node is down, or a NetworkPolicy drops the packets.";
    DESTINATION_REFUSED "W1002" Destination true "CONNECT" "the destination refused the connection" "Nothing listens on that port. Check the application and the Service's targetPort.";
    DESTINATION_UNREACHABLE "W1003" Destination true "CONNECT" "the destination cannot be reached" "Routing or the network plugin gave an error; it is in the text.";
    NO_HEALTHY_UPSTREAM "W1004" Destination true "CONNECT" "the service has no usable endpoint" "No ready pod backs the Service, or the Service does not list that port.";
    NO_ROUTE "W1005" Configuration false "CONNECT" "no valid way to the destination" "The destination has no address, or is on a network without a gateway.";
    RECURSIVE_CALL "W1006" Client false "CONNECT" "a pod tried to call the proxy's own port" "Ports 15001, 15006 and 15008 on the pod itself are not for applications.";
    TUNNEL_TIMEOUT "W1007" Peer true "NETWORK_POLICY" "no answer on the HBONE port" "Port 15008 of the destination is silent. A NetworkPolicy that blocks 15008 is the usual cause; else the node or its proxy is down.";
    TUNNEL_REFUSED "W1008" Peer true "CONNECT" "the HBONE port refused the connection" "No proxy listens for that pod: it is not captured, or its node's proxy is not running.";
    TUNNEL_BROKEN "W1009" Peer true "H2_HANDSHAKE_FAILURE" "the HTTP/2 session with the peer failed" "What answers on port 15008 does not speak HTTP/2, or it ended the session. See the peer's log at the same time.";
    CONNECT_REJECTED "W1010" Peer false "CONNECT" "the peer proxy rejected the connection" "The status tells why: 401 policy, 503 application not reachable, 400 address mismatch. The peer's access log has the code.";
    CONNECT_SILENT "W1011" Peer true "CONNECT" "the peer proxy did not answer the CONNECT request" "The peer accepted the tunnel but did not decide in time; its application connect may hang.";
    UNKNOWN_WAYPOINT "W1012" Configuration true "CONNECT" "the waypoint is not known" "The destination requires a waypoint that has no workload. Check the Gateway and its pods.";
    RELAY_FAILED "W1013" Destination true "CONNECT" "the connection broke while data was moving" "One side reset the connection; the text says which.";
    CAPACITY "W1014" Node true "CONNECT" "a limit of this proxy was reached" "Too many connections or streams at once; the text names the limit.";
    UNSUPPORTED "W1015" Configuration false "CONNECT" "the mesh asks for something this version does not do" "The text names the feature. The connection is refused because carrying it another way would not be what was asked for.";
    STREAM_RESET "W1016" Destination true "-" "the other application reset the connection" "The application ended the connection abruptly; its own log says why.";

    BAD_METHOD "W2001" Peer false "CONNECT" "an HBONE request was not CONNECT" "Something other than a mesh proxy uses port 15008.";
    BAD_AUTHORITY "W2002" Peer false "CONNECT" "an HBONE request has no usable target" "The :authority must be ip:port or host:port.";
    ADDRESS_MISMATCH "W2003" Peer false "CONNECT" "the requested address is not this pod's" "The peer has stale data about who owns the address, or probes other pods through this one.";
    POLICY_DENIED "W2004" Configuration false "DENY" "refused by policy" "The text names the policy, or says that Allow policies exist and none matches. The access log names the client's identity.";
    POLICY_CUT "W2005" Configuration false "DENY" "closed because policy changed" "The connection was open and is no longer allowed.";
    APP_TIMEOUT "W2006" Destination true "CONNECT" "the application did not accept in time" "Its accept queue is full or the port is filtered inside the pod.";
    APP_REFUSED "W2007" Destination true "CONNECT" "the application refused the connection" "Nothing listens on that port in the pod, or it listens on 127.0.0.1 only.";
    APP_UNREACHABLE "W2008" Destination true "CONNECT" "the application cannot be reached" "The kernel's error is in the text.";
    UNKNOWN_SERVICE "W2009" Peer true "CONNECT" "the requested name is not a service of this pod" "The peer and this node disagree about the Service; both follow the control plane and converge.";
    UNKNOWN_LOCAL "W2010" ControlPlane true "CONNECT" "this pod is not known to the control plane" "Its Workload has not arrived. Check that name, namespace, service account and node agree.";
    PEER_CLOSED "W2011" Peer true "CONNECT" "the peer closed the tunnel" "Its proxy restarted or lost the network.";

    TLS_FAILED "W3001" Peer false "TLS_FAILURE" "the TLS handshake failed" "The alert is in the text. Typical: one side's trust bundle lacks the other's root.";
    TLS_TIMEOUT "W3002" Peer true "TLS_FAILURE" "the TLS handshake was not finished in time" "The peer opened a connection and stayed silent, or is overloaded.";
    IDENTITY_MISMATCH "W3003" Peer false "TLS_FAILURE" "the peer is not who it should be" "The certificate names another identity than the mesh says owns the address. Stale address data, or an impostor.";
    WRONG_TRUST_DOMAIN "W3004" Peer false "TLS_FAILURE" "the peer belongs to another trust domain" "Both sides must be of one trust domain.";
    NO_IDENTITY "W3005" Peer false "TLS_FAILURE" "the peer's certificate has no SPIFFE identity" "It was not issued for a mesh workload.";
    NO_PEER_CERTIFICATE "W3006" Peer false "TLS_FAILURE" "the peer presented no certificate" "Only mesh proxies may use the HBONE port.";
    BAD_CERTIFICATE "W3007" ControlPlane false "IDENTITY_ERROR" "a certificate from the authority is unusable" "The text says what is wrong with it.";
    CA_UNAVAILABLE "W3008" ControlPlane true "IDENTITY_ERROR" "the certificate authority cannot be reached" "Existing certificates stay in use until they expire. Check the control plane and CA_ADDRESS.";
    CA_REFUSED "W3009" ControlPlane false "IDENTITY_ERROR" "the certificate authority refused to sign" "Its reason is in the text. Usual: the token is wrong, or the identity does not run on this node.";
    BAD_SPIFFE_ID "W3010" Configuration false "IDENTITY_ERROR" "not a workload identity" "The form is spiffe://trust-domain/ns/namespace/sa/service-account.";
    TOKEN_UNREADABLE "W3011" Node true "IDENTITY_ERROR" "the token for the control plane cannot be read" "Check AUTH_TOKEN or the projected token volume.";
    BAD_TRUST_ROOT "W3012" Configuration false "IDENTITY_ERROR" "the control plane's root certificate is missing or unusable" "Check XDS_ROOT_CA or CA_ROOT_CA.";

    XDS_UNREACHABLE "W4001" ControlPlane true "-" "the control plane cannot be reached" "Connections go on with the last known state. Check the control plane and XDS_ADDRESS.";
    XDS_STREAM "W4002" ControlPlane true "-" "the control plane ended the stream" "It reconnects by itself. The status is in the text.";
    XDS_REJECTED "W4003" ControlPlane false "-" "a resource was rejected" "The text names the resource and the reason; all others of the response are in force.";

    ZDS_UNREACHABLE "W5001" Node true "-" "the node agent cannot be reached" "Pods already served go on. Check the agent and INPOD_UDS.";
    ZDS_PROTOCOL "W5002" Node true "-" "the node agent sent something unexpected" "The session is ended and started again. Check that agent and proxy versions fit.";
    ZDS_REFUSED "W5003" Node true "-" "the proxy could not take a pod" "Its answer is in the text; it is retried.";
    POD_START "W5004" Node true "-" "a pod could not be served" "The listeners inside the pod could not be opened; the reason is in the text. It is retried.";

    NETNS_GONE "W6001" Node true "-" "a pod's network namespace cannot be opened" "The pod is gone, or the path is not visible to the agent.";
    REDIRECT_FAILED "W6002" Node true "-" "redirection could not be programmed" "The kernel's answer is in the text; nothing was changed. Check that nf_tables and nf_nat are available.";
    ROUTE_FAILED "W6003" Node true "-" "policy routing could not be programmed" "The kernel's answer is in the text.";
    NOT_CAPTURED "W6004" Node true "-" "a pod could not be brought into the mesh" "The text says what it waits for. The pod does not start before it is captured; it is tried again by itself.";
    PROBER_UNKNOWN "W6010" Node true "-" "the kubelet cannot be found" "Its probes of enrolled pods cannot be told from other traffic: where policy is strict they are refused. The agent has to see the node's processes (--host-proc) and needs CAP_SYS_PTRACE.";

    SOURCE_BROKEN "W7001" Configuration false "-" "the mesh source is broken" "The text says what and where. What was in force stays in force; at the start nothing is: the control plane ends, the agent waits for a usable file.";
    CSR_INVALID "W7002" Peer false "-" "a certificate request is unusable" "The request must be PKCS#10 with a valid signature and an accepted key.";
    NOT_AUTHENTICATED "W7003" Peer false "-" "a caller of the control plane is not authenticated" "Its token is missing, unknown, expired or for another audience.";
    NOT_AUTHORIZED "W7004" Peer false "-" "a node asked for an identity that does not run there" "Stale agent data, or a compromised node.";
    CA_MATERIAL "W7005" Configuration false "-" "the authority's own key or certificate is unusable" "The text names the file, or the Secret and its key. A key file must be 0600. An authority that was in force stays.";
    ELEMENT_REJECTED "W7006" Configuration false "-" "an element of the mesh source was rejected" "The text names it, in a file with line and column. Its previous version stays in force if it had one; a policy without one refuses everything in its place; all others are applied.";
    API_UNAVAILABLE "W7011" ControlPlane true "-" "the Kubernetes API cannot be reached" "What was known stays in force and the call is repeated. Check the API server, and that nothing keeps this pod from reaching it.";
    API_REFUSED "W7012" Configuration false "-" "the Kubernetes API refused a call" "Its answer is in the text. If it says forbidden, the ServiceAccount lacks that verb on that resource: install the roles of the chart.";
    NOT_A_PROXY "W7013" Peer false "-" "a caller of the control plane is not a node's proxy" "Only accounts in CA_TRUSTED_NODE_ACCOUNTS may, with a token that is bound to a pod which exists.";

    DEMO_UNSUPPORTED "W8001" Node false "-" "this machine does not allow the demo" "Run it as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1 and, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns=0).";
    DEMO_CLAIM "W8002" Warren false "-" "a claim of the demo does not hold" "The text names the claim and what was seen.";
    DEMO_CHILD "W8003" Warren true "-" "a process of the demo ended" "Its last log lines are in the text.";

    CNI_AGENT_AWAY "W9001" Node true "-" "a new pod may be in the mesh, and the node agent does not answer" "The pod is not started, so that nothing it sends goes in clear; the kubelet tries again. See why the agent of this node does not run: kubectl get pods -A -o wide -l app=warren-agent. docs/operating.md says how to take Warren off a node.";
    CNI_NOT_ENROLLED "W9002" Node true "-" "a new pod could not be brought into the mesh" "The pod is not started, so that nothing it sends goes in clear; the kubelet tries again. The reason is in the text, and in the log of this node's agent.";
    CNI_CALL "W9003" Node false "-" "a call of the CNI plugin cannot be understood" "The text says what is wrong. Check the configuration in the CNI directory of the node, and that the container runtime speaks CNI 0.3.0 to 1.1.0.";
    CNI_INSTALL "W9004" Node true "-" "the CNI plugin is not in place" "Until it is, new pods of this node start before they are captured. The text says what is missing; it is tried again by itself.";
}

/// The entry with that id, in any case.
pub fn find(id: &str) -> Option<&'static Code> {
    ALL.iter().find(|code| code.id.eq_ignore_ascii_case(id)).copied()
}

/// The error reference, Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Error reference\n\nEvery refusal and failure carries one of these codes: in the access log (`code`), in error texts, in \
         `warren_connections_refused_total{code}`. A code never changes its meaning. `warren explain W####` prints one.\n\n\
         | code | what happened | whose side | retry helps | what to do |\n|---|---|---|---|---|\n",
    );
    for code in ALL {
        let retry = if code.retry { "yes" } else { "no" };
        page.push_str(&format!("| {} | {} | {} | {retry} | {} |\n", code.id, code.title, code.side, code.hint));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_ordered() {
        for pair in ALL.windows(2) {
            assert!(pair[0].id < pair[1].id, "{} before {}", pair[0].id, pair[1].id);
        }
    }

    #[test]
    fn every_code_can_be_found_and_says_what_to_do() {
        for code in ALL {
            assert_eq!(find(&code.id.to_lowercase()), Some(*code));
            assert!(code.hint.ends_with('.'), "{}: the hint is a sentence", code.id);
        }
    }
}
