"""Programs with deadlines, waits with deadlines, and the one way to say that something is not as it should be."""
import subprocess, time


class Failed(Exception):
    """Something is not as a person would expect it; the text says what."""


def check(holds, what):
    if not holds:
        raise Failed(what)


def run(*argv, timeout=60, input=None, check=True, env=None, cwd=None):
    """What a program prints. With check, an exit status other than 0 is a failure with its output in it."""
    try:
        p = subprocess.run([str(a) for a in argv], input=input, text=True, capture_output=True, timeout=timeout, env=env, cwd=cwd, errors="replace",
                           stdin=subprocess.DEVNULL if input is None else None)
    except subprocess.TimeoutExpired as e:
        said = "".join(s if isinstance(s, str) else s.decode(errors="replace") for s in (e.stdout, e.stderr) if s)
        raise Failed(f"{' '.join(map(str, argv))[:300]}: still running after {timeout} s: {said[-1000:]}")
    if check and p.returncode:
        raise Failed(f"{' '.join(map(str, argv))[:300]}: exit status {p.returncode}: {(p.stdout + p.stderr).strip()[-1500:]}")
    return p.stdout if check else p.stdout + p.stderr


def wait(what, ready, seconds=60, every=0.1):
    """What ready() gives as soon as it is something; a failure when it is nothing for so long. ready() may fail meanwhile."""
    end, last = time.monotonic() + seconds, None
    while True:
        try:
            if got := ready():
                return got
            last = None
        except Failed as e:
            last = e
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:g} s" + (f": {last}" if last else ""))
        time.sleep(every)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]
