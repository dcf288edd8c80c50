"""The cluster's API: kubectl for what a user does, plain HTTP for what is asked often."""
import contextlib, http.client, json, re, subprocess

from .shell import Failed, check, run, wait

PATHS = {"Pod": "api/v1/namespaces/{}/pods", "Namespace": "api/v1/namespaces", "Service": "api/v1/namespaces/{}/services",
         "Node": "api/v1/nodes", "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts", "Event": "api/v1/namespaces/{}/events"}


class Kube:
    def __init__(self, kubectl, kubeconfig):
        self.command = [*kubectl, "--kubeconfig", kubeconfig]
        self.kubeconfig = kubeconfig
        self.proxy = subprocess.Popen([*self.command, "proxy", "--port=0", "--reject-methods=^$"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                      stdin=subprocess.DEVNULL)
        said = self.proxy.stdout.readline()
        self.port = int((re.search(r"127\.0\.0\.1:(\d+)", said) or [0, 0])[1])
        check(self.port, f"kubectl proxy: {said}")

    def close(self):
        self.proxy.kill()
        self.proxy.wait()

    # ---- as a user types it ----

    def kubectl(self, *args, **more):
        return run(*self.command, *args, **more)

    def apply(self, *objects, namespace=None):
        """kubectl apply of objects or of YAML text."""
        text = "\n---\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects)
        return self.kubectl(*(["-n", namespace] if namespace else []), "apply", "-f", "-", input=text)

    def exec(self, pod, *command, timeout=30, check=True, input=None):
        """Runs a program in a pod (an object, or "namespace/name")."""
        namespace, name = place(pod)
        return self.kubectl("-n", namespace, "exec", *(["-i"] if input is not None else []), name, "--", *command, timeout=timeout, check=check, input=input)

    def background(self, pod, *command):
        """Starts a program in a pod and gives it a standard input whose end is its end: see Background."""
        namespace, name = place(pod)
        return Background([*self.command, "-n", namespace, "exec", "-i", name, "--", *command])

    # ---- plain HTTP ----

    def api(self, path, method="GET", body=None, content="application/json", timeout=20, missing=False, text=False):
        """What the API answers, parsed unless it is to be text; with missing, None when there is no such thing."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, "/" + path.lstrip("/"), None if body is None else json.dumps(body), {"Content-Type": content})
            r = c.getresponse()
            said = r.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as e:
            raise Failed(f"{method} {path}: {e}")
        finally:
            c.close()
        if r.status == 404 and missing:
            return None
        if r.status >= 300:
            raise Failed(f"{method} {path}: {r.status} {said[:500]}")
        return said if text else json.loads(said)

    def create(self, *objects):
        made = []
        for o in objects:
            made.append(self.api(PATHS[o["kind"]].format(o["metadata"].get("namespace")), "POST", o))
        return made[0] if len(made) == 1 else made

    def pods(self, namespace, labels="", node=None):
        fields = f"&fieldSelector=spec.nodeName={node}" if node else ""
        return self.api(f"api/v1/namespaces/{namespace}/pods?labelSelector={labels.replace('=', '%3D')}{fields}")["items"]

    def pod(self, pod):
        namespace, name = place(pod)
        return self.api(f"api/v1/namespaces/{namespace}/pods/{name}", missing=True)

    def delete(self, pod, grace=0):
        namespace, name = place(pod)
        self.api(f"api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds={grace}", "DELETE", missing=True)

    def logs(self, pod, container="", **query):
        namespace, name = place(pod)
        query = "&".join(f"{k}={v}" for k, v in {**({"container": container} if container else {}), **query}.items())
        return self.api(f"api/v1/namespaces/{namespace}/pods/{name}/log?{query}", timeout=30, text=True)

    def events(self, namespace, name=""):
        found = self.api(f"api/v1/namespaces/{namespace}/events")["items"]
        return [f"{e['reason']}: {e.get('message') or e.get('note') or ''}" for e in found if not name or e["involvedObject"].get("name") == name]

    def nodes(self):
        """Names of the nodes that take pods."""
        return sorted(n["metadata"]["name"] for n in self.api("api/v1/nodes")["items"] if not n["spec"].get("unschedulable")
                      and not any(t["effect"] == "NoSchedule" for t in n["spec"].get("taints", [])))

    # ---- waits ----

    def ready(self, *pods, seconds=60):
        """Waits until pods are Ready; gives them as they are then."""
        def all_ready():
            now = [self.pod(p) for p in pods]
            for p in now:
                if p and p["status"].get("phase") == "Failed":
                    raise Failed(f"{p['metadata']['name']} has failed")
            return all(p and is_ready(p) for p in now) and now
        try:
            got = wait("Ready pods", all_ready, seconds)
        except Failed as e:
            raise Failed(f"{e}; " + "; ".join(self.state(p) for p in pods))
        return got[0] if len(got) == 1 else got

    def ended(self, *pods, seconds=60):
        """Waits until pods have ended, well or not; gives them."""
        def all_ended():
            now = [self.pod(p) for p in pods]
            return all(p and p["status"].get("phase") in ("Succeeded", "Failed") for p in now) and now
        try:
            got = wait("the end of pods", all_ended, seconds)
        except Failed as e:
            raise Failed(f"{e}; " + "; ".join(self.state(p) for p in pods))
        return got[0] if len(got) == 1 else got

    def state(self, pod):
        """One line about a pod for a failure."""
        namespace, name = place(pod)
        with contextlib.suppress(Failed):
            p = self.pod(pod)
            if not p:
                return f"{name}: not there"
            waiting = [s for c in p["status"].get("containerStatuses", []) for s in [c["state"].get("waiting", {}).get("reason")] if s]
            return f"{name} on {p['spec'].get('nodeName')}: {p['status'].get('phase')} {' '.join(waiting)} {self.events(namespace, name)[-2:]}"
        return f"{name}: the API does not answer"

    def rollout(self, namespace, *what, seconds=120):
        for w in what:
            self.kubectl("-n", namespace, "rollout", "status", w, f"--timeout={seconds}s", timeout=seconds + 10)


class Background:
    """A program in a pod that runs until its standard input ends and then prints what it found."""

    def __init__(self, argv):
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(self):
        return self.process.poll() is not None

    def result(self, timeout=30):
        """Ends it; what it printed, as JSON when its last line is that."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise Failed(f"a client did not end: {out[-300:]} {err[-300:]}")
        last = (out.strip().splitlines() or [""])[-1]
        check(last, f"a client printed nothing: {err[-500:]}")
        return json.loads(last) if last.startswith("{") else out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def place(pod):
    """("namespace", "name") of a pod object or of "namespace/name"."""
    return tuple(pod.split("/")) if isinstance(pod, str) else (pod["metadata"]["namespace"], pod["metadata"]["name"])


def is_ready(pod):
    return not pod["metadata"].get("deletionTimestamp") and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def captured(pod):
    return pod["metadata"].get("annotations", {}).get("ambient.istio.io/redirection") == "enabled"


def address(pod):
    return pod["status"]["podIP"]
