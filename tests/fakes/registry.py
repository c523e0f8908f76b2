#!/usr/bin/env python3
"""A registry that misbehaves on request. The first part of a repository's name says how:
/v2/flaky/app/... answers 500 twice and then well. See BEHAVIOURS below for all of them.

Prints {"port": N, "cdn": N} and serves on loopback until its stdin is closed. Every request of a repository
is kept and can be read at /_log/REPOSITORY: [[method, path, range, authorization], ...].
"""
import base64
import contextlib
import email.utils
import gzip
import hashlib
import http.server
import io
import json
import random
import sys
import tarfile
import threading
import time
import urllib.parse

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
USER, PASSWORD = "ada", "love:lace"  # a colon is allowed in a password
IDENTITY = "refresh+me/please"

BEHAVIOURS = """
ok index docker nohead nodigest            an image, in several true shapes
token expiring scoped ping private basic identity   who may read it, and how that is found out
wrongdigest wrongmanifest short long       bytes that are not what they claim to be
cut cutnorange cutbadrange cutalways       the connection closes in the middle of a blob
norange416                                 416 for every Range
cutmib                                     every connection closes after 1 MiB of a blob
trickle                                    a byte a second
missing plain404 denied                    no
limit limitdate limitlong flaky broken     not now
warned                                     a word of the registry's beside every answer
redirect loop tofile toinside              a Location
schema1 foreign artifact unknown arm newer both nodiff big huge endless deep selfindex wrongsize wrongdiff   manifests nobody should take
badtoken notoken                           token servers
push pushtoken pushflaky pushaway          where images can be put, in several ways
pushcut pushlimit pushforget               uploads that must go on in another way
pushlie pushdenied pushreadonly pushreferrers pushraced   and with other ends
""".split()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dumps(o):
    return json.dumps(o, sort_keys=True).encode()


class Image:
    """Two layers, a config and a manifest, as bytes; the same in every run."""

    def __init__(self, name, arch="amd64", variant=None, docker=False, layer_type=None, config_type=None, diff_ids=None,
                 big=3 << 20):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as t:
            info = tarfile.TarInfo("etc/name")
            info.size = len(name)
            t.addfile(info, io.BytesIO(name.encode()))
        plain = [tar.getvalue(), random.Random(name).randbytes(big)]
        self.layers = [gzip.compress(plain[0], mtime=0), plain[1]]
        types = [OCI + "layer.v1.tar+gzip", OCI + "layer.v1.tar"]
        if docker:
            types = [DOCKER + "image.rootfs.diff.tar.gzip", DOCKER + "image.rootfs.diff.tar"]
        if layer_type:
            types[1] = layer_type
        self.config = dumps({
            "architecture": arch, "os": "linux", **({"variant": variant} if variant else {}),
            "config": {"Env": ["PATH=/bin", "NAME=" + name], "Cmd": ["sh"]},
            "rootfs": {"type": "layers",
                       "diff_ids": [digest(p) for p in plain] if diff_ids is None else diff_ids}})
        kind = config_type or (DOCKER + "container.image.v1+json" if docker else OCI + "config.v1+json")
        self.type = DOCKER + "distribution.manifest.v2+json" if docker else OCI + "manifest.v1+json"
        self.manifest = dumps({
            "schemaVersion": 2, "mediaType": self.type,
            "config": {"mediaType": kind, "digest": digest(self.config), "size": len(self.config)},
            "layers": [{"mediaType": t, "digest": digest(d), "size": len(d)}
                       for t, d in zip(types, self.layers)]})
        self.blobs = {digest(b): b for b in [self.config] + self.layers}


class Repo:
    def __init__(self, name):
        self.name = name
        self.how = name.split("/")[0]
        self.log = []
        self.count = {}
        self.lock = threading.Lock()
        self.uploads = {}
        h = self.how
        image = Image(
            name, arch="arm64" if h == "arm" else "amd64", docker=h == "docker",
            variant="v3" if h == "newer" else None,
            layer_type={"foreign": DOCKER + "image.rootfs.foreign.diff.tar.gzip",
                        "unknown": "application/vnd.wasm.content.layer.v1+wasm"}.get(h),
            config_type="application/vnd.cncf.helm.config.v1+json" if h == "artifact" else None,
            big=8 << 20 if h == "cutmib" else 3 << 20,
            diff_ids={"nodiff": [], "wrongdiff": [digest(b"one"), digest(b"two")]}.get(h))
        self.blobs = dict(image.blobs)
        self.manifests = {digest(image.manifest): (image.type, image.manifest)}
        self.top = (image.type, image.manifest)
        if h in ("index", "docker", "deep", "wrongsize"):
            self.make_index(image)
        if h == "schema1":
            self.top = (DOCKER + "distribution.manifest.v1+prettyjws",
                        dumps({"schemaVersion": 1, "name": name, "fsLayers": []}))
        if h == "selfindex":  # an index cannot hold its own digest: this one is also sent for what it names
            kind, own = OCI + "index.v1+json", digest(b"the index itself")
            self.top = (kind, dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [
                {"mediaType": kind, "digest": own, "size": 1000,
                 "platform": {"os": "linux", "architecture": "amd64"}}]}))
            self.manifests[own] = self.top
        if h == "both":
            m = json.loads(image.manifest)
            m["manifests"] = []
            self.top = (image.type, dumps(m))
        if h == "big":
            self.top = (image.type, b" " * (5 << 20))
        self.manifests[digest(self.top[1])] = self.top
        if h.startswith("push"):
            self.blobs, self.manifests, self.top = {}, {}, None
        self.big = max(image.blobs, key=lambda d: len(image.blobs[d]))

    def make_index(self, image):
        other = Image(self.name, arch="arm64")
        self.manifests[digest(other.manifest)] = (other.type, other.manifest)
        docker = self.how == "docker"

        def entry(i, arch, **more):
            off = 1 if self.how == "wrongsize" else 0
            return dict({"mediaType": i.type, "digest": digest(i.manifest), "size": len(i.manifest) + off,
                         "platform": {"os": "linux", "architecture": arch}}, **more)
        attest = entry(other, "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})
        attest["platform"]["os"] = "unknown"
        kind = DOCKER + "distribution.manifest.list.v2+json" if docker else OCI + "index.v1+json"
        top = dumps({"schemaVersion": 2, "mediaType": kind,
                     "manifests": [attest, entry(other, "arm64"), entry(image, "amd64")]})
        for _ in range(4 if self.how == "deep" else 0):
            self.manifests[digest(top)] = (kind, top)
            top = dumps({"schemaVersion": 2, "mediaType": kind,
                         "manifests": [{"mediaType": kind, "digest": digest(top), "size": len(top),
                                        "platform": {"os": "linux", "architecture": "amd64"}}]})
        self.top = (kind, top)

    def nth(self, key):
        """0, 1, 2... for each call with the same key."""
        with self.lock:
            n = self.count.get(key, 0)
            self.count[key] = n + 1
            return n


REPOS = {}
REPOS_LOCK = threading.Lock()
PORTS = {}


def repo(name):
    with REPOS_LOCK:
        if name not in REPOS:
            REPOS[name] = Repo(name)
        return REPOS[name]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if "/warned/" in self.path:
            self.send_header("Warning", '299 - "this registry moves on Friday"')
        for k, v in headers:
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code, message, headers=()):
        self.answer(status, dumps({"errors": [{"code": code, "message": message, "detail": {}}]}), headers=headers)

    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def do_PATCH(self):
        self.route()

    def do_DELETE(self):
        self.route()

    def route(self):
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if url.path.startswith("/computeMetadata/"):
            return self.metadata()
        if parts[0] == "_log":
            return self.answer(200, dumps(repo("/".join(parts[1:])).log))
        if url.path == "/v2/":
            return self.error(401, "UNAUTHORIZED", "who are you", self.challenge("ping/app"))
        if parts[0] == "token":
            if self.command == "POST":
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                return self.identity_token(form)
            return self.token(urllib.parse.parse_qs(url.query))
        if parts[0] != "v2" or len(parts) < 5:
            return self.error(404, "NAME_UNKNOWN", "no such thing")
        if "uploads" in parts:
            return self.uploading(repo("/".join(parts[1:parts.index("uploads") - 1])), url, parts[-1])
        r = repo("/".join(parts[1:-2]))
        with r.lock:
            r.log.append([self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")])
        if not self.allowed(r) or self.refused(r, parts[-2]):
            return None
        if parts[-2] == "manifests":
            return self.put_manifest(r, parts[-1]) if self.command == "PUT" else self.manifest(r, parts[-1])
        return self.blob(r, parts[-1])

    # --- who may ---

    def challenge(self, name, more=""):
        realm = "http://127.0.0.1:%d/token" % PORTS["port"]
        if name.startswith("badtoken"):
            realm = "ftp://127.0.0.1/token"
        return [("WWW-Authenticate",
                 'Bearer realm="%s",service="fake, registry",scope="repository:%s:%s"%s' % (
                     realm, name, "pull,push" if name.startswith("push") else "pull", more))]

    def token(self, query):
        scope = query.get("scope", [""])[0]
        name = scope.split(":")[1] if scope.count(":") == 2 else ""
        r = repo(name)
        basic = "Basic " + base64.b64encode(("%s:%s" % (USER, PASSWORD)).encode()).decode()
        with r.lock:
            r.log.append(["TOKEN", self.path, None, self.headers.get("Authorization")])
        if query.get("service") != ["fake, registry"]:
            return self.error(400, "SERVICE", "which service?")
        if r.how == "identity":
            return self.error(401, "UNAUTHORIZED", "an identity token, please")
        if r.how == "private" and self.headers.get("Authorization") != basic:
            return self.error(401, "UNAUTHORIZED", "incorrect username or password")
        if r.how == "notoken":
            return self.answer(200, dumps({"token": "two\r\nlines"}))
        n = r.nth("token")
        key = "access_token" if r.how == "scoped" else "token"
        return self.answer(200, dumps({key: "tok-%s-%d" % (name.replace("/", "."), n), "expires_in": 60}))

    def identity_token(self, form):
        r = repo(form.get("scope", ["::"])[0].split(":")[1])
        with r.lock:
            r.log.append(["TOKEN", "POST", None, self.headers.get("Authorization")])
        if form.get("grant_type") != ["refresh_token"] or form.get("service") != ["fake, registry"]:
            return self.error(400, "FORM", "which grant?")
        if form.get("refresh_token") != [IDENTITY]:
            return self.error(401, "UNAUTHORIZED", "who are you?")
        return self.answer(200, dumps({"access_token": "tok-%s-id" % r.name.replace("/", "."), "expires_in": 300}))

    def metadata(self):
        if self.headers.get("Metadata-Flavor") != "Google" or not self.path.endswith("/default/token"):
            return self.answer(403, b"Missing Metadata-Flavor:Google header.", "text/html")
        return self.answer(200, dumps({"access_token": "ya29.fake", "expires_in": 3599, "token_type": "Bearer"}),
                           headers=[("Metadata-Flavor", "Google")])

    def allowed(self, r):
        auth = self.headers.get("Authorization") or ""
        if r.how == "basic":
            want = "Basic " + base64.b64encode(("%s:%s" % (USER, PASSWORD)).encode()).decode()
            if auth == want:
                return True
            self.error(401, "UNAUTHORIZED", "authentication required", [("WWW-Authenticate", 'Basic realm="x"')])
            return False
        if r.how not in ("token", "pushtoken", "identity", "expiring", "scoped", "ping", "private", "badtoken", "notoken", "redirect"):
            return True
        tag = "tok-%s-" % r.name.replace("/", ".")
        ok = auth.startswith("Bearer " + tag)
        more = ""
        if ok and r.how in ("expiring", "pushtoken"):  # every token is good for two requests
            ok = r.nth(auth) < 2
            more = ',error="invalid_token"'
        if ok:
            return True
        headers = [] if r.how == "ping" else self.challenge(r.name, more)
        self.error(401, "UNAUTHORIZED", "authentication required", headers)
        return False

    def refused(self, r, what):
        h = r.how
        if h == "missing":
            self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        elif h == "plain404":
            self.answer(404, b"<html>not here</html>", "text/html")
        elif h == "denied":
            self.error(403, "DENIED", "requested access to the resource is\x1b[31m denied")
        elif h == "limit" and r.nth(what) == 0:
            self.error(429, "TOOMANYREQUESTS", "slow down", [("Retry-After", "7")])
        elif h == "limitdate" and r.nth(what) == 0:
            soon = email.utils.formatdate(time.time() + 40, usegmt=True)
            self.error(429, "TOOMANYREQUESTS", "slow down", [("Retry-After", soon)])
        elif h == "limitlong":
            self.error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit", [("Retry-After", "21600")])
        elif h == "flaky" and r.nth(what) < 2:
            self.error(500, "UNKNOWN", "oh")
        elif h == "broken":
            self.error(503, "UNAVAILABLE", "closed for today")
        else:
            return False
        return True

    # --- what is put there ---

    def refuse_unread(self, status, code, message, headers=()):
        """Without the body that is on its way."""
        self.close_connection = True
        self.error(status, code, message, list(headers) + [("Connection", "close")])

    def uploading(self, r, url, session):
        query = urllib.parse.parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        with r.lock:
            r.log.append([self.command, self.path, self.headers.get("Content-Range"),
                          self.headers.get("Authorization")])
        if not r.how.startswith("push") or r.how == "pushreadonly":
            return self.refuse_unread(405, "UNSUPPORTED", "this registry is read-only")
        if r.how == "pushdenied":
            return self.refuse_unread(403, "DENIED", "not yours")
        if not self.allowed(r):
            self.rfile.read(length)
            return None
        if self.command == "POST":
            return self.open_session(r, query)
        if session not in r.uploads or (r.how == "pushforget" and r.nth("forget") == 0):
            return self.refuse_unread(404, "BLOB_UPLOAD_UNKNOWN", "which upload?")
        data = r.uploads[session]
        where = [("Location", url.path + "?_state=" + str(len(data)))]
        if self.command == "GET":
            return self.answer(204, headers=where + [("Range", "0-%d" % max(0, len(data) - 1))])
        if self.command == "DELETE":
            del r.uploads[session]
            return self.answer(204)
        if r.how == "pushlimit" and length > 1 << 20:
            return self.refuse_unread(413, "SIZE_INVALID", "too large")
        if r.how == "pushcut" and length > 1 << 20 or (
                r.how == "pushcut" and self.command == "PATCH" and r.nth("piece") == 1):
            data += self.rfile.read(length // 2)
            self.close_connection = True
            return None
        body = self.rfile.read(length)
        if r.how == "pushflaky" and r.nth(self.command) < 2:
            return self.error(500, "UNKNOWN", "oh")
        if self.command == "PATCH":
            if self.headers.get("Content-Range") != "%d-%d" % (len(data), len(data) + length - 1):
                return self.error(416, "BLOB_UPLOAD_INVALID", "out of order", where)
            data += body
            return self.answer(202, headers=where + [("Range", "0-%d" % (len(data) - 1))])
        data += body
        name = query["digest"][0]
        if digest(bytes(data)) != name:
            return self.error(400, "DIGEST_INVALID", "these bytes are other ones")
        r.blobs[name] = bytes(data)
        return self.answer(201, headers=[("Docker-Content-Digest", name)])

    def open_session(self, r, query):
        if "mount" in query:
            source, name = repo(query["from"][0]), query["mount"][0]
            if source.how == "private":
                return self.error(403, "DENIED", "not from there")
            if name in source.blobs:
                r.blobs[name] = source.blobs[name]
                return self.answer(201, headers=[("Docker-Content-Digest", name)])
        if r.how == "pushflaky" and r.nth("open") < 1:  # with the two of PUT three: one blob may meet them all
            return self.error(503, "UNAVAILABLE", "soon")
        session = str(r.nth("session"))
        r.uploads[session] = bytearray()
        where = "/v2/%s/blobs/uploads/%s?_state=a%%2Fb" % (r.name, session)
        if r.how == "pushaway":
            where = "http://127.0.0.1:%d/cdn/%s/%s" % (PORTS["cdn"], r.name, session)
        return self.answer(202, headers=[("Location", where), ("Range", "0-0")])

    def put_manifest(self, r, name):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        doc, is_digest = json.loads(body), name.startswith("sha256:")
        if not r.how.startswith("push") or (is_digest and name != digest(body)):
            return self.error(400, "MANIFEST_INVALID", "no")
        wanted = [d["digest"] for d in doc.get("layers", []) + ([doc["config"]] if "config" in doc else [])]
        wanted += [d["digest"] for d in doc.get("manifests", []) if d["digest"] not in r.manifests]
        missing = [d for d in wanted if d not in r.blobs]
        if missing:
            return self.error(404, "MANIFEST_BLOB_UNKNOWN", missing[0])
        if r.how == "pushraced" and name.startswith("sha256-") and r.nth("race") == 0:
            return self.error(412, "DENIED", "somebody was faster")
        r.manifests[digest(body)] = r.manifests[name] = (self.headers["Content-Type"], body)
        if name == "1":
            r.top = r.manifests[name]
        said = digest(b"something else") if r.how == "pushlie" else digest(body)
        headers = [("Docker-Content-Digest", said)]
        if r.how == "pushreferrers" and "subject" in doc:
            headers.append(("OCI-Subject", doc["subject"]["digest"]))
        return self.answer(201, headers=headers)

    # --- what there is ---

    def manifest(self, r, name):
        if self.command == "HEAD" and r.how == "nohead":
            return self.error(405, "UNSUPPORTED", "no HEAD here")
        if r.how in ("huge", "endless"):
            return self.hundred_megabytes(r.how == "huge")
        found = r.top if name == "1" else r.manifests.get(name)
        if found is None:
            return self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        kind, body = found
        headers = [] if r.how == "nodigest" else [("Docker-Content-Digest", digest(body))]
        if r.how == "wrongmanifest":
            body += b" "
        return self.answer(200, body, kind, headers)

    def hundred_megabytes(self, announced):
        self.send_response(200)
        self.send_header("Content-Type", OCI + "manifest.v1+json")
        if announced:
            self.send_header("Content-Length", str(100 << 20))
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b" " * (1 << 20))

    def blob(self, r, name):
        data = r.blobs.get(name)
        if data is None:
            return self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if name != r.big:
            return self.answer(200, data, "application/octet-stream")
        where = {"redirect": "http://127.0.0.1:%d/cdn/%s/%s" % (PORTS["cdn"], r.name, name),
                 "loop": self.path, "tofile": "file:///etc/passwd",
                 "toinside": "http://169.254.169.254/latest/meta-data"}.get(r.how)
        if where:
            return self.answer(307, headers=[("Location", where)])
        return self.big_blob(r, data)

    def big_blob(self, r, data):
        h = r.how
        kind = "application/octet-stream"
        start = 0
        asked = self.headers.get("Range")
        if asked and h == "norange416":
            return self.error(416, "RANGE_INVALID", "no ranges here")
        if asked and h != "cutnorange":
            start = int(asked[len("bytes="):-1])
        status, headers = 200, []
        if start:
            shown = start + 5 if h == "cutbadrange" else start
            status = 206
            headers = [("Content-Range", "bytes %d-%d/%d" % (shown, len(data) - 1, len(data)))]
        body = data[start:]
        if h == "wrongdigest":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if h == "short":
            return self.answer(status, body[:1000], kind)
        if h == "long":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body + b"more" * 1000)
            self.close_connection = True
            return None
        if h == "trickle":
            return self.trickle(status, headers, body)
        cut = None
        if h == "cutmib" and len(body) > 1 << 20:
            cut = 1 << 20
        if h in ("cut", "cutnorange", "cutbadrange", "norange416") and r.nth("cut") == 0:
            cut = len(body) // 2
        if h == "cutalways":
            cut = 1000
        if cut is not None:
            self.answer(status, body[:cut], kind, headers, length=len(body))
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(status, body, kind, headers)


    def trickle(self, status, headers, body):
        """Until the other side has had enough; the pause is what is being tested, nothing waits for it."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for k, v in headers:
            self.send_header(k, v)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            for b in body:
                self.wfile.write(bytes([b]))
                self.wfile.flush()
                time.sleep(1)


class Cdn(Handler):
    """Where redirects lead; like S3 it refuses a request that is signed and carries Authorization."""

    def route(self):
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if self.headers.get("Authorization"):
            return self.answer(400, b"only one authentication is allowed", "text/plain")
        if self.command == "PUT":
            return self.uploading(repo("/".join(parts[1:-1])), url, parts[-1])
        data = repo("/".join(parts[1:-1])).blobs.get(parts[-1])
        if data is None:
            return self.answer(404)
        return self.answer(200, data, "application/octet-stream")


def main():
    servers = {}
    for key, handler in (("port", Handler), ("cdn", Cdn)):
        servers[key] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers[key].daemon_threads = True
        PORTS[key] = servers[key].server_address[1]
        threading.Thread(target=servers[key].serve_forever, daemon=True).start()
    print(json.dumps(PORTS), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
