"""Applications of the stories, as Kubernetes objects."""
IMAGE = "localhost/warren-e2e-apps:1"
TRAFFIC = "/bin/traffic"
ECHO = 7000  # the port of the echo servers
AMBIENT = {"istio.io/dataplane-mode": "ambient"}
OUT = {"istio.io/dataplane-mode": "none"}


def pod(namespace, name, *command, node=None, labels=None, account=None, image=IMAGE, host_network=False, restart="Always", **container):
    """A pod with one container. Further arguments go into the container (ports, readinessProbe, ...)."""
    spec = {"containers": [{"name": "app", "image": image, "command": list(command), **container}], "terminationGracePeriodSeconds": 1,
            "restartPolicy": restart, "tolerations": [{"operator": "Exists"}]}
    if node:
        spec["nodeName"] = node
    if account:
        spec["serviceAccountName"] = account
    if host_network:
        spec["hostNetwork"] = True
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, **(labels or {})}}, "spec": spec}


def server(namespace, name, node, *ports, **more):
    """A pod that echoes on ports (default ECHO) and is Ready when it does."""
    ports = ports or (ECHO,)
    return pod(namespace, name, TRAFFIC, "echo", *map(str, ports), node=node,
               readinessProbe={"exec": {"command": [TRAFFIC, "first", "127.0.0.1", str(ports[0])]}, "periodSeconds": 1}, **more)


def client(namespace, name, node, **more):
    """A pod that does nothing until something is run in it."""
    return pod(namespace, name, "sleep", "1000000", node=node, **more)


def first(namespace, name, node, address, port=ECHO, patience=0, **more):
    """A pod whose first instruction connects; it ends when it got its echo, or did not within `patience` ms."""
    return pod(namespace, name, TRAFFIC, "first", address, str(port), str(patience), node=node, restart="Never", **more)


def service(namespace, name, port=ECHO, headless=False, selector=None, **spec):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": selector or {"app": name}, "ports": [{"name": "tcp", "port": port, "targetPort": port}],
                     **({"clusterIP": "None"} if headless else {}), **spec}}


def account(namespace, name):
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


def peer_authentication(namespace, mode, name="default"):
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": name, "namespace": namespace},
            "spec": {"mtls": {"mode": mode}}}


def authorization(namespace, name, action="ALLOW", rules=None, selector=None):
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": namespace},
            "spec": {"action": action, **({"selector": {"matchLabels": selector}} if selector else {}), **({} if rules is None else {"rules": rules})}}
