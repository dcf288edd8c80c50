"""What the daemons take when nothing happens."""
import time

from lib.shell import wait

ORDER = 320
NEEDS = ("node",)
SECONDS = 30
# The kubelet removes what is left of pods that are gone once a minute, and calls the CNI plugins for each.
LEFTOVERS = """
set -e -o pipefail
of() { /opt/kube/ctr -n k8s.io "$@" -q | sort; }
sandboxes=$(of containers ls 'labels."io.cri-containerd.kind"==sandbox')
running=$(of tasks ls)
comm -23 <(echo "$sandboxes") <(echo "$running")
"""


def tell(world):
    warren = world.warren
    world.gone(90)
    wait("the removal of ended sandboxes", lambda: not any(world.cluster.script(node, LEFTOVERS).strip() for node in world.kube.nodes()), 180)
    time.sleep(5)
    pods = {role: warren.pods(role) for role in ("proxy", "agent", "control")}
    def used():
        """Of one pod of each role, on the average."""
        return {role: sum(map(warren.cpu, ps)) / len(ps) for role, ps in pods.items()}
    before, start = used(), time.monotonic()
    time.sleep(SECONDS)
    after, seconds = used(), time.monotonic() - start
    each = {role: 1000 * (after[role] - before[role]) / seconds for role in pods}
    cpu = sum(each.values())
    memory = {role: max(map(warren.memory, ps)) for role, ps in pods.items()}
    limits = {"proxy": 10, "agent": 12, "control": 20}
    world.row("idle memory (PSS) proxy / agent / control, processor of all", " / ".join(f"{m:.1f}" for m in memory.values()) + f" MiB, {cpu:.1f} millicores for one of each ({' + '.join(f'{c:.1f}' for c in each.values())})",
              "<= 10 / 12 / 20 MiB, together <= 2 millicores", all(memory[r] <= limits[r] for r in memory) and cpu <= 2)
    return ", ".join(f"{r} {m:.1f} MiB" for r, m in memory.items()) + f" at most; {cpu:.1f} millicores for one of each"
