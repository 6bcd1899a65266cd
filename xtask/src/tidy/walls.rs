//! Which crate may depend on which. A crate exists because it must not import something.

use super::Violation;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Every crate of the workspace, and the crates of the workspace that it may depend on.
const WALLS: [(&str, &[&str]); 14] = [
    ("cloudpal-model", &[]),
    ("cloudpal-net", &["cloudpal-model"]),
    ("cloudpal-compute", &["cloudpal-model"]),
    ("cloudpal-control", &["cloudpal-model", "cloudpal-net", "cloudpal-compute"]),
    ("cloudpal-data", &["cloudpal-model"]),
    ("cloudpal-host", &["cloudpal-model", "cloudpal-net", "cloudpal-data", "cloudpal-compute"]),
    ("cloudpal-api", &["cloudpal-model"]),
    ("cloudpal", &["cloudpal-api", "cloudpal-model"]),
    (
        "cloudpald",
        &[
            "cloudpal-api",
            "cloudpal-model",
            "cloudpal-net",
            "cloudpal-compute",
            "cloudpal-control",
            "cloudpal-data",
            "cloudpal-host",
        ],
    ),
    ("cloudpal-init", &["cloudpal-model"]),
    ("cloudpal-vmm", &["cloudpal-model"]),
    ("sim", &["cloudpal-model", "cloudpal-net", "cloudpal-compute", "cloudpal-control"]),
    (
        "cloudpal-fuzz",
        &["cloudpal-model", "cloudpal-net", "cloudpal-compute", "cloudpal-data", "cloudpal-vmm"],
    ),
    // It runs the programs from outside; of the simulator it asks for the benchmark's memory figure.
    ("xtask", &["sim"]),
];

/// Crates that do no IO, read no clock and draw no randomness: nor may anything that they depend on, at any distance.
const PURE: [&str; 5] =
    ["cloudpal-model", "cloudpal-net", "cloudpal-compute", "cloudpal-control", "cloudpal-data"];

const IMPURE: [&str; 14] = [
    "tokio",
    "mio",
    "async-std",
    "smol",
    "hyper",
    "axum",
    "reqwest",
    "ureq",
    "socket2",
    "nix",
    "rustls",
    "rtnetlink",
    "gotatun",
    "redb",
];

pub fn check(metadata: &Value) -> Vec<Violation> {
    let graph = Graph::read(metadata);
    let mut violations = Vec::new();
    for name in &graph.members {
        let Some((_, allowed)) = WALLS.iter().find(|(member, _)| member == name) else {
            let mend = "say in xtask/src/tidy/walls.rs what it may depend on";
            violations.push(violation(&graph, name, format!("crate `{name}` has no walls"), mend));
            continue;
        };
        let ours = graph.direct(name).filter(|d| graph.members.contains(*d));
        for dependency in ours.filter(|d| !allowed.contains(d)) {
            let what = format!("crate `{name}` may not depend on `{dependency}`");
            let mend = "pass plain data of cloudpal-model, or join the two one floor up";
            violations.push(violation(&graph, name, what, mend));
        }
    }
    for name in PURE {
        for impure in graph.reachable(name).iter().filter(|d| IMPURE.contains(&d.as_str())) {
            let what = format!("crate `{name}` does no IO, but depends on `{impure}`");
            let mend = "declare a port trait, and implement it in edge/host";
            violations.push(violation(&graph, name, what, mend));
        }
    }
    violations
}

fn violation(graph: &Graph, name: &str, what: String, mend: &'static str) -> Violation {
    let manifest = graph.manifests.get(name).map_or("Cargo.toml", String::as_str);
    Violation { file: manifest.to_owned(), line: 1, what, mend }
}

/// Normal dependencies by name; what only tests or build scripts need is left out.
struct Graph {
    members: BTreeSet<String>,
    manifests: BTreeMap<String, String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Graph {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let packages = list(&metadata["packages"]);
        let names: BTreeMap<String, String> =
            packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let name = |id: &Value| names.get(&text(id)).cloned().unwrap_or_default();
        let root = text(&metadata["workspace_root"]) + "/";
        let manifests = packages.iter().map(|p| {
            let path = text(&p["manifest_path"]);
            (text(&p["name"]), path.strip_prefix(&root).unwrap_or(&path).to_owned())
        });
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let normal = list(&node["deps"]).into_iter().filter(|dependency| {
                list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
            });
            let to = normal.map(|dependency| name(&dependency["pkg"]));
            edges.entry(name(&node["id"])).or_default().extend(to);
        }
        let members = list(&metadata["workspace_members"]).iter().map(name).collect();
        Graph { members, manifests: manifests.collect(), edges }
    }

    fn direct(&self, name: &str) -> impl Iterator<Item = &str> {
        self.edges.get(name).into_iter().flatten().map(String::as_str)
    }

    fn reachable(&self, from: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.to_owned()];
        while let Some(name) = open.pop() {
            let fresh = self.direct(&name).filter(|d| seen.insert((*d).to_owned()));
            open.extend(fresh.map(str::to_owned).collect::<Vec<_>>());
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(from: &str, to: &str, then: &str) -> Vec<String> {
        let node = |id: &str, dependency: &str| {
            let deps = json!([{"pkg": dependency, "dep_kinds": [{"kind": null}]}]);
            json!({"id": id, "deps": deps})
        };
        let package =
            |id: &str| json!({"id": id, "name": id, "manifest_path": format!("/w/{id}/Cargo.toml")});
        let metadata = json!({
            "workspace_root": "/w", "workspace_members": ["cloudpal-net", "cloudpal-compute", "cloudpal-model"],
            "packages": [package("cloudpal-net"), package("cloudpal-compute"), package("cloudpal-model"),
                package("tokio"), package("between")],
            "resolve": {"nodes": [node(from, to), node(to, then)]},
        });
        check(&metadata).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn an_open_wall_is_found() {
        assert_eq!(told("cloudpal-net", "cloudpal-model", "serde"), Vec::<String>::new());
        let found = told("cloudpal-net", "cloudpal-compute", "cloudpal-model");
        assert_eq!(found, ["crate `cloudpal-net` may not depend on `cloudpal-compute`"]);
    }

    #[test]
    fn io_is_found_at_a_distance() {
        let found = told("cloudpal-net", "between", "tokio");
        assert_eq!(found, ["crate `cloudpal-net` does no IO, but depends on `tokio`"]);
    }
}
