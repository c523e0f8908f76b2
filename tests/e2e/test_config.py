"""What is wrong with a file is told at once, with its place, and ends with 2. No machine is needed."""

import json
import unittest

from harness import E2E, Home


class BadConfig(E2E):
    @classmethod
    def new_home(cls, name="home", warm=False):
        return super().new_home(name, warm)

    def bad(self, text, *patterns, name="onboard.yaml", args=()):
        """Both the build and `validate` refuse @text in the same words."""
        path = self.folder / name
        path.write_text(text)
        for call in (("validate", path), (path,)):
            got = self.home.run(*call, *args)
            self.ends(got, 2, *patterns)
        self.assertEqual(self.home.builds(), [])  # refused before anything was asked for
        return got

    def test_missing_file(self):
        for call in (("validate", "nowhere.yaml"), ("nowhere.yaml",)):
            self.ends(self.home.run(*call), 2, r"nowhere\.yaml", r"no such file")

    def test_a_folder_is_not_a_file(self):
        self.ends(self.home.run("validate", self.folder), 2, r"director|folder")

    def test_not_yaml(self):
        self.bad("base_image: minimal-debian\nlayers: [\n", r"onboard\.yaml:\d+:\d+: ")

    def test_not_json(self):
        self.bad('{"base_image": "minimal-debian",,}', r"onboard\.json:1:\d+: ", name="onboard.json")

    def test_wrong_types_all_at_once_with_their_places(self):
        self.bad("display_name: hello-world\n"
                 "base_image: minimal-debian\n"
                 "layers:\n"
                 "  - name: one\n"
                 "    init_commands: echo\n"
                 "config:\n"
                 "  tier: huge\n"
                 "  rootfs_size_gb: -3\n",
                 r"onboard\.yaml:5:\d+: .*init_commands",
                 r"onboard\.yaml:7:9: .*tier.*xs",
                 r"onboard\.yaml:8:19: .*rootfs_size_gb")

    def test_unknown_key_with_the_nearest_known_one(self):
        self.bad("display_name: hello-world\nbase_imgae: minimal-debian\n", r"onboard\.yaml:2:1: .*base_imgae",
                 r"base_image\b")

    def test_unknown_key_inside_a_layer_of_the_full_shape(self):
        self.bad("workload:\n  base_image: minimal-debian\n  layers:\n    - name: a\n      init_command: [x]\n"
                 "      init_commands: [y]\n", r"onboard\.yaml:5:7: .*init_command", r"init_commands")

    def test_the_line_is_shown(self):
        self.bad("display_name: hello-world\nbase_image: minimal-debian\nconfig: {tier: huge}\n",
                 r"config: \{tier: huge\}\n +\| +\^\n")

    def test_duplicate_keys_and_names(self):
        self.bad("base_image: minimal-debian\nbase_image: scratch\n", r"onboard\.yaml:2:1: .*base_image")
        self.bad("display_name: abc\nbase_image: minimal-debian\nlayers:\n- {name: a, init_commands: [x]}\n"
                 "- {name: a, init_commands: [y]}\n", r"onboard\.yaml:5:\d+: .*")

    def test_empty_document(self):
        self.bad("", r"onboard\.yaml")

    def test_bad_reference(self):
        self.bad("display_name: abc\nbase_image: 'UPPER case:!'\nlayers: [{name: a, init_commands: [x]}]\n",
                 r"onboard\.yaml:2:\d+: .*base_image")

    def test_aliases_that_multiply(self):
        lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
        for prev, name in zip("abcdefgh", "bcdefghi"):
            lines.append(f"{name}: &{name} [{','.join(['*' + prev] * 9)}]")
        self.bad("\n".join(lines) + "\n", r"onboard\.yaml:\d+:\d+: ")

    def test_too_large(self):
        self.bad("display_name: abc\n#" + "x" * (1 << 20) + "\n", r"onboard\.yaml", r"1(\.0)? MiB|1048576")

    def test_bad_options(self):
        good = self.home.config("good", [("a", ["true"])])
        self.ends(self.home.run("--isolation", "wish", good), 2, r"isolation", r"container")
        self.ends(self.home.run("--no-such-option", good), 2, r"no-such-option")
        self.ends(self.home.run("--boot-timeout", "soon", good), 2, r"boot-timeout")
        self.ends(self.home.run("frobnicate"), 2, r"frobnicate")
        self.ends(self.home.run("--registry-mirror", "nonsense", good), 2, r"registry-mirror|mirror")

    def test_words_that_a_command_type_does_not_know_are_refused_before_the_build(self):
        path = self.home.config("early", [("a", [{"type": "gcp-auth", "args": ["--project", "x"]}])])
        got = self.home.run(path)
        self.ends(got, 2, r"early\.yaml:\d+:\d+: .*gcp-auth")
        self.ends(self.home.run("validate", path), 0, r"early\.yaml:\d+:\d+: .*gcp-auth")


class GoodConfig(E2E):
    @classmethod
    def new_home(cls, name="home", warm=False):
        return super().new_home(name, warm)

    def test_validate_accepts_all_shapes(self):
        bare = self.home.config("bare-shape", [("a", ["true"])])
        self.ok(self.home.run("validate", bare))
        full = self.folder / "full.yaml"
        full.write_text("platform: {}\nworkload:\n  display_name: full-shape\n  base_image: minimal-debian\n"
                        "  layers:\n  - name: a\n    init_commands:\n    - {type: exec, args: [id], run_as_root: true}\n")
        self.ok(self.home.run("validate", full))
        old = self.folder / "old.yaml"
        old.write_text("workload:\n  base_image: minimal-debian\n  snapshot_commands: [id]\n")
        self.ok(self.home.run("validate", old))

    def test_validate_reads_json_and_the_name_of_the_folder(self):
        (self.folder / "my-app").mkdir()
        path = self.folder / "my-app" / "onboard.json"
        path.write_text(json.dumps({"base_image": "minimal-debian", "layers": [{"name": "a", "init_commands": ["x"]}]}))
        self.ends(self.home.run("validate", path), 0, r"my-app")

    def test_allow_unknown_makes_it_a_warning(self):
        path = self.folder / "unknown.yaml"
        path.write_text("display_name: abc\nbase_image: minimal-debian\nwhatever: 1\n"
                        "layers: [{name: a, init_commands: [x]}]\n")
        self.ends(self.home.run("validate", path), 2, r"whatever")
        self.ends(self.home.run("validate", "--allow-unknown", path), 0, r"unknown\.yaml:3:1: .*whatever")

    def test_show_and_logs_of_what_is_not_there(self):
        self.assertIsInstance(self.home, Home)
        self.ends(self.home.run("show", "nobody"), 1, r"nobody")
        self.ends(self.home.run("boot", "nobody", "--once"), 1, r"nobody")
        self.ends(self.home.run("logs", "nobody"), 1, r"nobody")
        self.ends(self.home.run("builds", "nobody"), 0, r"no builds of nobody")

    def test_names_with_versions_and_options_that_exclude_each_other(self):
        for args, text in ((("show", "nobody:3"), r"there is no template nobody"),
                           (("boot", "nobody:3", "--once"), r"there is no template nobody")):
            self.ends(self.home.run(*args), 1, text)
        for args, text in ((("show", "nobody:0"), r"not NAME or NAME:VERSION"),
                           (("boot", "nobody:3", "--version", "2", "--once"), r"two versions"),
                           (("show", "nobody", "--depth", "3"), r"--depth and --top belong to --sizes"),
                           (("show", "nobody", "--sbom", "--provenance"), r"one of --sbom, --provenance and"),
                           (("show", "nobody", "--sizes", "--sbom"), r"--sizes goes with none of the documents")):
            self.ends(self.home.run(*args), 2, text)


if __name__ == "__main__":
    unittest.main()
