"""The three images that layers.py measures, in a docker-registry of the caller's:

debian-min   minbase bookworm, one layer
python-dev   on it: python3, git and curl; build-essential, cmake and gdb; some data (four layers)
many-files   on debian-min: about 90,000 small files, two of the folders with 21,000 and 10,000 (two layers)

They are made with buildah in CACHE/images (some minutes, once) and pushed from there."""

import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

NAMES = ("debian-min", "python-dev", "many-files")
FILES = {
    "debian-min": 'FROM scratch\nADD base.tar /\nCMD ["/bin/bash"]\n',
    "python-dev": """FROM localhost/debian-min
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
 python3 python3-pip git curl ca-certificates
RUN DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends build-essential cmake gdb \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY data /srv/data
CMD ["python3"]
""",
    "many-files": 'FROM localhost/debian-min\nADD many.tar /srv/\nCMD ["/bin/bash"]\n',
}


def many_tar(path, base):
    """Sizes and contents like those of a folder of JavaScript packages: slices of the base's own text files."""
    rnd = random.Random(1)
    with tarfile.open(base) as t:
        text = b"".join(t.extractfile(m).read() for m in t if m.isfile() and m.size > 4000
                        and m.name.endswith((".pm", ".pl", ".list", ".md5sums", "copyright", ".conf", ".postinst")))
    folders = [("icons", 21000), ("locales", 10000)] + [(f"package-{i}/lib", 30) for i in range(1950)]
    with open(path, "wb") as out, tarfile.open(fileobj=out, mode="w") as t:
        for name, count in folders:
            for i in range(count):
                m = tarfile.TarInfo(f"app/node_modules/{name}/module-{i:05}.js")
                m.size = min(int(rnd.lognormvariate(8.3, 1.4)), 400000, len(text))
                at = rnd.randrange(len(text) - m.size + 1)
                t.addfile(m, io.BytesIO(text[at:at + m.size]))


class Maker:
    def __init__(self, cache):
        self.folder = Path(cache) / "images"
        self.folder.mkdir(parents=True, exist_ok=True)
        conf = self.folder / "storage.conf"
        conf.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/graph"\n'
                        f'runroot = "{self.folder}/run"\n')
        self.env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(conf)}

    def run(self, *argv):
        subprocess.run([str(a) for a in argv], check=True, env=self.env, stdout=subprocess.DEVNULL)

    def layout(self, name):
        return self.folder / "oci" / name

    def context(self, name):
        ctx = self.folder / f"context-{name}"
        ctx.mkdir(exist_ok=True)
        (ctx / "Containerfile").write_text(FILES[name])
        base = self.folder / "base.tar"
        if not base.exists():
            part = self.folder / "base.part"
            self.run("mmdebstrap", "--quiet", "--format=tar", "--variant=minbase", "bookworm", part)
            part.rename(base)
        if name == "debian-min":
            shutil.copy(base, ctx / "base.tar")
        elif name == "python-dev":
            (ctx / "data").mkdir(exist_ok=True)
            for i in range(1, 6):
                (ctx / "data" / f"{i}.txt").write_text("".join(f"{n}\n" for n in range(i, i * 100000)))
        else:
            many_tar(ctx / "many.tar", base)
        return ctx

    def make(self, name):
        if (self.layout(name) / "done").exists():
            return
        if name != "debian-min":
            self.make("debian-min")
        ctx = self.context(name)
        self.run("buildah", "--log-level", "error", "bud", "-q", "--isolation", "chroot", "--layers",
                 "--format", "oci", "-t", name, "-f", ctx / "Containerfile", ctx)
        self.layout(name).parent.mkdir(exist_ok=True)
        self.run("buildah", "push", "-q", "--format", "oci", name, f"oci:{self.layout(name)}:latest")
        (self.layout(name) / "done").touch()
        shutil.rmtree(ctx)

    def push(self, name, addr):
        self.make(name)
        self.run("skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false",
                 f"oci:{self.layout(name)}:latest", f"docker://{addr}/{name}:latest")


def layer_digests(addr, name):
    """The layers of a pushed image, as its manifest lists them."""
    ask = urllib.request.Request(f"http://{addr}/v2/{name}/manifests/latest",
                                 headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    with urllib.request.urlopen(ask, timeout=60) as answer:
        return [d["digest"] for d in json.load(answer)["layers"]]
