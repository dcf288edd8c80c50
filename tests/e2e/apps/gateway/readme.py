"""Runs the commands of a README, so that what it tells a user is what is tested."""
import os, re, subprocess


class Readme:
    """The ```sh blocks of a file by the title they stand under; functions that one defines are there in the next."""

    def __init__(self, path, directory, commands, environment, replace=()):
        self.directory = directory
        self.environment = {**os.environ, **environment, "PATH": f"{commands}:{os.environ['PATH']}"}
        self.functions = f"{commands}/.functions"
        open(self.functions, "w").close()
        with open(path) as f:
            text = f.read()
        for old, new in replace:
            if old not in text:
                raise ValueError(f"{path} no longer says {old!r}")
            text = text.replace(old, new)
        self.blocks = {}
        for part in re.split(r"^## +", text, flags=re.M)[1:]:
            title, _, body = part.partition("\n")
            self.blocks[title] = re.findall(r"^```sh\n(.*?)^```$", body, re.M | re.S)

    def run(self, title, number=None, limit=300):
        """The output of one block under a title (the first is 0), or of all of them. A command that fails ends it."""
        blocks = next(b for t, b in self.blocks.items() if title in t)
        text = "".join(blocks if number is None else [blocks[number]])
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", f'. "{self.functions}"\n{text}\ndeclare -f >"{self.functions}"'], cwd=self.directory,
                              env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise AssertionError(f"README, {title!r}: exit status {done.returncode}\n{text}\n{done.stdout}\n{done.stderr}")
        return done.stdout
