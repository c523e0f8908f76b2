"""What a guest reaches: the network, and neither the host's loopback nor 169.254.0.0/16."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import unittest
from pathlib import Path

from harness import E2E, Listener, mirror_host, without

PROBE = r"""
try() { # what leads nowhere is given 10 s; all at once
    local why; why=$(mktemp)
    if timeout 10 bash -c "exec 3<>/dev/tcp/$1/$2; head -c 20 <&3" 2>"$why"; then echo "$1:$2 REACHED"
    else echo "$1:$2 no: $(tr '\n' ' ' <"$why")"; fi
}
gateway=$(awk '$2 == "00000000" {print $3; exit}' /proc/net/route)
gateway=$(printf '%d.%d.%d.%d' 0x${gateway:6:2} 0x${gateway:4:2} 0x${gateway:2:2} 0x${gateway:0:2})
for host in 127.0.0.1 localhost $gateway 10.0.2.2 10.0.2.3 10.0.2.1 10.0.2.100; do try $host PORT & done
for host in 169.254.169.254 169.254.0.1 169.254.255.254; do try $host 80 & done
try fd00:ec2::254 80 & # metadata by IPv6
wait
timeout 60 bash -c "exec 3<>/dev/tcp/MIRROR/80" && echo "the network: yes"
"""


NONE = r"""
try() {
    local why; why=$(mktemp)
    if timeout 10 bash -c "exec 3<>/dev/tcp/$1/$2" 2>"$why"; then echo "$1:$2 REACHED"
    else echo "$1:$2 no: $(tr '\n' ' ' <"$why")"; fi
}
for host in MIRROR 10.0.2.2 10.0.2.3 1.1.1.1 169.254.169.254; do try $host 80 & done
wait
echo interfaces: $(sed -n 's/^ *\([^ :]*\):.*/\1/p' /proc/net/dev)
if timeout 60 getent hosts MIRROR >/dev/null; then echo resolves: REACHED; else echo resolves: no; fi
perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in(8080, INADDR_LOOPBACK)) && listen(S, 1) &&
    socket(C, PF_INET, SOCK_STREAM, 0) && connect(C, sockaddr_in(8080, INADDR_LOOPBACK)) && print "loopback: yes\n"'
"""


# Each line is what came back: nothing where nothing is to come.
POLICY = r"""
get() { # NAME HOST ADDRESS PORT: the first words of an answer
    echo "$1=$(timeout 20 bash -c "exec 3<>/dev/tcp/$3/$4 && printf 'GET / HTTP/1.1\r\nHost: $2\r\nConnection: close\r\n\r\n' >&3 && head -c 8 <&3" 2>/dev/null)"
}
probe() {
    get address hidden.example ADDRESS 80 # before any name was asked for
    get name MIRROR MIRROR 80
    get other other.example MIRROR 80
    get port MIRROR MIRROR 443
    get unknown other.example other.example 80
    get raw x 198.51.100.7 443
    get metadata x 169.254.169.254 80
    get ipv6 x 2001:db8::1 80
    get gateway x 10.0.2.2 80
    echo "udp=$(timeout 20 bash -c 'exec 3<>/dev/udp/198.51.100.7/443 && echo x >&3 && sleep 0.2 && echo x >&3 && echo sent' 2>/dev/null)"
}
"""


def own_address():
    """One of this machine's that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((mirror_host(), 9))
        return s.getsockname()[0]


def children(parent, name):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, comm, ppid = re.match(r"(\d+) \((.*)\) \S (\d+)", stat.read_text()).groups()
            if int(ppid) == parent and comm == name:
                found.append(int(pid))
    return found


class Network:
    builder = None

    def test_what_is_in_reach(self):
        listener = Listener()
        self.addCleanup(listener.close)
        script = PROBE.replace("PORT", str(listener.port)).replace("MIRROR", mirror_host())
        config = self.home.config("network", [("probe", [{"args": ["bash", "-c", script]}])])
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check"))
        out = got.output("probe")
        self.assertNotIn("REACHED", out)
        self.assertNotIn("reached the host", out)
        self.assertEqual(listener.seen, 0, out)
        self.assertIn("the network: yes", out)
        self.assertEqual(out.count(" no: "), 11, out)


    def test_none_leaves_a_loopback(self):
        script = NONE.replace("MIRROR", mirror_host())
        config = self.home.config(
            "none", [("probe", [{"args": ["bash", "-c", script]}])], config={"network_policy_preset": "none"}
        )
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check"))
        out = got.output("probe")
        self.assertNotIn("REACHED", out)
        self.assertEqual(out.count(" no: "), 5, out)
        self.assertIn("interfaces: lo\n", out)
        self.assertIn("resolves: no\n", out)
        self.assertIn("loopback: yes\n", out)


    def test_the_proxy_reaches_commands_and_nothing_else(self):
        proxy = "http://proxy.example:3128"
        env = {"CAPSULE_BUILD_PROXY": proxy, "no_proxy": "here.example"}
        show = "env | grep -i _proxy | sort"
        layers = [("probe", [show]), ("own", [{"args": ["bash", "-c", show], "env_variables": {"http_proxy": "http://mine"}}])]
        config = self.home.config("proxied", layers)
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check", env=env))
        all_of = [f"{n}={proxy}" for n in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")]
        all_of += ["no_proxy=here.example", "NO_PROXY=here.example"]
        self.assertEqual(sorted(got.output("probe").split()), sorted(all_of))
        self.assertIn("http_proxy=http://mine\n", got.output("own"))
        self.assertNotIn("proxy", str(self.home.manifest("proxied")["default_env"]).lower())
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check"))
        self.assertEqual(got.output("probe"), "")  # the key is the same: cached


    def test_only_what_is_allowed(self):
        mirror = mirror_host()
        address = socket.gethostbyname(mirror)
        ask = lambda text: {"args": ["bash", "-c", text], "run_as_root": True}
        policy = POLICY.replace("MIRROR", mirror).replace("ADDRESS", address)
        layers = [
            ("names", [{**ask(policy + "probe"), "allowed_hosts": [mirror]}, ask(policy + "echo next; probe")]),
            ("rules", [{**ask(policy + "probe"), "allowed_hosts": ["*.example.org"]}, ask(policy + "echo next; probe")]),
        ]
        rules = {"default": "deny", "egress": [{"host": "unknown.invalid"}, {"host": mirror, "ports": [443], "action": "deny"}]}
        config = self.home.config("held", layers, config={"network_policy": rules})
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check"))
        first, then = got.output("names").split("next\n")
        seen = dict(line.split("=", 1) for line in first.splitlines())
        self.assertRegex(seen.pop("name"), r"^HTTP/1\.")
        self.assertEqual(set(seen.values()), {""}, first)
        self.assertEqual(len(seen), 9)
        for text in (then, *got.output("rules").split("next\n")):  # a step's hosts are its own
            self.assertEqual({line.split("=", 1)[1] for line in text.splitlines()}, {""}, text)
        notes = "\n".join(n["text"] for n in got.of("note"))
        self.assertIn(f"the name other.example was refused by the command's allowed_hosts; allowed are {mirror}", notes)
        self.assertIn(f"a connection to {address}:80 was refused by the command's allowed_hosts; allowed are {mirror}\n", notes)
        self.assertIn(f"a connection to {mirror}:443 ({address}) was refused by network_policy; allowed are {mirror}\n", notes)
        self.assertIn("a connection to 198.51.100.7:443 by UDP was refused by", notes)
        self.assertIn(f"the name {mirror} was refused by network_policy; allowed are unknown.invalid\n", notes)
        self.assertNotIn("not supported yet", str(got.of("warning")))


    def test_an_authority_of_ones_own_reaches_commands_and_nothing_else(self):
        bundle = self.home.folder / "company.pem"
        bundle.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
        env = {"CAPSULE_BUILD_CA_BUNDLE": str(bundle)}
        show = 'env | grep -E "^(SSL_CERT_FILE|CURL_CA_BUNDLE|GIT_SSL_CAINFO)=" | sort; grep ours "$SSL_CERT_FILE"; true'
        layers = [("probe", [show]), ("own", [{"args": ["bash", "-c", show], "env_variables": {"SSL_CERT_FILE": "/mine"}}])]
        config = self.home.config("trusting", layers)
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check", env=env))
        path = "/run/capsule-build/authorities.pem"
        self.assertEqual(got.output("probe"), f"CURL_CA_BUNDLE={path}\nGIT_SSL_CAINFO={path}\nSSL_CERT_FILE={path}\nours\n")
        self.assertIn("SSL_CERT_FILE=/mine\n", got.output("own"))
        self.assertNotIn("authorities", json.dumps(self.home.manifest("trusting")))
        got = self.ok(self.home.build(config, "--isolation", self.builder, "--no-boot-check"))
        self.assertEqual(got.output("probe"), "")  # the key is the same: cached
        if self.builder == "container":
            bundle.write_text("what")
            config = self.home.config("untrusting", [("other", ["true # other"])])
            got = self.home.build(config, "--isolation", self.builder, env=env)
            self.assertEqual(got.rc, 2)
            self.assertIn(f"ca_bundle {bundle}: it holds no certificate in PEM", got.error)


class NetworkContainer(Network, E2E):
    builder = "container"

    def test_a_step_that_fails_says_what_was_refused(self):
        step = {"args": ["bash", "-c", "getent hosts one.example two.example; exec 3<>/dev/tcp/198.51.100.7/22; cat <&3"]}
        config = self.home.config("fails", [("a", [step])], config={"network_policy_preset": "packages-only"})
        got = self.home.build(config, "--isolation", "container", "--no-boot-check")
        self.assertEqual(got.rc, 1)
        self.assertIn("\nit was refused on its way out: one.example, two.example, 198.51.100.7:22\nits last lines:", got.error)
        self.assertIn("`allowed_hosts` of the command", got.text)
        config = self.home.config("packages", [("a", [f"getent hosts {mirror_host()}"])],
                                  config={"network_policy_preset": "packages-only"})
        self.ok(self.home.build(config, "--isolation", "container", "--no-boot-check"))

    def test_who_was_contacted_is_recorded(self):
        mirror = mirror_host()
        get = "timeout 60 bash -c \"exec 3<>/dev/tcp/%s/80; printf 'GET / HTTP/1.1\\r\\nHost: lie.example\\r\\n\\r\\n' >&3; head -c 4 <&3\""
        layers = [("asks", [get % mirror, "timeout 9 bash -c 'exec 3<>/dev/tcp/10.0.2.2/1; cat <&3' || true"]), ("silent", ["true"])]
        for tier in ("s", "m"):  # the second time all layers come from the cache
            config = self.home.config("recorded", layers, config={"tier": tier})
            got = self.ok(self.home.build(config, "--isolation", "container", "--no-boot-check"))
            said = self.ok(self.home.run("show", "recorded", "--provenance"))
            made = json.loads(said.out)["predicate"]["buildDefinition"]["internalParameters"]["layers"]
            self.assertEqual([(l["name"], l["hosts"]) for l in made], [("asks", [f"{mirror}:80/tcp"]), ("silent", [])])
            if tier == "s":
                records = [e["record"]["execution"]["host_requests"] for e in got.of("step-end") if e.get("record")]
                self.assertEqual(records, [[{"host": mirror, "allowed": True, "port": 80, "protocol": "tcp"}],
                                           [{"host": "10.0.2.2", "allowed": False, "port": 1, "protocol": "tcp"}], []])
        self.assertEqual(got.commands_run(), [])

    def test_what_was_contacted_before_a_failure_is_recorded(self):
        asks = f"timeout 60 bash -c 'exec 3<>/dev/tcp/{mirror_host()}/80'"
        self.contacted_before_a_failure("again", lambda waits: [asks, waits])
        # the first command: it runs on what it left, so whom it asked counts
        self.contacted_before_a_failure("first", lambda waits: ["set -e; [ -e /asked ] || { " + asks + "; touch /asked; }; " + waits])

    def contacted_before_a_failure(self, name, steps):
        mirror, here = mirror_host(), own_address()
        with socket.socket() as s:
            s.bind((here, 0))  # and does not listen yet
            port = s.getsockname()[1]
            config = self.home.config(name, [("asks", steps(f"bash -c 'exec 3<>/dev/tcp/{here}/{port}; read -u 3 x'"))])
            got = self.home.build(config, "--isolation", "container", "--no-boot-check")
            self.assertEqual(got.rc, 1, str(got))
            s.listen()
            answer = threading.Thread(target=lambda: s.accept()[0].sendall(b"hello\n"))
            answer.start()
            got = self.ok(self.home.run("resume", "--no-boot-check", name))
            answer.join()
        made = json.loads(self.home.run("show", name, "--provenance").out)["predicate"]["buildDefinition"]
        self.assertEqual(made["internalParameters"]["layers"][0]["hosts"], sorted([f"{mirror}:80/tcp", f"{here}:{port}/tcp"]))

    def test_kill_9_of_the_gateway(self):
        with socket.create_server((own_address(), 0)) as s:
            here, port = s.getsockname()
            step = f"bash -c 'exec 3<>/dev/tcp/{here}/{port}; echo now-waiting; cat <&3'; echo went-on"
            config = self.home.config("killed", [("waits", [step, "echo never"])])
            p = self.home.start("--isolation", "container", "--no-boot-check", "--progress", "plain", config)
            try:
                p.wait_for("now-waiting")
                job = children(p.pid, "capsule-build-j")
                gateway = children(job[0], "capsule-gateway")
                self.assertEqual((len(job), len(gateway)), (1, 1))
                os.kill(gateway[0], signal.SIGKILL)
                got = p.end(60)
            finally:
                p.kill()
        self.assertEqual(got.rc, 3, str(got))
        self.assertIn("went-on", got.text)
        self.assertIn("the build's gateway ended", got.text)
        self.assertNotIn("never\n", got.text)

    def test_what_is_open_is_built_unwatched(self):
        config = self.home.config("unwatched", [("a", [f"getent hosts {mirror_host()} # unwatched"])])
        got = self.ok(self.home.build(config, "--isolation", "container", "--no-boot-check", prefix=without("nft")))
        self.assertIn("whom the commands talk to is not recorded: nft is not on this machine", str(got.of("note")))
        made = json.loads(self.home.run("show", "unwatched", "--provenance").out)["predicate"]["buildDefinition"]
        self.assertNotIn("hosts", made["internalParameters"]["layers"][0])

    def test_what_cannot_be_held_is_not_built(self):
        config = self.home.config("unheld", [("a", ["true"])], config={"network_policy": {"default": "deny"}})
        for more in ((), ("--allow-host-network",)):
            got = self.home.build(config, "--isolation", "container", "--no-boot-check", *more, prefix=without("nft"))
            self.assertEqual(got.rc, 3)
            self.assertIn("nothing here can see to that: nft is not on this machine", got.error)
            self.assertIn("apt-get install nftables", got.text)
            self.assertEqual(got.commands_run(), [])


class NetworkVm(Network, E2E):
    builder = "vm"

    def test_the_booted_image_is_held_to_the_same(self):
        listener = Listener()
        self.addCleanup(listener.close)
        script = PROBE.replace("PORT", str(listener.port)).replace("MIRROR", mirror_host())
        config = self.home.config("booted", [("a", ["true"])])
        self.ok(self.home.build(config, "--no-boot-check"))
        got = self.home.run("boot", "booted", "--exec", "bash", "-c", script)
        self.assertIn("the network: yes", got.out, str(got))
        self.assertNotIn("REACHED", got.out)
        self.assertEqual(listener.seen, 0)


if __name__ == "__main__":
    unittest.main()
