"""Base images that lie on this machine: OCI layouts, archives of docker save, templates, the empty image."""

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
import unittest

import harness
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


if __name__ == "__main__":
    unittest.main()
