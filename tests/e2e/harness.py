"""What the end-to-end tests share: the program under test, homes, a registry, and a look at what is left.

A test class gets a folder of its own and in it a CAPSULE_BUILD_HOME that already has the kernel and
minimal-debian (hard-linked from the test cache, which is filled once and shared by all builds of this
checkout: CAPSULE_BUILD_TEST_CACHE). When a class ends, the harness looks for processes, mounts, loop
devices, control groups and work folders of its homes, and for reports of the sanitizers: finding any is
a failure of that class.

Environment: CB_BUILD_DIR (the build to test), CB_SANITIZED=1 when it is one with sanitizers.
"""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest
import urllib.parse
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("CB_BUILD_DIR") or SOURCE / "build").resolve()
PROGRAM = BUILD / "capsule-build"
JOB = BUILD / "capsule-build-job"
AGENT = BUILD / "capsule-agent"
SANITIZED = os.environ.get("CB_SANITIZED") == "1"
ROOT = os.geteuid() == 0
BUILDERS = ("vm", "container")

# Raise when what lies in the test cache would not do for a newer program.
CACHE_FORMAT = 2
CACHE_DAYS = 7
# A guest without KVM is slow, and so is a program under sanitizers; these end a hang, not a slow run.
PATIENCE = 900

PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
             "SSL_CERT_FILE", "CAPSULE_BUILD_DEBIAN_MIRROR", "TMPDIR")


def environment(home, extra=None):
    """What the program sees: nothing of the caller's but its PATH and how to reach the network."""
    env = {k: os.environ[k] for k in PASSED_ON if k in os.environ}
    env.update(PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
               LANG="C.UTF-8", TERM="dumb", HOME=str(Path(home).parent),
               CAPSULE_BUILD_HOME=str(home))
    if SANITIZED:
        report = Path(home).parent / "sanitizer"
        env["ASAN_OPTIONS"] = f"log_path={report}:detect_leaks=1:abort_on_error=0"
        # libgit2 1.5 loses what each match of a regular expression took (it reads a config file with them)
        (Path(home).parent / "suppressions").write_text("leak:libpcre2-8\n")
        env["LSAN_OPTIONS"] = f"suppressions={Path(home).parent}/suppressions:print_suppressions=0"
        env["UBSAN_OPTIONS"] = f"log_path={report}:print_stacktrace=1"
    env.update(extra or {})
    return env


def wait_until(check, what, seconds=60):
    """Asks until @check gives something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.05)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Result:
    """A program that ended."""

    def __init__(self, argv, rc, out, err, seconds):
        self.argv, self.rc, self.seconds = argv, rc, seconds
        self.out, self.err = out.decode(errors="replace"), err.decode(errors="replace")
        self.raw = out

    @property
    def text(self):
        return self.out + self.err

    def __str__(self):
        cut = lambda t: t if len(t) < 12000 else t[:4000] + "\n[...]\n" + t[-8000:]
        argv = " ".join(map(str, self.argv))
        return f"$ {argv}\n-> {self.rc} after {self.seconds:.1f} s\n{cut(self.out)}\n--- stderr\n{cut(self.err)}"


class Build(Result):
    """A build that ended, with its events (run with --progress json)."""

    def __init__(self, argv, rc, out, err, seconds):
        super().__init__(argv, rc, out, err, seconds)
        self.events = [flat(json.loads(line)) for line in self.out.splitlines() if line.startswith("{")]

    def of(self, kind):
        return [e for e in self.events if e["type"] == kind]

    @property
    def status(self):
        got = self.of("build-status")
        return got[-1]["status"] if got else None

    @property
    def error(self):
        """What the last build-status says, else what was printed."""
        got = self.of("build-status")
        return (got[-1].get("error") if got else None) or self.err

    @property
    def notes(self):
        return "\n".join(e.get("text", "") for e in self.events if e["type"] in ("note", "warning"))

    def steps(self, phase=None, layer=None):
        """Steps in their order: what step-start and step-end say, and the output as text."""
        steps = {}
        for e in self.events:
            if e["type"] == "step-start":
                steps[e["step"]] = dict(e, output="")
            elif e["type"] == "output" and e["step"] in steps:
                steps[e["step"]]["output"] += output_of(e).decode(errors="replace")
            elif e["type"] == "step-end" and e["step"] in steps:
                steps[e["step"]].update({k: e.get(k) for k in ("exit", "ok", "elapsed_ms")})
        return [s for s in steps.values()
                if (phase is None or s["phase"] == phase) and (layer is None or s.get("layer") == layer)]

    def commands_run(self):
        """[(layer, cmd)] of the user's commands that really ran."""
        return [(s["layer"], s["cmd"]) for s in self.steps()
                if s.get("layer") and not s["layer"].startswith("_") and not s.get("cached")
                and s["phase"] == "recipe"]

    def phases_run(self):
        return {s["phase"] for s in self.steps() if not s.get("cached")}

    def output(self, layer=None):
        return "".join(s["output"] for s in self.steps(layer=layer))


def flat(event):
    """seq, ts and type beside the payload's fields, whichever way they were nested."""
    payload = event.get("payload")
    return {**event, **payload} if isinstance(payload, dict) else event


def output_of(event):
    data = event.get("data", "")
    if event.get("encoding") == "base64":
        import base64
        return base64.b64decode(data)
    return data.encode()


class Running:
    """A program that runs: its output so far, and how to end it."""

    def __init__(self, argv, env, cwd, folder):
        self.argv = argv
        self.start = time.monotonic()
        self.files = [tempfile.NamedTemporaryFile(dir=folder, prefix="out-", delete=False) for _ in "oe"]
        # A session of its own, as a terminal gives one: signals to the group reach what Ctrl-C would.
        self.proc = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                                     stdout=self.files[0], stderr=self.files[1], start_new_session=True)
        self.pid = self.proc.pid

    def so_far(self):
        return b"".join(Path(f.name).read_bytes() for f in self.files).decode(errors="replace")

    def wait_for(self, pattern, seconds=300):
        """Waits until the output holds @pattern; the match."""
        def look():
            m = re.search(pattern, self.so_far())
            if not m and self.proc.poll() is not None:
                m = re.search(pattern, self.so_far())
                if not m:
                    raise AssertionError(f"ended ({self.proc.returncode}) without {pattern!r}:\n{self.so_far()}")
            return m
        return wait_until(look, lambda: f"{pattern!r} in\n{self.so_far()}", seconds)

    def interrupt(self):
        """Ctrl-C: SIGINT to the group of the foreground."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self, seconds=PATIENCE, cls=Result):
        try:
            self.proc.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.argv}\n{self.so_far()}") from None
        out, err = (Path(f.name).read_bytes() for f in self.files)
        return cls(self.argv, self.proc.returncode, out, err, time.monotonic() - self.start)

    def kill(self):
        if self.proc.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.proc.wait()


class Home:
    """One CAPSULE_BUILD_HOME and calls of the program on it."""

    def __init__(self, path):
        self.path = Path(path)
        self.folder = self.path.parent

    @property
    def store(self):
        return self.path / "store" if (self.path / "store").is_dir() else self.path

    def start(self, *args, env=None, cwd=None, prefix=()):
        argv = [*map(str, prefix), str(PROGRAM), *map(str, args)]
        return Running(argv, environment(self.path, env), cwd or self.folder, self.folder)

    def run(self, *args, env=None, cwd=None, prefix=(), seconds=PATIENCE, cls=Result):
        p = self.start(*args, env=env, cwd=cwd, prefix=prefix)
        try:
            return p.end(seconds, cls)
        finally:
            p.kill()

    def build(self, config, *args, **kw):
        return self.run("--progress", "json", *args, config, cls=Build, **kw)

    def config(self, name, layers=None, base="minimal-debian", file=None, **fields):
        """Writes an onboard.yaml (a bare workload config) and returns its path."""
        doc = {"display_name": name, "base_image": base, **fields}
        if layers is not None:
            doc["layers"] = [{"name": n, "init_commands": c} for n, c in layers]
        doc.setdefault("config", {"tier": "s"})
        path = Path(file) if file else self.folder / f"{name}.yaml"
        path.write_text(json.dumps(doc, indent=1))
        return path

    def builds(self):
        """[{id, name, status, error...}], newest first."""
        got = self.run("builds", "--json")
        if got.rc:
            raise AssertionError(str(got))
        return json.loads(got.out)

    def versions(self, name):
        """Published versions of a template, their manifests by number."""
        out = {}
        for p in (self.store / "templates" / name).glob("*.json"):
            if p.stem.isdigit():
                out[int(p.stem)] = json.loads(p.read_text())
        return out

    def manifest(self, name):
        v = self.versions(name)
        return v[max(v)]

    def layer_names(self, name):
        return [layer["name"] for layer in self.manifest(name)["layers"]]

    def blob(self, digest):
        return self.store / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def image(self, name):
        return self.store / "images" / (self.manifest(name)["image"]["digest"].removeprefix("sha256:") + ".ext4")

    def cached_layer(self, layer):
        """The tar of a cached layer's diff, as bytes."""
        found = []
        for p in (self.store / "cache").glob("*.json"):
            record = json.loads(p.read_text())
            if record["layer"] == layer:
                found.append(record)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} cache records of layer {layer}")
        return tar_of(self.blob(found[0]["diff"]["digest"]))

    # ---- what may be left ----

    def container(self, build):
        """The name of a build's container and control group."""
        return "capsule-build-" + hashlib.sha256(str(self.path.resolve() / "work" / build).encode()).hexdigest()[:16]

    def container_processes(self, build):
        """What runs in a build's container, its first process first."""
        name, found = self.container(build).encode(), []
        for p in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if p.name.isdigit() and name in (p / "cgroup").read_bytes():
                    found.append(int(p.name))
        return sorted(found)

    def left_processes(self, ids=()):
        needle = str(self.path).encode()
        containers = [self.container(i).encode() for i in ids]
        found = []
        for p in Path("/proc").iterdir():
            if not p.name.isdigit() or int(p.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (p / "cmdline").read_bytes()
                group = (p / "cgroup").read_bytes() if containers else b""
                if needle in words or any(c in group for c in containers) or needle in (p / "environ").read_bytes():
                    state = re.search(rb"\nState:\t(\S)", (p / "status").read_bytes()).group(1)
                    if state != b"Z":
                        found.append(f"process {p.name}: {words.replace(bytes(1), b' ').decode(errors='replace')}")
        return found

    def left_mounts(self):
        found = set()
        for p in Path("/proc").iterdir():
            if p.name.isdigit():
                with contextlib.suppress(OSError):
                    for line in (p / "mountinfo").read_text(errors="replace").splitlines():
                        if str(self.path) in line:
                            found.add(f"mount (seen by {p.name}): {line}")
        return sorted(found)

    def left_loops(self):
        found = []
        for p in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if str(self.path) in p.read_text():
                    found.append(f"loop device {p.parts[3]}: {p.read_text().strip()}")
        return found

    def left_cgroups(self, ids):
        """Control groups and runtime folders that carry the name of a build."""
        found = []
        wanted = [i.lower() for i in ids] + [self.container(i) for i in ids]
        for top in ("/sys/fs/cgroup", "/run/runc", "/run/crun"):
            for folder, subs, _ in os.walk(top, onerror=None):
                found += [f"{folder}/{s}" for s in subs if any(w in s.lower() for w in wanted)]
        return found

    def left_files(self):
        found = []
        for d in (self.path / "work", self.store / "tmp"):
            if d.is_dir():
                found += [f"file {p}" for p in d.iterdir()]
        return found

    def left(self, ids=()):
        return (self.left_processes(ids) + self.left_mounts() + self.left_loops() + self.left_cgroups(ids)
                + self.left_files())


# ---- the test cache ----

def cache_folder():
    path = Path(os.environ.get("CAPSULE_BUILD_TEST_CACHE") or SOURCE / ".cache" / "tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


def warm_home():
    """A home with the kernel and minimal-debian in it; made when there is none, or an old one."""
    cache = cache_folder()
    home = cache / f"home-{CACHE_FORMAT}"
    stamp = home / "ready"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and time.time() - stamp.stat().st_mtime < CACHE_DAYS * 86400:
            return home
        shutil.rmtree(home, ignore_errors=True)
        fresh = Home(cache / "making" / "home")
        shutil.rmtree(fresh.folder, ignore_errors=True)
        fresh.folder.mkdir()
        config = fresh.config("warm", [("nothing", ["true"])])
        got = fresh.run("--no-boot-check", config)
        if got.rc:
            raise AssertionError(f"the test cache could not be made:\n{got}")
        fresh.run("doctor")  # keeps its answer on KVM
        (fresh.path / "ready").touch()
        os.rename(fresh.path, home)
        shutil.rmtree(fresh.folder, ignore_errors=True)
    return home


NOT_CLONED = {"cache", "templates", "images", "lowers", "tmp", "partial", "work", "logs", "ready"}


def clone_home(src, dst):
    """Copies a home by hard links (a copy on another file system), without its builds and templates."""
    for folder, subs, files in os.walk(src):
        subs[:] = [s for s in subs if s not in NOT_CLONED]
        here = Path(dst) / Path(folder).relative_to(src)
        here.mkdir(parents=True, exist_ok=True)
        os.chmod(here, os.stat(folder).st_mode & 0o7777)
        for f in files:
            if f in NOT_CLONED or ".db" in f or ".sqlite" in f or f.endswith(".lock"):
                continue
            source, target = Path(folder) / f, here / f
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:
                shutil.copy2(source, target, follow_symlinks=False)


def warm_template(name="warm"):
    return Home(warm_home()).manifest(name)


def base_tar():
    """minimal-debian's one layer as a plain tar (a path), taken from the test cache."""
    warm = Home(warm_home())
    path = cache_folder() / f"base-{CACHE_FORMAT}.tar"
    with open(cache_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.stat().st_mtime < (warm.path / "ready").stat().st_mtime:
            m = warm.manifest("warm")
            part = path.with_suffix(".part")
            part.write_bytes(tar_of(warm.blob(m["layers"][0]["digest"])))
            part.rename(path)
    return path


# ---- tars and images ----

def tar_of(blob):
    """The uncompressed bytes of a layer blob (path), by other means than ours."""
    blob = Path(blob)
    magic = blob.read_bytes()[:4]
    if magic == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dcq", str(blob)], check=True, stdout=subprocess.PIPE).stdout
    if magic[:2] == b"\x1f\x8b":
        return gzip.decompress(blob.read_bytes())
    return blob.read_bytes()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_entries(data):
    """{path: facts} of a layer tar. Hard links are given as the group of names that share an inode."""
    out, links = {}, {}
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        for m in t:
            path = m.name.strip("/").removeprefix("./") or "."
            xattrs = {k.removeprefix("SCHILY.xattr."): v for k, v in m.pax_headers.items()
                      if k.startswith("SCHILY.xattr.")}
            facts = {"type": {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
                              tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "file",
                              tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
                              tarfile.FIFOTYPE: "fifo"}.get(m.type, repr(m.type)),
                     "mode": oct(m.mode), "owner": (m.uid, m.gid), "xattrs": xattrs}
            if m.issym():
                facts["link"] = m.linkname
            elif m.islnk():
                target = m.linkname.strip("/").removeprefix("./")
                links.setdefault(target, {target}).add(path)
                if target in out:
                    facts = dict(out[target])
                else:
                    facts["hard link to"] = target
            elif m.ischr() or m.isblk():
                facts["device"] = (m.devmajor, m.devminor)
            elif m.isfile() or m.type == tarfile.GNUTYPE_SPARSE:
                h = hashlib.sha256()
                f = t.extractfile(m)
                while chunk := f.read(1 << 20):
                    h.update(chunk)
                facts["size"], facts["content"] = m.size, h.hexdigest()
            out[path] = facts
    for group in links.values():
        for path in group:
            if path in out:
                out[path]["same file as"] = sorted(group)
    return out


class Layout:
    """An OCI image layout written by hand: layers as gzip, one image."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.layers, self.diff_ids = [], []

    def put(self, data):
        digest = sha256(data)
        (self.folder / "blobs" / "sha256" / digest[7:]).write_bytes(data)
        return digest

    def add_layer(self, tar):
        packed = gzip.compress(tar, 1, mtime=0)
        self.layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                            "digest": self.put(packed), "size": len(packed)})
        self.diff_ids.append(sha256(tar))
        return self

    def finish(self, tag="latest", **config):
        doc = {"architecture": "amd64", "os": "linux", "config": config,
               "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
               "history": [{"created_by": f"layer {i}"} for i in range(len(self.layers))]}
        data = self.config = json.dumps(doc).encode()
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                               "digest": self.put(data), "size": len(data)},
                    "layers": self.layers}
        data = json.dumps(manifest).encode()
        index = {"schemaVersion": 2, "manifests": [
            {"mediaType": manifest["mediaType"], "digest": self.put(data), "size": len(data),
             "annotations": {"org.opencontainers.image.ref.name": tag}}]}
        (self.folder / "index.json").write_text(json.dumps(index))
        return self


def make_tar(entries):
    """A layer tar from (name, facts) pairs: type, mode, uid, gid, data, link, xattrs, mtime, device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
        for name, f in entries:
            m = tarfile.TarInfo(name)
            kind = f.get("type", "file")
            m.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE,
                      "hardlink": tarfile.LNKTYPE, "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
                      "fifo": tarfile.FIFOTYPE}[kind]
            m.mode = f.get("mode", 0o755 if kind == "folder" else 0o644)
            m.uid, m.gid, m.mtime = f.get("uid", 0), f.get("gid", 0), f.get("mtime", 1700000000)
            m.linkname = f.get("link", "")
            m.devmajor, m.devminor = f.get("device", (0, 0))
            for k, v in f.get("xattrs", {}).items():
                m.pax_headers["SCHILY.xattr." + k] = v
            data = f.get("data", b"")
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
    return out.getvalue()


class Registry:
    """A real docker-registry on a free port of the loopback."""

    USER, PASSWORD = "ada", "love:lace"
    HTPASSWD = "ada:$2b$05$abcdefghijklmnopqrstuujuOr2/oZU0c8EgP1YXR/DGy/5z8WNzi\n"

    def __init__(self, folder, tls=False, login=False):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tls, self.proc = tls, None
        self.port = free_port()
        self.addr = f"127.0.0.1:{self.port}"
        self.data = self.folder / "data"
        http_conf = {"addr": self.addr}
        if tls:
            self.ca = self.folder / "ca.pem"
            self.make_certificates()
            http_conf["tls"] = {"certificate": str(self.folder / "server.pem"),
                                "key": str(self.folder / "server.key")}
        conf = {"version": 0.1, "log": {"level": "error"}, "http": http_conf,
                "storage": {"filesystem": {"rootdirectory": str(self.data)}, "delete": {"enabled": True}}}
        if login:
            (self.folder / "htpasswd").write_text(self.HTPASSWD)
            conf["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.folder / "htpasswd")}}
        (self.folder / "config.yml").write_text(json.dumps(conf))
        self.start()

    def make_certificates(self):
        def openssl(*args):
            subprocess.run(["openssl", *args], cwd=self.folder, check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=a private authority")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=registry")
        (self.folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "ext", "-out", "server.pem")

    def start(self):
        log = open(self.folder / "log", "ab")
        self.proc = subprocess.Popen(["docker-registry", "serve", str(self.folder / "config.yml")],
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()

        def up():
            if self.proc.poll() is not None:
                raise AssertionError("docker-registry: " + (self.folder / "log").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        wait_until(up, "docker-registry accepts connections", 30)

    def stop(self):
        if self.proc and self.proc.poll() is None:
            self.proc.terminate()
            self.proc.wait()

    def push(self, layout, name, tag="latest"):
        """Pushes the layout's image with skopeo; its reference."""
        subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false",
                        f"oci:{layout.folder}:latest", f"docker://{self.addr}/{name}:{tag}"],
                       check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       env={**os.environ, "TMPDIR": str(self.folder)})
        return f"{self.addr}/{name}:{tag}"

    def blob_file(self, digest):
        h = digest.removeprefix("sha256:")
        return self.data / "docker/registry/v2/blobs/sha256" / h[:2] / h / "data"


def debian_layout(folder, **config):
    """minimal-debian as an OCI layout."""
    layout = Layout(folder).add_layer(base_tar().read_bytes())
    return layout.finish(**(config or {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["bash"]}))


# ---- the guests' side ----

# An HTTP service in perl-base, which every Debian has: answers 200 to everything, with the path asked for.
def perl_server(port):
    return ["perl", "-MIO::Socket::INET", "-e",
            f'$s = IO::Socket::INET->new(LocalPort => {port}, Listen => 9, ReuseAddr => 1) or die $!; '
            'print "serving\\n"; while ($c = $s->accept) { $l = <$c>; while (<$c>) { last if /^\\r?\\n$/ } '
            '($p) = $l =~ m{^GET (\\S+)}; $b = "path $p user $>\\n"; '
            'print $c "HTTP/1.0 200 OK\\r\\nContent-Length: ", length $b, "\\r\\n\\r\\n$b"; close $c }']


def http_get(port, path, seconds=10):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        c.request("GET", path)
        r = c.getresponse()
        return r.status, r.read().decode(errors="replace")
    finally:
        c.close()


def mirror_host():
    """A host that guests reach by name: the distribution's mirror."""
    given = os.environ.get("CAPSULE_BUILD_DEBIAN_MIRROR")
    return (urllib.parse.urlsplit(given).hostname if given else None) or "deb.debian.org"


def without(*names):
    """The prefix of a call on a machine that lacks these programs: they are hidden in a mount namespace."""
    places = {os.path.realpath(d) for d in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")}
    hide = [f"{d}/{n}" for d in sorted(places) for n in names if os.path.lexists(f"{d}/{n}")]
    # a link is hidden together with what it points at, wherever that is
    hide = sorted({os.path.realpath(p) for p in hide})
    script = "".join(f"mount --bind /dev/null {p}; " for p in hide)
    return ["unshare", "-m" if ROOT else "-rm", "sh", "-ec", script + 'exec "$@"', "sh"]


class Listener:
    """Counts who connects to a port of the host's loopback."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.seen = 0
        threading.Thread(target=self.loop, daemon=True).start()

    def loop(self):
        with contextlib.suppress(OSError):
            while True:
                c, _ = self.sock.accept()
                self.seen += 1
                c.sendall(b"reached the host\n")
                c.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


# ---- the class all tests derive from ----

class E2E(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        if not PROGRAM.exists():
            raise AssertionError(f"{PROGRAM} is not there: ./dev build")
        cls.folder = Path(tempfile.mkdtemp(prefix="cb-e2e-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.homes = []
        cls.addClassCleanup(cls.look_for_remains)
        cls.home = cls.new_home()

    @classmethod
    def new_home(cls, name="home", warm=True):
        folder = cls.folder / f"{name}-dir"
        folder.mkdir()
        home = Home(folder / "home")
        if warm:
            clone_home(warm_home(), home.path)
        cls.homes.append(home)
        return home

    @classmethod
    def look_for_remains(cls):
        found = []
        for home in cls.homes:
            ids = []
            with contextlib.suppress(Exception):
                ids = [b["id"] for b in home.builds()]
            # what was ended by a signal has a moment to go
            with contextlib.suppress(AssertionError):
                wait_until(lambda h=home: not h.left_processes(), "", 10)
            found += home.left(ids)
            found += [f"{p.name}:\n{p.read_text(errors='replace')[:6000]}" for p in home.folder.glob("sanitizer*")]
        if found:
            raise AssertionError("left behind:\n" + "\n".join(found))

    def ok(self, result, message=""):
        self.assertEqual(result.rc, 0, f"{message}\n{result}")
        return result

    def ends(self, result, rc, *patterns):
        """Asserts the exit code and that each pattern is in what was printed (or the build's error)."""
        self.assertEqual(result.rc, rc, str(result))
        text = result.text
        for p in patterns:
            self.assertRegex(text, p, str(result))
        return result

    def needs_root(self):
        if not ROOT:
            self.skipTest("needs root")


class Counting(unittest.TextTestResult):
    """Counts each test once, a failed class setup or cleanup as one failed test, subtests not apart."""

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.good = 0
        self.bad = set()

    def addSuccess(self, test):
        super().addSuccess(test)
        if test.id() not in self.bad:
            self.good += 1

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad.add(test.id())

    def addError(self, test, err):
        super().addError(test, err)
        self.bad.add(test.id())

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.bad.add(test.id())


def main(argv):
    """harness.py MODULE[.CLASS[.TEST]]...: what ctest calls. Exits 77 when all was skipped."""
    sys.path.insert(0, str(Path(__file__).parent))
    sys.modules["harness"] = sys.modules["__main__"]
    suite = unittest.defaultTestLoader.loadTestsFromNames(argv)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Counting).run(suite)
    skipped, failed = len(result.skipped), len(result.bad) + len(result.unexpectedSuccesses)
    print(f"e2e: {result.good} passed, {failed} failed, {skipped} skipped", flush=True)
    if failed:
        return 1
    return 77 if skipped and not result.good else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
