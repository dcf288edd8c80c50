"""The rights of each part are what the API server's audit log shows it to use: none refused, none unused."""
import json

from lib.shell import check
from lib.warren import NAMESPACE

ORDER = 850
NEEDS = ("audit",)
USER = f"system:serviceaccount:{NAMESPACE}:"
# Rights that nothing in the stories needs, each with the reason to have it.
SPARE = {
    "warren-agent": {("patch", "events.k8s.io", "events", "", ""): "an Event that is said again within minutes is counted in the first one"},
    "warren-control": {},
    "warren-proxy": {},
}


def tell(world):
    used, refused = requests(world)
    check(not refused, "refused by the API server: " + "; ".join(sorted(refused))[:1500])
    said, unused = [], []
    for account in ("warren-agent", "warren-control", "warren-proxy"):
        granted = rights(world, account)
        mine = used.get(account, set())
        spare = SPARE[account]
        for right in sorted(granted):
            if not any(covers(right, u) for u in mine) and right not in spare:
                unused.append(f"{account} may {' '.join(filter(None, right))}")
        said.append(f"{account[7:]} {len(granted)}")
    check(not unused, "rights that were not used: " + "; ".join(unused))
    return "rights granted and used: " + ", ".join(said)


def requests(world):
    """({account: {(verb, group, resource/sub, namespace, name)}}, texts of refused requests) from the audit log."""
    used, refused = {}, set()
    with open(world.cluster.audit_log) as f:
        for line in f:
            e = json.loads(line)
            account = e["user"]["username"].removeprefix(USER)
            o = e.get("objectRef")
            if not o:
                continue
            resource = o["resource"] + ("/" + o["subresource"] if o.get("subresource") else "")
            what = (e["verb"], o.get("apiGroup", ""), resource, o.get("namespace", ""), o.get("name", ""))
            status = e.get("responseStatus", {})
            # Nothing can be made in a namespace that is on its way out; that is no matter of rights.
            if status.get("code") == 403 and "being terminated" not in status.get("message", ""):
                refused.add(f"{account}: " + " ".join(filter(None, what)) + f" ({status.get('message', '')})")
            else:
                used.setdefault(account, set()).add(what)
                if what[0] == "patch" and status.get("code") == 201:
                    used[account].add(("create", *what[1:]))  # applied where nothing was: the API server asks for both rights
    return used, refused


def rights(world, account):
    """What an account is granted, one entry for each verb of each resource: (verb, group, resource, namespace, name)."""
    api = lambda path: world.kube.api("apis/rbac.authorization.k8s.io/v1/" + path)["items"]
    roles = {(r["kind"] if "kind" in r else kind, r["metadata"].get("namespace", ""), r["metadata"]["name"]): r.get("rules") or []
             for kind, path in (("ClusterRole", "clusterroles"), ("Role", "roles")) for r in api(path)}
    found = set()
    for kind, path in (("ClusterRoleBinding", "clusterrolebindings"), ("RoleBinding", "rolebindings")):
        for b in api(path):
            if not any(s["kind"] == "ServiceAccount" and s["name"] == account and s.get("namespace") == NAMESPACE for s in b.get("subjects", [])):
                continue
            space, ref = b["metadata"].get("namespace", ""), b["roleRef"]
            for rule in roles[(ref["kind"], space if ref["kind"] == "Role" else "", ref["name"])]:
                found |= {(v, g, r, space, n) for v in rule["verbs"] for g in rule.get("apiGroups", [""]) for r in rule.get("resources", [])
                          for n in rule.get("resourceNames", [""])}
    return found


def covers(right, use):
    verb, group, resource, namespace, name = right
    return (verb, group, resource) == use[:3] and (not namespace or namespace == use[3]) and (not name or name == use[4] or not use[4])
