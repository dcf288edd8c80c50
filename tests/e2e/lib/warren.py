"""Warren on the cluster: installation as a user does it, and what an operator looks at."""
from . import build
from .kube import address, captured, is_ready
from .shell import Failed, check, run, wait

NAMESPACE, RELEASE = "warren-system", "warren"
CHART = build.TOP + "/deploy/helm/warren"
PARTS = ("deployment/warren-control", "daemonset/warren-agent", "daemonset/warren-proxy")
# Nanoseconds that the control group of process PID has used, by version 1 or 2.
CPU = """
group=$(sed -n 's/^[0-9]*:\\([a-z_=]*,\\)*cpuacct\\(,[a-z_=]*\\)*://p' /proc/PID/cgroup)
if [ -n "$group" ]; then cat /sys/fs/cgroup/cpuacct$group/cpuacct.usage
else awk '$1 == "usage_usec" { print 1000 * $2 }' "/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/PID/cgroup)/cpu.stat"; fi
"""


class Warren:
    def __init__(self, kube, cluster, image):
        self.kube, self.cluster, self.image = kube, cluster, image
        self.installed = False

    # ---- as an administrator does it ----

    def helm(self, *args, timeout=300):
        return run(build.helm(), "--kubeconfig", self.kube.kubeconfig, "--namespace", NAMESPACE, *args, timeout=timeout)

    def values(self, image=None, *more):
        repository, _, tag = (image or self.image).rpartition(":")
        return ["--set", f"image.repository={repository},image.tag={tag}", *more]

    def install(self, *more):
        self.installed = True
        self.helm("install", RELEASE, CHART, "--create-namespace", *self.values(None, *more))
        self.kube.rollout(NAMESPACE, *PARTS)

    def upgrade(self, image=None, *more):
        self.helm("upgrade", RELEASE, CHART, *self.values(image, *more))
        self.kube.rollout(NAMESPACE, *PARTS)

    def uninstall(self):
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "3m")
        self.installed = False

    # ---- its pods ----

    def pods(self, role, node=None):
        """Pods of a role (agent, proxy, control) that are not on their way out."""
        return [p for p in self.kube.pods(NAMESPACE, f"app=warren-{role}", node) if not p["metadata"].get("deletionTimestamp")]

    def pod(self, role, node):
        found = self.pods(role, node)
        check(found, f"no {role} on {node}")
        return found[0]

    def healthy(self, seconds=90):
        """Waits until every pod of Warren is Ready and no old one is left."""
        def all_ready():
            pods = self.kube.pods(NAMESPACE)
            wanted = 2 * len(self.kube.nodes()) + 1
            return len(pods) >= wanted and all(is_ready(p) for p in pods)
        wait("Ready pods of Warren", all_ready, seconds)
        self.synced(seconds)

    def synced(self, seconds=30):
        """Waits until every proxy hears from the control plane: one that does not sends to new pods as to strangers."""
        def all_connected():
            clients = sum(v for k, v in self.metrics("control").items() if k.startswith("warren_control_clients"))
            return clients >= len(self.pods("proxy"))
        wait("discovery streams of all proxies", all_connected, seconds)

    def log(self, role, node=None, since=None, previous=False):
        text = ""
        for p in self.pods(role, node):
            query = {**({"sinceSeconds": max(1, int(since + 1))} if since else {}), **({"previous": "true"} if previous else {})}
            try:
                text += self.kube.logs(p, **query)
            except Failed as e:
                text += f"(no log of {p['metadata']['name']}: {e})\n"
        return text

    def access(self, node, since, *words):
        """Lines of the access log of a node's proxy that hold all of these words."""
        return [l for l in self.log("proxy", node, since).splitlines() if "access" in l and all(w in l for w in words)]

    def metrics(self, role, node=None, port=None):
        """What the pods of a role serve at /metrics: {name with labels: sum}."""
        port = port or {"agent": 15014, "proxy": 15020, "control": 8080}[role]
        total = {}
        for p in self.pods(role, node):
            name = p["metadata"]["name"]
            for line in self.kube.api(f"api/v1/namespaces/{NAMESPACE}/pods/{name}:{port}/proxy/metrics", text=True).splitlines():
                if line and not line.startswith("#"):
                    series, _, value = line.rpartition(" ")
                    total[series] = total.get(series, 0) + float(value)
        return total

    # ---- its processes ----

    def pids(self, pod):
        """Process ids, on the pod's node, of a pod's containers without the sandbox's own process."""
        uid = pod["metadata"]["uid"]
        text = self.cluster.script(pod["spec"]["nodeName"], f"grep -l -E 'pod({uid}|{uid.replace('-', '_')})' /proc/[0-9]*/cgroup 2>/dev/null | cut -d/ -f3 | "
                                   "while read p; do echo $p $(tr '\\0' ' ' </proc/$p/cmdline); done")
        return sorted(int(l.split()[0]) for l in text.splitlines() if len(l.split()) > 1 and not l.split()[1].endswith("/pause"))

    def kill(self, role, node, signal="KILL"):
        """Kills a role's process on a node from outside, as the kernel would: of a supervised proxy the one that works, which is also the largest."""
        pids = self.pids(self.pod(role, node))
        check(pids, f"the {role} on {node} has no process")
        if role == "proxy":
            pids = pids[1:] or pids
        self.cluster.script(node, f"kill -{signal} {' '.join(map(str, pids))} 2>/dev/null; true")

    def memory(self, pod):
        """Proportional set size, MiB."""
        text = self.cluster.script(pod["spec"]["nodeName"], "cat " + " ".join(f"/proc/{p}/smaps_rollup" for p in self.pids(pod)))
        return sum(int(l.split()[1]) for l in text.splitlines() if l.startswith("Pss:")) / 1024

    def cpu(self, pod):
        """Seconds of processor time so far."""
        return int(self.cluster.script(pod["spec"]["nodeName"], CPU.replace("PID", str(self.pids(pod)[0])))) / 1e9

    # ---- enrolment as seen from the API ----

    def captured(self, *pods, seconds=30):
        """Waits until pods say that they are captured; gives them."""
        def all_captured():
            now = [self.kube.pod(p) for p in pods]
            return all(p and captured(p) for p in now) and now
        try:
            got = wait("the annotation of captured pods", all_captured, seconds)
        except Failed as e:
            raise Failed(f"{e}; " + "; ".join(self.kube.state(p) for p in pods))
        return got[0] if len(got) == 1 else got

    def released(self, *pods, seconds=30):
        def none_captured():
            now = [self.kube.pod(p) for p in pods]
            return not any(p and "ambient.istio.io/redirection" in p["metadata"].get("annotations", {}) for p in now)
        wait("the annotation's end", none_captured, seconds)

    def rules(self, pod):
        """nf_tables of a pod's network namespace; nothing when it has none or has no process."""
        node = pod["spec"]["nodeName"]
        ip = address(pod)
        return self.cluster.script(node, f"for n in /run/netns/*; do nsenter --net=$n ip -o addr 2>/dev/null | grep -qF ' {ip}/' && "
                                   "nsenter --net=$n sh -c 'nft list ruleset; ip rule; ip route show table all | grep -v \"table local\"; ss -Hltn'; done; true",
                                   check=False)
