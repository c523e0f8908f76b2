"""Stand-ins for what the examples download from hosts that a test does not depend on: a source tree to compile, a
repository, code-server and gitlab-runner. Each behaves, for what the examples ask of it, as the real one; packages
of Debian are not stood in for. They are served over HTTP on this machine's own address, which guests reach (they do
not reach its loopback)."""

import functools
import http.server
import os
import socket
import subprocess
import tarfile
import threading
from pathlib import Path

HTTP = r"""#!/usr/bin/perl
use strict; use warnings; use IO::Socket::INET;
sub serve {
    my ($where, %pages) = @_;
    my ($host, $port) = $where =~ /^(.*):(\d+)$/ or die "listen where? $where\n";
    my $s = IO::Socket::INET->new(LocalAddr => $host, LocalPort => $port, Listen => 9, ReuseAddr => 1) or die "$@\n";
    $| = 1; print "listening on $where\n";
    while (my $c = $s->accept) {
        my ($path) = (<$c> // '') =~ m{^GET (\S+)};
        while (my $l = <$c>) { last if $l =~ /^\r?\n$/ }
        my $body = defined $path ? $pages{$path} : undef;
        printf $c "HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n%s", defined $body ? '200 OK' : '404 Not Found',
            length($body // ''), $body // '';
        close $c;
    }
}
"""

# code-server ... --bind-addr HOST:PORT --auth none --disable-telemetry FOLDER: the folder must be one it can write to
CODE_SERVER = HTTP + r"""
my %o; my @rest;
while (@ARGV) { my $a = shift; if ($a =~ /^--(bind-addr|auth)$/) { $o{$1} = shift } elsif ($a !~ /^--/) { push @rest, $a } }
die "code-server: no folder\n" if @rest != 1 or not -d $rest[0];
open my $f, '>', "$rest[0]/.code-server" or die "code-server: $rest[0]: $!\n"; close $f;
serve($o{'bind-addr'}, '/healthz' => qq({"status":"alive"}), '/' => "an editor of " . getpwuid($>) . "\n");
"""

# gitlab-runner --version | run --config FILE --listen-address HOST:PORT --working-directory DIR
GITLAB_RUNNER = HTTP + r"""
my $word = shift // '';
if ($word eq '--version') { print "Version: stand-in\n"; exit 0 }
die "gitlab-runner: unknown word $word\n" if $word ne 'run';
my %o; while (@ARGV) { my $a = shift; $o{$1} = shift if $a =~ /^--(.*)/ }
-e $o{config} or die "gitlab-runner: no $o{config}\n";
chdir $o{'working-directory'} or die "gitlab-runner: $o{'working-directory'}: $!\n";
serve($o{'listen-address'}, '/metrics' => "gitlab_runner_jobs 0\n");
"""

MAKEFILE = "OBJS = a.o b.o\ngit: $(OBJS)\n\t$(CC) -o $@ $(OBJS)\n"


class Inputs:
    """Makes them in a folder and serves it; `url` is where, `close()` ends it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        self.tree()
        self.repository()
        self.code_server()
        self.file("gitlab-runner", GITLAB_RUNNER, 0o755)
        handler = functools.partial(Quiet, directory=str(self.folder))
        self.server = http.server.ThreadingHTTPServer((own_address(), 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host, port = self.server.server_address[:2]
        self.url = f"http://{self.host}:{port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def file(self, name, text, mode=0o644):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def tree(self):
        """git-2.47.0.tar.xz: a folder that `make git` compiles."""
        self.file("src/git-2.47.0/Makefile", MAKEFILE)
        self.file("src/git-2.47.0/a.c", "int b(void);\nint main(void) { return b(); }\n")
        self.file("src/git-2.47.0/b.c", "int b(void) { return 0; }\n")
        with tarfile.open(self.folder / "git-2.47.0.tar.xz", "w:xz") as t:
            t.add(self.folder / "src/git-2.47.0", "git-2.47.0")

    def repository(self):
        """git.git: branch maint and tag v2.47.0, with a folder ci; also over plain HTTP."""
        work = self.folder / "work"
        self.file("work/Makefile", MAKEFILE)
        self.file("work/a.c", "int b(void);\nint main(void) { return b(); }\n")
        self.file("work/b.c", "int b(void) { return 0; }\n")
        self.file("work/ci/lib.sh", "echo a library of jobs\n")
        git = functools.partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1"})
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        git(["git", "init", "-q", "-b", "maint", str(work)])
        git(["git", "-C", str(work), "add", "-A"])
        git(["git", "-C", str(work), *who, "commit", "-q", "-m", "first"])
        git(["git", "-C", str(work), "tag", "v2.47.0"])
        git(["git", "clone", "-q", "--mirror", str(work), str(self.folder / "git.git")])
        git(["git", "-C", str(self.folder / "git.git"), "update-server-info"])

    def code_server(self):
        root = self.folder / "deb"
        self.file("deb/usr/bin/code-server", CODE_SERVER, 0o755)
        self.file("deb/DEBIAN/control", "Package: code-server\nVersion: 4.96.4\nArchitecture: amd64\n"
                  "Maintainer: Tests <tests@example.com>\nDescription: stand-in\n")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(self.folder / "code-server.deb")],
                       check=True, stdout=subprocess.DEVNULL)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def own_address():
    """This machine's address on the way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))  # nothing is sent
        return s.getsockname()[0]
