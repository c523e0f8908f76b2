"""Every example builds, boots and answers as its README says."""

import json
import shutil
import sys
import unittest

import harness
from harness import E2E, Registry, SOURCE, debian_layout, http_get

sys.path.insert(0, str(SOURCE / "tests" / "fakes"))
from example_inputs import Inputs  # noqa: E402

EXAMPLES = sorted(p.parent.name for p in (SOURCE / "examples").glob("*/onboard.yaml"))


class Examples(E2E):
    def test_every_example_is_valid_and_has_a_readme(self):
        self.assertIn("hello", EXAMPLES)
        for name in EXAMPLES:
            with self.subTest(name):
                self.ok(self.home.run("validate", SOURCE / "examples" / name / "onboard.yaml"))
                self.assertTrue((SOURCE / "examples" / name / "README.md").exists())

    def test_hello(self):
        self.ok(self.home.build(SOURCE / "examples" / "hello" / "onboard.yaml"))
        port = harness.free_port()
        p = self.home.start("boot", "hello", "--forward", f"{port}:8080")
        try:
            p.wait_for(r"is ready")
            self.assertEqual(http_get(port, "/health"), (200, "ok\n"))
            status, body = http_get(port, "/")
            self.assertEqual(status, 200)
            self.assertIn("hello", body)
            status, body = http_get(port, "/echo/some/path?x=1")
            echoed = json.loads(body)
            self.assertEqual((status, echoed["method"], echoed["path"]), (200, "GET", "/echo/some/path?x=1"))
            self.assertEqual(http_get(port, "/nothing")[0], 404)
            p.interrupt()
            p.end(60)
        finally:
            p.kill()


class WithInputs(E2E):
    """Those whose inputs can be had: Debian and its packages as they are, the rest by stand-ins. An example is
    changed in nothing but where those lie. (python-model's weights and prebuilt-sandbox's image cannot be stood in
    for: what these two examples are about is them.)"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        cls.registry.push(debian_layout(cls.folder / "debian", Env=[path], Cmd=["bash"]), "library/debian", "bookworm")
        cls.inputs = Inputs(cls.folder / "inputs")
        cls.addClassCleanup(cls.inputs.close)

    def example(self, name, **changes):
        """Builds a copy of it in which each text is another; the texts must be there."""
        folder = self.folder / name
        shutil.copytree(SOURCE / "examples" / name, folder)
        text = (folder / "onboard.yaml").read_text()
        for old, new in changes.items():
            self.assertIn(old, text, name)
            text = text.replace(old, new)
        (folder / "onboard.yaml").write_text(text)
        return self.ok(self.home.build(folder / "onboard.yaml", "--isolation", "container", "--registry-mirror",
                                       f"docker.io=http://{self.registry.addr}"))

    def booted(self, name, port=None):
        """Boots it with a way to @port; calls end with the test."""
        here = harness.free_port()
        p = self.home.start("boot", name, *(["--forward", f"{here}:{port}"] if port else []))
        self.addCleanup(p.kill)
        p.wait_for(r"is ready")
        return here, p

    def test_build_farm(self):
        self.example("build-farm", **{
            "https://www.kernel.org/pub/software/scm/git/git-2.47.0.tar.xz": self.inputs.url + "/git-2.47.0.tar.xz",
            'allowed_hosts: [www.kernel.org, "*.kernel.org"]': f"allowed_hosts: [{self.inputs.host}]"})
        # what the seed has compiled is found there, through the overlay that the boot command made
        script = ("cd $(mktemp -d); printf 'int b(void) { return 0; }\\n' > b.c; export CCACHE_DIR=/var/cache/ccache; "
                  "ccache -z; ccache gcc -c -o b.o b.c; ccache --print-stats; touch /drives/seed/x || mount")
        got = self.ok(self.home.run("boot", "build-farm", "--exec", "sh", "-c", script))
        self.assertRegex(got.out, r"(?m)^(direct|preprocessed)_cache_hit\t1$", str(got))
        self.assertRegex(got.out, r"(?m)^ccache on /var/cache/ccache type overlay", str(got))
        self.assertRegex(got.out, r"(?m) on /drives/seed type ext4 \(ro,", str(got))

    def test_ci_runner(self):
        self.example("ci-runner", **{
            "[git, clone, --mirror, \"https://github.com/git/git.git\"": f"[git, clone, --mirror, \"{self.inputs.url}/git.git\"",
            "{git: \"https://github.com/git/git.git\", ref": f"{{git: \"file://{self.inputs.folder}/git.git\", ref",
            "github.com": self.inputs.host})
        got = self.ok(self.home.run("boot", "ci-runner", "--exec", "ci-job", self.inputs.url + "/git.git", "v2.47.0",
                                    "--", "sh", "-c", "make -j4 git && ./git && echo compiled; cat /opt/ci/lib.sh"))
        self.assertIn("compiled\necho a library of jobs\n", got.out, str(got))

    def test_dev_environment(self):
        self.example("dev-environment", **{
            "https://github.com/coder/code-server/releases/download/v${CODE_SERVER_VERSION}/"
            "code-server_${CODE_SERVER_VERSION}_amd64.deb": self.inputs.url + "/code-server.deb",
            'allowed_hosts: [github.com, "*.githubusercontent.com"]': f"allowed_hosts: [{self.inputs.host}]"})
        port, p = self.booted("dev-environment", 8080)
        self.assertEqual(http_get(port, "/"), (200, "an editor of dev\n"))
        p.interrupt()
        p.end(60)

    def test_gitlab_runner(self):
        self.example("gitlab-runner", **{
            "https://gitlab-runner-downloads.s3.amazonaws.com/${RUNNER_VERSION}/binaries/gitlab-runner-linux-amd64":
            self.inputs.url + "/gitlab-runner",
            'allowed_hosts: ["*.s3.amazonaws.com"]': f"allowed_hosts: [{self.inputs.host}]"})
        port, p = self.booted("gitlab-runner", 9252)
        self.assertEqual(http_get(port, "/metrics"), (200, "gitlab_runner_jobs 0\n"))
        p.interrupt()
        p.end(60)


if __name__ == "__main__":
    unittest.main()
