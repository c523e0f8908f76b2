"""Some images of the corpus of layers (tests/layers/corpus.py), from a registry to a template."""

import os
import subprocess
import sys
from pathlib import Path

import harness
from harness import E2E, Layout, Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))
import corpus  # noqa: E402
import corpus_check  # noqa: E402

TOOL = Path(os.environ["CB_BUILD_DIR"]) / "tests" / "layers" / "corpus_tool"


class FromRegistry(E2E):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        cls.cases = {c.name: c for c in corpus.cases()}

    def build(self, name):
        layout = Layout(self.folder / f"pushed-{name}")
        for _, tar in self.cases[name].layers():
            layout.add_layer(tar)
        ref = self.registry.push(layout.finish(), name)
        return self.home.build(self.home.config(self.template(name), base=ref), "--no-boot-check")

    @staticmethod
    def template(name):
        return name.replace(".", "-")

    def blobs_are_whole(self):
        for blob in (self.home.store / "blobs" / "sha256").iterdir():
            self.assertEqual(harness.sha256(blob.read_bytes()), "sha256:" + blob.name)

    def is_as_umoci_has_it(self, name):
        """Our own layer, which every template has on top, aside."""
        self.needs_root()
        self.ok(self.build(name))
        listed = self.folder / f"{name}.list"
        with open(listed, "w") as f:
            subprocess.run([TOOL, "list", self.home.image(self.template(name))], check=True, stdout=f)
        theirs, error = corpus_check.umoci_list(self.folder / f"pushed-{name}", "latest", str(self.folder / "rootfs"))
        self.assertIsNone(error)
        ours = corpus_check.our_list(listed)
        self.assertEqual(sorted(theirs.keys() - ours.keys()), [])
        ours = {k: e for k, e in ours.items() if k in theirs}
        theirs.pop(b".")  # of the layer on top
        ours.pop(b".")
        self.assertEqual(corpus_check.against_umoci(ours, theirs, self.cases[name].verdict), [])
        self.assertGreater(len(theirs), 0)

    def test_whiteouts_of_a_folder_and_its_new_content(self):
        self.is_as_umoci_has_it("whiteout-after-new-folder")

    def test_opaque_folders_through_three_layers(self):
        self.is_as_umoci_has_it("opaque-three-layers")

    def test_hard_links_across_layers(self):
        self.is_as_umoci_has_it("hardlink-to-lower-then-replaced")

    def test_names_of_any_bytes(self):
        self.is_as_umoci_has_it("names-odd-bytes")

    def test_sparse_files(self):
        self.is_as_umoci_has_it("sparse-1.0-many")

    def refuses(self, name):
        v, n = self.cases[name].verdict, len(self.cases[name].layers()) + 1  # our own on top
        got = self.build(name)
        self.ends(got, 1)
        self.assertRegex(got.error, rf"layer {v.layer} of {n} \([0-9a-f]+\): ")
        self.assertIn(v.words, got.error)
        self.assertEqual(self.home.versions(self.template(name)), {})
        self.blobs_are_whole()

    def test_a_name_that_leads_out(self):
        self.refuses("dotdot-inside")

    def test_a_hard_link_to_nothing(self):
        self.refuses("hardlink-missing")

    def test_a_bad_layer_between_good_ones(self):
        self.refuses("bad-layer-on-good-ones")

    def test_a_tar_that_ends_in_a_file(self):
        self.refuses("cut-in-data")
