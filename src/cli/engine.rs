//! `cellgate engine`: the networks of a model, built for this machine's GPU by TensorRT.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::shared::{self, rfc3339};
use crate::backbone::ResNet18;
use crate::cuda::Device;
use crate::model::Model;
use crate::operations::{OperationsConfig, log};
use crate::pipeline::backend::{self, ENGINES};
use crate::tensorrt::engines::{self, About, Gpu};
use crate::tensorrt::{BuildOptions, Layer, Runtime};

/// Build and show TensorRT engines.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Build(Build),
    Show(Show),
}

/// Build the networks of a model for this machine's GPU: backbone with projection, and the classifier if there is one.
///
/// Takes seconds to minutes for each network, and the GPU. What was built before of the same network, by the same TensorRT, on the same
/// GPU and with the same options is kept.
///
/// Example: cellgate engine build model.cgm
#[derive(Debug, clap::Args)]
struct Build {
    /// The model.
    #[arg(value_name = "MODEL.cgm")]
    model: PathBuf,
    /// Backbone weights that the model was fitted with, if not the built-in ones.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// The folder of engines.
    #[arg(long, value_name = "FOLDER", default_value = ENGINES)]
    engines: PathBuf,
    /// Most working memory that one layer may take, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = BuildOptions::default().workspace_mib, value_parser = clap::value_parser!(u32).range(1..=65536))]
    workspace_mib: u32,
    /// How long to look for the fastest implementation of each layer.
    #[arg(long, value_name = "0-5", default_value_t = BuildOptions::default().optimisation, value_parser = clap::value_parser!(u8).range(0..=5))]
    optimisation: u8,
    /// Print one JSON object a network.
    #[arg(long)]
    json: bool,
}

/// Say of engines what they were built of, by what and for what; with --layers their layers and the types that these compute in.
///
/// Needs neither TensorRT nor a GPU.
///
/// Example: cellgate engine show --layers
#[derive(Debug, clap::Args)]
struct Show {
    /// The engines; all of the folder if none is named.
    #[arg(value_name = "FILE.engine")]
    files: Vec<PathBuf>,
    /// The folder of engines.
    #[arg(long, value_name = "FOLDER", default_value = ENGINES)]
    engines: PathBuf,
    /// Say the layers, too.
    #[arg(long)]
    layers: bool,
    /// Print one JSON object an engine.
    #[arg(long)]
    json: bool,
}

/// Runs `cellgate engine`.
///
/// # Errors
/// There is no TensorRT or no GPU, the model cannot be read, or an engine is not one.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Build(args) => build(&args),
        Verb::Show(args) => show(&args),
    }
}

fn build(args: &Build) -> anyhow::Result<()> {
    log::start(OperationsConfig::default().log_level)?;
    let model = Model::open(&args.model)?;
    let backbone = match &args.backbone {
        Some(path) => ResNet18::load(path)?,
        None => ResNet18::embedded()?,
    };
    model.check_backbone(backbone.identity())?;
    let sources = backend::sources(&model, &backbone)?;
    let runtime = Runtime::open()?;
    let device = Device::open()?;
    let gpu = Gpu { name: device.name().to_owned(), capability: device.capability() };
    let options = BuildOptions { workspace_mib: args.workspace_mib, optimisation: args.optimisation };
    for source in &sources {
        let started = Instant::now();
        let (about, new) = engines::build(&runtime, source, &gpu, &args.engines, options, shared::now())?;
        let seconds = started.elapsed().as_secs_f64();
        let file = engines::path(&args.engines, source);
        if args.json {
            println!("{}", json!({ "file": file, "built": new, "seconds": seconds, "engine": as_json(&about)? }));
        } else if new {
            println!("{}: built in {seconds:.1} s for {gpu} by TensorRT {}", file.display(), about.tensorrt);
        } else {
            println!("{}: there already, for {gpu} by TensorRT {}", file.display(), about.tensorrt);
        }
    }
    Ok(())
}

fn show(args: &Show) -> anyhow::Result<()> {
    let files = if args.files.is_empty() { engines_in(&args.engines)? } else { args.files.clone() };
    for file in files {
        let (about, layers, plan_bytes) = engines::show(&file)?;
        if args.json {
            let mut line = json!({ "file": file, "engine": as_json(&about)?, "plan-bytes": plan_bytes });
            if args.layers {
                line["layers"] = serde_json::to_value(&layers)?;
            }
            println!("{line}");
        } else {
            print(&file, &about, plan_bytes, args.layers.then_some(&layers));
        }
    }
    Ok(())
}

fn engines_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading the folder of engines {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.extension().is_some_and(|extension| extension == "engine") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// With the hash as people write it.
fn as_json(about: &About) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(about)?;
    value["onnx"] = about.onnx.to_string().into();
    Ok(value)
}

fn print(file: &Path, about: &About, plan_bytes: u64, layers: Option<&Vec<Layer>>) {
    println!("{}", file.display());
    println!("network      {} of ONNX {}", about.kind, about.onnx);
    println!("for          {}, TensorRT {}", about.gpu, about.tensorrt);
    println!("built        {} by cellgate {}", rfc3339(about.created), about.software);
    println!(
        "options      up to {} MiB of working memory a layer, optimisation {}",
        about.options.workspace_mib, about.options.optimisation
    );
    println!("memory       plan {:.1} MB, a run {:.1} MB", plan_bytes as f64 / 1e6, about.working_memory as f64 / 1e6);
    for layer in layers.into_iter().flatten() {
        println!("layer        {} | {} | {} | {}", layer.kind, layer.outputs.join("; "), layer.tactic, layer.name);
    }
}
