"""What helps to understand a story that failed, printed."""
import contextlib

from .kube import address
from .shell import Failed
from .warren import NAMESPACE


def report(world, story_namespaces):
    for text in parts(world, story_namespaces):
        print("    | " + text.replace("\n", "\n    | "), flush=True)


def tail(text, lines):
    return "\n".join(text.strip().splitlines()[-lines:])


def parts(world, namespaces):
    kube = world.kube
    with contextlib.suppress(Failed):
        yield kube.kubectl("get", "pods", "-A", "-o", "wide", check=False).strip()
    for ns in dict.fromkeys([*namespaces, NAMESPACE]):
        with contextlib.suppress(Failed):
            events = kube.events(ns)
            if events:
                yield f"events of {ns}:\n" + "\n".join(events[-12:])
    for role in ("agent", "proxy", "control"):
        with contextlib.suppress(Failed):
            for pod in kube.pods(NAMESPACE, f"app=warren-{role}"):
                name = pod["metadata"]["name"]
                with contextlib.suppress(Failed):
                    yield f"log of {name} on {pod['spec'].get('nodeName')}:\n" + tail(kube.logs(pod, tailLines=25), 25)
                if any(c.get("restartCount") for c in pod["status"].get("containerStatuses", [])):
                    with contextlib.suppress(Failed):
                        yield f"log of {name} before its restart:\n" + tail(kube.logs(pod, previous="true", tailLines=25), 25)
    if "node" in world.cluster.can:
        for ns in namespaces:
            with contextlib.suppress(Failed):
                for pod in kube.pods(ns)[:4]:
                    if pod["status"].get("podIP") and not pod["spec"].get("hostNetwork"):
                        yield f"rules of {ns}/{pod['metadata']['name']} {address(pod)}:\n" + tail(world.warren.rules(pod), 60)
