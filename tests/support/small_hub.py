"""A Hub on 127.0.0.1 as small as the tests of pushing need, for where ../shared/localhub is absent; all in memory.

Model repositories only: create, preupload, LFS, commit with `parent_commit`, branches, info, tree, ranges, card
validation. Faults and the log of requests are asked for as from localhub, so one fixture serves both.
Started as `python small_hub.py --port N`, it prints HF_ENDPOINT=... and stops on SIGTERM.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, USER = "hf_local", "me"
LFS = (".safetensors", ".png")
LOCK = threading.RLock()
REPOS, BLOBS, FAULTS, LOG = {}, {}, [], []


class Refusal(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Repo:
    def __init__(self, repo_id, private):
        self.id, self.private, self.heads, self.commits, self.titles = repo_id, private, {}, {}, {}
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, title):
        content = json.dumps([self.id, sorted(files.items()), len(self.commits)])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.heads[branch] = files, title, sha
        return sha

    def resolve(self, revision):
        sha = self.heads.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


def keep(content):
    sha = hashlib.sha256(content).hexdigest()
    BLOBS[sha] = content
    return sha


def oid(path, sha):
    """What git and the clients know a file by: its sha256 in LFS, its blob id otherwise."""
    if path.endswith(LFS):
        return sha
    return hashlib.sha1(b"blob %d\0" % len(BLOBS[sha]) + BLOBS[sha]).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_request(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "__admin__":
            return self.admin(parts[1])
        entry = {"method": self.command, "path": url.path, "status": None}
        LOG.append(entry)
        fault = self.fault()
        time.sleep(fault.get("delay_s", 0))
        self.cut = fault.get("truncate_after_bytes")
        if fault.get("close"):
            self.close_connection = True
            return None
        try:
            if "status" in fault:
                raise Refusal(fault["status"], fault.get("message", "made to fail"))
            with LOCK:
                status, headers, content = self.route(parts)
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal), **({"X-Error-Code": refusal.code} if refusal.code else {})}
            status, content = refusal.status, json.dumps({"error": str(refusal)}).encode()
        entry["status"] = status
        return self.answer(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def answer(self, status, headers, content):
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            whole = getattr(self, "cut", None) is None
            self.wfile.write(content if whole else content[: self.cut])
            self.close_connection = self.close_connection or not whole

    def admin(self, what):
        kept = FAULTS if what == "faults" else LOG
        if self.command == "POST":
            given = json.loads(self.body)
            kept += given if isinstance(given, list) else [given]
        elif self.command == "DELETE":
            kept.clear()
        self.answer(200, {}, json.dumps({"requests" if what == "log" else what: kept}).encode())

    def fault(self):
        with LOCK:
            for spec in FAULTS:
                if spec.get("method", self.command) != self.command or spec.get("times", 1) == 0:
                    continue
                # Only a body can be cut short.
                if not re.search(spec.get("path_regex", ""), self.path) or (
                    "truncate_after_bytes" in spec and self.command != "GET"
                ):
                    continue
                if spec.get("skip", 0):
                    spec["skip"] -= 1
                    continue
                if spec.get("times", 1) is not None:
                    spec["times"] = spec.get("times", 1) - 1
                return spec
        return {}

    # ------------------------------------------------------------------------------------------------------- routes

    def route(self, parts):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.user = USER if token else None
        match [self.command, *parts]:
            case ["GET", "api", "whoami-v2"]:
                self.writer()
                return self.json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})
            case ["POST", "api", "validate-yaml"]:
                return self.validate(json.loads(self.body)["content"])
            case ["POST", "api", "repos", "create"]:
                return self.create(json.loads(self.body))
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                self.repo(f"{owner}/{name.removesuffix('.git')}", write=True)
                return self.lfs_batch(json.loads(self.body))
            case ["PUT", "__lfs__", sha]:
                if keep(self.body) != sha:
                    raise Refusal(422, "the content is not what its name says")
                return self.json({})
            case ["GET" | "HEAD", owner, name, "resolve", revision, *path]:
                return self.download(self.repo(f"{owner}/{name}"), revision, "/".join(path))
            case ["POST", "api", "models", owner, name, action, *rest]:
                return getattr(self, f"post_{action}")(self.repo(f"{owner}/{name}", write=True), *rest)
            case ["GET", "api", "models", owner, name, *rest]:
                return self.read(f"{owner}/{name}", rest)
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def json(self, value, status=200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def writer(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")

    def repo(self, repo_id, write=False):
        repo = REPOS.get(repo_id)
        if repo is None or (repo.private and self.user is None):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer()
        return repo

    def validate(self, content):
        found = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            card = yaml.safe_load(found.group(1)) if found else {}
        except yaml.YAMLError as error:
            card = str(error)
        if not isinstance(card, dict):
            return self.json({"errors": [{"message": f"metadata must be a mapping: {card}"}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    def create(self, given):
        self.writer()
        repo_id = f"{given.get('organization') or USER}/{given['name']}"
        if not repo_id.startswith(f"{USER}/"):
            raise Refusal(403, f"You don't have the rights to create a model under {repo_id}")
        if repo_id in REPOS:
            return self.json({"error": "You already created this model repo", "url": self.url(repo_id)}, 409)
        REPOS[repo_id] = Repo(repo_id, given.get("private") is True or given.get("visibility") == "private")
        return self.json({"url": self.url(repo_id), "name": repo_id})

    def url(self, path):
        return f"http://{self.headers['Host']}/{path}"

    def lfs_batch(self, given):
        def entry(row):
            found = {"oid": row["oid"], "size": row["size"]}
            if row["oid"] not in BLOBS:
                found["actions"] = {"upload": {"href": self.url(f"__lfs__/{row['oid']}")}}
            return found

        return self.json({"transfer": "basic", "objects": [entry(row) for row in given["objects"]]})

    def post_preupload(self, repo, revision):
        files = repo.commits[repo.resolve(revision)]
        rows = [
            {
                "path": (path := row["path"]),
                "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": oid(path, files[path]) if path in files else None,
            }
            for row in json.loads(self.body)["files"]
        ]
        return self.json({"files": rows})

    def post_branch(self, repo, name):
        if name in repo.heads:
            return self.json({"error": "Reference already exists"}, 409)
        repo.heads[name] = repo.resolve(json.loads(self.body or b"{}").get("startingPoint") or "main")
        return self.json({})

    def post_commit(self, repo, branch):
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        head, header = repo.resolve(branch), lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            key, row = line["key"], line["value"]
            if key == "file":
                files[row["path"]] = keep(base64.b64decode(row["content"]))
            elif key == "lfsFile" and row["oid"] in BLOBS:
                files[row["path"]] = row["oid"]
            elif key == "deletedFile":
                files.pop(row["path"])
            else:
                raise Refusal(400, f"cannot commit {line}")
        sha = repo.commit(branch, files, header["summary"])
        return self.json({"success": True, "commitOid": sha, "commitUrl": self.url(f"{repo.id}/commit/{sha}")})

    def read(self, repo_id, rest):
        repo = self.repo(repo_id)
        if rest == ["refs"]:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.heads.items()]
            return self.json({"branches": branches, "converts": [], "tags": []})
        if rest[:1] == ["commits"]:  # of all branches
            facts = {"message": "", "authors": [], "date": "2020-01-01T00:00:00.000Z"}
            return self.json([{"id": sha, "title": title, **facts} for sha, title in repo.titles.items()])
        sha = repo.resolve(rest[1] if rest else "main")
        files = repo.commits[sha]
        if rest[:1] == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[2:])
            rows = [
                {"type": "file", "path": path, "size": len(BLOBS[blob]), "oid": oid(path, blob)}
                for path, blob in sorted(files.items())
                if path.startswith(folder)
            ]
            if folder and not rows:
                raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
            return self.json(rows)
        siblings = [{"rfilename": path} for path in sorted(files)]
        facts = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "siblings": siblings}
        return self.json({**facts, "tags": [], "downloads": 0, "likes": 0})

    def download(self, repo, revision, path):
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        content, headers = BLOBS[repo.commits[sha][path]], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{oid(path, repo.commits[sha][path])}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None:
            return 200, headers, content
        start = int(asked.group(1))
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, headers, content[start:]


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    server.daemon_threads = True
    print(f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
