"""Send the workspace and the report of this folder to a W&B server; each call makes new ones.

    WANDB_API_KEY=... python apply.py ENTITY [PROJECT]

It needs nothing but Python: take the folder to any machine that reaches the server. Without
WANDB_API_KEY the key is that of `wandb login`, in ~/.netrc. WANDB_BASE_URL names a server of your
own. The project must exist.
"""

import base64
import json
import netrc
import os
import pathlib
import secrets
import sys
import urllib.parse
import urllib.request

MUTATION = """
mutation UpsertView($entityName: String, $projectName: String, $type: String, $name: String,
    $displayName: String, $description: String, $spec: String!) {
  upsertView(input: {entityName: $entityName, projectName: $projectName, type: $type, name: $name,
      displayName: $displayName, description: $description, spec: $spec,
      createdUsing: WANDB_SDK}) {
    view { id name }
  }
}
"""
SERVER = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def key() -> str:
    """The key of this user at the server."""
    host = urllib.parse.urlsplit(SERVER).hostname or ""
    try:
        stored = netrc.netrc().authenticators(host)
    except FileNotFoundError:
        stored = None
    found = os.environ.get("WANDB_API_KEY") or (stored and stored[2])
    if not found:
        sys.exit(f"no key for {host}: set WANDB_API_KEY, or run wandb login")
    return found


def send(variables: dict[str, str]) -> str:
    """The name of the view that the server made."""
    content = json.dumps({"query": MUTATION, "variables": variables}).encode()
    request = urllib.request.Request(f"{SERVER}/graphql", content)
    request.add_header("Content-Type", "application/json")
    login = base64.b64encode(f"api:{key()}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    try:
        with urllib.request.urlopen(request) as reply:
            answer = json.load(reply)
    except OSError as error:
        sys.exit(f"{SERVER} did not take it: {error}")
    if answer.get("errors"):
        sys.exit(f"{SERVER} refused it: {answer['errors']}")
    return answer["data"]["upsertView"]["view"]["name"]


def main(entity: str, project: str = "") -> None:
    """Send both files."""
    folder = pathlib.Path(__file__).parent
    for file, kind in (("workspace.json", "project-view"), ("report.json", "runs")):
        view = json.loads((folder / file).read_text(encoding="utf-8"))
        own = view["project"]["name"] if isinstance(view["project"], dict) else view["project"]
        random = secrets.token_hex(6)[:11]
        name = send(
            {
                "entityName": entity,
                "projectName": project or own,
                "type": kind,
                "name": f"nw-{random}-v" if kind == "project-view" else random,
                "displayName": view["displayName"],
                "description": "",
                "spec": json.dumps(view["spec"]),
            }
        )
        print(f"{file}: {entity}/{project or own}, {view['displayName']} ({name})")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
