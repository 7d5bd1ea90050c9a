//! The bill of materials of a release: each crate that is built into the program, with version, licence and checksum, and what
//! else is, in CycloneDX 1.5.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::command::printed;
use crate::headers;

/// The bill.
pub struct Bill {
    /// Of cellgate.
    pub version: String,
    /// The document, the same bytes for the same sources.
    pub json: String,
}

/// The weights that are compiled in.
const WEIGHTS: &str = "engines/resnet18-el.safetensors";

/// For a release of these sources at `time`, in seconds since 1970.
///
/// # Errors
/// If cargo fails, or says what is not expected.
pub fn write(root: &Path, time: &str) -> anyhow::Result<Bill> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root).args(["metadata", "--locked", "--format-version", "1", "--features", "tensorrt"]);
    cargo.args(["aarch64", "x86_64"].map(|arch| format!("--filter-platform={arch}-unknown-linux-gnu")));
    let metadata: Value =
        serde_json::from_str(&printed(&mut cargo)?).context("reading what cargo says of the crates")?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("reading Cargo.lock")?;
    let compiler = printed(Command::new("rustc").arg("--version"))?;
    let weights = printed(Command::new("sha256sum").current_dir(root).arg(WEIGHTS))?;
    let date = printed(Command::new("date").args(["--utc", "--date", &format!("@{time}"), "+%Y-%m-%dT%H:%M:%SZ"]))?;
    let tools = fs::read_to_string(root.join("cross/requirements.txt")).context("reading cross/requirements.txt")?;
    let mut others = vec![zig(&tools)?];
    others.extend(headers::VERSIONS.map(|(_, version)| tensorrt(version)));
    others.push(json!({
        "type": "machine-learning-model", "bom-ref": WEIGHTS, "name": "resnet18-el", "scope": "required",
        "hashes": [{ "alg": "SHA-256", "content": weights.split(' ').next().unwrap_or_default() }],
        "licenses": [{ "license": { "name": "for evaluation: engines/README.md" } }],
    }));
    bill(&metadata, &lock, &others, compiler.trim(), date.trim())
}

/// Zig, whose C++ library, unwinder and start files are linked in, as the linker's requirements name it.
fn zig(tools: &str) -> anyhow::Result<Value> {
    let lines: Vec<_> = tools.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("ziglang==")).context("no ziglang is required")?;
    let version = lines[at].trim_start_matches("ziglang==").trim_end_matches(" \\");
    let hash = lines.get(at + 1).and_then(|line| line.trim().strip_prefix("--hash=sha256:"));
    let purl = format!("pkg:pypi/ziglang@{version}");
    Ok(json!({
        "type": "library", "bom-ref": purl, "name": "ziglang", "version": version, "purl": purl, "scope": "required",
        "hashes": [{ "alg": "SHA-256", "content": hash.context("ziglang is required without its hash")? }],
        "licenses": [{ "expression": "MIT AND Apache-2.0 WITH LLVM-exception" }],
    }))
}

/// TensorRT's headers, whose inline functions are in the shim. Its libraries are the machine's.
fn tensorrt(version: &str) -> Value {
    json!({
        "type": "library", "bom-ref": format!("tensorrt-headers@{version}"), "name": "tensorrt-headers",
        "version": version, "supplier": { "name": "NVIDIA" }, "scope": "required",
        "licenses": [{ "expression": "Apache-2.0" }],
    })
}

/// `others` is what is built in and is no crate.
fn bill(metadata: &Value, lock: &str, others: &[Value], compiler: &str, date: &str) -> anyhow::Result<Bill> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<_, _> = list(metadata, "packages").into_iter().map(|p| (text(&p, "id"), p)).collect();
    let nodes: BTreeMap<_, _> = list(&metadata["resolve"], "nodes").into_iter().map(|n| (text(&n, "id"), n)).collect();
    let Some(own) = packages.values().find(|package| package["name"] == "cellgate") else {
        bail!("cargo knows no package cellgate here");
    };
    let (shipped, linked) = (reachable(&nodes, &text(own, "id"), true), reachable(&nodes, &text(own, "id"), false));
    let reference = |id: &str| format!("pkg:cargo/{}@{}", text(&packages[id], "name"), text(&packages[id], "version"));
    let checksums = checksums(lock);

    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &shipped {
        let package = packages.get(id).with_context(|| format!("cargo does not describe {id}"))?;
        let (name, version) = (text(package, "name"), text(package, "version"));
        let needs: BTreeSet<_> = edges(&nodes, id, true).filter(|need| shipped.contains(need)).collect();
        let mut needs: Vec<_> = needs.iter().map(|need| reference(need)).collect();
        if package["name"] == "cellgate" {
            needs.extend(others.iter().map(|other| text(other, "bom-ref")));
        } else {
            let mut component = json!({
                "type": "library", "bom-ref": reference(id), "name": name, "version": version, "purl": reference(id),
                // Some crates serve the build alone.
                "scope": if linked.contains(id) { "required" } else { "excluded" },
            });
            if let Some(licence) = package["license"].as_str() {
                // Some say "MIT/Apache-2.0", as was once usual.
                component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
            }
            if let Some(checksum) = checksums.get(&(name, version)) {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            components.push(component);
        }
        dependencies.push(json!({ "ref": reference(id), "dependsOn": needs }));
    }
    for other in others {
        components.push(other.clone());
        dependencies.push(json!({ "ref": other["bom-ref"], "dependsOn": [] }));
    }

    let own_id = text(own, "id");
    let document = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {
            "timestamp": date,
            "component": {
                "type": "application", "bom-ref": reference(&own_id), "name": "cellgate", "version": text(own, "version"),
                "purl": reference(&own_id), "licenses": [{ "expression": text(own, "license") }],
            },
            "properties": [{ "name": "cellgate:compiler", "value": compiler }],
        },
        "components": components, "dependencies": dependencies,
    });
    let json = serde_json::to_string_pretty(&document).context("writing the bill of materials")? + "\n";
    Ok(Bill { version: text(own, "version"), json })
}

/// What a crate needs: for its tests never, for its build if that is asked for.
fn edges<'a>(nodes: &'a BTreeMap<String, Value>, id: &str, build: bool) -> impl Iterator<Item = String> + 'a {
    let needs = nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
    let counts = move |kind: &Value| kind["kind"].is_null() || (build && kind["kind"] == "build");
    needs
        .filter(move |need| need["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(counts)))
        .filter_map(|need| need["pkg"].as_str().map(str::to_owned))
}

fn reachable(nodes: &BTreeMap<String, Value>, from: &str, build: bool) -> BTreeSet<String> {
    let mut found = BTreeSet::from([from.to_owned()]);
    let mut open = vec![from.to_owned()];
    while let Some(id) = open.pop() {
        open.extend(edges(nodes, &id, build).filter(|need| found.insert(need.clone())));
    }
    found
}

/// The SHA-256 of each crate's archive, as Cargo.lock has it.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, licence: &str) -> Value {
        json!({ "id": name, "name": name, "version": "1.2.3", "license": licence })
    }

    fn node(id: &str, deps: &[(&str, Option<&str>)]) -> Value {
        let deps: Vec<_> = deps
            .iter()
            .map(|(id, kind)| json!({ "pkg": id, "dep_kinds": [{ "kind": kind, "target": null }] }))
            .collect();
        json!({ "id": id, "deps": deps })
    }

    fn example() -> Value {
        let metadata = json!({
            "packages": [
                package("cellgate", "MIT"), package("linked", "MIT/Apache-2.0"), package("below", "MIT"),
                package("built", "MIT"), package("tested", "MIT"), package("xtask", "MIT"),
            ],
            "resolve": { "nodes": [
                node("cellgate", &[("linked", None), ("built", Some("build")), ("tested", Some("dev"))]),
                node("linked", &[("below", None)]), node("below", &[]), node("built", &[]), node("tested", &[]),
                node("xtask", &[("tested", None)]),
            ] },
        });
        let lock = "[[package]]\nname = \"below\"\nversion = \"1.2.3\"\nchecksum = \"abc\"\ndependencies = [\n]\n\n\
                    [[package]]\nname = \"cellgate\"\nversion = \"1.2.3\"\n";
        let tools = "# tools\nziglang==0.17.1 \\\n    --hash=sha256:ff00\n";
        let others = [zig(tools).unwrap(), tensorrt("11.4")];
        let bill = bill(&metadata, lock, &others, "rustc 1.0", "2026-11-26T16:00:00Z").unwrap();
        assert_eq!(bill.version, "1.2.3");
        serde_json::from_str(&bill.json).unwrap()
    }

    #[test]
    fn what_is_built_in_is_listed_and_what_is_only_tested_with_is_not() {
        let bill = example();
        let components = bill["components"].as_array().unwrap();
        let listed: Vec<_> =
            components.iter().map(|c| (c["name"].as_str().unwrap(), c["scope"].as_str().unwrap())).collect();
        assert_eq!(
            listed,
            [
                ("below", "required"),
                ("built", "excluded"),
                ("linked", "required"),
                ("ziglang", "required"),
                ("tensorrt-headers", "required")
            ]
        );
        assert_eq!(components[0]["hashes"][0]["content"], "abc");
        assert_eq!(
            (components[3]["version"].as_str(), &components[3]["hashes"][0]["content"]),
            (Some("0.17.1"), &json!("ff00"))
        );
        assert_eq!(components[2]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["metadata"]["component"]["version"], "1.2.3");
    }

    /// What the schema of CycloneDX 1.5 requires, and that every reference leads somewhere.
    #[test]
    fn the_bill_has_what_the_schema_requires() {
        let bill = example();
        assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
        assert!(bill["version"].as_u64().is_some_and(|version| version >= 1));
        let components = bill["components"].as_array().unwrap();
        let all: Vec<_> = components.iter().chain([&bill["metadata"]["component"]]).collect();
        let references: BTreeSet<_> = all.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(references.len(), all.len());
        for component in all {
            assert!(component["type"].is_string() && component["name"].is_string(), "{component}");
        }
        for dependency in bill["dependencies"].as_array().unwrap() {
            let needs = dependency["dependsOn"].as_array().unwrap();
            for reference in needs.iter().chain([&dependency["ref"]]) {
                assert!(references.contains(reference.as_str().unwrap()), "{reference}");
            }
        }
    }
}
