"""What the daemons take when nothing happens."""
import time

ORDER = 320
NEEDS = ("node",)
SECONDS = 30


def tell(world):
    warren = world.warren
    world.gone(90)
    time.sleep(5)
    pods = {role: warren.pods(role) for role in ("proxy", "agent", "control")}
    def used():
        """Of one pod of each role, on the average."""
        return sum(sum(map(warren.cpu, ps)) / len(ps) for ps in pods.values())
    before, start = used(), time.monotonic()
    time.sleep(SECONDS)
    cpu = 1000 * (used() - before) / (time.monotonic() - start)
    memory = {role: max(map(warren.memory, ps)) for role, ps in pods.items()}
    limits = {"proxy": 10, "agent": 12, "control": 20}
    world.row("idle memory (PSS) proxy / agent / control, processor of all", " / ".join(f"{m:.1f}" for m in memory.values()) + f" MiB, {cpu:.1f} millicores for one of each",
              "<= 10 / 12 / 20 MiB, together <= 2 millicores", all(memory[r] <= limits[r] for r in memory) and cpu <= 2)
    return ", ".join(f"{r} {m:.1f} MiB" for r, m in memory.items()) + f" at most; {cpu:.1f} millicores for one of each"
