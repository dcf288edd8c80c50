"""Runs the commands of a README, so that what it tells a user is what is tested."""
import os, re

from lib.shell import Failed, run


class Readme:
    """The ```sh blocks of a file by the title they stand under; functions that one defines are there in the next."""

    def __init__(self, path, directory, commands, replace=()):
        """The commands run in `directory` with `commands` before everything else in PATH; `replace`: pairs of what is said and what is run."""
        self.directory, self.functions = directory, commands + "/.functions"
        self.environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
        open(self.functions, "w").close()
        with open(path) as f:
            text = f.read()
        for old, new in replace:
            if old not in text:
                raise Failed(f"{path} no longer says {old!r}")
            text = text.replace(old, new)
        self.blocks = {}
        for part in re.split(r"^## +", text, flags=re.M)[1:]:
            title, _, body = part.partition("\n")
            self.blocks[title] = re.findall(r"^```sh\n(.*?)^```$", body, re.M | re.S)

    def run(self, title, number=None, limit=300):
        """The output of one block under a title (the first is 0), or of all of them. A command that fails ends it."""
        blocks = next(b for t, b in self.blocks.items() if title in t)
        text = "".join(blocks if number is None else [blocks[number]])
        return run("bash", "-euo", "pipefail", "-c", f'. "{self.functions}"\n{text}\ndeclare -f >"{self.functions}"', cwd=self.directory,
                   env=self.environment, timeout=limit)
