"""Base images that lie on this machine: OCI layouts, archives of docker save, templates, the empty image."""

import gzip
import http.server
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import threading
import unittest

import harness
import many_layers_image
from harness import E2E, Layout, Registry, make_tar, perl_server


def skopeo(folder, source, target):
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source, target], check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)})


def small_layout(folder):
    """Two layers: a folder, a file that the second replaces, and one that it removes."""
    layout = Layout(folder).add_layer(make_tar([
        ("etc/", {"type": "folder"}), ("etc/keep", {"data": b"keep\n" * 1000}), ("etc/gone", {"data": b"x"}),
        ("bin/", {"type": "folder"}), ("bin/link", {"type": "link", "link": "../etc/keep"})]))
    layout.add_layer(make_tar([("etc/.wh.gone", {}), ("srv/", {"type": "folder"}),
                               ("srv/data", {"data": b"data\n", "uid": 1000, "gid": 1000})]))
    return layout.finish(Env=["PATH=/bin", "FROM=the image"], WorkingDir="/srv", User="1000", Cmd=["/bin/link"])


class SameImage(E2E):
    """One image by every road gives one file system, bit for bit, and one set of keys where the bytes are the same."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        cls.layout = small_layout(cls.folder / "made")
        cls.ref = cls.registry.push(cls.layout, "team/app", "v1")
        cls.files = cls.folder / "files"
        cls.files.mkdir()
        docker = f"docker://{cls.ref}"
        skopeo(cls.folder, docker, f"oci:{cls.files}/layout:v1")
        skopeo(cls.folder, docker, f"docker-archive:{cls.files}/saved.tar:team/app:v1")
        subprocess.run(["tar", "-C", cls.files / "layout", "-cf", cls.files / "layout.tar", "."], check=True)
        (cls.files / "saved.tar.gz").write_bytes(gzip.compress((cls.files / "saved.tar").read_bytes(), 1))
        cls.first = cls.build_from(cls.ref)

    @classmethod
    def build_from(cls, base):
        """Builds template `same` on @base in a home of its own: its manifest."""
        cls.count = getattr(cls, "count", 0) + 1
        home = cls.new_home(f"road-{cls.count}")
        config = home.config("same", base=base, file=cls.files / "same.yaml")
        got = home.build(config, "--no-boot-check")
        if got.rc:
            raise AssertionError(str(got))
        return home.manifest("same")

    def same(self, base, keys):
        m = self.build_from(base)
        self.assertEqual(m["image"]["digest"], self.first["image"]["digest"], base)
        for k in ("default_env", "default_user", "workdir", "cmd"):
            self.assertEqual(m.get(k), self.first.get(k), k)
        self.assertEqual(m["template_key"] == self.first["template_key"], keys)
        self.assertEqual(m["lock"]["base_image"], base)
        return m

    def test_layout(self):
        for base in (f"oci:{self.files}/layout:v1", "oci:layout", "oci:./layout.tar:v1"):
            with self.subTest(base):
                m = self.same(base, keys=True)
                self.assertEqual(m["lock"]["manifest"], self.first["lock"]["manifest"])

    def test_docker_archive(self):
        made = [self.same(base, keys=False)["template_key"]
                for base in ("docker-archive:saved.tar", "docker-archive:saved.tar:team/app:v1",
                             f"docker-archive:{self.files}/saved.tar.gz:@0")]
        self.assertEqual(len(set(made)), 1, "the same archive, the same key")


def docker_save(path, images, order="layers first", prefix="", link_twins=False, twenty_five=False, packer=None,
                names=lambda i: f"{i:064x}/layer.tar"):
    """An archive as docker save writes it. @images: (tags, layout, layer tars)."""
    manifest, members, seen = [], [], {}
    for tags, layout, tars in images:
        config = layout.config
        digest = harness.sha256(config)[7:]
        name = f"blobs/sha256/{digest}" if twenty_five else f"{digest}.json"
        members.append((name, config))
        files = []
        for tar in tars:
            data = packer(tar) if packer else tar
            file = f"blobs/sha256/{harness.sha256(data)[7:]}" if twenty_five else names(len(members))
            if link_twins and tar in seen:
                members.append((file, "../" + seen[tar]))
            elif not twenty_five or tar not in seen:
                members.append((file, data))
            seen.setdefault(tar, file)
            files.append(file)
        manifest.append({"Config": name, "RepoTags": tags, "Layers": files})
    listing = ("manifest.json", json.dumps(manifest).encode())
    members = members + [listing] if order == "layers first" else [listing] + members
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as t:
        for name, data in members:
            m = tarfile.TarInfo(prefix + name)
            if isinstance(data, str):
                m.type, m.linkname = tarfile.SYMTYPE, data
                t.addfile(m)
            else:
                m.size = len(data)
                t.addfile(m, io.BytesIO(data))


PACKERS = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=1),
    "zstd": lambda data: subprocess.run(["zstd", "-1qc"], input=data, check=True, stdout=subprocess.PIPE).stdout,
}


class Local(E2E):
    """Resolving and fetching from files: no command is run, no machine is started."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.layout = small_layout(cls.folder / "made")
        cls.tars = [harness.tar_of(cls.layout.folder / "blobs/sha256" / l["digest"][7:]) for l in cls.layout.layers]

    def setUp(self):
        self.count = getattr(type(self), "count", 0) + 1
        type(self).count = self.count
        self.fresh = self.new_home(f"case-{self.count}")
        self.at = self.fresh.folder

    def build(self, base, *args, name="case", **kw):
        return self.fresh.build(self.fresh.config(name, base=base), "--no-boot-check", *args, **kw)

    def refused(self, base, *patterns, rc=1):
        got = self.build(base)
        self.ends(got, rc, *patterns)
        self.assertEqual(self.fresh.versions("case"), {})
        self.assertEqual(list((self.fresh.store / "partial").glob("*")), [])
        return got


class DockerArchives(Local):
    """Every form that programs write; all give one image, and one manifest where the layers are kept alike."""

    def image(self, base):
        self.ok(self.build(base))
        return self.fresh.manifest("case")["image"]["digest"]

    def test_forms(self):
        forms = {
            "legacy": {},
            "manifest first": {"order": "manifest first"},
            "dotted": {"prefix": "./"},
            "25": {"twenty_five": True},
            "25 gzip": {"twenty_five": True, "packer": PACKERS["gzip"]},
            "gzip": {"packer": PACKERS["gzip"]},
            "zstd": {"packer": PACKERS["zstd"]},
            "xz": {"packer": PACKERS["xz"]},
        }
        images = {}
        for form, how in forms.items():
            docker_save(self.at / f"{form}.tar".replace(" ", "-"), [(["case:1"], self.layout, self.tars)], **how)
            images[form] = self.image("docker-archive:" + f"{form}.tar".replace(" ", "-"))
        for tool, packer in PACKERS.items():
            (self.at / f"whole.{tool}").write_bytes(packer((self.at / "legacy.tar").read_bytes()))
            images[tool + " outside"] = self.image(f"docker-archive:whole.{tool}")
        self.assertEqual(len(set(images.values())), 1, images)
        locks = [m["lock"]["manifest"] for m in self.fresh.versions("case").values()]
        # plain (however the archive is packed, and xz, which is kept unpacked), gzip, zstd
        self.assertEqual(len(set(locks)), 3, locks)

    def test_twins_are_links(self):
        layout = Layout(self.at / "twins")
        tars = [self.tars[0], self.tars[1], self.tars[0]]
        for tar in tars:
            layout.add_layer(tar)
        layout.finish(Cmd=["x"])
        docker_save(self.at / "links.tar", [(None, layout, tars)], link_twins=True)
        docker_save(self.at / "plain.tar", [(None, layout, tars)])
        self.assertEqual(self.image("docker-archive:links.tar"), self.image("docker-archive:plain.tar"))

    def test_several_images(self):
        other = Layout(self.at / "other").add_layer(self.tars[0]).finish(Cmd=["other"])
        docker_save(self.at / "both.tar", [(["team/app:1", "app:2"], self.layout, self.tars),
                                           (None, other, self.tars[:1])])
        self.refused("docker-archive:both.tar", r"holds 2 images: team/app:1, @1 \(without a name\)",
                     "docker-archive:FILE:NAME:TAG", rc=2)
        self.refused("docker-archive:both.tar:team/app:3", "has no image team/app:3", r"It holds: team/app:1, @1")
        for which, layers in (("app:2", 2), ("docker.io/team/app:1", 2), ("@1", 1)):
            self.ok(self.build(f"docker-archive:both.tar:{which}", name=f"which-{layers}-{which[0].strip('@')}x"))
        self.assertEqual(len(self.fresh.manifest("which-1-x")["layers"]), 2)  # and the agent's

    def test_locked(self):
        docker_save(self.at / "saved.tar", [(None, self.layout, self.tars)])
        self.ok(self.build("docker-archive:saved.tar"))
        first = self.fresh.manifest("case")
        other = Layout(self.at / "newer").add_layer(self.tars[0]).finish(Cmd=["newer"])
        docker_save(self.at / "saved.tar", [(None, other, self.tars[:1])])
        got = self.ok(self.build("docker-archive:saved.tar", "--locked"))
        self.assertRegex(got.notes, r"saved\.tar is sha256:\w+ \(locked by version 1\)")
        self.fresh.blob(self.layout.diff_ids[0]).unlink()
        self.ends(self.build("docker-archive:saved.tar", "--locked", "--force"), 1,
                  rf"saved\.tar holds sha256:\w+ now, and the lock names {first['lock']['manifest']}", "without --locked")

    def test_refused(self):
        save = lambda **kw: docker_save(self.at / "bad.tar", [(["case:1"], self.layout, self.tars)], **kw)
        base = "docker-archive:bad.tar"
        self.refused(base, r"there is no /.*/bad\.tar", "taken from the folder of the config file")
        (self.at / "bad.tar").write_bytes(b"not a tar at all, whatever its name" * 100)
        self.refused(base, r"bad\.tar: no tar header at byte 0")
        (self.at / "bad.tar").write_bytes(make_tar([("x", {"data": b"x"})]))
        self.refused(base, "it has no manifest.json", "oci:")
        save()
        whole = (self.at / "bad.tar").read_bytes()
        for cut in (700, len(whole) // 2):
            (self.at / "bad.tar").write_bytes(whole[:cut])
            self.refused(base, r"bad\.tar: truncated|bad\.tar: no manifest|it has no manifest.json")
        (self.at / "bad.tar").write_bytes(gzip.compress(whole)[:-20])
        self.refused(base, r"bad\.tar: .*gzip")
        # a layer that is not what the config says: its bytes, then its length
        (self.at / "bad.tar").write_bytes(whole.replace(b"keep\nkeep\n", b"kept\nkeep\n"))
        self.refused(base, r"layer 1 \(0+1/layer.tar in .*digest sha256:\w+ instead of sha256")
        docker_save(self.at / "bad.tar", [(["case:1"], self.layout, self.tars)], packer=PACKERS["gzip"])
        swapped = Layout(self.at / "swapped")
        for tar in reversed(self.tars):
            swapped.add_layer(tar)
        docker_save(self.at / "bad.tar", [(["case:1"], swapped.finish(), self.tars)], packer=PACKERS["gzip"])
        self.refused(base, r"(?i)diff_id|layer 1")
        docker_save(self.at / "bad.tar", [(["case:1"], self.layout, self.tars[:1])])
        self.refused(base, "manifest.json has 1 layers, the config names 2")
        names = iter(["../../etc/passwd", "x"])
        docker_save(self.at / "bad.tar", [(["case:1"], self.layout, self.tars)], names=lambda i: next(names))
        self.refused(base, r"Layers\[0\] .*\.\./\.\./etc/passwd.* leads out of the archive")
        with tarfile.open(self.at / "bad.tar", "w") as t:
            m = tarfile.TarInfo("manifest.json")
            m.type, m.linkname = tarfile.SYMTYPE, "/etc/passwd"
            t.addfile(m)
        self.refused(base, "it has no manifest.json")
        with tarfile.open(self.at / "bad.tar", "w") as t:
            m = tarfile.TarInfo("manifest.json")
            m.size = (4 << 20) + 1
            t.addfile(m, io.BytesIO(b" " * m.size))
        self.refused(base, r"manifest\.json in .* has 4\.0 MiB; at most 4 MiB")
        docker_save(self.at / "bad.tar", [(["case:1"], self.layout, self.tars)])
        self.ok(self.build(base))  # what was refused left nothing in the way


class Layouts(Local):
    def copy(self, name="copy"):
        shutil.rmtree(self.at / name, ignore_errors=True)
        shutil.copytree(self.layout.folder, self.at / name, symlinks=True)
        return self.at / name

    def blob(self, folder, digest):
        return folder / "blobs/sha256" / digest.removeprefix("sha256:")

    def index(self, folder, change):
        doc = json.loads((folder / "index.json").read_text())
        change(doc)
        (folder / "index.json").write_text(json.dumps(doc))

    def put(self, folder, doc):
        data = json.dumps(doc).encode()
        self.blob(folder, harness.sha256(data)).write_bytes(data)
        return {"digest": harness.sha256(data), "size": len(data)}

    def test_which_image(self):
        at = self.copy()
        manifest = json.loads((at / "index.json").read_text())["manifests"][0]
        other = Layout(at).add_layer(self.tars[0])
        other.finish(tag="docker.io/team/other:2")
        second = json.loads((at / "index.json").read_text())["manifests"][0]
        (at / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest, second]}))
        self.refused("oci:copy", r"holds several images: latest, docker\.io/team/other:2", r"oci:/.*/copy:NAME", rc=2)
        self.refused("oci:copy:3", "has no image with the name 3", r"It holds: latest, docker")
        self.ok(self.build("oci:copy:latest", name="first"))
        self.ok(self.build("oci:copy:2", name="second"))
        self.assertEqual([len(self.fresh.manifest(n)["layers"]) for n in ("first", "second")], [3, 2])

    def test_platforms(self):
        at = self.copy()
        image = json.loads((at / "index.json").read_text())["manifests"][0]
        image.pop("annotations")
        arm = dict(image, platform={"os": "linux", "architecture": "arm64"})
        amd = dict(image, platform={"os": "linux", "architecture": "amd64"})
        nested = {"mediaType": "application/vnd.oci.image.index.v1+json",
                  **self.put(at, {"schemaVersion": 2, "manifests": [arm, amd]})}
        self.index(at, lambda d: d.update(manifests=[arm, amd]))
        self.ok(self.build("oci:copy"))
        self.index(at, lambda d: d.update(manifests=[nested]))
        self.ok(self.build("oci:copy"))
        self.index(at, lambda d: d.update(manifests=[arm, dict(arm)]))
        self.ends(self.build("oci:copy"), 1, r"no image for linux/amd64; there is linux/arm64, linux/arm64")

    def test_refused(self):
        layer = self.layout.layers[0]["digest"]
        at = self.copy()
        base = "oci:copy"

        def case(change, *patterns, rc=1):
            self.copy()
            change()
            with self.subTest(patterns[0]):
                self.refused(base, *patterns, rc=rc)

        def descriptor(**fields):
            return lambda: self.index(at, lambda d: d["manifests"][0].update(**fields))

        case(lambda: shutil.rmtree(at), r"there is no /.*/copy", "folder of the config file")
        case(lambda: (at / "oci-layout").unlink(), "is no OCI layout: it has no file oci-layout")
        case(lambda: (at / "oci-layout").write_text('{"imageLayoutVersion":"9"}'), 'imageLayoutVersion is .*9')
        case(lambda: (at / "index.json").unlink(), r"there is no index\.json in /")
        case(lambda: (at / "index.json").write_text("{"), r"index\.json of /.*: the manifest is not JSON")
        case(lambda: (at / "index.json").write_bytes(b" " * ((4 << 20) + 1)), r"index\.json in .* at most 4 MiB")
        case(lambda: self.index(at, lambda d: d.update(manifests=[])), "has no image")
        case(descriptor(digest="sha256:../../../../etc/passwd"), "is not sha256 and 64 hex digits")
        case(descriptor(digest="sha512:" + "0" * 128), "is not sha256 and 64 hex digits")
        case(descriptor(size=3), r"has \d+ bytes where 3 should be")
        case(descriptor(digest="sha256:" + "0" * 64), r"there is no blobs/sha256/0{64} in /")
        case(lambda: self.blob(at, layer).unlink(), rf"there is no blobs/sha256/{layer[7:]} in /")
        case(lambda: self.blob(at, layer).write_bytes(b"x" * self.layout.layers[0]["size"]),
             rf"blobs/sha256/{layer[7:]} in /.*have the digest sha256:\w+ instead of {layer}")
        case(lambda: self.blob(at, layer).write_bytes(b"short"), r"it has 5 bytes where the manifest says \d+")

        def moved():
            self.blob(at, layer).rename(self.at / "outside")
            self.blob(at, layer).symlink_to("../../../outside")
        case(moved, "is a link that leads out of the folder", "Copy the layout")

        def fifo():
            self.blob(at, layer).unlink()
            os.mkfifo(self.blob(at, layer))
        case(fifo, r"is not a file")
        case(lambda: self.blob(at, self.manifest_digest(at)).write_bytes(b"x" * self.manifest_size(at)), "is damaged")
        self.assertFalse(self.fresh.blob(layer).exists())

    def manifest_digest(self, at):
        return json.loads((at / "index.json").read_text())["manifests"][0]["digest"]

    def manifest_size(self, at):
        return json.loads((at / "index.json").read_text())["manifests"][0]["size"]

    def test_indexes_within_indexes(self):
        at = self.copy()
        inner = json.loads((at / "index.json").read_text())["manifests"][0]
        for _ in range(4):
            inner = {"mediaType": "application/vnd.oci.image.index.v1+json",
                     **self.put(at, {"schemaVersion": 2, "manifests": [inner]})}
        self.index(at, lambda d: d.update(manifests=[inner]))
        self.refused("oci:copy", "nested too deeply")
        # by its own digest nothing can be named; by the name of the file that lies about it, it is
        digest = "0" * 64
        loop = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:" + digest, "size": 0}
        data = json.dumps({"schemaVersion": 2, "manifests": [loop]}).encode()
        self.blob(at, digest).write_bytes(data)
        self.index(at, lambda d: d.update(manifests=[dict(loop, size=len(data))]))
        self.refused("oci:copy", "is damaged: its digest is another one")

    def test_links_inside_are_followed(self):
        at = self.copy()
        (at / "blobs").rename(at / "elsewhere")
        (at / "blobs").symlink_to("elsewhere")
        self.ok(self.build("oci:copy"))

    def test_gone_and_locked(self):
        at = self.copy()
        self.ok(self.build("oci:copy"))
        first = self.fresh.manifest("case")["lock"]
        other = Layout(self.at / "newer").add_layer(self.tars[0]).finish(Cmd=["newer"])
        shutil.rmtree(at)
        shutil.copytree(other.folder, at)
        got = self.ok(self.build("oci:copy", "--locked"))
        self.assertRegex(got.notes, r"oci:copy is sha256:\w+ \(locked by version 1\)")
        self.assertEqual(list(self.fresh.versions("case")), [1])
        self.ok(self.build("oci:copy"))
        self.assertNotEqual(self.fresh.manifest("case")["lock"], first)
        shutil.rmtree(at)
        self.ends(self.build("oci:copy"), 1, "there is no /.*/copy")
        for pull in ("missing", "never"):
            got = self.ok(self.build("oci:copy", "--pull", pull))
            self.assertRegex(got.notes, r"warning: there is no /.*/copy; going on with sha256:\w+ as of 2")
        self.assertEqual(list(self.fresh.versions("case")), [1, 2])

    def test_what_a_lock_names_is_fetched_from_the_layout(self):
        at = self.copy()
        self.ok(self.build("oci:copy"))
        m = self.fresh.manifest("case")
        for layer in m["layers"][:2]:
            self.fresh.blob(layer["digest"]).unlink()
        self.index(at, lambda d: d.update(manifests=[]))
        self.ok(self.build("oci:copy", "--locked", "--force"))
        self.assertEqual(self.fresh.manifest("case")["image"]["digest"], m["image"]["digest"])


class Plans(Local):
    """plan says what each would be, and keeps no layer."""

    def plan(self, base, *args, rc=0):
        got = self.fresh.run("plan", "--json", *args, self.fresh.config("case", base=base))
        self.assertEqual(got.rc, rc, str(got))
        return json.loads(got.out) if rc == 0 else got

    def test_each(self):
        docker_save(self.at / "saved.tar", [(["case:1"], self.layout, self.tars)])
        shutil.copytree(self.layout.folder, self.at / "layout")
        self.fresh.run("templates")
        for base in ("oci:layout", "docker-archive:saved.tar", "scratch"):
            with self.subTest(base):
                doc = self.plan(base)
                self.assertEqual(doc["lock"]["base_image"], base)
                self.assertRegex(doc["lock"]["manifest"], "^sha256:[0-9a-f]{64}$")
                self.assertEqual(doc["action"], "finish")
                self.assertEqual(doc["layers"][0]["cached"], base == "scratch")
                if base != "scratch":  # a layout's layers as they are, an archive's as what is inside
                    first = self.layout.layers[0]["digest"] if base == "oci:layout" else self.layout.diff_ids[0]
                    self.assertFalse(self.fresh.blob(first).exists())
                built = self.ok(self.build(base))
                self.assertIn(f"{base} is {doc['lock']['manifest']}", built.notes)
                doc = self.plan(base, "--explain", "--no-boot-check")
                self.assertEqual((doc["action"], doc["layers"][0]["cached"]), ("none", True))
        doc = self.plan("minimal-debian:bookworm")
        self.assertEqual(doc["lock"]["manifest"], self.plan("minimal-debian")["lock"]["manifest"])
        doc = self.plan("minimal-debian:trixie")
        self.assertIsNone(doc["lock"]["manifest"])
        self.assertRegex(doc["unknown"][0], "minimal-debian:trixie is not made yet")
        self.ends(self.plan("template:none", rc=1), 1, "there is no template none in the store")

    def test_a_change_is_explained(self):
        config = lambda base: self.fresh.config("case", [("a", ["true"])], base=base)
        other = Layout(self.at / "other").add_layer(self.tars[0]).finish(Cmd=["x"])
        shutil.copytree(self.layout.folder, self.at / "layout")
        self.fresh.build(config("oci:layout"), "--no-boot-check")  # no shell in it: fails, and keeps its plan
        shutil.rmtree(self.at / "layout")
        shutil.copytree(other.folder, self.at / "layout")
        got = self.fresh.run("plan", "--json", "--explain", config("oci:layout"))
        self.assertRegex(json.loads(got.out)["layers"][1]["why"], "base image: oci:layout moved from sha256:")


class ManyLayers(E2E):
    """Forty layers of some MiB; tests/bench/many_layers.py does the same with 10 GB."""

    def test_forty_layers(self):
        home = self.home
        layout, tree = many_layers_image.make(home.folder / "layout", 40, 400 << 20)
        self.ok(home.build(home.config("many", base="oci:layout"), "--no-boot-check"))
        image = home.image("many")
        self.assertEqual(many_layers_image.fsck(image), "")
        self.assertEqual(many_layers_image.names(image), sorted(tree))
        got = many_layers_image.digests(image, sorted(tree))
        self.assertEqual({n: got[n] for n in tree if got[n] != tree[n]}, {}, "files with other bytes")
        # once more, from nothing but the layers: the same file system
        first = home.manifest("many")["image"]["digest"]
        self.ok(home.build(home.config("many", base="oci:layout"), "--no-boot-check", "--force"))
        self.assertEqual(home.manifest("many")["image"]["digest"], first)


class Templates(E2E):
    """A template on a template, built and booted."""

    def test_on_top_of_hello(self):
        home = self.home
        hello = harness.SOURCE / "examples/hello/onboard.yaml"
        self.ok(home.build(hello))
        first = home.manifest("hello")
        on = "template:hello"
        config = home.config("child", [("more", ["id -un; pwd; cat /etc/motd; echo child >> ~/made-by-child"])], base=on,
                             start_command={"command": perl_server(9000), "port": 9000})
        doc = json.loads(self.ok(home.run("plan", "--json", config)).out)
        self.assertEqual(doc["lock"]["template_version"], 1)
        got = self.ok(home.build(config))
        self.assertEqual(got.output("more").split("\n")[:3],
                         ["hello", first["workdir"], "hello, built by capsule-build"])
        self.assertIn(f"{on} is {doc['lock']['manifest']} (version 1)", got.notes)
        child = home.manifest("child")
        self.assertEqual([l["name"] for l in child["layers"]], ["_base"] * 3 + ["more", "_agent"])
        self.assertEqual([l["digest"] for l in child["layers"][:3]], [l["digest"] for l in first["layers"][:3]])
        self.assertEqual(child["lock"], {"base_image": on, "manifest": doc["lock"]["manifest"], "template_version": 1})
        self.assertEqual(child["default_user"], "hello")
        self.assertEqual(child["default_env"], first["default_env"])
        self.ends(home.run("boot", "child", "--exec", "cat", "/home/hello/made-by-child"), 0,
                  "child\n")
        # hello goes on; the lock stays, and without it the child follows
        text = hello.read_text().replace("display_name: hello\n", "display_name: hello\n").replace(
            "hello, built by capsule-build'", "hello again'")
        (home.folder / "newer.yaml").write_text(text)
        self.ok(home.build(home.folder / "newer.yaml", "--no-boot-check"))
        self.assertEqual(sorted(home.versions("hello")), [1, 2])
        got = self.ok(home.build(config, "--locked"))
        self.assertRegex(got.notes, r"\(version 1\) \(locked by version 1\)")
        self.assertEqual(list(home.versions("child")), [1])
        got = self.ok(home.build(config, "--no-boot-check"))
        self.assertIn("hello again", got.output("more"))
        self.assertEqual(home.manifest("child")["lock"]["template_version"], 2)
        # a version that is named needs no lock
        pinned = home.config("child", [("more", ["id -un; pwd; cat /etc/motd; echo child >> ~/made-by-child"])],
                             base="template:hello@1",
                             start_command={"command": perl_server(9000), "port": 9000})
        got = self.ok(home.build(pinned))
        self.assertEqual(got.commands_run(), [], "its layer is in the cache")

    def test_refused(self):
        home = self.new_home("refused")
        self.ends(home.build(home.config("child", base="template:none")), 1,
                  "there is no template none in the store", "capsule-build templates lists them")
        self.ends(home.build(home.config("self", base="template:self")), 2, "cannot be built on its own version in use")
        self.ok(home.build(home.config("base", base="scratch"), "--no-boot-check"))
        self.ends(home.build(home.config("child", base="template:base:7")), 1,
                  "there is no template base with the version 7 in the store")


class Builtins(E2E):
    """Suites of minimal-debian, with a mirror and an mmdebstrap that are ours: which is asked for, and how often."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tar = cls.folder / "made.tar"
        cls.tar.write_bytes(make_tar([("etc/", {"type": "folder"}), ("etc/made", {"data": b"made\n"})]))
        cls.calls = cls.folder / "calls"
        cls.bin = cls.folder / "bin"
        cls.bin.mkdir()
        fake = cls.bin / "mmdebstrap"
        fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" | tr "\\n" " " >>{cls.calls}\necho >>{cls.calls}\n'
                        f'exec cat {cls.tar}\n')
        fake.chmod(0o755)

        class Mirror(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path in ("/debian/dists/trixie/InRelease", "/debian/dists/bookworm/InRelease")
                body = b"Date: Sat, 01 Nov 2025 10:00:00 UTC\n" if known else b"no\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cls.addClassCleanup(server.server_close)
        cls.addClassCleanup(server.shutdown)
        cls.env = {"PATH": f"{cls.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                   "CAPSULE_BUILD_DEBIAN_MIRROR": f"http://127.0.0.1:{server.server_port}/debian"}

    def build(self, base, *args):
        return self.home.build(self.home.config("builtin", base=base), "--no-boot-check", *args, env=self.env)

    def test_suites(self):
        self.ok(self.build("minimal-debian"))
        self.ok(self.build("minimal-debian:bookworm"))
        self.assertFalse(self.calls.exists(), "both are in the test cache, as one")
        images = {m["image"]["digest"] for m in self.home.versions("builtin").values()}
        self.assertEqual(len(images), 1, "the same image by another name")
        got = self.ok(self.build("minimal-debian:trixie"))
        self.assertIn("making minimal-debian:trixie from http://127.0.0.1", got.notes)
        calls = self.calls.read_text().splitlines()
        self.assertEqual(len(calls), 1)
        self.assertRegex(calls[0], r"--variant=minbase .*trixie-security.* trixie - http://127\.0\.0\.1:\d+/debian")
        self.ok(self.build("minimal-debian:trixie"))
        self.ok(self.build("minimal-debian:trixie", "--force"))
        self.assertEqual(len(self.calls.read_text().splitlines()), 1, "made once")
        self.assertEqual(self.home.manifest("builtin")["lock"]["base_image"], "minimal-debian:trixie")
        self.ends(self.build("minimal-debian:bullseye"), 1, "dists/bullseye/InRelease: the server answered 404",
                  "debian_mirror")
        if not os.path.exists("/usr/share/keyrings/ubuntu-archive-keyring.gpg"):
            self.ends(self.build("minimal-ubuntu"), 3, "ubuntu-archive-keyring.gpg, which this machine does not have",
                      "package ubuntu-keyring")
        self.ends(self.build("minimal-debian:buzz"), 2, "the built-in base images are minimal-debian, ")


class Scratch(E2E):
    def test_it_boots(self):
        home = self.home
        got = self.ok(home.build(home.config("empty", base="scratch")))
        self.assertEqual(home.layer_names("empty"), ["_agent"])
        self.assertIn("ready", got.notes)
        self.ok(home.run("boot", "empty", "--once"))

    def test_commands_cannot_run(self):
        home = self.new_home("commands")
        got = home.build(home.config("empty", [("one", ["echo hello"])], base="scratch"))
        self.ends(got, 2, r"empty\.yaml:\d+:\d+: layer one: base_image: scratch is an empty image", "minimal-debian")


if __name__ == "__main__":
    unittest.main()
