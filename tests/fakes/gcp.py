"""Google's token endpoint and metadata server, on the loopback: they check what they are asked as the real ones do.

    google = Google(folder)     google.key_file() is a service account's key file for it; google.host its address
"""

import base64
import http.server
import json
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

EMAIL = "builder@project.iam.gserviceaccount.com"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLOUD = "https://www.googleapis.com/auth/cloud-platform"


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Google:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokens = []  # (text, scopes), in their order
        self.refuse = None  # an error that the token endpoint answers with
        self.lives = 3599
        google = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def say(self, status, body, kind="application/json", **headers):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                for k, v in headers.items():
                    self.send_header(k.replace("_", "-"), v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self):
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                try:
                    status, answer = google.token_endpoint(self.path, {k: v[0] for k, v in form.items()})
                except (KeyError, ValueError, subprocess.CalledProcessError) as e:
                    status, answer = 400, {"error": "invalid_request", "error_description": repr(e)}
                self.say(status, json.dumps(answer))

            def do_GET(self):
                if self.headers.get("Metadata-Flavor") != "Google" or self.headers.get("X-Forwarded-For"):
                    self.say(403, "Missing Metadata-Flavor:Google header.", "text/html")
                    return
                url = urllib.parse.urlsplit(self.path)
                answer = google.metadata(url.path.removeprefix("/computeMetadata/v1/"), urllib.parse.parse_qs(url.query))
                self.say(200 if answer else 404, answer or "", "application/text", Metadata_Flavor="Google")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def give(self, scopes):
        text = f"ya29.{len(self.tokens)}-fake-token-{time.monotonic_ns()}"
        self.tokens.append((text, scopes))
        return {"access_token": text, "expires_in": self.lives, "token_type": "Bearer"}

    def token_endpoint(self, path, form):
        if path != "/token":
            return 404, {}
        if self.refuse:
            return 400, self.refuse
        if form["grant_type"] == "refresh_token":
            right = (form["client_id"], form["client_secret"], form["refresh_token"]) == ("id", "s&=", "1//refresh")
            return (200, self.give("")) if right else (401, {"error": "invalid_client"})
        if form["grant_type"] != JWT_BEARER:
            return 400, {"error": "unsupported_grant_type"}
        signed, _, signature = form["assertion"].rpartition(".")
        head, claims = (json.loads(unpadded(part)) for part in signed.split("."))
        (self.folder / "sig").write_bytes(unpadded(signature))
        (self.folder / "signed").write_text(signed)
        subprocess.run(["openssl", "dgst", "-sha256", "-verify", self.folder / "public.pem", "-signature",
                        self.folder / "sig", self.folder / "signed"], check=True, capture_output=True)
        now = time.time()
        if (head != {"alg": "RS256", "typ": "JWT", "kid": "key-1"} or claims["iss"] != EMAIL
                or claims["aud"] != f"http://{self.host}/token" or not claims["iat"] <= now < claims["exp"]
                or claims["exp"] - claims["iat"] > 3600):
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT"}
        return 200, self.give(claims["scope"])

    def metadata(self, path, query):
        account = "instance/service-accounts/default/"
        return {account + "email": lambda: EMAIL, "project/project-id": lambda: "of-the-metadata",
                account + "token": lambda: json.dumps(self.give(" ".join(query.get("scopes", [])))),
                }.get(path, lambda: None)()

    def key_file(self):
        private = self.folder / "private.pem"
        if not private.exists():
            subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private],
                           check=True, capture_output=True)
            subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", self.folder / "public.pem"], check=True)
        path = self.folder / "key.json"
        path.write_text(json.dumps({
            "type": "service_account", "project_id": "project", "private_key_id": "key-1",
            "private_key": private.read_text(), "client_email": EMAIL, "token_uri": f"http://{self.host}/token"}))
        return path

    def user_file(self):
        path = self.folder / "user.json"
        path.write_text(json.dumps({"type": "authorized_user", "client_id": "id", "client_secret": "s&=",
                                    "refresh_token": "1//refresh", "token_uri": f"http://{self.host}/token"}))
        return path
