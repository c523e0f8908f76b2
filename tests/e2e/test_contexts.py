"""What layers take from outside: files beside the config and commands of type copy, in both builders."""

import base64
import hashlib
import http.server
import json
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading

from harness import Build, E2E, free_port, wait_until


def command(kind, *args, **more):
    return {"type": kind, "args": list(args), **more}


SHOW = "find /srv -mindepth 1 -printf '%P %y %m %u:%g %l\\n' | sort"


class Files:
    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = cls.folder / "project"
        app = cls.made / "app"
        (app / "deep" / "er").mkdir(parents=True)
        (app / "empty").mkdir()
        (app / "main.py").write_text("print('one')\n")
        (app / "deep" / "er" / "data").write_bytes(os.urandom(700_000))
        (app / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (app / "run.sh").chmod(0o755)
        (app / "secret.key").write_text("hidden")
        (app / "outside").symlink_to("../../../etc/shadow")
        (app / "inside").symlink_to("deep/er")
        os.utime(app / "main.py", (1_600_000_000, 1_600_000_000))
        (cls.made / "one.conf").write_text("1\n")
        (cls.made / "two.conf").write_text("2\n")
        (cls.made / ".dockerignore").write_text("# comment\n**/*.key\nnode_modules\n")

    def config(self, layers, name="files", **fields):
        doc = {"display_name": name, "base_image": "minimal-debian", "config": {"tier": "s"}, "layers": layers, **fields}
        path = self.made / f"{name}.yaml"
        path.write_text(json.dumps(doc))
        return path

    def build(self, config, *args):
        return self.home.build(config, "--isolation", self.builder, "--no-boot-check", *args)

    def layers(self):
        return [
            {"name": "deps", "init_commands": ["mkdir -p /srv/there; ln -s /srv/there /srv/link; echo deps"]},
            {"name": "app", "context": [{"src": "app", "dst": "/srv/app"}, {"src": "one.conf", "dst": "/srv/link/"}],
             "init_commands": [
                 command("user", "nobody"), command("copy", "--chmod=640", "*.conf", "/srv/etc/"),
                 command("copy", "one.conf", "/srv/as", run_as_root=True),
                 command("copy", "--chown=daemon:games", "app/run.sh", "/srv/link"),
                 command("user", "root"), SHOW, "/srv/app/run.sh; cat /srv/as", "sha256sum < /srv/app/deep/er/data",
                 "stat -c %Y /srv/app/main.py"]},
            {"name": "last", "init_commands": ["cat /srv/app/main.py"]},
        ]

    EXPECTED = """\
app d 755 root:root
app/deep d 755 root:root
app/deep/er d 755 root:root
app/deep/er/data f 644 root:root
app/empty d 755 root:root
app/inside l 777 root:root deep/er
app/main.py f 644 root:root
app/outside l 777 root:root ../../../etc/shadow
app/run.sh f 755 root:root
as f 644 root:root
etc d 750 nobody:nogroup
etc/one.conf f 640 nobody:nogroup
etc/two.conf f 640 nobody:nogroup
link l 777 root:root /srv/there
there d 755 root:root
there/one.conf f 644 root:root
there/run.sh f 755 daemon:games
"""

    def test_1_files_are_there(self):
        for p in [self.made, *self.made.rglob("*")]:
            if not p.is_symlink():
                p.chmod(0o755 if p.is_dir() or p.suffix == ".sh" else 0o644)
        got = self.ok(self.build(self.config(self.layers())))
        lines = [line.strip() for line in got.output("app").splitlines()]
        for want in self.EXPECTED.splitlines():
            self.assertIn(want, lines)
        self.assertNotIn("secret.key", got.output("app"))
        self.assertIn("ran", lines)
        self.assertIn("1600000000", lines)
        self.assertIn("context app -> /srv/app", [s["cmd"] for s in got.steps(layer="app")])
        self.assertIn(hashlib.sha256((self.made / "app/deep/er/data").read_bytes()).hexdigest() + "  -", lines)

    def test_2_what_rebuilds(self):
        config = self.config(self.layers())
        self.assertEqual(self.ok(self.build(config)).commands_run(), [])
        # what no layer takes, and times: nothing changes
        (self.made / "app" / "other.key").write_text("also hidden")
        os.utime(self.made / "app" / "main.py")
        got = self.ok(self.build(config))
        self.assertEqual(got.commands_run(), [])
        # a file: from its layer on
        (self.made / "app" / "main.py").write_text("print('two')\n")
        plan = json.loads(self.home.run("plan", "--explain", "--json", config).out)
        app = plan["layers"][2]
        self.assertEqual(app["why"], "context 1 changed")
        self.assertEqual([c["src"] for c in app["context"]], ["app", "one.conf"])
        self.assertRegex(app["context"][0]["digest"], r"^sha256:[0-9a-f]{64}$")
        self.assertEqual([c["command"] for c in app["copies"]], [2, 3, 4])
        got = self.ok(self.build(config))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"app", "last"})
        self.assertIn("layer app is not reused: context 1 changed", got.notes)
        self.assertIn("print('two')", got.output("last"))


class FilesContainer(Files, E2E):
    builder = "container"

    def test_3_copies_and_their_reasons(self):
        (self.made / "two.conf").write_text("3\n")
        plan = json.loads(self.home.run("plan", "--explain", "--json", self.config(self.layers())).out)
        self.assertEqual(plan["layers"][2]["why"], "what is copied by command 2 changed")

    def test_4_refusals(self):
        def fails(layer, rc, text):
            got = self.build(self.config([{"name": "a", "init_commands": ["true"], **layer}], "bad"))
            self.ends(got, rc)
            self.assertRegex(got.error, text)
        fails({"context": [{"src": "nothing", "dst": "/srv"}]}, 2,
              r"layer a: context: nothing: there is no such file or folder beside the config")
        fails({"context": [{"src": "app/secret.key", "dst": "/srv"}]}, 2, r"secret\.key: \.dockerignore leaves it out")
        fails({"context": [{"src": "app/inside/data", "dst": "/srv/x"}]}, 2, r"goes through a symbolic link")
        fails({"init_commands": [command("copy", "*.nothing", "/srv/")]}, 2,
              r"command 1 of 1: copy: \*\.nothing: nothing beside the config fits")
        fails({"context": [{"src": "one.conf", "dst": "/run/x"}]}, 1, r"layer a: context one\.conf -> /run/x: .*mounted")
        fails({"init_commands": [command("copy", "app", "/etc/passwd/x")]}, 1, r"not a folder in the image")
        fails({"init_commands": [command("copy", "--chown=nosuch", "app", "/srv")]}, 1, r"user \"nosuch\" is not in")
        special = self.made / "app" / "sock"
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(special))
            fails({"context": [{"src": "app", "dst": "/srv"}]}, 2, r"app/sock: a socket cannot be copied")
        special.unlink()

    def test_5_the_whole_folder_onto_an_empty_image(self):
        got = self.build(self.config([{"name": "a", "context": [{"src": ".", "dst": "/"}],
                                       "init_commands": [command("copy", "one.conf", "/x/y/z")]}], "empty",
                                     base_image="scratch"))
        self.ok(got)
        names = self.home.cached_layer("a")
        self.assertIn(b"x/y/z", names)
        self.assertIn(b"app/main.py", names)
        self.assertNotIn(b"secret.key", names)


    def test_6_into_a_drive(self):
        def build(*args):
            config = self.config([{"name": "d", "init_commands": ["true"], "drives": [
                {"drive_id": "data", "size_gb": 1, "commands": [
                    command("copy", "--chown=daemon", "app", "/drives/data/app/"),
                    "cat /drives/data/app/main.py; stat -c %U /drives/data/app/run.sh"]}]}], "drive")
            return self.build(config, *args)
        got = self.ok(build())
        self.assertIn("daemon", got.output("d"))
        self.assertIn("print('", got.output("d"))
        self.assertEqual(self.ok(build()).commands_run(), [])
        (self.made / "app" / "main.py").write_text("print('drive')\n")
        got = self.ok(build())
        self.assertIn("layer d is not reused: what is copied by command 1 of drive data changed", got.notes)
        self.assertIn("print('drive')", got.output("d"))


class FilesVm(Files, E2E):
    builder = "vm"
    test_2_what_rebuilds = None  # the same code on the host


class Repository:
    """A git repository of one test."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "a@example.com")
        self.git("config", "user.name", "a")

    @property
    def url(self):
        return f"file://{self.path}"

    def git(self, *words):
        env = os.environ | {"GIT_COMMITTER_DATE": "1700000000 +0000", "GIT_AUTHOR_DATE": "1700000000 +0000"}
        return subprocess.run(["git", "-C", self.path, "-c", "protocol.file.allow=always", *map(str, words)], env=env,
                              check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message, **files):
        for name, content in files.items():
            path = self.path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")


class Git:
    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        inner = Repository(cls.folder / "inner")
        inner.commit("i", data="inner\n")
        lib = Repository(cls.folder / "lib")
        lib.git("submodule", "add", "-q", "../inner", "nested")
        cls.lib_commit = lib.commit("l", lib__code="old lib\n")
        cls.repo = Repository(cls.folder / "repo")
        (cls.repo.path / "run").write_text("#!/bin/sh\n")
        (cls.repo.path / "run").chmod(0o755)
        (cls.repo.path / "link").symlink_to("/etc/passwd")
        cls.repo.git("submodule", "add", "-q", "../lib", "sub/lib")
        cls.first = cls.repo.commit("one", docs__a="first a\n", docs__deep__b="b\n", top="top\n")
        lib.commit("l2", lib__code="new lib\n")
        cls.repo.git("tag", "-a", "-m", "t", "v1")
        cls.second = cls.repo.commit("two", docs__a="second a\n")
        cls.repo.git("branch", "side/way")

    def config(self, *sources, name="git", commands=(SHOW,)):
        path = self.folder / f"{name}.yaml"
        layers = [{"name": "base", "init_commands": ["echo base"]},
                  {"name": "src", "context": [{"git": self.repo.url, **s} for s in sources],
                   "init_commands": list(commands)}]
        path.write_text(json.dumps({"display_name": name, "base_image": "minimal-debian", "config": {"tier": "s"},
                                    "layers": layers}))
        return path

    def build(self, config, *args):
        return self.home.build(config, "--isolation", self.builder, "--no-boot-check", *args)

    def test_1_what_comes(self):
        sources = [{"dst": "/srv/main"}, {"ref": "v1", "path": "docs", "dst": "/srv/tag"},
                   {"ref": self.first, "path": "docs/a", "dst": "/srv/one-file"},
                   {"ref": "side/way", "path": "sub", "dst": "/srv/mod"}]
        config = self.config(*sources, commands=[SHOW, "cat /srv/main/docs/a /srv/tag/a /srv/one-file /srv/mod/lib/lib/code; "
                                                       "cat /srv/mod/lib/nested/data; stat -c %Y /srv/main/top"])
        got = self.ok(self.build(config))
        lines = got.output("src").splitlines()
        for want in ["main/docs/a f 644 root:root ", "main/link l 777 root:root /etc/passwd", "tag/deep/b f 644 root:root ",
                     "main/run f 755 root:root ", "main/sub/lib/nested/data f 644 root:root ", "one-file f 644 root:root "]:
            self.assertIn(want, lines)
        self.assertNotIn(".git ", got.output("src"))
        at = lines.index("second a")
        self.assertEqual(lines[at:], ["second a", "first a", "first a", "old lib", "inner", "1700000000"])
        lock = self.home.manifest("git")["lock"]["git"]
        self.assertEqual([g["commit"] for g in lock], [self.second, self.first, self.first, self.second])
        provenance = json.loads(self.home.run("show", "git", "--provenance").out)
        deps = provenance["predicate"]["buildDefinition"]["resolvedDependencies"][3:]
        self.assertEqual({(d["uri"], d["digest"]["gitCommit"]) for d in deps},
                         {(f"git+{self.repo.url}@{r}", c) for r, c in
                          (("HEAD", self.second), ("v1", self.first), (self.first, self.first), ("side/way", self.second))})
        self.assertEqual(self.ok(self.build(config)).commands_run(), [])
        self.ok(self.home.run("verify"))


class GitContainer(Git, E2E):
    builder = "container"

    def fetched(self, got):
        return [n for n in got.notes.splitlines() if "fetched" in n]

    def test_2_a_branch_that_moves(self):
        config = self.config({"ref": "main", "path": "docs", "dst": "/srv/x"}, name="moves")
        never = json.loads(self.home.run("plan", "--json", "--pull", "never", config).out)
        self.assertIsNone(never["layers"][2]["key"])
        self.assertRegex("\n".join(never["unknown"]), r"layer src: the commit of main: .*nobody may be asked")
        self.ok(self.build(config))
        # a change elsewhere in the repository: another commit, the same files
        moved = self.repo.commit("three", top="other top\n")
        plan = json.loads(self.home.run("plan", "--json", config).out)
        self.assertEqual(plan["lock"]["git"][0]["commit"], moved)
        self.assertRegex("\n".join(plan["unknown"]), rf"layer src: commit {moved} of .* was not fetched yet")
        self.assertIsNone(plan["layers"][2]["key"])
        self.assertIsNotNone(plan["layers"][1]["key"])
        got = self.ok(self.build(config))
        self.assertEqual(got.commands_run(), [])
        self.assertRegex(self.fetched(got)[0], rf"commit {moved}, .* fetched")
        # the files: the layer is made again, by its content
        self.repo.commit("four", docs__a="fourth a\n")
        got = self.ok(self.build(config))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"src"})
        self.assertIn("layer src is not reused: context 1 changed", got.notes)
        # locked: what the version in use was made from
        self.repo.commit("five", docs__a="fifth a\n")
        got = self.ok(self.build(config, "--locked"))
        self.assertEqual(got.commands_run(), [])
        self.assertIn("nothing fetched", self.fetched(got)[0])

    def test_3_the_second_fetch_brings_what_is_new(self):
        big = Repository(self.folder / "big")
        (big.path / "noise").write_bytes(os.urandom(3_000_000))
        big.commit("b", one="1")
        config = self.config({"git": big.url, "dst": "/srv/big"}, name="second", commands=["cat /srv/big/one"])
        self.assertRegex(self.fetched(self.ok(self.build(config)))[0], r"2\.\d MiB fetched")
        big.commit("c", one="2")
        got = self.ok(self.build(config))
        self.assertRegex(self.fetched(got)[0], r"\d+ B fetched|[0-9.]+ KiB fetched")
        # gone: the commit that was last seen, which is here
        shutil.move(big.path, big.path.with_name("gone"))
        got = self.ok(self.build(config))
        self.assertEqual(got.commands_run(), [])
        self.assertIn("going on with commit", got.notes)
        got = self.ok(self.build(config, "--pull", "never"))
        self.assertNotIn("going on with commit", got.notes)
        df = json.loads(self.home.run("df", "--json").out)["git_mirrors"]
        self.assertGreaterEqual(df["count"], 1)
        self.assertGreater(df["bytes"], 3_000_000)
        self.assertRegex(self.home.run("df").out, r"copies of git repositories +\d+ ")

    def test_5_resume_goes_on_with_the_commit_that_it_began_with(self):
        repo = Repository(self.folder / "resumed")
        first = repo.commit("f", file="first\n")
        config = self.config({"git": repo.url, "dst": "/srv/g"}, name="resumed",
                             commands=["cat /srv/g/file", "test -e /srv/g/never"])
        got = self.build(config)
        self.ends(got, 1)
        repo.commit("s", file="second\n")
        got = self.home.run("resume", "--progress", "json", "resumed", cls=Build)
        self.ends(got, 1)
        plan = got.of("plan")[-1]
        self.assertEqual(plan["lock"]["git"][0]["commit"], first)
        self.assertNotIn("cat /srv/g/file", [c for _, c in got.commands_run()])

    def test_4_refusals(self):
        def fails(source, rc, text):
            got = self.build(self.config({"dst": "/srv", **source}, name="bad"))
            self.ends(got, rc)
            self.assertRegex(got.error, text)
        fails({"path": "nothing"}, 2, r"layer src: context: file://.*/repo: there is no nothing in commit [0-9a-f]{40}")
        fails({"path": "sub/lib"}, 2, r"sub/lib is a submodule")
        fails({"ref": "absent"}, 1, r'it has no branch or tag "absent"')
        fails({"ref": "c" * 40}, 1, r"no branch or tag of it leads to commit cccc")
        evil = Repository(self.folder / "evil")
        evil.commit("e", x="1")
        evil.git("update-index", "--add", "--cacheinfo", f"160000,{self.first},mod")
        evil.git("commit", "-q", "-m", "f")
        fails({"git": evil.url}, 1, r"mod: a submodule that \.gitmodules says nothing about")


class GitVm(Git, E2E):
    builder = "vm"


class GitHttp:
    """`git http-backend` behind HTTPS; what is below /private needs a login."""

    def __init__(self, folder, root):
        def openssl(*args):
            subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "tls.key", "-out", "tls.pem")
        self.ca, self.seen = folder / "tls.pem", []
        this = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, headers=(), body=b""):
                self.send_response(status)
                for k, v in (*headers, ("Content-Length", str(len(body)))):
                    self.send_header(k, v)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                path, _, query = self.path.partition("?")
                length = int(self.headers.get("Content-Length") or 0)
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while (n := int(self.rfile.readline(), 16)):
                        body += self.rfile.read(n)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(length)
                login = self.headers.get("Authorization")
                this.seen.append((self.command, path, login))
                if path.startswith("/private/") and login != "Basic " + base64.b64encode(b"me:p w").decode():
                    return self.answer(401, [("WWW-Authenticate", 'Basic realm="git"')])
                env = os.environ | {"GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
                                    "PATH_INFO": path.removeprefix("/private"), "QUERY_STRING": query,
                                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                                    "CONTENT_LENGTH": str(len(body)), "REMOTE_ADDR": "127.0.0.1",
                                    "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
                                    "GIT_CONFIG_VALUE_0": "*"}
                out = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=True).stdout
                head, _, content = out.partition(b"\r\n\r\n")
                headers = [tuple(line.decode().split(": ", 1)) for line in head.split(b"\r\n")]
                status = next((int(v.split()[0]) for k, v in headers if k == "Status"), 200)
                self.answer(status, [h for h in headers if h[0] != "Status"], content)

            do_POST = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://localhost:{self.server.server_port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Remotes(E2E):
    """Repositories over https and ssh, by the plan and by a build's fetch."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.repo = Repository(cls.folder / "repo")
        cls.commit = cls.repo.commit("one", file="content\n")
        cls.user = cls.folder / "user"
        cls.user.mkdir()

    def build(self, url, name, home, **env):
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"display_name": name, "base_image": "minimal-debian", "config": {"tier": "s"}, "layers": [
            {"name": "src", "context": [{"git": url, "dst": "/srv"}], "init_commands": ["cat /srv/file"]}]}))
        return self.home.build(path, "--isolation", "container", "--no-boot-check", env={"HOME": str(home), **env})

    def test_https(self):
        server = GitHttp(self.folder, self.folder)
        self.addCleanup(server.stop)
        trust = {"CAPSULE_BUILD_CA_BUNDLE": str(server.ca)}
        got = self.build(f"{server.url}/repo", "no-trust", self.user)
        self.ends(got, 1)
        self.assertRegex(got.error, r"(?i)layer src: context: https://localhost.*certificate")
        got = self.ok(self.build(f"{server.url}/repo", "public", self.user, **trust))
        self.assertIn("content", got.output("src"))
        self.ends(self.build(f"{server.url}/nothing", "absent", self.user, **trust), 1)
        got = self.build(f"{server.url}/private/repo", "private", self.user, **trust)
        self.ends(got, 1)
        self.assertRegex(got.error + got.err, r"(?i)authenticat|401")
        (self.user / ".git-credentials").write_text("https://me:other@elsewhere.example\n"
                                                    f"{server.url.replace('//', '//me:p%20w@')}\n")
        del server.seen[:]
        got = self.ok(self.build(f"{server.url}/private/repo", "private", self.user, **trust))
        # what is stored where is the same content: its layer comes from the cache
        self.assertEqual(got.commands_run(), [])
        self.assertTrue(any(login for _, _, login in server.seen))
        self.assertNotIn("p%20w", got.out + got.err)
        self.assertNotIn("p w", got.out + got.err)

    def test_ssh(self):
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
        if not sshd:
            self.skipTest("no sshd (openssh-server)")
        folder = self.folder / "ssh"
        (folder / "home" / ".ssh").mkdir(parents=True, mode=0o700)
        for key in ("host", "home/.ssh/id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copy(folder / "home/.ssh/id_ed25519.pub", folder / "authorized")
        port, user = free_port(), pwd.getpwuid(os.getuid()).pw_name
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n")
        os.makedirs("/run/sshd", exist_ok=True)
        daemon = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.terminate)
        wait_until(lambda: (folder / "pid").exists(), "sshd")
        url, home = f"ssh://{user}@127.0.0.1:{port}{self.repo.path}", folder / "home"
        got = self.build(url, "stranger", home)
        self.ends(got, 1)  # nobody said that this host is the one
        self.assertRegex(got.error + got.err, r"(?i)host key|certificate|known")
        public = (folder / "host.pub").read_text().split()
        (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
        got = self.ok(self.build(url, "by-file", home))
        self.assertRegex(got.notes, rf"commit {self.commit}, .* fetched")
        # the agent's key, and nothing in a file
        agent = subprocess.run(["ssh-agent", "-s", "-a", folder / "agent"], check=True, capture_output=True, text=True).stdout
        self.addCleanup(os.kill, int(re.search(r"SSH_AGENT_PID=(\d+)", agent)[1]), signal.SIGTERM)
        sock = {"SSH_AUTH_SOCK": str(folder / "agent")}
        subprocess.run(["ssh-add", "-q", home / ".ssh" / "id_ed25519"], env=os.environ | sock, check=True, capture_output=True)
        (home / ".ssh" / "id_ed25519").unlink()
        shutil.rmtree(self.home.path / "git")
        got = self.ok(self.build(url, "by-agent", home, **sock))
        self.assertRegex(got.notes, rf"commit {self.commit}, .* fetched")
        shutil.rmtree(self.home.path / "git")
        got = self.build(url, "by-nothing", home)
        self.ends(got, 1)
        self.assertRegex(got.text, r"ssh-add")
