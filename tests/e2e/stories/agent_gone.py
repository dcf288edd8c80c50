"""The agent is killed 20 times while pods come and go: every pod gets its answer, none in clear."""
import threading, time

from lib import measure, trouble
from lib.kube import address
from lib.shell import Failed, check

ORDER = 410
NEEDS = ("node", "wire")
KILLS = 20


def tell(world):
    warren = world.warren
    with trouble.meshed_pair(world, "e2e-agent-gone") as (ns, client, server):
        over, results, trouble_with = threading.Event(), [], []

        def come_and_go():
            n = 0
            while not over.is_set():
                try:
                    results.extend(measure.starts(world, ns, 3, 3, prefix=f"round-{n}", target=address(server)))
                except Failed as e:
                    trouble_with.append(e)
                n += 1
        with trouble.Load(world, client, address(server)) as load:
            thread = threading.Thread(target=come_and_go, daemon=True)
            thread.start()
            for i in range(KILLS):
                kill(world, (world.node_a, world.node_b)[i % 2])
                time.sleep(1)
            over.set()
            thread.join(90)
        check(not thread.is_alive() and not trouble_with, f"pods did not start: {trouble_with[:1]}")
        failed = [r for r in results if not r["ok"]]
        check(not failed, f"{len(failed)} of {len(results)} pods got no answer: {failed[:2]}")
        check(not load.new["failed"] and not load.long["failed"], f"traffic of running pods: {load.said()}")
        warren.healthy()
        warren.captured(client, server)
    return f"{KILLS} kills; {len(results)} pods came and went, all answered, 0 packets in clear; {load.said()}"


def kill(world, node):
    """SIGKILL, and the pod away at once: a container that is only killed waits longer each time before the kubelet starts it again."""
    pods = world.warren.pods("agent", node)
    if pods:
        pids = world.warren.pids(pods[0])
        world.cluster.script(node, f"kill -KILL {' '.join(map(str, pids))} 2>/dev/null; true" if pids else "true")
        world.kube.delete(pods[0], 0)
