"""The control plane by itself beside an API server: tokens, the authority in a Secret, roots in every namespace, missing rights."""
import io, json, os, tarfile

from lib.build import TOP
from lib.shell import run

ORDER = 110
NEEDS = ("images",)


def tell(world):
    program = f"{world.dir}/warren-program"
    unpack(os.environ.get("WARREN_IMAGE") or f"{world.dir}/warren.tar", program)
    env = {**os.environ, "KUBE": f"{world.cluster.programs}/kube"}
    said = run(f"{TOP}/tests/e2e/control-auth", f"{world.dir}/control-auth", program, timeout=300, env=env)
    return f"{sum(line.startswith('ok ') for line in said.splitlines())} claims hold"


def unpack(archive, program):
    """The program out of an image's last layer."""
    with tarfile.open(archive) as image:
        layer = json.load(image.extractfile("manifest.json"))[0]["Layers"][-1]
        with tarfile.open(fileobj=io.BytesIO(image.extractfile(layer).read())) as files:
            member = next(m for m in files if os.path.basename(m.name) == "warren" and m.isfile())
            with open(program, "wb") as out:
                out.write(files.extractfile(member).read())
    os.chmod(program, 0o755)
