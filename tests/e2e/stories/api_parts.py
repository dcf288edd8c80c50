"""Agent and control plane each alone against a real API server, with claims of their own (tests/e2e/agent, tests/e2e/control-auth)."""
import os, shutil, tempfile

from lib import build
from lib.shell import check, run

ORDER = 20
NEEDS = ("images",)
WARREN = True  # its image is needed before it is installed
SCRIPTS = {"agent": lambda d, warren: [], "control-auth": lambda d, warren: [d + "/api", warren]}


def tell(world):
    said = []
    with tempfile.TemporaryDirectory() as d:
        warren = build.program_of(world.archive, d)
        env = {**os.environ, "KUBE": world.cluster.programs + "/kube", "WARREN": warren}
        env.pop("KUBE_APISERVER_ARGS", None)
        for script, arguments in SCRIPTS.items():
            path = f"{build.HERE}/{script}"
            check(os.path.exists(path), f"{path} is missing")
            out = run(path, *arguments(d, warren), timeout=240, env=env)
            said.append(f"{script} {len(out.splitlines())} lines of claims")
        shutil.rmtree(d + "/api", ignore_errors=True)
    return ", ".join(said)
