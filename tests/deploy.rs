//! What `deploy/fit/` hands to Kubernetes and Slurm, run here: the manifests' own commands and the scripts themselves.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cellgate::model::{Model, partial};
use serde::Deserialize;
use tempfile::TempDir;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/fit");
/// In the place of a folder of images.
const DATA: &str = "--synth=60";
const SETTINGS: &str = "--synth-size 180 --size 64 --grid 8 -k 8 --holdout 0.4";

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    said(&output)
}

fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The search path with `folder` before everything.
fn path_with(folder: &Path) -> String {
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

/// Whether the model of a folder is of all shards.
#[track_caller]
fn assert_whole(out: &Path, shards: usize) {
    let total: u64 = (0..shards)
        .map(|index| {
            let (header, moments) = partial::read(&out.join(format!("shard-{index}.cgp"))).unwrap();
            assert_eq!((header.shard as usize, header.shards as usize), (index, shards));
            moments.count()
        })
        .sum();
    let model = Model::open(&out.join("model.cgm")).unwrap();
    assert_eq!(model.header().provenance.images, total);
    assert!(model.header().calibration.is_some());
}

#[derive(Deserialize)]
struct Container {
    job: String,
    mode: String,
    completions: usize,
    command: Vec<String>,
    env: BTreeMap<String, String>,
}

#[test]
fn the_kubernetes_jobs_are_valid_and_their_commands_make_a_model() {
    let name = "the_kubernetes_jobs_are_valid_and_their_commands_make_a_model";
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let usable = Command::new(&python).args(["-c", "import kubernetes_validate, yaml"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        return common::skip(name, "python3 -m pip install kubernetes-validate (or name an interpreter in PYTHON)");
    }
    let output = Command::new(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/kubernetes_manifests.py"))
        .arg("1.31.0,1.33.1,1.37.0")
        .args(["kubernetes-map.yaml", "kubernetes-reduce.yaml"].map(|file| format!("{DEPLOY}/{file}")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let containers: Vec<Container> = serde_json::from_slice(&output.stdout).unwrap();
    let [map, reduce] = &containers[..] else { panic!("{} containers", containers.len()) };
    assert_eq!((map.job.as_str(), reduce.job.as_str()), ("cellgate-fit-map", "cellgate-fit-reduce"));
    assert_eq!((map.mode.as_str(), reduce.mode.as_str()), ("Indexed", "NonIndexed"));
    assert_eq!(map.env["SHARDS"], map.completions.to_string());

    // The program as the image would have it, and the volume.
    let (bin, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cellgate"), bin.path().join("cellgate")).unwrap();
    let pod = |container: &Container, index: Option<usize>| {
        let mut command = Command::new(&container.command[0]);
        command.args(&container.command[1..]).envs(&container.env).env("PATH", path_with(bin.path()));
        command.env("OUT", out.path()).env("DATA", DATA).env("SETTINGS", SETTINGS);
        index.map(|index| command.env("JOB_COMPLETION_INDEX", index.to_string()));
        command
    };
    let early = pod(reduce, None).output().unwrap();
    assert!(!early.status.success(), "there was nothing to merge: {}", said(&early));
    for index in 0..map.completions {
        succeeds(&mut pod(map, Some(index)));
    }
    // A pod that is made again finds its work done.
    assert!(succeeds(&mut pod(map, Some(3))).contains("going on from image"));
    succeeds(&mut pod(reduce, None));
    assert_whole(out.path(), map.completions);
}

/// `sbatch` and `scontrol` that do at once what a cluster does in time, and write down what they were asked for.
struct Cluster {
    bin: TempDir,
    out: TempDir,
}

impl Cluster {
    /// Nothing if there is no bash.
    fn new(test: &str) -> Option<Self> {
        if !Command::new("bash").arg("--version").output().is_ok_and(|output| output.status.success()) {
            common::skip(test, "bash");
            return None;
        }
        let (bin, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        program(
            bin.path(),
            "sbatch",
            r#"#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$OUT/sbatch.log"
last=0 script=${!#} number=$((41 + $(wc -l <"$OUT/sbatch.log") - 1))
for option; do
    case $option in --array=0-*) last=${option#--array=0-} array=1 ;; esac
done
for ((task = 0; task <= last; task++)); do
    if [ -n "${array:-}" ]; then
        export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task
    fi
    SLURM_CPUS_PER_TASK=1 bash "$script" >>"$OUT/output.log" 2>&1
done
echo "$number;cluster"
"#,
        );
        program(bin.path(), "scontrol", "#!/bin/sh\necho \"$*\" >>\"$OUT/scontrol.log\"\n");
        Some(Self { bin, out })
    }

    fn out(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(format!("{DEPLOY}/{name}")).env("PATH", path_with(self.bin.path())).env("OUT", self.out.path());
        command.env("CELLGATE", env!("CARGO_BIN_EXE_cellgate"));
        command
    }
}

#[test]
fn the_slurm_scripts_fit_every_shard_and_merge_them_behind_it() {
    let Some(cluster) = Cluster::new("the_slurm_scripts_fit_every_shard_and_merge_them_behind_it") else { return };
    let mut submit = cluster.script("slurm-submit.sh");
    submit.arg(DATA).arg(cluster.out.path()).arg("8").args(SETTINGS.split(' '));
    let said = succeeds(&mut submit);
    assert!(said.contains("shards: job 41, merge: job 42"), "{said}");
    let asked = std::fs::read_to_string(cluster.out("sbatch.log")).unwrap();
    let [map, reduce] = &asked.lines().collect::<Vec<_>>()[..] else { panic!("{asked}") };
    assert!(map.contains("--array=0-7 ") && map.ends_with("slurm-map.sh"), "{map}");
    assert!(reduce.contains("--dependency=afterok:41 ") && reduce.ends_with("slurm-reduce.sh"), "{reduce}");
    assert_whole(cluster.out.path(), 8);
    assert!(!cluster.out("scontrol.log").exists());
}

#[test]
fn a_slurm_task_that_runs_out_of_time_keeps_what_it_has_and_queues_again() {
    let Some(cluster) = Cluster::new("a_slurm_task_that_runs_out_of_time_keeps_what_it_has_and_queues_again") else {
        return;
    };
    let task = |settings: &str| {
        let mut command = cluster.script("slurm-map.sh");
        command.env("DATA", DATA).env("SHARDS", "8").env("SETTINGS", settings);
        command.envs([("SLURM_ARRAY_JOB_ID", "41"), ("SLURM_ARRAY_TASK_ID", "2"), ("SLURM_CPUS_PER_TASK", "1")]);
        command
    };
    // Long enough to be met at work: some thousands of images.
    let (partial_fit, settings) = (cluster.out("shard-2.cgp"), format!("{SETTINGS} --copies 1000 --keep-every 0"));
    let mut child = task(&settings).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let patience = Instant::now();
    while !partial_fit.exists() {
        assert!(patience.elapsed() < Duration::from_secs(120), "nothing was kept");
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    succeeds(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(std::fs::read_to_string(cluster.out("scontrol.log")).unwrap(), "requeue 41_2\n");
    let (header, moments) = partial::read(&partial_fit).unwrap();
    assert!(header.done < header.total && moments.count() == header.done, "{} of {}", header.done, header.total);
    // A failure of the fit's own is not queued again.
    let output = task("--no-such-setting").output().unwrap();
    assert!(!output.status.success() && said(&output).contains("--no-such-setting"), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(cluster.out("scontrol.log")).unwrap(), "requeue 41_2\n");
}
